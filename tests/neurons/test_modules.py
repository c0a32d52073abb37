"""snnTorch's classes as `neuron.module`: each trains with the same record and resumes, or is refused with a way out."""

from pathlib import Path
from typing import Any

import pytest
import snntorch
import torch
from composing import compose_words
from safetensors.torch import load_file
from torch import nn

from snnexp.analysis.activity import ActivityMeter
from snnexp.analysis.diagnosis import diagnose
from snnexp.config import Config, NeuronConf, SurrogateConf
from snnexp.errors import ConfigError
from snnexp.experiment import assemble
from snnexp.neurons.layer import Within
from snnexp.neurons.module_layer import ModuleLayer, build_layer
from snnexp.neurons.modules import REFUSED
from snnexp.tasks.train import train
from snnexp.training.optimisation import build_optimizer
from snnexp.training.passes import train_pass
from snnexp.training.table import layer_table
from snnexp.validation import validate

TINY = ("device=cpu", "tracking=off", "trainer.plots=false", "dataset.limit_train=40", "dataset.limit_val=20")
TINY += ("dataset.limit_test=20", "dataset.num_steps=4")
FLAT, MAPS = "model.spec=FC8-SN-FC-SN", "model.spec=c2k3-SN-MP4-FC-SN"
# class -> neuron.kwargs, and a network that it fits
WORKING: dict[str, tuple[dict[str, Any], str]] = {
    "Leaky": ({"beta": 0.9}, MAPS),
    "Synaptic": ({"alpha": 0.9, "beta": 0.8, "learn_alpha": True, "threshold": 1, "learn_threshold": True}, MAPS),
    "Alpha": ({"alpha": 0.9, "beta": 0.8, "learn_beta": True}, MAPS),
    "Lapicque": ({"R": 5.1, "C": 1}, MAPS),
    "RLeaky": ({"beta": 0.9, "kernel_size": 3}, MAPS),
    "RSynaptic": ({"alpha": 0.9, "beta": 0.8, "all_to_all": False}, MAPS),
    "SLSTM": ({"threshold": 0.1}, FLAT),
}


def composed(*overrides: str) -> tuple[Config, Any]:
    cfg = compose_words(*TINY, *overrides)
    return validate(cfg), cfg


def typed(kwargs: dict[str, Any]) -> str:
    return "neuron.kwargs={" + ", ".join(f"{k}: {str(v).lower()}" for k, v in kwargs.items()) + "}"


def layer(
    name: str, shape: tuple[int, ...] = (4,), surrogate: SurrogateConf | None = None, **kwargs: Any
) -> ModuleLayer:
    conf = NeuronConf("test", module=f"snntorch.{name}", kwargs=kwargs, surrogate=surrogate or SurrogateConf())
    found = build_layer(conf, shape, "sn1")
    assert isinstance(found, ModuleLayer)
    return found


def test_every_class_of_snntorch_is_known():
    neurons = {n for n, c in vars(snntorch).items() if isinstance(c, type) and issubclass(c, nn.Module)}
    assert neurons == {*WORKING, "SConv2dLSTM", *(kind.__name__ for kind in REFUSED)}


@pytest.mark.parametrize("name", WORKING)
def test_it_trains_and_is_counted(name):
    kwargs, spec = WORKING[name]
    conf, _ = composed(f"neuron.module=snntorch.{name}", typed(kwargs), spec, "model.gain=3")
    experiment = assemble(conf)
    network, meter = experiment.network, ActivityMeter(experiment.network)
    before = {key: value.clone() for key, value in network.neurons["sn1"].state_dict().items()}
    train_pass(experiment, build_optimizer(conf.optimizer, network.parameter_groups()), 1, meter)
    metrics = meter.metrics("train")
    assert 0 <= metrics["train/dead_fraction/sn1"] < 1 and 0 < metrics["train/firing_rate/sn1"] < 1
    moved = {key for key, value in network.neurons["sn1"].state_dict().items() if not torch.equal(value, before[key])}
    assert moved >= {f"module.{key}" for key, p in network.neurons["sn1"].module.named_parameters() if p.numel() == 1}
    assert conf.neuron.called == f"snntorch.{name}"
    table = layer_table(network, {key.replace("train/", "test/"): value for key, value in metrics.items()}, 120)
    beta = network.neurons["sn1"].effective("beta")
    assert table[2].split()[-1] == ("-" if name == "SLSTM" else f"{beta.item():.3f}")


