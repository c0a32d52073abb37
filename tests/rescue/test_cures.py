"""Each cure against its equation, with numbers that a pencil can check."""

from __future__ import annotations

from math import sqrt
from typing import Any

import pytest
import torch
from composing import compose_words
from torch import Tensor

from snnexp.analysis.activity import ActivityMeter
from snnexp.config import Config, NeuronConf, SurrogateConf
from snnexp.experiment import Experiment, assemble
from snnexp.models.observer import Firing
from snnexp.neurons.engines import LayerRun
from snnexp.neurons.layer import SpikingLayer
from snnexp.neurons.surrogates import build_surrogate
from snnexp.rescue.bounds import Bounds
from snnexp.rescue.fluctuation_init import response_power
from snnexp.rescue.homeostasis import Homeostasis
from snnexp.rescue.manager import Rescue
from snnexp.rescue.pseudospike import nearness
from snnexp.rescue.resample import dormant
from snnexp.rescue.variance_init import firing_share
from snnexp.rescue.wide_surrogate import stretch_at
from snnexp.rescue.wiring import wiring
from snnexp.training.optimisation import build_optimizer
from snnexp.training.passes import train_pass
from snnexp.validation import validate

SMALL = ("tracking=off", "device=cpu", "trainer=smoke", "dataset.limit_train=64")
DEEP = ("model.spec=FC16-SN-FC16-SN-FC-SN", "dataset.num_steps=4", "neuron.engine=reference")


def configured(*overrides: str) -> Config:
    return validate(compose_words(*SMALL, *overrides))


def ready(*overrides: str) -> tuple[Experiment, torch.optim.Optimizer, Rescue]:
    experiment = assemble(configured(*DEEP, *overrides))
    optimizer = build_optimizer(experiment.conf.optimizer, experiment.network.parameter_groups())
    rescue = Rescue.of(experiment, optimizer)
    rescue.start()
    return experiment, optimizer, rescue


def cure(rescue: Rescue) -> Any:
    assert rescue.cure is not None
    return rescue.cure


def test_bounds_by_hand() -> None:
    _, _, rescue = ready("rescue=bounds", "rescue.lower=0.25", "rescue.upper=0.5", "rescue.strength=8")
    bounds = cure(rescue)
    assert isinstance(bounds, Bounds)
    # sample 0: two neurons at 0 and 0.5: (0.25 - 0)^2 counts; sample 1: at 0.75 and 0.75: 0.25 above the upper bound
    rates = torch.tensor([[0.0, 0.5], [0.75, 0.75]], requires_grad=True)
    loss = bounds.of_layer(rates)
    assert loss.item() == 8 * 0.0625 / 4 + 0.0625 / 2
    loss.backward()
    assert rates.grad is not None
    # d/dr 8 (0.25 - r)^2 / 4 = -1 at r = 0; d/dr (mean - 0.5)^2 / 2 = 0.25 / 2 for each of two neurons
    assert rates.grad.tolist() == [[-1.0, 0.0], [0.125, 0.125]]


def test_bounds_wake_neurons_that_no_loss_reaches() -> None:
    """The last layer is silent and out of reach of the loss' own gradient: only the bound's is left for the first."""
    experiment, _, rescue = ready("rescue=bounds", "neuron.threshold=1.5", "model.gain=0.4")
    batch = next(experiment.source.batches("train", 1, 0))
    sums = rescue.sums()
    assert sums is not None
    experiment.trained_on(batch, None, sums)
    assert set(sums.found) == {"sn1", "sn2", "sn3"}
    rescue.term(sums).backward()
    gradient = experiment.network.get_parameter("fc1.weight").grad
    assert gradient is not None and float(gradient.abs().sum()) > 0


