"""What may be continued from what: other data, other neuron values, weights that are lost."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from composing import compose_words
from omegaconf import OmegaConf

from snnexp.analysis.activity import ActivityMeter
from snnexp.config import Config
from snnexp.errors import DataError, TrainingError
from snnexp.experiment import Experiment, assemble
from snnexp.tracking.runs import claim
from snnexp.tracking.store import OffTracker
from snnexp.training.checkpoint import apply_weights, load_weights, save_weights
from snnexp.training.display import Display
from snnexp.training.loop import fit
from snnexp.training.optimisation import build_optimizer
from snnexp.training.passes import evaluation_pass, train_pass
from snnexp.validation import validate

SMALL = ("device=cpu", "model.spec=FC8-SN-FC-SN", "trainer=smoke", "dataset.num_steps=2")


def configuration(*overrides: str) -> tuple[Config, dict[str, Any]]:
    cfg = compose_words(*SMALL, *overrides)
    plain = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(plain, dict)
    return validate(cfg), plain


def trained(folder: Path, *overrides: str) -> Path:
    """Weights with every neuron value moved by 0.125 from where it started, as if all of it had learned."""
    conf, plain = configuration(*overrides)
    network = assemble(conf).network
    weights = {k: v + 0.125 if ".raw_" in k else v for k, v in network.state_dict().items()}
    save_weights(folder / "weights.safetensors", weights, plain, {"epoch": 1})
    return folder / "weights.safetensors"


def continued(path: Path, *overrides: str) -> Experiment:
    experiment = assemble(configuration(*overrides)[0])
    weights, config, _ = load_weights(path)
    apply_weights(experiment.network, weights, path, config)
    return experiment


def test_a_fixed_value_is_what_the_configuration_says(tmp_path: Path) -> None:
    layer = continued(trained(tmp_path, "neuron.threshold=1"), "neuron.threshold=50", "neuron.beta=0.5").network.neurons
    assert float(layer["sn1"].threshold) == 50
    assert float(layer["sn1"].beta) == 0.5


def test_learned_values_are_taken_over_in_the_same_parametrisation_only(tmp_path: Path) -> None:
    path = trained(tmp_path, "neuron=plif", "neuron.beta=0.5")  # raw 0 + 0.125
    same = continued(path, "neuron=plif", "neuron.beta=0.25").network.neurons["sn1"]
    assert same.beta.item() == pytest.approx(1 - torch.sigmoid(torch.tensor(0.125)).item())
    clamped = continued(path, "neuron=plif", "neuron.beta=0.25", "neuron.decay_param=clamp").network.neurons["sn1"]
    assert clamped.beta.item() == 0.25
    fixed = continued(path, "neuron=plif", "neuron.beta=0.25", "neuron.learn_beta=false").network.neurons["sn1"]
    assert float(fixed.beta) == 0.25


def test_weights_of_another_network_are_an_error_of_the_user(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"does not fit this network: fc1\.weight \(\[8, 64\] for \[9, 64\]\)"):
        continued(trained(tmp_path), "model.spec=FC9-SN-FC-SN")


def test_a_run_is_not_continued_on_other_samples(tmp_path: Path) -> None:
    conf, plain = configuration("dataset.limit_train=100")
    folder = claim(plain, tmp_path)
    display = Display(1, quiet=True)
    fit(assemble(conf), folder, OffTracker(folder), display, plain)
    other = replace(conf, dataset=replace(conf.dataset, limit_train=90))
    with pytest.raises(DataError, match=r"the samples are not those that .*trainer\.resume=never"):
        fit(assemble(other), folder, OffTracker(folder), display, plain)
    assert fit(assemble(conf), folder, OffTracker(folder), display, plain).epoch == 1


def test_weights_that_are_lost_stop_the_run_although_the_loss_is_finite() -> None:
    conf, _ = configuration()
    experiment = assemble(conf)
    meter = ActivityMeter(experiment.network)
    with torch.no_grad():
        experiment.network.get_parameter("fc1.weight")[0, 0] = torch.nan
    optimizer = build_optimizer(conf.optimizer, experiment.network.parameter_groups())
    with pytest.raises(TrainingError, match=r"epoch 3, batch 2: .* first seen in parameter fc1\.weight"):
        train_pass(experiment, optimizer, 3, meter)


def test_a_validation_loss_that_is_not_finite_stops_the_run() -> None:
    conf, _ = configuration("decoder=membrane")
    experiment = assemble(conf)
    with torch.no_grad():
        experiment.network.get_parameter("fc2.bias")[0] = torch.inf
    with pytest.raises(TrainingError, match=r"epoch 2, batch 2: .* first seen in parameter fc2\.bias"):
        evaluation_pass(experiment, "val", ActivityMeter(experiment.network), 2)


OWN_NEURON = """
from snnexp.neurons.custom import Param

def step(x, mem, spk, w, *, spike, threshold, rho=Param((0.7, 0.9), learn=True, per="neuron", low=0, high=1)):
    w = rho * w + spk
    mem = 0.8 * mem * (1 - spk.detach()) + x - 0.1 * w
    return mem, spike(mem - threshold), w
"""
RANGES = ("neuron.beta=[0.5,0.9]", "neuron.threshold=[0.5,1.5]", "neuron.learn_threshold=true")
STOCHASTIC = ("neuron=mp_init", "neuron.noise=0.2", "neuron.noise_in=always", "neuron.threshold=0.3")


@pytest.mark.parametrize(
    ("neuron", "learned"),
    [
        (("neuron.equation=mine.py:step",), "sn1.raw_rho"),
        (RANGES, "sn1.raw_threshold"),
        (STOCHASTIC, "sn1.initial_mem"),
    ],
    ids=["own", "ranges", "noise"],
)
def test_a_run_that_was_cut_off_ends_with_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, neuron: tuple[str, ...], learned: str
) -> None:
    """Values that learn in a neuron of one's own, values that are drawn, a start that is followed, noise."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(OWN_NEURON)
    conf, plain = configuration(*neuron, "dataset.num_steps=4", "trainer.max_epochs=3", "optimizer.lr=0.05")

    def run(where: str, stop: int | None = None) -> dict[str, torch.Tensor]:
        folder, experiment = claim(plain, tmp_path / where), assemble(conf)

        def pass_or_stop(experiment: Experiment, optimizer: Any, epoch: int, *more: Any) -> Any:
            if epoch == stop:
                raise KeyboardInterrupt
            return train_pass(experiment, optimizer, epoch, *more)

        monkeypatch.setattr("snnexp.training.loop.train_pass", pass_or_stop)
        try:
            fit(experiment, folder, OffTracker(folder), Display(3, quiet=True), plain)
        except KeyboardInterrupt:
            folder.finish("KILLED")
        return experiment.network.state_dict()

    whole = run("whole")
    run("cut", stop=2)
    resumed, fresh = run("cut"), assemble(conf).network.state_dict()
    assert whole.keys() == resumed.keys() and all(whole[key].equal(resumed[key]) for key in whole)
    moved = {key for key in whole if not whole[key].equal(fresh[key])}
    assert {learned, "fc1.weight"} <= moved
