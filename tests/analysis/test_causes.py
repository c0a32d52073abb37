"""Each cause is planted once, by hand; a sample of the campaign; and what is said of it, when and how often."""

from __future__ import annotations

import importlib.util
import json
import random
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from composing import compose_words

from snnexp.analysis.activity import ActivityMeter
from snnexp.analysis.cause_words import advice, sentence
from snnexp.analysis.causes import Cause, Explainer, Verdict, bad_state, killed_at, why_silent
from snnexp.analysis.diagnosis import diagnose
from snnexp.config import Config, DecoderConf, ModelConf, NeuronConf, OptimizerConf, SurrogateConf, register_schemas
from snnexp.data.base import DataInfo
from snnexp.experiment import assemble
from snnexp.models.network import build_network
from snnexp.neurons.layer import SpikingLayer
from snnexp.training.passes import evaluation_pass
from snnexp.validation import validate

ALL = torch.ones(4, dtype=torch.bool)


def layer_of(**neuron: Any) -> SpikingLayer:
    return SpikingLayer(NeuronConf(name="n", engine="reference", **neuron), (4,), "sn1")


def why(drive: float | list[float], steps: int = 10, **neuron: Any) -> Verdict:
    """Of four dead neurons, each given this at every step, or these values in turn."""
    values = torch.tensor(drive if isinstance(drive, list) else [drive] * steps)
    return why_silent(layer_of(**neuron), values.view(-1, 1, 1).expand(-1, 2, 4).clone(), ALL)


def test_weak_inhibited_and_forgetful_on_paper() -> None:
    # threshold 1, ten inputs of 0.05 come to 0.5: too little, with or without leak
    weak = why(0.05, beta=0.9)
    assert weak.cause == Cause.weights_too_small
    assert weak.numbers["reachable"] == pytest.approx(0.5)
    # ten of 0.4 come to 4, but with beta 0.1 the membrane never holds more than 0.4/(1 - 0.1)
    forgets = why(0.4, beta=0.1)
    assert forgets.cause == Cause.leak_too_strong
    assert forgets.numbers["held"] == pytest.approx(0.4 / 0.9, rel=1e-3)
    assert why(-0.4, beta=0.9).cause == Cause.inhibited
    assert why(-0.05, beta=0.9).cause == Cause.weights_too_small  # its sign makes no difference
    assert why([0.9, -2.0] * 5, beta=0.9).cause == Cause.inhibited  # what comes is taken away again


def test_the_rest_of_a_random_layer_decides_not_its_negative_half() -> None:
    drive = torch.tensor([-2.0, -2.0, 0.4, 0.4]).expand(10, 2, 4).clone()
    assert why_silent(layer_of(beta=0.1), drive, ALL).cause == Cause.leak_too_strong


def test_a_current_and_a_tau_form() -> None:
    assert why(0.2, beta=0.05, alpha=0.05).cause == Cause.leak_too_strong
    assert why(0.001, beta=0.97, alpha=0.75).cause == Cause.weights_too_small
    assert why(0.1, beta=0.5, tau_form=True).cause == Cause.weights_too_small  # ten times half of 0.1
    assert why(0.001, equation="snnexp.neurons.zoo:adlif").cause == Cause.weights_too_small


def history(**series: list[float]) -> dict[str, list[tuple[int, float]]]:
    names = {"dead": "val/dead_fraction", "norm": "weights/norm", "burst": "train/weight_gradient/burst"}
    return {f"{names[key]}/sn1": list(enumerate(values)) for key, values in series.items()}


def test_when_a_layer_was_killed() -> None:
    found = killed_at("sn1", history(dead=[0.1, 0.2, 0.9, 1.0], norm=[1, 1.1, 5.5, 5.5], burst=[1, 1, 3, 1]))
    assert found == (2, {"weights": pytest.approx(5), "burst": 3, "dead_before": 0.2})
    assert killed_at("sn1", history(dead=[0.9, 1.0])) is None  # it never lived
    assert killed_at("sn1", history(dead=[0.1, 0.9, 0.2])) is None  # and here it does
    assert killed_at("sn1", {}) is None