def test_homeostasis_by_hand() -> None:
    experiment, _, rescue = ready("rescue=homeostasis", "rescue.rate=0.5", "rescue.target=0.25", "rescue.lowest=0.4")
    homeostasis = cure(rescue)
    assert isinstance(homeostasis, Homeostasis)
    layer = experiment.network.neurons["sn1"]
    counts = torch.zeros(2, 16)
    counts[:, 0] = torch.tensor([4.0, 2.0])  # 6 spikes in 2 samples of 4 steps
    mem = torch.zeros(2, 2, 16)
    rescue.watched(ActivityMeter(experiment.network)).spiking("sn1", layer, Firing(counts / 2, mem, None, False))
    homeostasis.rates.spiking("sn1", layer, Firing(counts / 2, mem, None, True))  # in two segments
    rescue.after_step()
    assert layer.threshold[0].item() == 1 + 0.5 * (0.75 - 0.25)
    assert layer.threshold[1].item() == 1 - 0.5 * 0.25
    for _ in range(9):
        homeostasis.rates.spiking("sn1", layer, Firing(counts, mem.repeat(2, 1, 1), None, True))
        rescue.after_step()
    assert layer.threshold[1].item() == pytest.approx(0.4)  # not below the lowest
    assert float(experiment.network.neurons["sn2"].threshold.min()) == 1.0  # of which nothing was seen


def test_the_response_to_one_spike() -> None:
    plain = SpikingLayer(NeuronConf(name="n", beta=0.5), (1,), "sn1")
    assert response_power(plain, 3) == 1 + 0.25 + 0.0625
    scaled = SpikingLayer(NeuronConf(name="n", beta=0.5, tau_form=True), (1,), "sn1")
    assert response_power(scaled, 3) == 0.25 * (1 + 0.25 + 0.0625)
    current = SpikingLayer(NeuronConf(name="n", beta=0.5, alpha=0.5), (1,), "sn1")  # h = 1, 1, 0.75
    assert response_power(current, 3) == 1 + 1 + 0.5625


def test_fluctuation_init_draws_the_weights_of_its_equation() -> None:
    spec = "model.spec=FC64-SN-RFC64-SN-FC64-BN-SN-FC-SN"
    experiment, _, _ = ready("rescue=fluctuation_init", spec, "rescue.xi=2", "rescue.rate=0.25", "neuron.beta=0.5")
    power = sum(0.25**k for k in range(4))
    network = experiment.network
    expected = 0.5 / sqrt(64 * 0.25 * power)  # theta 1, xi 2
    for key, share in (("fc1.weight", 1.0), ("rfc1.weight", 0.9), ("rfc1.recurrent.weight", 0.1)):
        assert float(network.state_dict()[key].std()) == pytest.approx(expected * sqrt(share), rel=0.05)
    assert float(network.state_dict()["bn1.weight"].mean()) == pytest.approx(0.5 / sqrt(power))


def test_variance_init_draws_the_weights_of_its_equation() -> None:
    assert firing_share(0.0) == 0.5
    assert firing_share(1.0) == pytest.approx(0.158655, rel=1e-4)
    experiment, _, rescue = ready("rescue=variance_init", "model.spec=FC64-SN-FC64-SN-FC-SN")
    second = experiment.network.get_parameter("fc2.weight").detach()
    assert float(second.std()) == pytest.approx(1 / sqrt(64 * 0.158655), rel=0.05)
    # the first layer: membranes' variance of one step is 1 over the batch and the neurons
    frames = experiment.encoder(next(experiment.source.batches("train", 1, 0)).frames).frame.flatten(1)  # type: ignore[union-attr]
    assert cure(rescue).power == pytest.approx(float(frames.square().mean()))
    first = experiment.network.get_parameter("fc1.weight").detach()
    assert float((frames @ first.T).square().mean()) == pytest.approx(1, rel=0.4)


def test_the_same_weights_again() -> None:
    """From the run's seed, whatever else has drawn numbers."""
    one = ready("rescue=variance_init")[0].network.state_dict()
    torch.rand(3)
    two = ready("rescue=variance_init")[0].network.state_dict()
    other = ready("rescue=variance_init", "seed=1")[0].network.state_dict()
    assert all(one[key].equal(two[key]) for key in one)
    assert not one["fc1.weight"].equal(other["fc1.weight"])


