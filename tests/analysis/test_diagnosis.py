"""The diagnosis names layer, share, membrane and threshold, and what it proposes works."""

from __future__ import annotations

import re

import pytest
import torch

from snnexp.analysis.activity import ActivityMeter
from snnexp.analysis.diagnosis import diagnose
from snnexp.config import DecoderConf, ModelConf, NeuronConf
from snnexp.data.base import DataInfo
from snnexp.models.network import Network, build_network


def run(threshold: float, gain: float = 1.0, spec: str = "FC60-SN-FC-SN", **neuron: object) -> list[tuple[str, str]]:
    """Findings on random input for a network with that threshold."""
    info = DataInfo("made", "events", (1, 5, 5), 6, tuple("abcde"), {}, {}, complete=True, split_hash="")
    torch.manual_seed(0)
    conf = NeuronConf(name="n", engine="reference", beta=0.9, threshold=threshold, **neuron)
    model = ModelConf(name="m", spec=spec, gain=gain)
    network: Network = build_network(model, conf, DecoderConf(name="rate"), info)
    meter = ActivityMeter(network)
    frames = (torch.rand(6, 8, 1, 5, 5, generator=torch.Generator().manual_seed(1)) < 0.3).float()
    network(frames, meter)
    meter.metrics("train")
    return diagnose(network, meter)


def test_a_healthy_network_gets_no_words() -> None:
    assert run(0.3) == []


def test_a_dead_layer_is_named_with_its_numbers() -> None:
    (key, text), (second, behind) = run(50.0)
    assert (key, second) == ("sn1 dead", "sn2 dead")
    assert text.startswith("sn1: 100 % of its 60 neurons never fired. Largest membrane ")
    assert "smallest threshold 50." in text
    assert "neuron=rouser" in text
    assert behind.endswith("Start with sn1, before it.")


@pytest.mark.parametrize("key", ["threshold", "gain"])
def test_what_it_proposes_revives_the_layer(key: str) -> None:
    text = dict(run(5.0, gain=0.5))["sn1 dead"]
    found = re.search(rf"{key}=([\d.]+)", text)
    assert found is not None, text
    value = float(found.group(1))
    after = run(value, gain=0.5) if key == "threshold" else run(5.0, gain=value)
    assert "sn1 dead" not in dict(after)


def test_no_gain_is_proposed_where_normalisation_undoes_it() -> None:
    assert "model.gain" in dict(run(5.0))["sn1 dead"]
    text = dict(run(5.0, spec="FC60-BN-SN-FC-SN"))["sn1 dead"]
    assert "model.gain" not in text
    assert "neuron.threshold=" in text


def test_learned_thresholds_get_other_advice() -> None:
    text = dict(run(50.0, learn_threshold=True))["sn1 dead"]
    assert "neuron=rouser" not in text
    assert "a larger optimizer.lr_threshold" in text


def test_membranes_that_never_rise() -> None:
    info = DataInfo("made", "events", (1, 5, 5), 2, tuple("ab"), {}, {}, complete=True, split_hash="")
    conf = NeuronConf(name="n", engine="reference")
    network = build_network(ModelConf(name="m", spec="FC-SN", bias=False), conf, DecoderConf(name="rate"), info)
    meter = ActivityMeter(network)
    network(torch.zeros(2, 3, 1, 5, 5), meter)
    meter.metrics("val")
    ((_, text),) = diagnose(network, meter)
    assert "no membrane is above 0" in text
    network.get_parameter("fc1.weight").data.fill_(float("nan"))
    network(torch.zeros(2, 3, 1, 5, 5), meter)
    meter.metrics("val")
    ((_, text),) = diagnose(network, meter)
    assert "membranes are not finite" in text


def test_a_saturated_layer() -> None:
    text = dict(run(-1.0, spec="FC-SN"))["sn1 saturated"]
    assert text.startswith("sn1: 100 % of its 5 neurons fire at nearly every step. Its threshold has fallen to -1.")
    info = DataInfo("made", "events", (1, 1, 1), 50, tuple("ab"), {}, {}, complete=True, split_hash="")
    conf = NeuronConf(name="n", engine="reference", threshold=0.5)
    network = build_network(ModelConf(name="m", spec="FC-SN", bias=False), conf, DecoderConf(name="rate"), info)
    network.get_parameter("fc1.weight").data.fill_(3.0)
    meter = ActivityMeter(network)
    network(torch.ones(50, 1, 1, 1, 1), meter)
    meter.metrics("val")
    ((key, text),) = diagnose(network, meter)
    assert key == "sn1 saturated"
    assert "Median largest membrane 3, threshold 0.5. Try neuron.threshold=1.5, or model.gain=0.33" in text
