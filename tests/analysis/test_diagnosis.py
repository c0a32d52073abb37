"""The diagnosis looks at the input first, pairs numbers of the same neuron, and what it proposes works."""

from __future__ import annotations

import re
from collections.abc import Iterable

import pytest
import torch
from composing import compose_words

from snnexp.analysis.activity import ActivityMeter
from snnexp.analysis.diagnosis import Finding, diagnose
from snnexp.config import Config, DecoderConf, ModelConf, NeuronConf, OptimizerConf
from snnexp.data.base import DataInfo
from snnexp.experiment import assemble
from snnexp.models.network import Network, build_network
from snnexp.training.optimisation import build_optimizer
from snnexp.training.passes import evaluation_pass, train_pass
from snnexp.validation import validate

# --- in training: a fault is planted, the advice is read off the line and followed, and the fault is gone ---

SMALL = {
    "device": "cpu",
    "neuron.engine": "reference",
    "model.spec": "FC32-SN-FC-SN",
    "neuron.threshold": "0.3",
    "dataset.limit_train": "192",
    "dataset.limit_val": "96",
    "dataset.num_steps": "8",
}
Overrides = dict[str, str]


def configuration(overrides: Overrides) -> Config:
    return validate(compose_words(*[f"{key}={value}" for key, value in overrides.items()]))


def train(overrides: Overrides, epochs: int = 2) -> dict[str, str]:
    """Findings about the validation pass after some epochs."""
    conf = configuration(overrides)
    experiment = assemble(conf)
    optimizer = build_optimizer(conf.optimizer, experiment.network.parameter_groups())
    meter = ActivityMeter(experiment.network)
    for epoch in range(1, epochs + 1):
        train_pass(experiment, optimizer, epoch, meter)
    meter.reset()
    evaluation_pass(experiment, "val", meter, epochs)
    meter.metrics("val")
    return dict(diagnose(experiment.network, meter, conf))


def proposals(text: str) -> list[tuple[str, str, set[str]]]:
    """Key, value, and keys to leave out, of everything that a line proposes."""
    _, _, advice = text.partition("Try ")
    found = re.findall(r"([a-z_.]+)=([\w+\-.]*\w)((?: without [a-z_.]+(?: and [a-z_.]+)?)?)", advice)
    return [(key, value, set(re.findall(r"[a-z_]+\.[a-z_.]+", without.rstrip(".")))) for key, value, without in found]


def follow(overrides: Overrides, key: str, value: str, without: Iterable[str]) -> Overrides:
    return {k: v for k, v in overrides.items() if k not in without} | {key: value}


def slow(**overrides: str) -> object:
    return pytest.param(overrides, marks=pytest.mark.slow)


PLANTED: list[object] = [
    {"neuron.threshold": "50"},
    {"model.gain": "0.01"},
    {"optimizer.lr": "100"},
    {"neuron": "rouser", "neuron.threshold": "1.25", "optimizer.lr_threshold": "5"},
    {"neuron": "ltmd", "neuron.threshold": "0.46", "optimizer.lr_threshold": "1"},
    {"model.spec": "SN-FC-SN", "neuron.threshold": "0"},
    {"encoder": "delta", "encoder.threshold": "5"},
    slow(**{"model.spec": "SN-FC-SN", "neuron.threshold": "0", "neuron.reset": "subtract"}),
    slow(**{"model.spec": "SN-FC-SN", "neuron.threshold": "0", "neuron.reset": "none"}),
    slow(**{"model.spec": "RFC32-SN-FC-SN", "neuron.threshold": "50"}),
    slow(**{"model.spec": "FC32-BN-SN-FC-SN", "neuron.threshold": "50"}),
    slow(**{"decoder": "membrane", "neuron.threshold": "30"}),
    slow(**{"neuron": "plif", "neuron.threshold": "20"}),
    slow(**{"neuron": "ttfs", "neuron.threshold": "500"}),
    slow(**{"neuron": "dietsnn", "neuron.threshold": "1", "optimizer.lr_threshold": "1"}),
    slow(**{"neuron": "rouser", "neuron.threshold": "80"}),
    slow(**{
        "neuron": "rouser", "neuron.threshold": "1.25", "neuron.threshold_per": "channel", "optimizer.lr_threshold": "3"
    }),
    slow(**{"encoder": "rate", "encoder.gain": "0.001"}),
    slow(**{"encoder": "rate", "encoder.offset": "-1"}),
]  # fmt: skip


