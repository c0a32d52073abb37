"""A campaign of planted faults: does the diagnosis name the right layer and the right cause, and hold its tongue else?

    python tests/campaign/planted_faults.py --faults 200 --healthy 50 --seed 1 --out table.json

Not collected by pytest: it takes minutes (tests/analysis/test_causes.py runs a small sample). A fault is drawn: data
set, network, neuron, layer, kind and strength. The network is first brought to life: the smallest gain of its initial
weights is taken at which no layer is mostly dead or saturated, counted here from its spikes. Then the fault is planted
in the configuration, the weights, the surrogate or the data, by other means than the diagnosis measures with. If it
does not make the planted layer mostly dead (saturated, without a gradient), again counted here, it is none, and another
is drawn. The layers before the planted one are untouched. Healthy runs are trained, and whatever the diagnosis says
after an epoch is an alarm; a run is healthy if half of the validation split is classified right in the end.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections import defaultdict
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir

from snnexp.analysis.activity import ActivityMeter
from snnexp.analysis.causes import Cause, Explainer
from snnexp.analysis.diagnosis import diagnose
from snnexp.analysis.voice import waiting
from snnexp.analysis.weight_gradients import weight_norms
from snnexp.cli import conf_dir
from snnexp.config import Config, register_schemas
from snnexp.data.base import Batch, EventFrames
from snnexp.experiment import Experiment, assemble, open_source
from snnexp.models.network import Network
from snnexp.neurons.layer import SpikingLayer
from snnexp.neurons.surrogates import Surrogate
from snnexp.training.optimisation import build_optimizer
from snnexp.training.passes import evaluation_pass, train_pass

NEURONS = ("fixed", "rouser", "plif", "ttfs", "adlif")
DATA = {
    "digits": (
        "FC32-SN-FC24-SN-FC-SN", "c6k3-SN-AP2-c8k3-SN-FC-SN", "FC32-BN-SN-FC24-BN-SN-FC-SN", "RFC32-SN-FC24-SN-FC-SN",
    ),
    "randman": ("FC48-SN-FC24-SN-FC-SN", "FC48-BN-SN-FC24-BN-SN-FC-SN", "RFC48-SN-FC24-SN-FC-SN"),
    "motion": ("c4k5s2-SN-AP2-FC24-SN-FC-SN", "c4k5s2-BN-SN-AP2-FC24-BN-SN-FC-SN"),
    "nmnist": ("FC40-SN-FC24-SN-FC-SN", "c4k5s2-BN-SN-AP2-FC24-SN-FC-SN"),
}  # fmt: skip
SMALL = {
    "digits": ["dataset.limit_train=320", "dataset.limit_val=48"],
    "randman": ["dataset.limit_train=320", "dataset.limit_val=48", "dataset.num_steps=25", "dataset.bin_ms=4.0"],
    "motion": ["dataset.limit_train=96", "dataset.limit_val=32", "dataset.num_steps=8"],
    "nmnist": ["dataset.limit_train=320", "dataset.limit_val=48", "dataset.num_steps=10"],
}
GAINS = (1.0, 2.0, 4.0, 8.0, 16.0)
KINDS = tuple(Cause)
MOSTLY = 0.5


@dataclass(frozen=True)
class Case:
    """What was planted, where, and what was found."""

    data: str
    neuron: str
    spec: str
    cause: str
    layer: str
    how: str
    found_layer: str = ""
    found_cause: str = ""

    @property
    def right(self) -> bool:
        return (self.layer, self.cause) == (self.found_layer, self.found_cause)


# --- networks ---------------------------------------------------------------------------------------------------------


@lru_cache(256)
def configuration(*overrides: str) -> Config:
    from snnexp.validation import validate

    register_schemas()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return validate(compose("config", overrides=list(overrides)))


def conf_of(data: str, neuron: str, spec: str, *more: str) -> Config:
    return configuration(
        f"dataset={data}", f"neuron={neuron}", f"model.spec={spec}", "device=cpu", "neuron.engine=reference",
        "dataset.batch_size=32", "dataset.eval_batch_size=48", "encoder=direct" if data == "digits" else "encoder=none",
        *SMALL[data], *more,
    )  # fmt: skip


@lru_cache(8)
def source_of(data: str, *more: str) -> Any:
    return open_source(conf_of(data, "fixed", DATA[data][0], *more))


def experiment_of(conf: Config, *more: str) -> Experiment:
    return assemble(conf, source_of(conf.dataset.name, *more))


def counted(experiment: Experiment) -> dict[str, tuple[float, float, float]]:
    """By layer, from spikes and membranes as the layers themselves give them: the share of neurons that never fire, of
    those that fire at 95 % of all steps, and of those whose surrogate is zero throughout."""
    seen: dict[str, Any] = {}

    class Watch:
        reads_spikes = True

        def spiking(self, name: str, layer: SpikingLayer, firing: Any) -> None:
            spk = firing.spk.flatten(2)
            rate = spk.mean((0, 1))
            slope = layer.dynamics.surrogate.derivative(firing.mem - layer.threshold).flatten(2).amax((0, 1))
            shares = (rate == 0, rate >= 0.95, slope < 0.01 * layer.dynamics.surrogate.peak)
            seen[name] = tuple(float(s.double().mean()) for s in shares)

        def connection(self, *_: Any) -> None:
            pass

    with torch.no_grad():
        experiment.network.eval()
        experiment.forward(next(iter(experiment.source.batches("val"))), Watch())
    return seen


def alive(data: str, neuron: str, spec: str, seed: int, *more: str) -> Experiment | None:
    """The untrained network at the smallest gain at which every layer is well; None: at none."""
    conf = conf_of(data, neuron, spec, *more)
    for gain in GAINS:
        tried = replace(conf, seed=seed, model=replace(conf.model, gain=gain * conf.model.gain))
        data_keys = [key for key in more if key.startswith("dataset.")]
        experiment = experiment_of(tried, *data_keys)
        hidden = list(counted(experiment).values())
        if all(dead <= MOSTLY and full <= MOSTLY and blind <= MOSTLY for dead, full, blind in hidden):
            return experiment
    return None


def driving(network: Network, name: str) -> dict[str, torch.nn.Module]:
    """What stands between spiking layer `name` and the one before it: its weights, and its norm."""
    found: dict[str, torch.nn.Module] = {}
    for layer in network.layers:
        if layer.kind == "spiking":
            if layer.name == name:
                return found
            found = {}
        elif layer.kind in ("conv", "linear", "recurrent"):
            found["weights"] = network.get_submodule(layer.name)
        elif layer.kind == "batch_norm":
            found["norm"] = network.get_submodule(layer.name)
    raise KeyError(name)


# --- faults -----------------------------------------------------------------------------------------------------------


class Blank:
    """A data source whose samples are blank, but for a share of them."""

    def __init__(self, source: Any, share: float) -> None:
        self.source, self.share = source, share

    def __getattr__(self, name: str) -> Any:
        return getattr(self.source, name)

    def batches(self, *args: Any) -> Any:
        for batch in self.source.batches(*args):
            frames = batch.frames.to_dense() if isinstance(batch.frames, EventFrames) else batch.frames.clone()
            count = frames.shape[0] if frames.dim() == 4 else frames.shape[1]
            kept = int(self.share * count)
            if frames.dim() == 4:
                frames[kept:] = 0
            else:
                frames[:, kept:] = 0
            yield Batch(frames, batch.labels)


def _scale(parts: dict[str, torch.nn.Module], factor: float) -> None:
    for module in (parts["norm"],) if "norm" in parts else parts.values():
        for parameter in (_affine(module) or module).parameters():
            parameter.mul_(factor)


def _affine(module: torch.nn.Module) -> Any:
    """ETTFS' scale and offset behind standardised weights, which no factor reaches."""
    affine = getattr(module, "affine", None)
    return affine if isinstance(affine, torch.nn.Module) else None


