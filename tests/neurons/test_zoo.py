"""Neurons of the literature: against their authors' update rules written out, and their gradients on the kernels."""

import pytest
import torch

from snnexp.neurons import zoo
from snnexp.neurons.compiler.plan import derived_values, forward_plan
from snnexp.neurons.custom import load_equation
from snnexp.neurons.engines import reference
from snnexp.neurons.engines.fused import run_fused, with_derived
from snnexp.neurons.engines.numba_engine import NumbaBackend
from snnexp.neurons.equation import Dynamics, State
from snnexp.neurons.surrogates import Surrogate

NAMES = ("adlif", "se_adlif", "silif", "alif")


def dynamics(name: str) -> Dynamics:
    return Dynamics(
        Surrogate("rectangular", scale=1.0), strict=True, equation=load_equation(f"{zoo.__name__}:{name}", {})
    )


def drawn(name: str, shape: tuple[int, ...] = (4,)) -> dict[str, torch.Tensor]:
    """Values as a layer would start with, in float64."""
    torch.manual_seed(0)
    values = {}
    for key, param in dynamics(name).equation.params:
        low, high = param.init if isinstance(param.init, tuple) else (param.init, param.init)
        values[key] = (low + (high - low) * torch.rand(shape, dtype=torch.float64)).requires_grad_()
    return values


def theirs(name: str, x: torch.Tensor, v: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """The authors' loops, in their letters; z is a step without gradient, u what they call so before any reset."""
    u = w = s = torch.zeros_like(x[0])
    spikes, membranes = [], []
    for now in x:
        if name in ("adlif", "silif"):
            alpha, beta = v.get("decay"), v.get("rho")
            if name == "silif":
                alpha = torch.exp(-torch.exp(v["log_leak"]) * torch.exp(v["log_dt"]))
                beta = torch.exp(-torch.exp(v["log_slow"]) * torch.exp(v["log_dt"]))
            w = beta * w + v["a"] * u + v["b"] * s
            u = alpha * (u - s) + (1 - alpha) * (now - w)
            s = (u - 1).gt(0).to(x.dtype)
            membranes.append(u)
        elif name == "se_adlif":
            u = v["decay"] * u + (1.0 - v["decay"]) * (now - w)
            membranes.append(u)
            s = torch.heaviside(u - 1, torch.tensor(0.0, dtype=x.dtype))
            u = u * (1 - s)
            w = v["rho"] * w + (1.0 - v["rho"]) * (v["a"] * u + v["b"] * s) * 120
        else:
            w = v["rho"] * w + (1 - v["rho"]) * s
            level = 1 + 1.8 * w
            u = u * v["decay"] + (1 - v["decay"]) * now - level * s
            s = (u - level).gt(0).to(x.dtype)
            membranes.append(u)
        spikes.append(s)
    return torch.stack(spikes), torch.stack(membranes)


@pytest.mark.parametrize("name", NAMES)
def test_the_authors_update_rule_and_the_kernels_gradients(name):
    x = (torch.rand(40, 3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 12).requires_grad_()
    values, d = drawn(name), dynamics(name)
    beta, threshold = torch.tensor(0.9, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64).requires_grad_()
    zero, leaves, results = torch.zeros(3, 4, dtype=torch.float64), [x, threshold, *values.values()], []
    for fused in (False, True):
        if fused:
            spk, mem, _ = run_fused(x, None, beta, threshold, d, None, NumbaBackend(compiled=False), more=values)
        else:
            start: State = d.equation.state_type(zero, zero, zero)
            spk, mem, _ = reference.run(x, None, beta, threshold, d, start, more=values)
        weights = torch.linspace(0, 1, spk.numel(), dtype=torch.float64).view(spk.shape)
        results.append(
            [spk, mem, *torch.autograd.grad((spk * weights).sum() + (mem**2).sum(), leaves, allow_unused=True)]
        )
    expected = theirs(name, x.detach(), {k: v.detach() for k, v in values.items()})
    assert 0.02 < expected[0].mean() < 0.9
    assert torch.equal(results[0][0], expected[0])
    torch.testing.assert_close(results[0][1], expected[1], rtol=1e-12, atol=1e-12)
    for a, b in zip(*results, strict=True):
        assert (a is None) == (b is None) or b is None or not b.any()
        if a is not None:
            assert (a - b).abs().max() <= 1e-10 * a.abs().max(), name


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