def test_an_interrupted_run_of_synaptic_ends_with_the_same_bits(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pull.py").write_text(
        "from pathlib import Path\n\n\nclass Plug:\n    def on_epoch(self, context):\n"
        "        if context.epoch == 1 and Path('pull').exists():\n            raise ValueError('pulled')\n"
    )
    words = ("neuron.module=snntorch.Synaptic", typed(WORKING["Synaptic"][0]), FLAT, "trainer.callbacks=[pull.py:Plug]")

    def run(folder: str) -> Path:
        train(*composed(*words, f"state_dir={tmp_path / folder}", "trainer.max_epochs=3"))
        (last,) = (tmp_path / folder).glob("*/*/last.safetensors")
        return last

    whole = run("whole")
    (tmp_path / "pull").touch()
    with pytest.raises(ConfigError, match="pulled"):
        run("cut")
    (tmp_path / "pull").unlink()
    ours, theirs = load_file(run("cut")), load_file(whole)
    assert "sn1.module.alpha" in ours and ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert '"threshold/mean/sn1"' in (whole.parent / "metrics.jsonl").read_text()


def test_a_recurrent_class_gets_its_own_spikes():
    ours = layer("RLeaky", beta=0.5, threshold=0.5)
    x = torch.rand(8, 2, 4, generator=torch.Generator().manual_seed(0))
    theirs, spk, mem, spks = ours.module, torch.zeros(2, 4), torch.zeros(2, 4), []
    for x_t in x:
        drive = 0.5 * mem + x_t + theirs.recurrent(spk) - 0.5 * (mem > 0.5).float()
        mem, spk = drive, (drive > 0.5).float()
        spks.append(spk)
    out = ours(x)
    assert torch.equal(out.spk, torch.stack(spks)) and 0.1 < out.spk.mean() < 0.9
    halves = [ours(x[:3]), ours(x[3:], ours(x[:3]).state)]
    assert torch.equal(torch.cat([half.spk for half in halves]), out.spk)


def test_sizes_come_from_the_layer():
    assert layer("SLSTM", (6,)).module.hidden_size == 6
    assert layer("RLeaky", (3, 4, 4), beta=0.9, kernel_size=3).module.recurrent.in_channels == 3
    assert layer("RLeaky", (6,), beta=0.9, kernel_size=3).module.recurrent.in_features == 6
    maps = layer("SConv2dLSTM", (3, 4, 4), kernel_size=3)
    assert maps(torch.rand(2, 5, 3, 4, 4)).spk.shape == (2, 5, 3, 4, 4)


def test_the_surrogate_is_the_configured_one():
    x = torch.full((1, 1, 4), 0.5)
    grads = []
    for surrogate in (SurrogateConf(), SurrogateConf("fast_sigmoid", slope=10), SurrogateConf("triangular")):
        given = x.clone().requires_grad_()
        layer("Leaky", surrogate=surrogate, beta=0.9)(given).spk.sum().backward()
        grads.append(float(given.grad[0, 0, 0]))
    atan = 1 / (1 + (torch.pi * 0.5) ** 2)
    assert grads == pytest.approx([atan, 1 / 36, 0.0])
    ties = layer("Leaky", surrogate=SurrogateConf("triangular"), beta=0.9)
    assert not ties(torch.ones(1, 1, 4)).spk.any()  # snnTorch's rule: above the threshold only