def test_states() -> None:
    def state(spk: torch.Tensor, **more: bool) -> str | None:
        from snnexp.models.observer import Firing

        meter = ActivityMeter(torch.nn.Identity(), 0.01)
        narrow = layer_of(surrogate=SurrogateConf(name="rectangular", width=0.5))
        meter.spiking("sn1", narrow, Firing(spk.sum(0), 9.0 + 0 * spk, None))
        meter.metrics("val")
        return bad_state(
            meter.last["sn1"], fires_once=more.get("once", False), read_by_membrane=more.get("read", False)
        )

    some = torch.zeros(4, 1, 4)
    some[0] = 1
    assert state(torch.zeros(4, 1, 4)) == "dead"
    assert state(torch.ones(4, 1, 4)) == "saturated"
    assert state(torch.ones(4, 1, 4), once=True) == "gradient_dead"  # all membranes are at 9, the threshold at 1
    assert state(some) == "gradient_dead"
    assert state(some, read=True) is None


@pytest.mark.parametrize("cause", list(Cause))
def test_every_cause_has_a_sentence_with_its_word(cause: Cause) -> None:
    numbers = dict.fromkeys(("drive", "threshold", "start", "held", "reachable"), 0.5) | {"weights": 3.0, "burst": 2e6}
    text = sentence(Verdict(cause, numbers, 1))
    assert text.endswith(f" ({cause}).")
    if cause == Cause.killed_by_update:
        assert text == (
            "Epoch 1 killed it: its weights grew 3 times and its largest gradient was 2e+06 times the usual one "
            "(killed_by_update)."
        )


def test_the_diagnosis_says_the_cause_and_what_to_type() -> None:
    conf = Config(neuron=NeuronConf(name="n", engine="reference", beta=0.1), optimizer=OptimizerConf(name="adam"))
    info = DataInfo("made", "events", (1, 1, 1), 10, tuple("ab"), {}, {}, complete=True, split_hash="")
    network = build_network(ModelConf(name="m", spec="FC-SN"), conf.neuron, DecoderConf(name="rate"), info)
    network.get_parameter("fc1.weight").data.fill_(0.4)
    network.get_parameter("fc1.bias").data.zero_()
    meter = ActivityMeter(network, 0.01)
    network(torch.ones(10, 2, 1, 1, 1), meter)
    meter.metrics("val")
    verdict = Verdict(Cause.leak_too_strong, {"held": 0.444, "reachable": 4.0})
    [(key, text)] = diagnose(network, meter, conf, {"sn1": verdict})
    assert key == "sn1 dead"
    assert "(leak_too_strong). Try neuron.beta=0.99 (it is 0.1), or neuron.threshold=" in text
    narrow = Config(neuron=NeuronConf(name="n", surrogate=SurrogateConf(name="triangular", width=0.01)))
    wider = advice(Verdict(Cause.surrogate_out_of_reach), narrow)
    assert wider == ["neuron.surrogate.width=0.1 (it is 0.01)"]


def test_a_layer_that_fires_and_was_cut_off_from_the_gradient_gets_a_line_whatever_did_it() -> None:
    narrow = SurrogateConf(name="rectangular", width=1e-3)
    conf = Config(neuron=NeuronConf(name="n", engine="reference", beta=0.0, surrogate=narrow))
    info = DataInfo("made", "events", (1, 1, 1), 10, tuple("ab"), {}, {}, complete=True, split_hash="")
    network = build_network(ModelConf(name="m", spec="FC-SN"), conf.neuron, DecoderConf(name="rate"), info)
    network.get_parameter("fc1.weight").data.fill_(9.0)
    network.get_parameter("fc1.bias").data.zero_()
    meter, given = ActivityMeter(network, 0.01), torch.zeros(10, 2, 1, 1, 1)
    given[::2] = 1
    network(given, meter)
    meter.metrics("val")
    for verdict in (
        Verdict(Cause.surrogate_out_of_reach),
        Verdict(Cause.killed_by_update, {"weights": 9.0, "burst": 1.0}, 3),
    ):
        [(key, text)] = diagnose(network, meter, conf, {"sn1": verdict})
        assert key == "sn1 gradient-dead" and "no gradient passes 100 % of its 2 neurons" in text
        assert f"({verdict.cause}). Try " in text