def test_the_small_network_has_no_fault() -> None:
    assert train(SMALL) == {}


@pytest.mark.parametrize("fault", PLANTED, ids=lambda fault: " ".join(f"{k}={v}" for k, v in fault.items()))
def test_every_proposal_ends_the_fault(fault: Overrides) -> None:
    overrides = SMALL | fault
    findings = train(overrides)
    assert findings, "this fault is none"
    key, text = next(iter(findings.items()))
    found = proposals(text)
    assert found, text
    for proposal in found:
        assert key not in train(follow(overrides, *proposal)), (proposal, text)
    for other in list(findings.values())[1:]:
        assert re.search(r"Start with (the input|sn\d), before it\.$|Try [a-z]", other), other


# --- on a given input: facts, words, and who comes first ---


def conf_of(**neuron: object) -> Config:
    return Config(neuron=NeuronConf(name="n", engine="reference", **neuron), optimizer=OptimizerConf(name="adam"))  # type: ignore[arg-type]


def build(conf: Config, spec: str, shape: tuple[int, int, int] = (1, 5, 5), steps: int = 6, **model: object) -> Network:
    info = DataInfo("made", "events", shape, steps, tuple("abcde"), {}, {}, complete=True, split_hash="")
    torch.manual_seed(0)
    return build_network(ModelConf(name="m", spec=spec, **model), conf.neuron, DecoderConf(name="rate"), info)  # type: ignore[arg-type]


def examine(network: Network, conf: Config, frames: torch.Tensor) -> dict[str, str]:
    meter = ActivityMeter(network)
    network(frames, meter)
    meter.metrics("val")
    return dict(diagnose(network, meter, conf))


def noise(samples: int = 8) -> torch.Tensor:
    return (torch.rand(6, samples, 1, 5, 5, generator=torch.Generator().manual_seed(1)) < 0.3).float()


def run(threshold: float, gain: float = 1.0, spec: str = "FC60-SN-FC-SN", **neuron: object) -> dict[str, str]:
    conf = conf_of(beta=0.9, threshold=threshold, **neuron)
    return examine(build(conf, spec, gain=gain), conf, noise())


def test_a_healthy_network_gets_no_words() -> None:
    assert run(0.3) == {}


def test_a_dead_layer_is_named_with_its_numbers() -> None:
    found = run(50.0)
    assert list(found) == ["sn1 dead", "sn2 dead"]
    assert found["sn1 dead"].startswith("sn1: 100 % of its 60 neurons never fired in 8 samples. The one nearest to ")
    assert "; its threshold is 50. Try neuron.threshold=" in found["sn1 dead"]
    assert "neuron=rouser" in found["sn1 dead"]
    assert "No spike reached it in 100 % of them." in found["sn2 dead"]
    assert found["sn2 dead"].endswith("Start with sn1, before it.")


def test_a_gain_is_proposed_before_a_norm_too_and_helps() -> None:
    assert "model.gain" in run(5.0)["sn1 dead"]
    assert "or model.gain=2.4 (larger initial weights)" in run(5.0, spec="FC60-BN-SN-FC-SN")["sn1 dead"]
    assert "sn1 dead" not in run(5.0, spec="FC60-BN-SN-FC-SN", gain=2.4)


def test_membrane_and_threshold_are_of_the_same_neuron() -> None:
    """The largest membrane is another neuron's than the smallest threshold, neither the one nearest to firing."""
    conf = conf_of(threshold=1.0, learn_threshold=True, threshold_per="neuron", beta=0.0)
    network = build(conf, "FC-SN", (1, 1, 1), bias=False)
    with torch.no_grad():
        network.get_parameter("fc1.weight").copy_(torch.tensor([[9.0], [3.0], [0.1], [0.1], [8.0]]))
        network.get_parameter("sn1.raw_threshold").copy_(torch.tensor([90.0, 3.5, 2.0, 2.0, 7.0]))
    text = examine(network, conf, torch.ones(6, 2, 1, 1, 1))["sn1 dead"]
    assert "80 % of its 5 neurons" in text
    assert "reached a membrane of 3; its threshold is 3.5." in text


