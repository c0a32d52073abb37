"""Every engine gives what the reference gives, in forward and backward, for every option and at the edges."""

import concurrent.futures
import itertools
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from engine_cases import Case, all_options, cases, cases_with_more, check, pairwise_options
from torch import Tensor, nn

from snnexp.config import NeuronConf, SurrogateConf
from snnexp.errors import ConfigError
from snnexp.neurons.engines import choose_engine, run_neurons, support_table
from snnexp.neurons.engines.numba_engine import NumbaBackend
from snnexp.neurons.equation import Dynamics
from snnexp.neurons.layer import SpikingLayer
from snnexp.neurons.surrogates import Surrogate

PLAIN = Dynamics(Surrogate("atan"))


def values(beta: float = 0.9, threshold: float = 1.0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    return torch.tensor(beta, dtype=dtype), torch.tensor(threshold, dtype=dtype)


def rand(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_numba_kernels_as_plain_python_over_the_full_product_of_options():
    options = all_options()
    assert len(options) == 4 * 2**8
    for case in cases(options):
        check(case, NumbaBackend(compiled=False))


def test_high_spikes_and_noise_on_numba_kernels_as_plain_python():
    for case in cases_with_more(2):
        check(case, NumbaBackend(compiled=False))


def test_compiled_numba_kernels_do_what_the_plain_ones_do():
    options = pairwise_options(0)[:4]  # each compiles two kernels on a fresh machine: seconds
    for case in cases(options):
        check(case, NumbaBackend())


@pytest.mark.slow
def test_compiled_numba_kernels_over_all_pairs_of_options():
    options = pairwise_options(1)
    for i, j in itertools.combinations(range(9), 2):
        assert len({(row[i], row[j]) for row in options}) == (8 if i == 0 else 4)
    for case in cases(options):
        check(case, NumbaBackend())


def test_gradcheck_of_membranes_that_do_not_cross_the_threshold():
    """Without a spike in reach the membranes are smooth in everything: finite differences must agree."""
    x, beta, alpha = (
        rand(*s, seed=i, dtype=torch.float64).requires_grad_() for i, s in enumerate([(4, 2, 3), (3,), ()])
    )
    threshold = torch.tensor(50.0, dtype=torch.float64, requires_grad=True)
    for tau_form in (False, True):
        dynamics = Dynamics(Surrogate("rectangular"), tau_form=tau_form)
        for engine in ("reference", "numba"):
            assert torch.autograd.gradcheck(
                lambda *a, d=dynamics, e=engine: run_neurons(a[0], a[1], a[2], a[3], d, engine=e)[1],
                (x, alpha, beta, threshold),
            )


@pytest.mark.parametrize("engine", ["reference", "numba"])
@pytest.mark.parametrize("reset", ["zero", "subtract", "subtract_first"])
def test_gradcheck_through_spikes_with_a_detached_reset(engine, reset):
    """S is constant in the reset, so as long as no spike flips, membranes are smooth in x, beta and theta even so."""
    x = rand(6, 2, 3, dtype=torch.float64).requires_grad_()
    beta, threshold = (v.requires_grad_() for v in values(0.8, 0.61803, torch.float64))
    dynamics = Dynamics(Surrogate("rectangular", width=1e-9), reset=reset)  # no surrogate path into theta
    spk, mem, _ = run_neurons(x, None, beta, threshold, dynamics, engine=engine)
    assert 0.2 < spk.mean() < 0.8 and (mem - threshold).abs().min() > 1e-4
    assert torch.autograd.gradcheck(
        lambda x, b, t: run_neurons(x, None, b, t, dynamics, engine=engine)[1], (x, beta, threshold)
    )


@pytest.mark.parametrize("name", ["atan", "fast_sigmoid", "sigmoid", "triangular", "rectangular", "exponential"])
def test_float32_is_no_worse_than_the_naive_loop(name):
    """Against float64: sums over 50,000 terms cancel, so the bar is twice the naive loop's own error.

    Spikes are the same in both precisions: inputs are multiples of 1/64 and beta is 1/2, with a reset to zero and few
    steps, so that every membrane is exact.
    """
    x64 = (torch.randint(0, 60, (8, 40, 160), generator=torch.Generator().manual_seed(0)) / 64).double()
    weight = rand(8, 40, 160, seed=1, dtype=torch.float64) - 0.5
    dynamics = Dynamics(Surrogate(name, slope=5.0))

    def gradients(engine: str, dtype: torch.dtype) -> list[Tensor]:
        x, (beta, threshold) = x64.to(dtype).requires_grad_(), (v.requires_grad_() for v in values(0.5, 1.0, dtype))
        spk, _, _ = run_neurons(x, None, beta, threshold, dynamics, engine=engine)
        return [g.double() for g in torch.autograd.grad((spk * weight.to(dtype)).sum(), [x, beta, threshold])]

    exact, naive, ours = (
        gradients("reference", torch.float64),
        *(gradients(e, torch.float32) for e in ("reference", "numba")),
    )
    for truth, theirs, mine in zip(exact, naive, ours, strict=True):
        rounding = 4 * torch.finfo(torch.float32).eps * truth.abs().max()
        assert (mine - truth).abs().max() <= 2 * (theirs - truth).abs().max() + rounding


def test_same_bits_for_one_and_two_threads(threads):
    conf = NeuronConf(
        name="test", engine="numba", beta=0.9, alpha=0.5, learn_threshold=True, threshold_per="channel",
        learn_beta=True, surrogate=SurrogateConf(name="exponential", width=3.75), ignore_reset_in_backward=True,
    )  # fmt: skip
    results = []
    for count in (1, 2):
        torch.set_num_threads(count)
        layer = SpikingLayer(conf, (5, 11, 13), "sn1")
        x = rand(12, 16, 5, 11, 13).requires_grad_()
        out = layer(x)
        (out.spk * rand(*out.spk.shape, seed=1)).sum().backward()
        results.append([out.spk, out.mem, x.grad, layer.raw_threshold.grad, layer.raw_beta.grad])
    assert results[0][0].mean() > 0.05
    for one, two in zip(*results, strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("reset", ["none", "zero", "subtract", "subtract_first"])
def test_nan_and_inf_go_the_way_of_the_reference(reset, bad):
    x = rand(5, 2, 3) * 2
    x[1, 0, 1] = bad
    dynamics = Dynamics(Surrogate("exponential"), reset=reset)
    results = []
    for engine in ("reference", "numba"):
        leaf = x.clone().requires_grad_()
        spk, mem, _ = run_neurons(leaf, None, *values(), dynamics, engine=engine)
        (spk.sum() + mem[:1].sum()).backward()
        results.append((spk, mem, leaf.grad))
    assert not results[0][1].isfinite().all()
    for a, b in zip(*results, strict=True):
        assert torch.equal(a.isnan(), b.isnan())
        torch.testing.assert_close(a, b, equal_nan=True)


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 0, 4), (1, 5, 1), (7, 3, 1025), (2, 1, 3, 5, 7)])
def test_odd_shapes(shape):
    results = []
    for engine in ("reference", "numba"):
        x = (2 * rand(*shape)).requires_grad_()
        beta, threshold = (v.requires_grad_() for v in values())
        spk, mem, state = run_neurons(x, None, beta, threshold, PLAIN, engine=engine)
        grads = torch.autograd.grad((spk + mem**2).sum(), [x, beta, threshold])
        results.append((spk, mem, state.mem, *grads))
    for a, b in zip(*results, strict=True):
        assert a.shape == b.shape
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("per", ["layer", "channel", "neuron"])
def test_channels_last_memory_is_kept_and_gives_the_same(per):
    conf = NeuronConf(name="test", threshold_per=per, learn_threshold=True, beta=0.9)
    results = []
    for engine in ("reference", "numba"):
        conf.engine = engine
        layer = SpikingLayer(conf, (3, 4, 5), "sn1")
        layer.raw_threshold.data += rand(*layer.raw_threshold.shape, seed=3)
        x = (2 * rand(6 * 2, 3, 4, 5)).contiguous(memory_format=torch.channels_last).requires_grad_()
        out = layer(x.view(6, 2, 3, 4, 5))
        (out.spk * rand(6, 2, 3, 4, 5, seed=1)).sum().backward()
        results.append((out.spk, out.mem, out.state.mem, x.grad, layer.raw_threshold.grad))
        if engine == "numba":
            assert out.spk.flatten(0, 1).is_contiguous(memory_format=torch.channels_last)
    assert results[0][0].mean() > 0.1
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("engine", ["reference", "numba"])
def test_half_precision_input_is_computed_in_float32(engine):
    x = (2 * rand(5, 2, 3)).bfloat16()
    x32 = x.float().requires_grad_()
    x16 = x.clone().requires_grad_()
    spk, mem, state = run_neurons(x16, None, *values(), PLAIN, engine=engine)
    spk32, mem32, _ = run_neurons(x32, None, *values(), PLAIN)
    assert (spk.dtype, mem.dtype, state.mem.dtype) == (torch.bfloat16, torch.float32, torch.float32)
    assert torch.equal(spk.float(), spk32) and torch.equal(mem, mem32)
    spk.sum().backward()
    spk32.sum().backward()
    assert x16.grad.dtype == torch.bfloat16
    torch.testing.assert_close(x16.grad.float(), x32.grad, rtol=1e-2, atol=1e-3)


