"""Cures within runs: the same bits after an interruption, counts with gradients however the network runs, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from composing import compose_words
from omegaconf import OmegaConf
from torch import Tensor

from snnexp.config import Config, NeuronConf
from snnexp.errors import ConfigError
from snnexp.experiment import Experiment, assemble
from snnexp.models.network import Network, build_network
from snnexp.models.sums import Sums
from snnexp.tracking.identity import identity_config, run_identity
from snnexp.tracking.runs import claim
from snnexp.tracking.store import OffTracker
from snnexp.training.checkpoint import apply_weights, load_weights
from snnexp.training.display import Display
from snnexp.training.loop import fit
from snnexp.training.passes import train_pass
from snnexp.validation import validate

SMALL = ("tracking=off", "device=cpu", "trainer=smoke", "dataset.limit_train=64")
DEEP = ("model.spec=FC16-SN-FC16-SN-FC-SN", "dataset.num_steps=4", "neuron.engine=reference", "trainer.max_epochs=3")


def configured(*overrides: str) -> tuple[Config, dict[str, Any]]:
    cfg = compose_words(*SMALL, *overrides)
    plain = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(plain, dict)
    plain.pop("claim")
    return validate(cfg), plain  # type: ignore[return-value]


CURES = {
    "rouser": ("rescue.when=diagnosed", "neuron.threshold=30"),
    "bounds": ("rescue.when=diagnosed", "neuron.threshold=30"),
    "homeostasis": (),
    "fluctuation_init": ("trainer.weight_change=true",),
    "variance_init": ("rescue.when=diagnosed", "neuron.threshold=3", "model.gain=0.1"),
    "wide_surrogate": (),
    "resample": ("model.gain=0.3",),
    "pseudospike": (),
}


@pytest.mark.parametrize("name", CURES)
def test_a_rescued_run_that_was_cut_off_ends_with_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    conf, plain = configured(*DEEP, f"rescue={name}", *CURES[name])

    def run(where: str, stop: int | None = None) -> tuple[dict[str, Tensor], Any]:
        folder, experiment = claim(plain, tmp_path / where), assemble(conf)

        def pass_or_stop(experiment: Experiment, optimizer: Any, epoch: int, *more: Any) -> Any:
            if epoch == stop:
                raise KeyboardInterrupt
            return train_pass(experiment, optimizer, epoch, *more)

        monkeypatch.setattr("snnexp.training.loop.train_pass", pass_or_stop)
        state = None
        try:
            state = fit(experiment, folder, OffTracker(folder), Display(3, quiet=True), plain)
        except KeyboardInterrupt:
            folder.finish("KILLED")
        return experiment.network.state_dict(), state

    whole, state = run("whole")
    run("cut", stop=2)
    resumed, _ = run("cut")
    assert whole.keys() == resumed.keys() and all(whole[key].equal(resumed[key]) for key in whole)
    if "rescue.when=diagnosed" in CURES[name]:
        assert state.history["rescue/fired/sn1"] == [(0, 1.0)]
    if name == "resample":
        assert sum(value for _, value in state.history["rescue/resampled/sn3"]) > 0
    if name == "homeostasis":
        assert "threshold/mean/sn1" in state.history


def test_thresholds_that_followed_the_rate_come_back_with_the_weights(tmp_path: Path) -> None:
    conf, plain = configured(*DEEP, "rescue=homeostasis")
    folder, experiment = claim(plain, tmp_path), assemble(conf)
    fit(experiment, folder, OffTracker(folder), Display(3, quiet=True), plain)
    weights, trained, _ = load_weights(folder.last)
    fresh = assemble(conf).network
    apply_weights(fresh, weights, folder.last, trained)  # as task=evaluate does
    assert not bool((fresh.neurons["sn1"].threshold == 1).all())
    assert fresh.neurons["sn1"].threshold.equal(experiment.network.neurons["sn1"].threshold)


def test_no_cure_is_the_run_that_it_was_before_there_were_any() -> None:
    _, plain = configured()
    assert plain["rescue"] == {"name": "none"}
    assert "rescue" not in identity_config(plain)
    older = {key: value for key, value in plain.items() if key != "rescue"}
    assert run_identity(older) == run_identity(plain)
    assert run_identity(configured("rescue=bounds")[1]) != run_identity(plain)


# --- counts with their gradient -----------------------------------------------------------------------------------


def network_of(spec: str, engine: str, **build: Any) -> tuple[Network, Tensor]:
    from snnexp.config import DecoderConf, ModelConf
    from snnexp.data.base import DataInfo

    torch.manual_seed(0)
    info = DataInfo("made", "events", (2, 8, 8), 4, ("0", "1", "2"), {}, {}, complete=True, split_hash="")
    neuron = NeuronConf(name="fixed", beta=0.5, threshold=0.2, engine=engine)
    network = build_network(ModelConf(name="m", spec=spec), neuron, DecoderConf(name="rate"), info, **build)
    frames = (torch.rand(4, 3, 2, 8, 8, generator=torch.Generator().manual_seed(1)) < 0.3).double()
    return network.double(), frames


class Spikes:
    """Observer that keeps the spikes of hidden layers, in the graph."""

    reads_spikes = True

    def __init__(self) -> None:
        self.spk: dict[str, list[Tensor]] = {}

    def spiking(self, name: str, layer: object, firing: Any) -> None:
        self.spk.setdefault(name, []).append(firing.spk)

    def connection(self, name: str, module: object, x: object, repeat: int) -> None:
        pass


def gradients(network: Network, loss: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(network.parameters()), allow_unused=True))  # type: ignore[arg-type]


SPECS = ["FC6-SN-FC3-SN", "c4k3-SN-MP2-FC3-SN", "RFC6-SN-FC3-SN", "RFC6DL2-SN-FC3-SN"]


@pytest.mark.parametrize("engine", ["reference", "auto"])
@pytest.mark.parametrize("spec", SPECS)
def test_counts_carry_the_gradient_of_the_spikes(spec: str, engine: str) -> None:
    network, frames = network_of(spec, engine)
    sums, seen = Sums(["sn1", "sn2"]), Spikes()
    out = network(frames, None, sums)
    weights = {name: torch.randn_like(counts) for name, counts in sums.found.items()}
    got = gradients(network, out.spk.sum() + sum((w * sums.found[name]).sum() for name, w in weights.items()))
    out = network(frames, seen)
    naive = {name: torch.cat(parts).sum(0) for name, parts in seen.spk.items()}
    assert all(sums.found[name].equal(naive[name]) for name in weights)
    wanted = gradients(network, out.spk.sum() + sum((w * naive[name]).sum() for name, w in weights.items()))
    for a, b in zip(got, wanted, strict=True):
        assert (a is None) == (b is None) and (a is None or torch.allclose(a, b, rtol=1e-10))


@pytest.mark.parametrize("spec", ["FC6-SN-FC5-SN-FC3-SN", "RFC6-SN-FC3-SN"])
def test_sums_over_segments_of_time_are_those_of_the_whole(spec: str) -> None:
    prices = {"fc1": torch.arange(1.0, 7.0)} if spec.startswith("R") else {"fc2": torch.arange(1.0, 7.0)}
    found = []
    for steps in (None, 2):
        network, frames = network_of(spec, "reference", checkpoint_steps=steps)
        sums = Sums(["sn1"], prices)
        out = network(frames, None, sums)
        (price,) = prices
        loss = out.spk.sum() + 0.3 * sums.found["sn1"].square().sum() + 0.1 * sums.found[price]
        found.append([sums.found["sn1"], sums.found[price], *gradients(network, loss)])
    assert all(torch.allclose(a, b, rtol=1e-10) for a, b in zip(*found, strict=True))
    counts, spent, *_ = found[0]
    assert float(spent.detach()) == float((counts.detach().sum(0) * torch.arange(1.0, 7.0).double()).sum())


# --- what does not fit --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("rescue=bounds", "neuron=ttfs"), "rescue=bounds with neuron.fire_once=true"),
        (("rescue=homeostasis", "neuron=ttfs", "rescue.target=0.2"), "Use at most rescue.target=0.125"),
        (
            ("rescue=pseudospike", "neuron=ttfs", "neuron.force_last_spike=true"),
            "who is silent spikes at the last step already",
        ),
        (("decoder.synops=100", "model.spec=c4k3-SN-AP2-FC-SN"), "averages and sums of them are multiplied"),
        (("rescue=bounds", "rescue.lower=0.6"), "rescue.lower=0.6: it lies above rescue.upper=0.5"),
        (("rescue=rouser", "neuron.module=snntorch.Leaky"), "rescue=rouser with neuron.module=snntorch.Leaky"),
        (("rescue=rouser", "neuron.learn_threshold=false"), "no threshold would learn"),
        (("rescue=homeostasis", "neuron=rouser"), "would pull at the same thresholds"),
        (("rescue=wide_surrogate", "neuron.surrogate.name=snntorch:SFS"), "its width is its own"),
        (("rescue=pseudospike", "trainer.checkpoint_steps=2"), "Leave trainer.checkpoint_steps out"),
        (("rescue=variance_init", "neuron.threshold=30"), "a membrane of unit variance never gets there"),
        (("rescue=variance_init", "model.weight_norm=true"), "Set model.weight_norm=false"),
        (("rescue=fluctuation_init", "trainer.init_from=w.safetensors"), "Use rescue.when=diagnosed"),
        (("rescue=bounds", "rescue.strength=-1"), "rescue.strength=-1.0: must be >= 0"),
    ],
)
def test_what_does_not_fit_is_refused(overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        configured(*overrides)
    assert message in str(error.value)


@pytest.mark.parametrize("cure", ["rouser", "homeostasis", "fluctuation_init", "resample", "pseudospike"])
def test_cures_of_neurons_that_fire_once(cure: str) -> None:
    conf, _ = configured(f"rescue={cure}", "neuron=ttfs", "neuron.engine=reference", "model.spec=FC8-SN-FC-SN",
                         "model.weight_norm=false", "dataset.num_steps=3",
                         f"neuron.force_last_spike={str(cure != 'pseudospike').lower()}")  # fmt: skip
    assert conf.neuron.fire_once


def test_an_arm_may_set_keys_of_the_option_that_it_chooses() -> None:
    cfg = compose_words("+experiment=rouser_cures", "arm=homeostasis_b", "tracking=off")
    assert (cfg.rescue.name, cfg.rescue.rate, cfg.neuron.threshold_per) == ("homeostasis", 0.3, "neuron")
    plain = compose_words("+experiment=deep_silence", "arm=wide_surrogate", "rescue=bounds")
    assert plain.rescue.name == "bounds"  # the command line wins