def _shift(parts: dict[str, torch.nn.Module], by: float) -> bool:
    module = parts.get("norm", parts["weights"])
    affine = _affine(module)
    bias = affine.offset if affine is not None else module.bias
    if bias is None:
        return False
    bias.add_(by)
    return True


@torch.no_grad()
def plant(experiment: Experiment, cause: Cause, layer: str, rng: random.Random) -> tuple[Experiment, str] | None:
    """The experiment with the fault, and how it was made; None: this network cannot have it."""
    if cause == Cause.input_silent:
        share = rng.choice((0.0, 0.0, 0.1, 0.3))
        return replace(experiment, source=Blank(experiment.source, share)), f"{1 - share:.0%} of samples blank"
    network, conf = experiment.network, experiment.conf
    neuron, parts = network.spiking_layers[layer], driving(network, layer)
    theta = float(neuron.threshold.mean())
    decay = 0.9 if neuron.dynamics.equation is not None else 0.0
    scale = theta / (1 - decay)
    match cause:
        case Cause.weights_too_small:
            factor = 10 ** rng.uniform(-4, -1.7)
            _scale(parts, factor)
            how = f"scaled by {factor:.2g}"
        case Cause.inhibited:
            by = rng.uniform(1.5, 8) * scale
            if rng.random() < 0.3 and "norm" not in parts and conf.model.affine == "none":
                weight = parts["weights"].weight
                weight.copy_(-weight.abs())
                how = "all weights negative"
            elif _shift(parts, -by):
                how = f"shifted by {-by:.2g}"
            else:
                return None
        case Cause.threshold_risen:
            if not neuron.threshold_parameters() or neuron.threshold_param != "direct":
                return None
            factor = rng.uniform(3, 30)
            neuron.raw_threshold.mul_(factor)
            how = f"threshold times {factor:.2g}"
        case Cause.leak_too_strong:
            if neuron.dynamics.equation is not None or neuron.beta_param == "clamp":
                return None
            beta = rng.uniform(0.01, 0.12)
            if neuron.dynamics.tau_form:  # the input is multiplied by 1 - beta: a leak makes it stronger
                return None
            neuron.raw_beta.fill_(beta)
            if neuron.has_current:
                neuron.raw_alpha.fill_(beta)
            how = f"beta {beta:.2g}"
        case Cause.surrogate_out_of_reach:
            width = 10 ** rng.uniform(-6, -4.3)
            name = rng.choice(("triangular", "rectangular", "exponential"))
            neuron.dynamics = replace(neuron.dynamics, surrogate=Surrogate(name, width=width))
            how = f"{name} of width {width:.1g}"
        case Cause.saturated:
            if neuron.dynamics.fire_once or not _shift(parts, rng.uniform(3, 20) * scale):
                return None
            how = "shifted up"
        case _:
            return None
    return experiment, how