def test_the_surrogates_width() -> None:
    assert [stretch_at(done, 4, 5.0) for done in (0, 4, 9)] == [5.0, 1.0, 1.0]
    half = sqrt(10)
    assert stretch_at(2, 4, 5.0) == pytest.approx(9 / ((half - 1) + (10 - half) / 5))
    experiment, _, rescue = ready("rescue=wide_surrogate", "trainer.max_epochs=4", "neuron.surrogate.name=triangular")
    layer = experiment.network.neurons["sn1"]
    reach = []
    for epoch in (1, 2, 3):
        rescue.before_epoch(epoch)
        reach.append(float(layer.dynamics.surrogate.derivative(torch.tensor(1.0))))
    # width 0.5: nothing at a distance of 1; 5 times as wide: 1 - 1/2.5
    assert reach[0] == pytest.approx(0.6) and reach[0] > reach[1] > 0 and reach[2] == 0


@pytest.mark.parametrize("name", ["atan", "fast_sigmoid", "sigmoid", "triangular", "rectangular", "exponential"])
def test_a_stretched_surrogate_is_the_same_further_out(name: str) -> None:
    plain = build_surrogate(SurrogateConf(name=name))
    import dataclasses

    wide = dataclasses.replace(plain, stretch=4.0)
    x = torch.linspace(-3, 3, 25)
    assert torch.allclose(wide.derivative(4 * x), plain.derivative(x))


def test_who_is_dormant() -> None:
    rates = torch.tensor([0.0, 0.1, 0.5, 0.6])  # mean 0.3
    assert dormant(rates, 0.0).tolist() == [True, False, False, False]
    assert dormant(rates, 0.5).tolist() == [True, True, False, False]
    assert dormant(torch.zeros(3), 0.0).tolist() == [True, True, True]


def after_an_epoch(*overrides: str) -> tuple[Experiment, torch.optim.Optimizer, Rescue, ActivityMeter]:
    experiment, optimizer, rescue = ready(*overrides)
    meter = ActivityMeter(experiment.network)
    train_pass(experiment, optimizer, 1, meter, rescue=rescue)
    meter.metrics("train")
    return experiment, optimizer, rescue, meter


def silence(meter: ActivityMeter, name: str, *neurons: int) -> None:
    """Make the meter say that these neurons, and only these, never fired."""
    rates = torch.full_like(meter.last[name].rates, 0.5)
    rates.view(-1)[list(neurons)] = 0
    meter.last[name] = type(meter.last[name])(**{**vars(meter.last[name]), "rates": rates})


def test_resample_redraws_dead_neurons_and_nothing_else() -> None:
    experiment, optimizer, rescue, meter = after_an_epoch("rescue=resample", "rescue.gain=2")
    network = experiment.network
    for name in ("sn1", "sn2", "sn3"):
        silence(meter, name, *([3] if name == "sn1" else []))
    before = {key: value.clone() for key, value in network.state_dict().items()}
    assert rescue.between_epochs(1, meter, []) == {
        "rescue/resampled/sn1": 1.0,
        "rescue/resampled/sn2": 0.0,
        "rescue/resampled/sn3": 0.0,
    }
    now = network.state_dict()
    changed = {key for key in now if not now[key].equal(before[key])}
    assert changed == {"fc1.weight", "fc1.bias", "fc2.weight"}
    rows = (now["fc1.weight"] != before["fc1.weight"]).any(1)
    assert rows.nonzero().flatten().tolist() == [3]
    bound = 2 / sqrt(64)  # gain 2, PyTorch's U(+-1/sqrt(n))
    assert bound / 2 < float(now["fc1.weight"][3].abs().max()) <= bound
    assert (now["fc2.weight"][:, 3] == 0).all() and now["fc2.weight"][:, :3].equal(before["fc2.weight"][:, :3])
    for key, part in (("fc1.weight", (3,)), ("fc1.bias", (3,)), ("fc2.weight", (slice(None), 3))):
        for moment in ("exp_avg", "exp_avg_sq"):
            values = optimizer.state[network.get_parameter(key)][moment]
            assert (values[part] == 0).all() and (values != 0).any()