@pytest.mark.parametrize("per", ["layer", "channel", "neuron"])
def test_learned_thresholds_below_zero_are_named(per: str) -> None:
    conf = conf_of(threshold=1.0, learn_threshold=True, threshold_per=per)
    network = build(conf, "FC4-SN-FC-SN")
    with torch.no_grad():
        network.get_parameter("sn1.raw_threshold").view(-1)[:1] = -3.0
    text = examine(network, conf, noise())["sn1 threshold below zero"]
    number = "1 of its 1 learned thresholds is" if per == "layer" else "1 of its 4 learned thresholds is"
    assert f"sn1: {number} not above zero (the lowest is -3, the start was 1)" in text
    assert text.endswith("or neuron.threshold_param=softplus (it keeps them above zero).")
    assert "Try optimizer.lr_threshold=6.2e-05 (it is 0.001)" in text


def test_neurons_that_fire_once_are_not_saturated() -> None:
    conf = conf_of(threshold=0.5, fire_once=True)
    network = build(conf, "FC-SN", (1, 1, 1), steps=1, bias=False)
    network.get_parameter("fc1.weight").data.fill_(3.0)
    assert examine(network, conf, torch.ones(1, 2, 1, 1, 1)) == {}


def test_a_saturated_layer() -> None:
    conf = conf_of(threshold=0.5)
    network = build(conf, "FC-SN", (1, 1, 1), steps=50, bias=False)
    network.get_parameter("fc1.weight").data.fill_(3.0)
    found = examine(network, conf, torch.ones(50, 1, 1, 1, 1))
    text = found["sn1 saturated"]
    assert text.startswith("sn1: 100 % of its 5 neurons fire at nearly every step.")
    assert "reaches a membrane of 3; its threshold is 0.5. Try neuron.threshold=3.6, or model.gain=0.13" in text


def test_membranes_that_are_not_finite() -> None:
    conf = conf_of()
    network = build(conf, "FC-SN")
    network.get_parameter("fc1.weight").data.fill_(float("nan"))
    text = examine(network, conf, noise())["sn1 not finite"]
    assert (
        text
        == "sn1: 5 of its 5 neurons have membranes that are not finite numbers. Try optimizer.lr=0.0001 (it is 0.001)."
    )
    assert "Try model.gain=1." in train(SMALL | {"model.gain": "1e39"}, epochs=0)["sn1 not finite"]
    assert train(SMALL | {"model.gain": "1"}, epochs=0) == {}


def test_silent_input_is_not_a_dead_neuron() -> None:
    conf = conf_of(threshold=0.3)
    network = build(conf, "FC60-SN-FC-SN")
    found = examine(network, conf, torch.zeros(6, 8, 1, 5, 5))
    assert list(found) == ["input silent"]
    assert found["input silent"].startswith("input: 100 % of the 8 samples reach the network as nothing but zeros.")
    assert "not dead: look at the data and its encoding first" in found["input silent"]


def test_partly_silent_input_comes_before_the_layers() -> None:
    conf = conf_of(threshold=50.0)
    network = build(conf, "FC60-SN-FC-SN")
    frames = noise()
    frames[:, 2:] = 0  # 6 of 8 samples
    found = examine(network, conf, frames)
    assert list(found) == ["input silent", "sn1 dead", "sn2 dead"]
    assert "75 % of the 8 samples" in found["input silent"]
    assert found["sn1 dead"].endswith("Start with the input, before it.")
    frames = noise()
    frames[:, 7:] = 0  # 1 of 8 explains nothing
    found = examine(network, conf, frames)
    assert "12 % of the 8 samples" in found["input silent"]
    assert "Try neuron.threshold" in found["sn1 dead"]


def test_a_finding_cannot_be_without_advice() -> None:
    with pytest.raises(TypeError):
        Finding("sn1 dead", "facts")  # type: ignore[call-arg]