def test_two_halves_with_the_state_between_equal_the_whole():
    for engine in ("reference", "numba"):
        case = Case(3, ("subtract", False, True, True, False, True, False, False, True))
        run = lambda x, state, case=case, engine=engine: run_neurons(  # noqa: E731
            x, case.alpha, case.beta, case.threshold, case.dynamics, state, engine
        )
        x = rand(8, 2, *case.x.shape[2:], dtype=torch.float64).requires_grad_()
        spk, mem, _ = run(x, None)
        spk1, mem1, state = run(x[:3], None)
        spk2, mem2, _ = run(x[3:], state)
        assert torch.equal(torch.cat([spk1, spk2]), spk)
        assert torch.equal(torch.cat([mem1, mem2]), mem)
        (whole,) = torch.autograd.grad((spk + mem**2).sum(), x)
        (halves,) = torch.autograd.grad((spk1 + mem1**2).sum() + (spk2 + mem2**2).sum(), x)
        torch.testing.assert_close(whole, halves, rtol=1e-10, atol=1e-12)


def test_the_input_is_overwritten_only_on_demand_and_never_behind_autograds_back():
    linear = nn.Linear(4, 3)
    frames = rand(5, 2, 4)
    plain = run_neurons(linear(frames), None, *values(0.9, 0.1), PLAIN, engine="numba")
    current = linear(frames)
    reused = run_neurons(current, None, *values(0.9, 0.1), PLAIN, engine="numba", overwrite_input=True)
    assert torch.equal(plain[0], reused[0]) and torch.equal(plain[1], reused[1])
    assert reused[1].data_ptr() == current.data_ptr()
    reused[0].sum().backward()
    ours = linear.weight.grad.clone()
    linear.zero_grad()
    plain[0].sum().backward()
    assert torch.equal(ours, linear.weight.grad) and ours.abs().max() > 0

    kept = torch.exp(linear(frames))  # exp needs its own output in backward
    spk, _, _ = run_neurons(kept, None, *values(), PLAIN, engine="numba", overwrite_input=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        spk.sum().backward()

    leaf = rand(5, 2, 4).requires_grad_()
    before = leaf.detach().clone()
    run_neurons(leaf, None, *values(), PLAIN, engine="numba", overwrite_input=True)
    assert torch.equal(leaf, before)


def test_kernels_may_be_called_from_several_threads_at_once(threads):
    torch.set_num_threads(2)
    inputs = [rand(20, 40, 200, seed=i) for i in range(4)]
    expected = [run_neurons(x, None, *values(), PLAIN)[1] for x in inputs]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda x: run_neurons(x, None, *values(), PLAIN, engine="numba")[1], inputs))
    for a, b in zip(expected, results, strict=True):
        assert torch.equal(a, b)


