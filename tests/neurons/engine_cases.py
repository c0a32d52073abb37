"""Random cases that hold an engine against the reference. `python engine_cases.py triton` runs them in the interpreter.

Not a test module: test_engines.py and test_triton_engine.py drive it.
"""

import itertools
import random
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from snnexp.neurons.custom import Equation
from snnexp.neurons.engines import reference
from snnexp.neurons.engines.fused import run_fused
from snnexp.neurons.equation import Dynamics, State, initial_state
from snnexp.neurons.names import FUSED_SURROGATES, RESETS
from snnexp.neurons.surrogates import Surrogate

Run = Callable[..., tuple[Tensor, Tensor, State]]
FLAGS = (False, True)


def all_options() -> list[tuple[Any, ...]]:
    """Every combination: reset, strict, tau_form, detach, ignore, fire_once, force_last, relative, with current."""
    return list(itertools.product(RESETS, *[FLAGS] * 8))


def pairwise_options(seed: int) -> list[tuple[Any, ...]]:
    """A few combinations that between them hold every pair of values of every two options."""
    rows = all_options()
    random.Random(seed).shuffle(rows)
    missing = {(i, j, r[i], r[j]) for r in rows for i, j in itertools.combinations(range(len(r)), 2)}
    chosen = []
    while missing:
        best = max(
            rows, key=lambda r: sum((i, j, r[i], r[j]) in missing for i, j in itertools.combinations(range(9), 2))
        )
        chosen.append(best)
        missing -= {(i, j, best[i], best[j]) for i, j in itertools.combinations(range(9), 2)}
    return chosen


def cases_with_more(seed: int) -> Iterator["Case"]:
    """Combinations of the others with spikes as high as the threshold, with noise, and with both."""
    for number, row in enumerate(pairwise_options(seed)):
        yield Case(number, row, high=number % 3 != 1, noisy=number % 3 != 0)


def cases(options: list[tuple[Any, ...]], readouts: bool = True) -> Iterator["Case"]:
    """One case for each combination; shapes, granularity, surrogate and initial state change with its number."""
    for number, row in enumerate(options):
        yield Case(number, row, spiking=not (readouts and number % 10 == 9))


