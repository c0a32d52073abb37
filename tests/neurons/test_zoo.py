"""Neurons of the literature: against their authors' update rules written out, and their gradients on the kernels."""

from typing import Any

import numpy as np
import pytest
import torch

from snnexp.config import NeuronConf, SurrogateConf
from snnexp.neurons import zoo
from snnexp.neurons.compiler.plan import derived_values, forward_plan
from snnexp.neurons.custom import load_equation
from snnexp.neurons.engines import reference
from snnexp.neurons.engines.fused import run_fused, with_derived
from snnexp.neurons.engines.numba_engine import NumbaBackend
from snnexp.neurons.equation import Dynamics, State
from snnexp.neurons.layer import SpikingLayer
from snnexp.neurons.surrogates import Surrogate, build_surrogate

NAMES = ("adlif", "se_adlif", "silif", "alif")
THRESHOLD = {"adlif": 1.0, "se_adlif": 1.0, "silif": 1.0, "alif": 0.01}
DRIVE = {"adlif": 12.0, "se_adlif": 12.0, "silif": 12.0, "alif": 0.3}


def dynamics(name: str) -> Dynamics:
    surrogate = Surrogate("rectangular", scale=1.0)
    if name == "alif":
        surrogate = build_surrogate(SurrogateConf(f"{zoo.__name__}:multi_gaussian", scale=0.5, width=0.5))
    return Dynamics(surrogate, strict=True, equation=load_equation(f"{zoo.__name__}:{name}", {}))


def drawn(name: str, shape: tuple[int, ...] = (4,)) -> dict[str, torch.Tensor]:
    """Values as a layer would start with, in float64."""
    torch.manual_seed(0)
    values = {}
    for key, param in dynamics(name).equation.params:
        low, high = param.init if isinstance(param.init, tuple) else (param.init, param.init)
        values[key] = (low + (high - low) * torch.rand(shape, dtype=torch.float64)).requires_grad_()
    return values


def theirs(name: str, x: Any, v: dict[str, Any], start: tuple[Any, Any, Any]) -> tuple[Any, Any]:
    """The authors' loops in NumPy, from their code at the commits that docs/neurons.md names: spikes and membranes.

    A membrane is what the spike was decided on, before any reset. start: membrane, spikes, second state.
    """
    u, s, w = start
    spikes, membranes = [], []
    if name == "se_adlif":  # the state that they carry is the one after the reset
        u = u * (1 - s)
        tau_u, tau_w = (v[n] * high + (1 - v[n]) * low for n, low, high in (("place_u", 5, 25), ("place_w", 60, 300)))
        alpha, beta = np.exp(-1 / tau_u), np.exp(-1 / tau_w)
    elif name == "alif":
        alpha, beta = np.exp(-1 / v["tau"]), np.exp(-1 / v["tau_w"])
    elif name == "silif":
        alpha, beta = (np.exp(-np.exp(v[n]) * np.exp(v["log_dt"])) for n in ("log_leak", "log_slow"))
    else:
        alpha, beta = v["decay"], v["rho"]
    for now in x:
        match name:
            case "adlif" | "silif":
                w = beta * w + v["a"] * u + v["b"] * s
                u = alpha * (u - s) + (1 - alpha) * (now - w)
                s = (u - 1.0 > 0) * 1.0
                membranes.append(u)
            case "se_adlif":
                u = alpha * u + (1 - alpha) * (now - w)
                membranes.append(u)
                s = np.heaviside(u - 1.0, 0.0)
                u = u * (1 - s)
                w = beta * w + (1 - beta) * (v["a"] * u + v["b"] * s) * 120
            case "alif":
                w = beta * w + (1 - beta) * s
                level = THRESHOLD["alif"] + 1.8 * w
                u = u * alpha + (1 - alpha) * now - level * s
                s = (u - level > 0) * 1.0
                membranes.append(u)
        spikes.append(s)
    return np.stack(spikes), np.stack(membranes)


