"""The neuron equation against values worked out by hand; beta 0.5 and inputs in quarters are exact, so == is fair."""

import math

import pytest
import torch

from snnexp.config import NeuronConf, SurrogateConf
from snnexp.errors import ConfigError
from snnexp.neurons.layer import SpikingLayer

ENGINES = ("reference", "numba")


def run(x: list[float], engine: str = "reference", spiking: bool = True, train: bool = True, **options: object):
    """Spikes and membranes of one neuron as lists."""
    conf = NeuronConf(name="test", engine=engine, **{"threshold": 1, "beta": 0.5} | options)  # an int, as YAML has it
    layer = SpikingLayer(conf, (1,), "sn1", spiking=spiking).train(train)
    out = layer(torch.tensor(x).view(-1, 1, 1))
    assert layer.engine == engine
    return out.spk.flatten().tolist(), out.mem.flatten().tolist()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("reset", "mem", "spk"),
    [
        ("zero", [0.75, 1.125, 0.75, 1.125], [0, 1, 0, 1]),
        ("subtract", [0.75, 1.125, 0.3125, 0.90625], [0, 1, 0, 0]),
        ("subtract_first", [0.75, 1.125, 0.8125, 1.15625], [0, 1, 0, 1]),
        ("none", [0.75, 1.125, 1.3125, 1.40625], [0, 1, 1, 1]),
    ],
)
def test_constant_input_under_each_reset(engine, reset, mem, spk):
    assert run([0.75] * 4, engine, reset=reset) == (spk, mem)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_tie_fires_unless_strict(engine):
    assert run([1.0, 0.5, 0.5], engine) == ([1, 0, 0], [1.0, 0.5, 0.75])
    assert run([1.0, 0.5, 0.75], engine, strict=True) == ([0, 0, 1], [1.0, 1.0, 1.25])


@pytest.mark.parametrize("engine", ENGINES)
def test_current_decays_and_is_not_reset(engine):
    # I = 1, 0.5, 0.25, 0.125;  U = 1 (spike), 0 + 0.5, 0.25 + 0.25, 0.25 + 0.125
    assert run([1.0, 0, 0, 0], engine, alpha=0.5) == ([1, 0, 0, 0], [1.0, 0.5, 0.5, 0.375])


@pytest.mark.parametrize("engine", ENGINES)
def test_tau_form_scales_the_input(engine):
    # beta 0.75 (tau 4): U = 0.25 * 4 = 1 (spike), 0.25 * 2, 0.75 * 0.5 + 0.5
    assert run([4.0, 2.0, 2.0], engine, beta=0.75, tau_form=True) == ([1, 0, 0], [1.0, 0.5, 0.875])


@pytest.mark.parametrize("engine", ENGINES)
def test_fire_once_never_fires_twice(engine):
    spk, mem = run([1.0] * 6, engine, fire_once=True, reset="none", beta=1)
    assert spk == [1, 0, 0, 0, 0, 0]
    assert mem == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("engine", ENGINES)
def test_a_silent_neuron_is_forced_to_fire_at_the_end_of_training_samples_only(engine):
    options = {"fire_once": True, "force_last_spike": True, "reset": "none"}
    assert run([0.25] * 3, engine, **options)[0] == [0, 0, 1]
    assert run([0.25] * 3, engine, train=False, **options)[0] == [0, 0, 0]
    assert run([1.0, 0, 0], engine, **options)[0] == [1, 0, 0]  # not silent, so not forced


@pytest.mark.parametrize("engine", ENGINES)
def test_relative_distance_decides_on_the_spike(engine):
    # U/theta - 1 and U - theta agree in sign for theta > 0 and are opposite for theta < 0
    assert run([0.75, 0.125], engine, threshold=0.5, relative_surrogate=True)[0] == [1, 0]
    assert run([-1.0], engine, threshold=-0.5, relative_surrogate=True)[0] == [1]
    assert run([-1.0], engine, threshold=-0.5)[0] == [0]


@pytest.mark.parametrize("engine", ENGINES)
def test_a_readout_integrates_without_spikes_or_reset(engine):
    assert run([4.0, 0, 2.0], engine, spiking=False) == ([0, 0, 0], [4.0, 2.0, 3.0])