def test_choice_of_engine_says_why():
    snntorch_surrogate = Dynamics(Surrogate("snntorch:SFS"))
    assert choose_engine("auto", "cpu", PLAIN, torch.float32) == ("numba", "fastest on cpu")
    assert choose_engine("reference", "cpu", PLAIN, torch.float32) == ("reference", "asked for")
    name, reason = choose_engine("auto", "cpu", snntorch_surrogate, torch.float32)
    assert name == "reference" and "numba cannot: no kernel for surrogate snntorch:SFS" in reason
    assert choose_engine("auto", "meta", PLAIN, torch.float32) == ("reference", "no fused engine runs on meta")


@pytest.mark.parametrize(
    ("requested", "dynamics", "words"),
    [
        ("triton", PLAIN, "it runs on cuda, and the device is cpu. Here these can: auto, reference, numba."),
        ("numba", Dynamics(Surrogate("snntorch:SFS")), "Here these can: auto, reference."),
        ("nubma", PLAIN, "Did you mean numba?"),
    ],
)
def test_an_engine_that_cannot_do_the_job_is_refused(requested, dynamics, words):
    with pytest.raises(ConfigError) as error:
        choose_engine(requested, "cpu", dynamics, torch.float32)
    assert words in str(error.value)


def test_values_that_do_not_broadcast_are_refused_with_both_shapes():
    with pytest.raises(ConfigError, match=r"neuron.threshold has shape \[8\].*\[8, 4, 4\]"):
        run_neurons(rand(2, 1, 8, 4, 4), None, torch.tensor(0.9), torch.ones(8), PLAIN)
    with pytest.raises(ConfigError, match=r"neuron.beta has shape \[3, 2\].*\[2\]"):
        run_neurons(rand(2, 1, 2), None, torch.ones(3, 2), torch.tensor(1.0), PLAIN)


def test_the_documented_table_is_the_one_the_code_goes_by():
    page = (Path(__file__).parents[2] / "docs" / "neurons.md").read_text()
    assert support_table() in page
    assert "| surrogate: snntorch:... | yes | no | no |" in page


def test_names_and_engine_choice_cost_no_heavy_import():
    code = (
        "import sys, snnexp.neurons.names; "
        "assert not {'torch', 'numba', 'snntorch', 'numpy'} & set(sys.modules); "
        "import snnexp.neurons.layer; assert 'numba' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