def killed(experiment: Experiment, rng: random.Random) -> tuple[Experiment, dict[str, Any], str]:
    """Train an epoch well and one with a learning rate that kills; returns the history of what was logged, too."""
    history: dict[str, Any] = defaultdict(list)
    rates = (0.0, rng.choice((3.0, 30.0, 300.0)))
    for epoch, rate in enumerate(rates):
        meter = ActivityMeter(experiment.network, 0.01)
        metrics: dict[str, float] = {}
        if epoch:
            conf = replace(experiment.conf.optimizer, lr=rate, lr_threshold=0.0, lr_decay=0.0)
            optimizer = build_optimizer(conf, experiment.network.parameter_groups())
            train_pass(experiment, optimizer, epoch, meter)
            metrics |= meter.metrics("train")
        evaluation_pass(experiment, "val", meter, epoch)
        metrics |= meter.metrics("val")
        metrics |= {f"weights/norm/{name}": norm for name, norm in weight_norms(experiment.network).items()}
        for key, value in metrics.items():
            history[key].append((epoch, value))
    return experiment, dict(history), f"lr {rates[1]:g}"


def draw(rng: random.Random) -> Case | None:
    """One fault, planted and diagnosed; None: it was none."""
    data = rng.choice(tuple(DATA))
    neuron, spec, cause = rng.choice(NEURONS), rng.choice(DATA[data]), rng.choice(KINDS)
    more = ["model.bias=true"] if cause in (Cause.inhibited, Cause.saturated) else []
    experiment = alive(data, neuron, spec, rng.randrange(10_000), *more)
    if experiment is None:
        return None
    names = list(experiment.network.spiking_layers)
    layer = "input" if cause == Cause.input_silent else rng.choice(names[:-1] if len(names) > 1 else names)
    history: dict[str, Any] = {}
    if cause == Cause.killed_by_update:
        experiment, history, how = killed(experiment, rng)
        shares = counted(experiment)
        once = experiment.conf.neuron.fire_once
        bad = {
            n: dead > MOSTLY or blind > MOSTLY or (full > MOSTLY and not once)
            for n, (dead, full, blind) in shares.items()
        }
        layer = next((name for name in names if bad[name]), "")
        if not layer:
            return None
    else:
        planted = plant(experiment, cause, layer, rng)
        if planted is None:
            return None
        experiment, how = planted
        dead, full, blind = counted(experiment).get(layer, (0.0, 0.0, 0.0))
        if cause == Cause.saturated:
            there = full > MOSTLY
        elif cause == Cause.surrogate_out_of_reach:
            there = blind > MOSTLY and dead <= MOSTLY and full <= MOSTLY
        else:
            there = dead > MOSTLY
        if not there and cause != Cause.input_silent:
            return None
    case = Case(data, neuron, spec, str(cause), layer, how)
    found = examine(experiment, history)
    return replace(case, found_layer=found[0], found_cause=found[1])


