"""model.module: a user's network is trained, counted, recorded and restored like one of ours."""

import re
import shlex
from typing import Any

import pytest
import torch
from composing import compose_words
from torch import nn

from snnexp.analysis.activity import ActivityMeter
from snnexp.analysis.synops import SynopsMeter
from snnexp.any_run import for_any_run
from snnexp.config import Config
from snnexp.errors import ConfigError
from snnexp.experiment import assemble
from snnexp.models.observer import Observers
from snnexp.tasks.evaluate import evaluate
from snnexp.tasks.inspect import inspect
from snnexp.tasks.train import train
from snnexp.validation import validate

MINE = '''
import torch
from torch import nn


class Net(nn.Module):
    """8x8 digits: two layers and a skip connection around the second."""

    def __init__(self, shape, num_classes, neurons, width=16):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(shape[0], 4, 3, padding="same"), nn.BatchNorm2d(4)
        self.sn1 = neurons((4, *shape[1:]), "sn1")
        self.fc1, self.sn2 = nn.Linear(4 * shape[1] * shape[2], width), neurons(width, "sn2")
        self.fc2, self.sn3 = nn.Linear(width, width), neurons((width,), "sn3")
        self.fc3, self.sn4 = nn.Linear(width, num_classes), neurons((num_classes,), "sn4")

    def forward(self, x):
        t, b = x.shape[:2]
        maps = self.norm(self.conv(x.flatten(0, 1))).unflatten(0, (t, b))
        spk = self.sn2(self.fc1(self.sn1(maps).spk.flatten(2))).spk
        spk = spk + self.sn3(self.fc2(spk)).spk
        return self.sn4(self.fc3(spk))


class Same(nn.Module):
    """The digits' default network, 64-64-10 as a module; `steps`: one step after the other."""

    def __init__(self, neurons, steps=False):
        super().__init__()
        self.fc1, self.sn1 = nn.Linear(64, 12), neurons(12, "sn1")
        self.fc2, self.sn2 = nn.Linear(12, 10), neurons(10, "sn2")
        self.steps = steps

    def forward(self, x):
        x = x.flatten(2)
        if not self.steps:
            return self.sn2(self.fc2(self.sn1(self.fc1(x)).spk))
        out, a, b = [], None, None
        for x_t in x:
            one = self.sn1(self.fc1(x_t).unsqueeze(0), a)
            two = self.sn2(self.fc2(one.spk), b)
            a, b = one.state, two.state
            out.append(two[:2])
        return tuple(torch.cat(parts) for parts in zip(*out))


class Blind(nn.Module):
    def forward(self, x):
        return x.flatten(2)[..., :10]


class Twice(nn.Module):
    def __init__(self, neurons):
        super().__init__()
        self.a, self.b = neurons(3, "sn"), neurons(3, "sn")


class Short(Same):
    def forward(self, x):
        return super().forward(x)[0].mean(0)


class Fails(Same):
    def forward(self, x):
        return self.fc2(self.fc1(x))
'''
QUICK = (
    *("device=cpu", "tracking=off", "trainer.plots=false", "dataset.limit_train=40", "dataset.limit_val=20"),
    *("dataset.limit_test=20", "dataset.num_steps=3", "trainer.max_epochs=1"),
)


def composed(*overrides: str) -> tuple[Config, Any]:
    cfg = compose_words(*for_any_run([*QUICK, *overrides]))
    return validate(cfg), cfg


def measured(*words: str) -> tuple[torch.Tensor, dict[str, float]]:
    """Loss's gradient, and the metrics of activity and synops, of one batch."""
    conf, _ = composed(*words)
    experiment = assemble(conf)
    network = experiment.network
    activity, synops = ActivityMeter(network), SynopsMeter(network)
    activity.reset() if hasattr(activity, "reset") else None
    batch = next(experiment.source.batches("train"))
    output = experiment.forward(batch, Observers([activity, synops]))
    experiment.loss(output, batch.labels).backward()
    grads = torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])
    return grads, synops.metrics("train")