def test_threshold_gradient_is_the_negative_of_the_summed_surrogate_path():
    """Rouser Eq. 2 and 3: with reset and leak out of play, dS/dtheta = -dS/dU at every step."""
    conf = NeuronConf(
        name="test", threshold=1.25, beta=0, learn_threshold=True, reset="none",
        surrogate=SurrogateConf(name="exponential", scale=1.5, width=3.75), engine="reference",
    )  # fmt: skip
    layer = SpikingLayer(conf, (1,), "sn1")
    x = torch.tensor([0.25, 1.25, 2.0]).view(3, 1, 1).requires_grad_()
    layer(x).spk.sum().backward()
    by_hand = [1.5 / 3.75 * math.exp(-abs(u - 1.25) / 3.75) for u in (0.25, 1.25, 2.0)]
    assert x.grad.flatten().tolist() == pytest.approx(by_hand)
    assert layer.raw_threshold.grad.item() == pytest.approx(-sum(by_hand))


def test_plif_starts_at_its_tau_and_learns_the_gain_with_the_decay():
    conf = NeuronConf(name="test", threshold=10, beta=0.75, learn_beta=True, tau_form=True, engine="reference")
    layer = SpikingLayer(conf, (1,), "sn1")
    assert layer.raw_beta.item() == pytest.approx(-math.log(4 - 1))  # a0 = -ln(tau0 - 1)
    layer(torch.tensor([1.0, 3.0]).view(2, 1, 1)).mem[-1].sum().backward()
    # U[1] = beta (1 - beta) x0 + (1 - beta) x1: dU/dbeta = (1 - 2 beta) x0 - x1 = -3.5; dbeta/da = -beta (1 - beta)
    assert layer.raw_beta.grad.item() == pytest.approx(-3.5 * -0.1875)


def test_ltmd_learns_k_behind_tanh():
    conf = NeuronConf(
        name="test", threshold=math.tanh(0.5), learn_threshold=True, threshold_param="tanh", engine="reference",
        surrogate=SurrogateConf(name="rectangular"), reset="none",
    )  # fmt: skip
    layer = SpikingLayer(conf, (1,), "sn1")
    assert layer.raw_threshold.item() == pytest.approx(0.5)
    layer(torch.tensor([0.5, 2.0, 0.0]).view(3, 1, 1)).spk.sum().backward()
    # U = 0.5, 2.25, 1.125: only 0.5 lies within 0.5 of theta = 0.462
    assert layer.raw_threshold.grad.item() == pytest.approx(-(1 - math.tanh(0.5) ** 2))


def test_ignored_reset_leaves_a_plain_leaky_backward():
    """SLAYER: g[t] = beta g[t+1] + incoming, although the neuron was reset at every step."""
    conf = NeuronConf(name="test", threshold=0.5, beta=0.5, ignore_reset_in_backward=True, engine="reference")
    x = torch.ones(4, 1, 1, requires_grad=True)
    out = SpikingLayer(conf, (1,), "sn1")(x)
    assert out.spk.sum() == 4
    out.mem[-1].sum().backward()
    assert x.grad.flatten().tolist() == [0.125, 0.25, 0.5, 1.0]


def test_forced_spike_keeps_the_surrogate_gradient():
    conf = NeuronConf(
        name="test", threshold=1, beta=0.5, fire_once=True, force_last_spike=True, reset="none", engine="reference",
        surrogate=SurrogateConf(name="triangular", scale=1, width=1),
    )  # fmt: skip
    x = torch.tensor([0.0, 0.25]).view(2, 1, 1).requires_grad_()
    SpikingLayer(conf, (1,), "sn1")(x).spk[-1].sum().backward()
    assert x.grad.flatten().tolist() == [0.125, 0.25]  # 1 - |0.25 - 1| = 0.25, and beta of it one step earlier


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"threshold": -1.0, "learn_threshold": True, "threshold_param": "softplus"}, "neuron.threshold=-1.0"),
        ({"threshold": 1.5, "learn_threshold": True, "threshold_param": "tanh"}, "between -1 and 1"),
        ({"beta": 1.0, "learn_beta": True}, "neuron.decay_param=sigmoid"),
        ({"reset": "zreo"}, "Did you mean zero?"),
        ({"threshold_per": "synapse"}, "layer, channel, neuron"),
    ],
)
def test_values_that_cannot_work_are_refused(options, words):
    with pytest.raises(ConfigError) as error:
        SpikingLayer(NeuronConf(name="test", **options), (3,), "sn1")
    assert words in str(error.value)