def test_resample_leaves_outgoing_weights_where_a_whole_layer_was_silent() -> None:
    experiment, _, rescue, meter = after_an_epoch("rescue=resample")
    silence(meter, "sn1", *range(16)), silence(meter, "sn2")
    before = experiment.network.get_parameter("fc2.weight").clone()
    assert rescue.between_epochs(1, meter, [])["rescue/resampled/sn1"] == 16
    assert experiment.network.get_parameter("fc2.weight").equal(before)


def test_resample_follows_a_channel_through_pooling_and_flattening() -> None:
    spec = "model.spec=c4k3-BN-SN-MP2-FC8-SN-FC-SN"
    experiment, _, rescue, meter = after_an_epoch("rescue=resample", spec)
    network = experiment.network
    pixels = 8 * 8  # digits
    silence(meter, "sn1", *range(2 * pixels, 3 * pixels))
    silence(meter, "sn2"), silence(meter, "sn3")
    assert rescue.between_epochs(1, meter, [])["rescue/resampled/sn1"] == 1
    outgoing = network.get_parameter("fc1.weight").view(8, 4, 16)
    assert (outgoing[:, 2] == 0).all() and (outgoing[:, [0, 1, 3]] != 0).all()
    assert (
        float(network.get_parameter("bn1.bias").detach()[2]) == 0
        and float(network.get_parameter("bn1.weight").detach()[2]) == 1
    )


def test_how_near_a_membrane_is_to_a_spike_after_the_end() -> None:
    theta, beta, drive = torch.tensor(1.0), 0.5, 2.0
    mem = torch.tensor([1.0, 0.0, -2.0], requires_grad=True)
    near = nearness(mem, theta, drive)
    assert near.tolist() == [1.0, 0.5, 0.25]
    # from 0 towards 2 with beta 0.5: at 1 after one step, and a spike has beta^1 left then; from -2 after two
    assert [beta**t for t in (0, 1, 2)] == near.tolist()
    near.sum().backward()
    assert mem.grad is not None and mem.grad.tolist() == [1.0, 0.25, 0.0625]  # 1 / (2 - U)^2


def test_pseudospikes_are_of_the_silent_only_and_in_training_only() -> None:
    experiment, _, rescue = ready("rescue=pseudospike", "rescue.height=0.5", "rescue.drive=2")
    pseudo, layer = cure(rescue), experiment.network.neurons["sn1"]
    spk = torch.zeros(3, 1, 16)
    spk[0, 0, 0] = 1
    mem = torch.zeros(3, 1, 16, requires_grad=True)
    out: Tensor = pseudo.add(layer, LayerRun(spk, mem, spk.sum(0)))
    assert out[:2].equal(spk[:2]) and out[2, 0].tolist() == [0.0] + [0.25] * 15
    batch = next(experiment.source.batches("train", 1, 0))
    experiment.network.eval()
    with torch.no_grad():
        assert set(experiment.forward(batch).spk.unique().tolist()) <= {0.0, 1.0}
        experiment.network.train()
        assert not set(experiment.forward(batch).spk.unique().tolist()) <= {0.0, 1.0}


def test_learned_thresholds_wait_for_the_diagnosis() -> None:
    experiment, optimizer, rescue = ready("rescue=rouser", "rescue.when=diagnosed")
    meter = ActivityMeter(experiment.network)
    train_pass(experiment, optimizer, 1, meter, rescue=rescue)
    layers = experiment.network.neurons
    assert all(bool((layer.threshold == 1).all()) for layer in layers.values())
    meter.metrics("train")
    assert rescue.between_epochs(1, meter, [("sn2 dead", "..."), ("input silent", "...")]) == {"rescue/fired/sn2": 1.0}
    assert rescue.between_epochs(2, meter, [("sn2 dead", "...")]) == {}  # once
    assert rescue.tags() == {"rescue.fired": "sn2 after epoch 1"}
    assert rescue.told(1) == "rescue=rouser acts on sn2 from here on: dead after epoch 1." and not rescue.told(2)
    train_pass(experiment, optimizer, 2, meter, rescue=rescue)
    moved = {name for name, layer in layers.items() if not bool((layer.threshold == 1).all())}
    assert moved == {"sn2"}