@pytest.mark.parametrize("steps", ["false", "true"])
def test_the_same_network_as_a_module_has_the_same_numbers(mine, steps):
    """Weights are drawn in the same order, so all numbers are those of the notation."""
    plain, counts = measured("model.spec=FC12-SN-FC-SN", "encoder=rate")
    own, counted = measured("model.module=mine.py:Same", f"model.kwargs={{steps: {steps}}}", "encoder=rate")
    torch.testing.assert_close(own, plain, rtol=1e-5, atol=1e-7)
    assert counted == pytest.approx(counts)


def test_a_residual_module_trains_is_counted_and_comes_back(mine, capsys):
    words = ("model=mine.py:Net", "model.kwargs={width: 12}", "neuron=plif", f"state_dir={mine}/runs")
    conf, cfg = composed(*words)
    assert conf.model.name == "own" and conf.model.module == "mine.py:Net"
    inspect(conf, cfg)
    shown = capsys.readouterr().out
    assert "mine.py:Net" in shown and "sn4" in shown and "4x8x8" in shown
    accuracy = train(conf, cfg)
    assert accuracy is not None
    printed = re.search(r"^again: *(?:\n *)?(.*)$", capsys.readouterr().out, re.M)
    assert printed is not None
    said = shlex.split(printed[1])
    (record,) = mine.glob("runs/*/*/record.json")
    metrics = (record.parent / "metrics.jsonl").read_text()
    for name in ("val/dead_fraction/sn1", "val/firing_rate/sn4", "beta/mean/sn3", "test/synops", "test/macs"):
        assert f'"{name}"' in metrics, name
    run_id = f"run_id={record.parent.parent.name}/001"
    about = ("task=evaluate", run_id, f"state_dir={mine}/runs")
    conf, cfg = composed(*about)
    with pytest.raises(ConfigError, match=r"model.module=mine.py:Net.*trust_code=true"):
        evaluate(conf, cfg)
    assert said[1:] == [about[0], run_id, "trust_code=true"]  # the folder of the states is the usual one
    conf, cfg = composed(*said[1:])
    assert 0 <= evaluate(conf, cfg) <= 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model.module=mine.py:Blind"], "mine.py:Blind: it has no layer of neurons: make them with .* `neurons`"),
        (["model.module=mine.py:Twice"], "two layers of neurons are called sn"),
        (["model.module=mine.py:Short"], r"shape \[T, B, classes\] = \[3, 1, 10\]; it returned \[1, 10\]"),
        (["model.module=mine.py:Fails"], r"mine.py, line 65: `return self.fc2.*`: RuntimeError"),
        (["model.module=mine.py:Net", "model.kwargs={wide: 3}"], "it may take shape, num_classes.*model.kwargs has: "),
        (["model.module=mine.py:nn"], "this is no class but module"),
        (["model.module=mine.py:Net", "model.gain=2"], "model.gain: mine.py:Net is built by its own code"),
        (["model.module=mine.py:Net", "model=mlp"], "model.module with model=mlp: .* Use model=own"),
        (["model.module=mine.py:Net", "decoder=membrane"], "decoder.integrate=true: your network's last layer"),
        (["model.module=mine.py:Net", "trainer.checkpoint_steps=2"], "runs all time steps by itself"),
        (["model.kwargs={width: 3}"], "only a network of your own takes these"),
        (["model=own"], "own"),
    ],
)
def test_what_is_wrong_with_a_module_is_said(mine, words, message):
    with pytest.raises(ConfigError, match=message):
        assemble(composed(*words)[0])


def test_synaptic_operations_of_grouped_and_dilated_convolutions(mine):
    """Against counting by hand: ones everywhere, so each input reaches as many outputs as the dense product says."""
    from snnexp.analysis.synops import _Connection

    for conv in (nn.Conv2d(4, 6, 3, groups=2, padding=1), nn.Conv2d(2, 3, 3, dilation=2, stride=2, padding=2)):
        x = torch.ones(1, conv.in_channels, 9, 8)
        connection = _Connection(conv, x.shape[1:], x.device)
        connection.add(x, 1)
        with torch.no_grad():
            conv.weight.fill_(1.0)
            reached = nn.functional.conv2d(x, conv.weight, None, conv.stride, conv.padding, conv.dilation, conv.groups)
        assert connection.operations()[:2] == (float(reached.sum()), float(reached.sum()))