@pytest.mark.parametrize("integrate", [True, False])
def test_only_a_layer_whose_membranes_are_read_can_do_without_its_surrogate(integrate: bool) -> None:
    register_schemas()
    words = (
        "device=cpu", "neuron.engine=reference", "encoder=direct", "model.spec=FC6-SN-FC-SN", "decoder=membrane",
        f"decoder.integrate={str(integrate).lower()}", "neuron.surrogate.name=rectangular",
        "neuron.surrogate.width=1e-6", "dataset.limit_train=16", "dataset.limit_val=16", "dataset.num_steps=4",
    )  # fmt: skip
    experiment = assemble(validate(compose_words(*words)))
    for bias in ("fc1.bias", "fc2.bias"):
        experiment.network.get_parameter(bias).data.fill_(0.6)  # fires at some steps, never at the threshold
    meter = ActivityMeter(experiment.network, 0.01)
    evaluation_pass(experiment, "val", meter, 0)
    meter.metrics("val")
    causes = Explainer(experiment).explain(meter, "val", {})
    assert {name: verdict.cause for name, verdict in causes.items()} == {"sn1": Cause.surrogate_out_of_reach}


# --- the campaign ---


def campaign() -> ModuleType:
    path = Path(__file__).parents[1] / "campaign" / "planted_faults.py"
    spec = importlib.util.spec_from_file_location("planted_faults", path)
    assert spec is not None and spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_sample_of_the_campaign() -> None:
    faults, rng = campaign(), random.Random(7)
    faults.DATA = {"digits": faults.DATA["digits"]}  # the others take their time to open
    faults.NEURONS = ("fixed", "rouser")
    cases = []
    while len(cases) < 6:
        case = faults.draw(rng)
        cases += [] if case is None else [case]
    assert [case for case in cases if not case.right] == []


@pytest.mark.slow
def test_more_of_the_campaign_and_healthy_runs() -> None:
    faults, rng = campaign(), random.Random(8)
    faults.DATA = {name: faults.DATA[name] for name in ("digits", "randman", "motion")}
    cases = [case for case in (faults.draw(rng) for _ in range(60)) if case is not None]
    assert sum(case.right for case in cases) >= 0.95 * len(cases), [case for case in cases if not case.right]
    runs = [faults.healthy(rng) for _ in range(8)]
    assert [run for run in runs if run[1] and run[2]] == []


@pytest.mark.slow
def test_the_task_on_a_finished_run(snnexp: Any, tmp_path: Path) -> None:
    words = ("tracking=off", "neuron.engine=reference", "dataset.limit_train=64", "dataset.limit_val=32")
    done = snnexp(
        "model.spec=FC16-SN-FC-SN", "neuron.threshold=90", "trainer.max_epochs=1", "trainer.plots=false", *words
    )
    assert done.returncode == 0, done.stderr
    assert "(weights_too_small)" in re.sub(r"\s+", " ", done.stdout)
    run = re.search(r"runs/(digits-fixed-\w+/001)", done.stdout)
    assert run is not None
    told = snnexp("task=diagnose", f"run_id={run[1]}", "tracking=off")
    assert told.returncode == 0, told.stderr
    assert "(weights_too_small)" in re.sub(r"\s+", " ", told.stdout)
    [written] = tmp_path.rglob("diagnosis.json")
    causes = json.loads(written.read_text())["causes"]
    assert {name: cause["cause"] for name, cause in causes.items()} == {
        "sn1": "weights_too_small",
        "sn2": "input_silent",
    }
    assert written.with_suffix(".png").is_file() and written.with_suffix(".pdf").is_file()