def test_graded_spikes_count_as_one():
    run = layer("Leaky", beta=0.5, graded_spikes_factor=2.0)(
        torch.full((3, 1, 4), 1.5), within=Within(None, True, True)
    )
    assert run.spk.max() == 2 and run.counts.max() == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["neuron.module=snntorch.LeakyParallel"], "all time steps at once .* neuron=fixed neuron.reset=none"),
        (["neuron.module=snntorch.StateLeaky"], "all time steps at once .*model.module"),
        (["neuron.module=snntorch.AssociativeLeaky"], "all time steps at once"),
        (["neuron.module=snntorch.DeltaLeaky"], "state is a pair .* neuron.equation"),
        (["neuron.module=snntorch.LIF"], "base of other classes"),
        (["neuron.module=snntorch.SLSTM", MAPS], r"sn1 has neurons \[2, 8, 8\], .* takes no maps. .*FC64-SN"),
        (["neuron.module=snntorch.SConv2dLSTM", "neuron.kwargs={kernel_size: 3}", MAPS], r"sn2 .*model.module"),
        (["neuron.module=snntorch.Synaptic"], "missing 2 required positional arguments: 'alpha' and 'beta'"),
        (["neuron.module=snntorch.Alpha", typed({"alpha": 0.9, "beta": 0.8, "learn_alpha": True})], "learn_beta works"),
        (["neuron.module=snntorch.Lapicque", typed({"beta": 0.9, "learn_beta": True})], "Take snntorch.Leaky"),
        (["neuron.module=snntorch.Leaky", "neuron.kwargs={beta: 0.9, spike_grad: atan}"], "neuron.surrogate.name"),
        (["neuron.module=snntorch.Leaky", "neuron.beta=0.5"], "Say neuron.kwargs.beta"),
        (["neuron.module=snntorch.Leaky", "neuron.threshold=2"], "Say neuron.kwargs.threshold"),
        ([f"neuron.module={__name__}:Broken"], r"failed in layer sn1 .*test_modules.py, line \d+: .return x / None"),
        ([f"neuron.module={__name__}:Flat"], r"it returned \[1\]"),
        ([f"neuron.module={__name__}:Flat", "neuron.surrogate.name=sigmoid"], "takes no spike_grad"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_with_a_way_out(words, message):
    with pytest.raises(ConfigError, match=message):
        assemble(composed(FLAT, *words)[0])


class Broken(nn.Module):
    def forward(self, x):
        return x / None


class Flat(nn.Module):
    def forward(self, x):
        return x.flatten()[:1]


DELTA = """
def step(x, mem, spk, *, spike, beta, threshold):
    new = beta * mem + x
    return new, spike(abs(new - mem) - threshold)
"""


def test_the_ways_out_are_ways_out(tmp_path):
    """DeltaLeaky as an equation spikes as snnTorch's does; an integrator without reset is built; as is SConv2dLSTM."""
    (tmp_path / "delta.py").write_text(DELTA)
    conf = NeuronConf("test", equation=f"{tmp_path / 'delta.py'}:step", beta=0.8, threshold=0.3, engine="reference")
    x = torch.rand(6, 2, 4, generator=torch.Generator().manual_seed(0))
    theirs, state, spks = snntorch.DeltaLeaky(0.3, 0.8), (None, None), []
    for x_t in x:
        spk, state = theirs(x_t, state)
        spks.append(spk)
    snntorch.SpikingNeuron.instances.pop()
    assert torch.equal(build_layer(conf, (4,), "sn1")(x).spk, torch.stack(spks))
    assert (
        assemble(composed("neuron=fixed", "neuron.reset=none", FLAT)[0]).network.neurons["sn1"].dynamics.reset == "none"
    )
    words = ("neuron.module=snntorch.SConv2dLSTM", "neuron.kwargs={kernel_size: 3}", f"model.module={__name__}:Net")
    network = assemble(composed(*words, "decoder=membrane", "decoder.integrate=false")[0]).network
    assert network(torch.rand(2, 1, 1, 8, 8)).mem.shape == (2, 1, 10)


class Net(nn.Module):
    """A layer of maps, and a plain layer at the end."""

    def __init__(self, num_classes, neurons):
        super().__init__()
        self.sn1, self.out = neurons((1, 8, 8), "sn1"), nn.Linear(64, num_classes)

    def forward(self, x):
        out = self.out(self.sn1(x).spk.flatten(2))
        return out, out


class Silent(nn.Module):
    """Neurons without a threshold that never fire."""

    def forward(self, x):
        return 0 * x


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        (["neuron.module=snntorch.Leaky", "neuron.kwargs={beta: 0.9, threshold: 50}"], "neuron.kwargs.threshold="),
        ([f"neuron.module={__name__}:Silent"], "fired in 40 samples. Try seed=1"),
    ],
)
def test_the_diagnosis_speaks_of_what_they_have(words, advice):
    conf, _ = composed(FLAT, *words)
    experiment = assemble(conf)
    meter = ActivityMeter(experiment.network)
    train_pass(experiment, build_optimizer(conf.optimizer, experiment.network.parameter_groups()), 1, meter)
    meter.metrics("train")
    (text,) = [text for key, text in diagnose(experiment.network, meter, conf) if key == "sn1 dead"]
    assert advice in text and "nan" not in text