@pytest.mark.parametrize("name", NAMES)
def test_the_authors_update_rule_and_the_kernels_gradients(name):
    draw = torch.Generator().manual_seed(1)
    x = (torch.rand(40, 3, 4, generator=draw, dtype=torch.float64) * DRIVE[name]).requires_grad_()
    values, d = drawn(name), dynamics(name)
    beta = torch.tensor(0.9, dtype=torch.float64)
    threshold = torch.tensor(THRESHOLD[name], dtype=torch.float64).requires_grad_()
    u, s, w = (torch.rand(3, 4, generator=draw, dtype=torch.float64) for _ in range(3))
    start: State = d.equation.state_type(u * THRESHOLD[name], s.round(), w * THRESHOLD[name])
    leaves, results = [x, threshold, *values.values()], []
    for fused in (False, True):
        if fused:
            spk, mem, _ = run_fused(x, None, beta, threshold, d, start, NumbaBackend(compiled=False), more=values)
        else:
            spk, mem, _ = reference.run(x, None, beta, threshold, d, start, more=values)
        weights = torch.linspace(0, 1, spk.numel(), dtype=torch.float64).view(spk.shape)
        results.append(
            [spk, mem, *torch.autograd.grad((spk * weights).sum() + (mem**2).sum(), leaves, allow_unused=True)]
        )
    plain = {key: value.detach().numpy() for key, value in values.items()}
    spikes, membranes = theirs(name, x.detach().numpy(), plain, tuple(part.numpy() for part in start))
    assert 0.02 < spikes.mean() < 0.9
    np.testing.assert_array_equal(results[0][0].detach().numpy(), spikes)
    np.testing.assert_allclose(results[0][1].detach().numpy(), membranes, rtol=1e-12, atol=1e-12)
    for a, b in zip(*results, strict=True):
        assert (a is None) == (b is None) or b is None or not b.any()
        if a is not None:
            assert (a - b).abs().max() <= 1e-10 * a.abs().max(), name


@pytest.mark.parametrize("name", NAMES)
def test_their_readouts_are_leaky_integrators(name):
    """U[t] = k U[t-1] + (1 - k) x[t] and no spike, also where the neuron's own values are set."""
    params = {"a": 0.5} if name == "adlif" else {}
    conf = NeuronConf(name, equation=f"{zoo.__name__}:{name}", params=params, learn_threshold=True, engine="reference")
    layer = SpikingLayer(conf, (4,), "sn2", spiking=False)
    values = layer.more_values()
    k = torch.exp(-1 / values["tau"].detach()) if name == "alif" else values["decay"].detach()
    assert k.min() >= np.exp(-1 / 5) and k.max() <= np.exp(-1 / 25) if name != "alif" else k.min() > 0.9
    assert name != "se_adlif" or np.allclose(k, np.exp(-1 / 15))
    x = torch.rand(3, 1, 4)
    out, u = layer(x), torch.zeros(1, 4)
    for t in range(3):
        u = k * u + (1 - k) * x[t]
        torch.testing.assert_close(out.mem[t], u)
    assert not out.spk.any()


def test_the_surrogate_of_alif_is_the_difference_of_normal_densities():
    word = f"{zoo.__name__}:multi_gaussian"
    surrogate = build_surrogate(SurrogateConf(word, scale=0.5, width=0.5))
    x = torch.linspace(-8, 8, 33, dtype=torch.float64)

    def density(deviation: float, mean: float = 0.0) -> torch.Tensor:
        return torch.distributions.Normal(mean, deviation).log_prob(x).exp()

    expected = 0.5 * (1.15 * density(0.5) - 0.15 * density(3.0, 0.5) - 0.15 * density(3.0, -0.5))
    torch.testing.assert_close(surrogate.derivative(x), expected)
    assert surrogate.fused and expected.min() < 0 < expected.max()


def test_adlif_with_a_pencil():
    """All halves and ones, input 4: w = 0, U = 2, a spike; then w = 0 + 2 + 1 = 3, U = (2 - 1)/2 + (4 - 3)/2 = 1."""
    half, one = torch.tensor(0.5), torch.tensor(1.0)
    more = {"decay": half, "rho": half, "a": one, "b": one}
    d = dynamics("adlif")
    start = d.equation.state_type(*[torch.zeros(1, 1)] * 3)
    spk, mem, state = reference.run(torch.full((2, 1, 1), 4.0), None, half, one, d, start, more=more)
    assert spk.flatten().tolist() == [1, 0] and mem.flatten().tolist() == [2.0, 1.0] and state.w.item() == 3.0


def test_what_depends_on_values_alone_is_not_in_the_kernel():
    d, values = dynamics("silif"), {"beta": torch.tensor(0.9), "threshold": torch.tensor(1.0), **drawn("silif")}
    more = with_derived(d, values)
    assert len(more) == len(values) + 3 == len(values) + len(derived_values(d, tuple(values)))
    decay = torch.exp(-torch.exp(values["log_leak"]) * 0.004).detach()  # one of the three; the others: 1 - decay, rho
    assert any(torch.allclose(more[f"derived{i}"].detach(), decay) for i in range(3))
    body = forward_plan(d, tuple(more), frozenset()).body
    assert {"derived0", "derived1", "derived2"} <= set(body.reads("value")) and "log_dt" not in body.reads("value")