class Case:
    """One neuron layer with input, values and perhaps an initial state, all of which require gradients. float64."""

    def __init__(
        self, number: int, row: tuple[Any, ...], spiking: bool = True, high: bool = False, noisy: bool = False
    ) -> None:
        reset, strict, tau_form, detach, ignore, fire_once, force_last, relative, has_current = row
        pick = random.Random(number)
        cutoff = 0.3 if number % 4 == 3 else None
        surrogate = Surrogate(FUSED_SURROGATES[number % len(FUSED_SURROGATES)], slope=3.0, cutoff=cutoff)
        self.dynamics = Dynamics(
            surrogate, reset, strict, tau_form, detach, ignore, fire_once, force_last, relative, spiking=spiking
        )
        self.dynamics = replace(self.dynamics, spike_height="threshold" if high else "one", noisy=noisy)
        self.has_current = has_current
        generator = torch.Generator().manual_seed(number)

        def draw(*shape: int) -> Tensor:
            return torch.rand(shape, generator=generator, dtype=torch.float64)

        shape = pick.choice([(1,), (3,), (2, 3, 2)])
        steps, batch = pick.choice([1, 2, 5, 6]), pick.choice([1, 3])

        def value() -> Tensor:
            return draw(*pick.choice([(), (shape[0],) + (1,) * (len(shape) - 1), shape]))

        self.x = draw(steps, batch, *shape) * 3 - 0.5
        self.alpha = value() if has_current else None
        self.beta = value()
        self.threshold = value() + 0.3
        self.state = None
        if pick.random() < 0.5:
            mem = draw(batch, *shape) * 2
            spk = (mem > 1).double()
            fired = spk.clone() if self.dynamics.remembers_firing else None
            self.state = State(mem, spk, draw(batch, *shape) if has_current else None, fired)
        if self.state is not None and high:
            self.state = self.state._replace(spk=self.state.spk * self.threshold)
        self.noise = draw(*self.x.shape) - 0.5 if noisy else None
        self.recurrent = None
        if len(shape) == 1 and pick.random() < 0.5:
            self.recurrent = draw(*shape, *shape) - 0.5
        self.to("cpu")

    def to(self, device: str) -> None:
        """Move everything, as leaves that require gradients."""

        def leaf(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.detach().to(device).requires_grad_()

        self.x, self.alpha, self.beta, self.threshold, self.recurrent = (
            leaf(t) for t in (self.x, self.alpha, self.beta, self.threshold, self.recurrent)
        )
        if self.state is not None:
            mem, spk, cur, fired = self.state
            self.state = State(leaf(mem), leaf(spk), leaf(cur), None if fired is None else fired.to(device))
        inputs = [
            self.x,
            self.alpha,
            self.beta,
            self.threshold,
            self.recurrent,
            *(self.state[:3] if self.state else ()),
        ]
        self.leaves = [t for t in inputs if t is not None]

    def run(self, run: Run) -> tuple[Tensor, Tensor, State, list[Tensor | None]]:
        """Outputs, and gradients of a loss that all outputs and the last state enter."""
        spk, mem, state = run(self.x, self.alpha, self.beta, self.threshold, self.dynamics, self.state, self.recurrent)
        generator = torch.Generator().manual_seed(5)
        a, b = torch.rand(2, *spk.shape, generator=generator, dtype=torch.float64).to(spk.device)
        loss = (a * spk).sum() + (b * mem**2).sum() + (state.mem**3).sum() + 0.7 * state.spk.sum()
        if state.cur is not None:
            loss = loss + (state.cur**2).sum()
        return spk, mem, state, list(torch.autograd.grad(loss, self.leaves, allow_unused=True))

    def run_reference(self) -> tuple[Tensor, Tensor, State, list[Tensor | None]]:
        def run(x, alpha, beta, threshold, dynamics, state, recurrent):
            start = state or initial_state(x[0], dynamics, self.has_current)
            return reference.run(x, alpha, beta, threshold, dynamics, start, recurrent, noise=self.noise)

        return self.run(run)


def check(case: Case, backend: Any) -> None:
    """Outputs and last state bit for bit, gradients to 1e-10 relative."""
    spk, mem, state, grads = case.run_reference()
    spk2, mem2, state2, grads2 = case.run(
        lambda *given: run_fused(*given[:6], backend, recurrent=given[6], noise=case.noise)
    )
    assert torch.equal(spk, spk2) and torch.equal(mem, mem2), case.dynamics
    for a, b in zip(state, state2, strict=True):
        assert (a is None) == (b is None) and (a is None or torch.equal(a, b)), case.dynamics
    for leaf, a, b in zip(case.leaves, grads, grads2, strict=True):
        a, b = (torch.zeros_like(leaf) if g is None else g for g in (a, b))
        assert (a - b).abs().max() <= 1e-10 * max(a.abs().max().item(), 1e-3), (case.dynamics, leaf.shape, a, b)


def two_states(x, mem, spk, w, *, spike, beta, threshold, rho, a):
    """A user's equation with a state of its own and numbers that float32 does not hold."""
    w = rho * w + torch.tanh(a * mem) + 0.1 * spk
    mem = torch.maximum(beta * mem * (1 - spk), -w) + x
    spk = spike(mem - threshold)
    return mem, spk, w


def check_custom(backend: Any) -> None:
    """The same for a user's equation, from a given state."""
    states, values = ("mem", "spk", "w"), ("beta", "threshold", "rho", "a")
    equation = Equation("two_states", two_states, states, values, (), True)
    dynamics = Dynamics(Surrogate("fast_sigmoid", slope=3.0), equation=equation)
    results = []
    for fused in (False, True):
        generator = torch.Generator().manual_seed(0)
        leaves = [
            torch.rand(shape, generator=generator, dtype=torch.float64).requires_grad_()
            for shape in ((7, 2, 3), (), (3,), (3,), (), (2, 3), (2, 3), (2, 3))
        ]
        x, beta, threshold, rho, a, *state = leaves
        given = (2 * x, None, beta, threshold, dynamics, equation.state_type(*state))
        more = {"rho": rho, "a": a}
        spk, mem, last = run_fused(*given, backend, more=more) if fused else reference.run(*given, more=more)
        loss = (spk * torch.linspace(0, 1, 3)).sum() + (mem**2).sum() + (last.w**3).sum()
        results.append([spk, mem, last.w, *torch.autograd.grad(loss, leaves)])
    for one, other in zip(*results, strict=True):
        assert (one - other).abs().max() <= 1e-10 * one.abs().max(), (one, other)


if __name__ == "__main__":
    from snnexp.neurons.engines import triton_engine

    assert sys.argv[1:] == ["triton"]
    chosen = [*pairwise_options(0), *random.Random(1).sample(all_options(), 60)]
    for case in [*cases(chosen), *cases_with_more(2)]:
        check(case, triton_engine.TritonBackend())
    check_custom(triton_engine.TritonBackend())
    print(f"{len(chosen)} cases agree")