# --- wiring: residual blocks ----------------------------------------------------------------------------------------

BLOCK = "model.spec='c4k3-BN-SN-+(c4k3-BN-SN-c4k3-BN|c4k1-BN)-SN-FC-SN'"
SEW = "model.spec='c4k3-BN-SN-+(c4k3-BN-SN-c4k3-SN|c4k1-SN)-FC-SN'"


def names_of(experiment: Experiment, layer: str) -> tuple[list[tuple[str, str | None, str | None]], list[str]]:
    found = {id(module): name for name, module in experiment.network.named_modules()}
    around = wiring(experiment.network, layer)
    drivers = [(found[id(d.weights)], found.get(id(d.norm)), d.before) for d in around.drivers]
    return drivers, [found[id(module)] for module in around.readers]


def test_what_drives_and_what_reads_the_neurons_of_a_residual_block() -> None:
    experiment = assemble(configured(*DEEP, BLOCK))
    assert names_of(experiment, "sn1") == ([("conv1", "bn1", None)], ["conv2", "conv4"])
    assert names_of(experiment, "sn2") == ([("conv2", "bn2", "sn1")], ["conv3"])
    assert names_of(experiment, "sn3") == ([("conv3", "bn3", "sn2"), ("conv4", "bn4", "sn1")], ["fc1"])
    experiment = assemble(configured(*DEEP, SEW))
    assert names_of(experiment, "sn3") == ([("conv3", None, "sn2")], [])  # what follows reads a sum
    assert names_of(experiment, "sn4") == ([("conv4", None, "sn1")], [])


def test_both_ways_of_a_block_share_the_variance() -> None:
    experiment, _, _ = ready("rescue=variance_init", BLOCK)
    scales = [float(experiment.network.get_parameter(f"bn{n}.weight").detach().mean()) for n in (2, 3, 4)]
    assert scales == pytest.approx([1, sqrt(0.5), sqrt(0.5)])
    experiment, _, _ = ready("rescue=fluctuation_init", BLOCK)
    scales = [float(experiment.network.get_parameter(f"bn{n}.weight").detach().mean()) for n in (2, 3, 4)]
    assert scales[1] == scales[2] == pytest.approx(scales[0] * sqrt(0.5))


def test_resample_in_a_block_leaves_the_other_way_alone() -> None:
    experiment, _, rescue, meter = after_an_epoch("rescue=resample", SEW)
    pixels = 8 * 8
    for name in ("sn1", "sn2", "sn3", "sn4", "sn5"):
        silence(meter, name, *(range(pixels) if name == "sn3" else []))
    before = {key: value.clone() for key, value in experiment.network.state_dict().items()}
    assert rescue.between_epochs(1, meter, [])["rescue/resampled/sn3"] == 1
    now = experiment.network.state_dict()
    assert {key for key in now if not now[key].equal(before[key])} == {"conv3.weight", "conv3.bias"}


# --- spikes that training forced, surrogates at the end -------------------------------------------------------------


def test_forced_spikes_do_not_raise_the_thresholds_of_dead_neurons() -> None:
    once = ("neuron=ttfs", "neuron.force_last_spike=true", "model.weight_norm=false", "neuron.threshold=5")
    experiment, optimizer, rescue = ready("rescue=homeostasis", *once, "model.gain=0.1", "neuron.learn_threshold=false")
    meter = ActivityMeter(experiment.network)
    train_pass(experiment, optimizer, 1, meter, rescue=rescue)
    meter.metrics("train")
    assert meter.last["sn1"].dead_fraction == 1
    assert float(experiment.network.neurons["sn1"].threshold.max()) < 5


def test_a_test_sees_the_surrogate_as_configured() -> None:
    experiment, _, rescue = ready("rescue=wide_surrogate", "rescue.share=1", "trainer.max_epochs=2")
    rescue.before_epoch(1)
    assert experiment.network.neurons["sn1"].dynamics.surrogate.stretch == 5
    rescue.after_training()
    assert experiment.network.neurons["sn1"].dynamics.surrogate.stretch == 1
