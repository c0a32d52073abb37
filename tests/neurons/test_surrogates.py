"""Surrogates: derivatives by hand and against the functions they are derivatives of, names, snnTorch's by name."""

import inspect
import math

import pytest
import snntorch.surrogate
import torch

from snnexp.config import SurrogateConf
from snnexp.errors import ConfigError
from snnexp.neurons.names import FUSED_SURROGATES, SNNTORCH_SURROGATES, SURROGATES
from snnexp.neurons.surrogates import Surrogate, build_surrogate, with_value

X = torch.linspace(-2, 2, 401, dtype=torch.float64)


@pytest.mark.parametrize(
    ("surrogate", "x", "value"),
    [
        (Surrogate("atan", alpha=2.0), 0.0, 1.0),
        (Surrogate("atan", alpha=2.0), 1.0, 1 / (1 + math.pi**2)),
        (Surrogate("fast_sigmoid", slope=25.0), 0.1, 1 / 3.5**2),
        (Surrogate("sigmoid", slope=4.0), 0.0, 1.0),
        (Surrogate("triangular", scale=0.3, width=1.0), -0.5, 0.15),
        (Surrogate("triangular", scale=0.3, width=1.0), 1.5, 0.0),
        (Surrogate("rectangular", scale=1.0, width=0.5), 0.49, 1.0),
        (Surrogate("rectangular", scale=1.0, width=0.5), 0.5, 0.0),
        (Surrogate("exponential", scale=1.5, width=3.75), -3.75, 0.4 / math.e),
        (Surrogate("exponential", scale=1.5, width=3.75, cutoff=0.37), -3.75, 0.0),
        (Surrogate("exponential", scale=1.5, width=3.75, cutoff=0.36), -3.75, 0.4 / math.e),
        (Surrogate("atan", alpha=2.0, cutoff=0.5, stretch=4.0), 1.28, 0.0),  # half of the peak is at 4/pi = 1.273
        (Surrogate("atan", alpha=2.0, cutoff=0.5, stretch=4.0), 1.27, 1 / (1 + (math.pi * 1.27 / 4) ** 2)),
    ],
)
def test_derivative_by_hand(surrogate, x, value):
    assert surrogate.derivative(torch.tensor(x, dtype=torch.float64)).item() == pytest.approx(value)


@pytest.mark.parametrize(
    ("surrogate", "function"),
    [
        (Surrogate("atan", alpha=2.0), lambda x: torch.atan(math.pi * x) / math.pi),
        (Surrogate("fast_sigmoid", slope=3.0), lambda x: x / (1 + 3 * x.abs())),
        (Surrogate("sigmoid", slope=3.0), lambda x: torch.sigmoid(3 * x)),
        (Surrogate("exponential", scale=1.5, width=0.7), lambda x: -1.5 * x.sign() * torch.exp(-x.abs() / 0.7)),
    ],
)
def test_derivative_is_that_of_the_smooth_function(surrogate, function):
    x = X[X != 0].requires_grad_()
    (slope,) = torch.autograd.grad(function(x).sum(), x)
    torch.testing.assert_close(surrogate.derivative(x.detach()), slope, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (Surrogate("atan", alpha=3.0), snntorch.surrogate.atan(alpha=3.0)),
        (Surrogate("fast_sigmoid", slope=10.0), snntorch.surrogate.fast_sigmoid(slope=10)),
        (Surrogate("sigmoid", slope=5.0), snntorch.surrogate.sigmoid(slope=5)),
    ],
)
def test_shared_surrogates_equal_snntorch(ours, theirs):
    a, b = X.clone().requires_grad_(), X.clone().requires_grad_()
    ours.spike(a, strict=True).sum().backward()
    theirs(b).sum().backward()
    torch.testing.assert_close(a.grad, b.grad, rtol=1e-10, atol=1e-14)


def test_nothing_below_the_cutoff_is_in_reach():
    cut = Surrogate("atan", cutoff=0.5)
    assert cut.peak == 1.0
    assert cut.radius(0.01) == cut.radius(0.5) == pytest.approx(1 / math.pi) and cut.radius(0.9) < cut.radius(0.5)


@pytest.mark.parametrize("name", SURROGATES)
def test_every_name_builds_and_fires_by_our_rule(name):
    surrogate = build_surrogate(SurrogateConf(name=name))
    x = torch.tensor([-1.0, 0.0, 0.5]).requires_grad_()
    for strict, expected in ((False, [0, 1, 1]), (True, [0, 0, 1])):
        spk = surrogate.spike(x, strict)
        assert spk.tolist() == expected
        (gradient,) = torch.autograd.grad(spk.sum(), x)
        assert gradient.isfinite().all()
    assert surrogate.fused == (name in FUSED_SURROGATES)


def test_a_snntorch_surrogate_keeps_its_backward():
    x = X.clone().requires_grad_()
    build_surrogate(SurrogateConf(name="snntorch:SFS")).spike(x, strict=False).sum().backward()
    y = X.clone().requires_grad_()
    snntorch.surrogate.SFS()(y).sum().backward()
    assert torch.equal(x.grad, y.grad) and x.grad.abs().max() > 0


def test_the_list_of_snntorch_surrogates_is_complete():
    public = {
        name
        for name, function in inspect.getmembers(snntorch.surrogate, inspect.isfunction)
        if all(p.default is not p.empty for p in inspect.signature(function).parameters.values())
    }
    assert set(SNNTORCH_SURROGATES) == public - {"LSO"}
    with pytest.raises(TypeError, match="variance"):  # why it is left out
        snntorch.surrogate.LSO()(X)


def test_wrong_names_and_numbers_are_refused():
    with pytest.raises(ConfigError, match="Did you mean triangular"):
        build_surrogate(SurrogateConf(name="triangualr"))
    with pytest.raises(ConfigError, match=r"neuron.surrogate.width=0.0: must be above 0"):
        build_surrogate(SurrogateConf(name="exponential", width=0))


def test_with_value_keeps_infinities_and_sends_the_gradient_on():
    x = torch.tensor([float("inf"), 2.0], requires_grad=True)
    y = with_value(torch.tensor([1.0, 5.0]), gradient_of=x)
    assert y.tolist() == [1, 5]
    (y * torch.tensor([3.0, 4.0])).sum().backward()
    assert x.grad.tolist() == [3, 4]