def examine(experiment: Experiment, history: dict[str, Any]) -> tuple[str, str]:
    """The first layer with a finding, and its cause; as a run does it."""
    meter = ActivityMeter(experiment.network, 0.01)
    evaluation_pass(experiment, "val", meter, 0)
    meter.metrics("val")
    causes = Explainer(experiment).explain(meter, "val", history)
    assert all(text for _, text in diagnose(experiment.network, meter, experiment.conf, causes))
    layer, cause = next(((name, str(verdict.cause)) for name, verdict in causes.items()), ("", ""))
    if (meter.silent_input or 0) > MOSTLY:  # said of the input, and if the first layer is dead, of that too
        return "input", cause or "input_silent"
    return layer, cause


# --- healthy runs -----------------------------------------------------------------------------------------------------


LEARNED = 0.5  # validation accuracy at the end
MORE = {
    "digits": ["dataset.limit_train=640", "dataset.limit_val=145"],
    "randman": ["dataset.limit_train=640", "dataset.limit_val=100"],
    "motion": ["dataset.limit_train=160", "dataset.limit_val=64"],
    "nmnist": ["dataset.limit_train=640", "dataset.limit_val=80"],
}


def healthy(rng: random.Random, epochs: int = 8) -> tuple[str, bool, list[str]]:
    """Train one as a run does, epoch 0 included; whether it learned, and what was said after any epoch."""
    there = [name for name in ("digits", "digits", "randman", "nmnist") if name in DATA]  # motion learns too slowly
    data = rng.choice(there)
    neuron, spec = rng.choice(NEURONS), rng.choice(DATA[data])
    experiment = alive(data, neuron, spec, rng.randrange(10_000), *MORE[data])
    name = f"{data} {neuron} {spec}"
    if experiment is None:
        return name, False, []
    conf, explainer = experiment.conf, Explainer(experiment)
    optimizer = build_optimizer(
        replace(conf.optimizer, lr=max(conf.optimizer.lr, 3e-3)), experiment.network.parameter_groups()
    )
    history: dict[str, Any] = defaultdict(list)
    meters = {split: ActivityMeter(experiment.network, 0.01) for split in ("train", "val")}
    alarms, accuracy = [], 0.0
    layers = list(experiment.network.spiking_layers)
    for epoch in range(epochs + 1):
        metrics: dict[str, float] = {}
        if epoch:
            train_pass(experiment, optimizer, epoch, meters["train"])
            metrics |= meters["train"].metrics("train")
        accuracy = evaluation_pass(experiment, "val", meters["val"], epoch).accuracy
        metrics |= meters["val"].metrics("val")
        metrics |= {f"weights/norm/{name}": norm for name, norm in weight_norms(experiment.network).items()}
        for key, value in metrics.items():
            history[key].append((epoch, value))
        if not epoch:
            continue  # a run says nothing before training
        causes = explainer.explain(meters["val"], "val", history)
        waits = waiting(layers, causes, explainer.waking) if epoch < epochs else set()
        for layer, verdict in causes.items():
            share = metrics[f"val/dead_fraction/{layer}"]
            note = f"epoch {epoch}: {layer} {verdict.cause}, {share:.0%} dead"
            alarms += [] if layer in waits else [note]
    return f"{name}: {accuracy:.2f}", accuracy >= LEARNED, alarms


def tally(cases: list[Case], key: str) -> dict[str, str]:
    """How many were right, by one of their facts."""
    found = defaultdict(list)
    for case in cases:
        found[getattr(case, key)].append(case.right)
    return {value: f"{sum(right)} of {len(right)}" for value, right in sorted(found.items())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--healthy", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=1e9, help="stop after so many, and say how far it came")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    rng, start, cases, drawn = random.Random(options.seed), time.perf_counter(), [], 0
    while len(cases) < options.faults and time.perf_counter() - start < 60 * options.minutes:
        case, drawn = draw(rng), drawn + 1
        if case is not None:
            cases.append(case)
            if not case.right:
                print("WRONG", case, flush=True)
            if len(cases) % 10 == 0:
                print(f"{sum(c.right for c in cases)} of {len(cases)} right ({drawn} drawn)", flush=True)
    runs: list[tuple[str, bool, list[str]]] = []
    while (
        sum(learned for _, learned, _ in runs) < options.healthy and time.perf_counter() - start < 60 * options.minutes
    ):
        runs.append(healthy(rng))
        print(runs[-1], flush=True)
    table = {
        "seed": options.seed,
        "faults": len(cases),
        "right": sum(c.right for c in cases),
        **{f"by_{key}": tally(cases, key) for key in ("cause", "neuron", "data", "spec")},
        "wrong": [vars(c) for c in cases if not c.right],
        "healthy": sum(learned for _, learned, _ in runs),
        "alarms": [(name, said) for name, learned, said in runs if learned and said],
        "did_not_learn": sum(not learned for _, learned, _ in runs),
    }
    print(json.dumps(table, indent=1))
    if options.out is not None:
        options.out.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
