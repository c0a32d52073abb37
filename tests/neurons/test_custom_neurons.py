"""A user's own neurons: an equation in one file on every engine, and modules of snnTorch's or theirs."""

import copy
from pathlib import Path

import pytest
import snntorch
import torch
from composing import compose_words
from engine_cases import check_custom
from torch import nn

from snnexp.analysis.activity import ActivityMeter
from snnexp.config import Config, NeuronConf
from snnexp.errors import ConfigError
from snnexp.experiment import Experiment, assemble
from snnexp.neurons.engines.fused import run_fused
from snnexp.neurons.engines.numba_engine import NumbaBackend
from snnexp.neurons.equation import advance
from snnexp.neurons.layer import SpikingLayer, Within
from snnexp.neurons.module_layer import build_layer
from snnexp.tasks.inspect import kernel_sources
from snnexp.training.optimisation import build_optimizer
from snnexp.training.passes import train_pass
from snnexp.validation import validate

ADAPTIVE = '''
"""All of a stranger's neuron: a third state w that follows membrane and spikes, with two learned values."""
from snnexp.neurons.custom import Param


RHO = Param((0.8, 0.95), learn=True, per="neuron", low=0, high=1)


def step(x, mem, spk, w, *, spike, beta, threshold, rho=RHO, a=0.1):
    w = rho * w + a * mem + 0.5 * spk
    mem = beta * mem * (1 - spk.detach()) + x - w
    spk = spike(mem - threshold)
    return mem, spk, w
'''


SMALL = ("dataset.limit_train=40", "model.spec=FC8-SN-FC-SN")


@pytest.fixture
def adaptive(tmp_path: Path) -> str:
    """The reference of a file with an equation."""
    (tmp_path / "mine.py").write_text(ADAPTIVE)
    assert len(ADAPTIVE.splitlines()) <= 30
    return f"{tmp_path / 'mine.py'}:step"


def layer_of(equation: str, shape: tuple[int, ...] = (5,), **options: object) -> SpikingLayer:
    torch.manual_seed(0)
    options = {"learn_threshold": True, "learn_beta": True, "beta": 0.8, "params": {"a": {"learn": True}}} | options
    return SpikingLayer(NeuronConf(name="test", equation=equation, **options), shape, "sn1")


def assembled(*overrides: str) -> Experiment:
    cfg = compose_words("device=cpu", "dataset.num_steps=4", "tracking=off", *overrides)
    conf: Config = validate(cfg)
    return assemble(conf)


@pytest.mark.parametrize("start", [False, True])
@pytest.mark.parametrize("recurrent", [False, True])
def test_a_strangers_neuron_has_the_references_gradients_on_the_numba_engine(adaptive, start, recurrent):
    results = []
    for compiled in (None, False) if start or recurrent else (None, True):
        layer = layer_of(adaptive).double()
        draw = torch.Generator().manual_seed(1)
        x = (torch.rand(12, 3, 5, generator=draw, dtype=torch.float64) * 1.5).requires_grad_()
        weight = (torch.rand(5, 5, generator=draw, dtype=torch.float64) - 0.5).requires_grad_() if recurrent else None
        state, leaves = None, [x, *layer.parameters(), *([weight] if recurrent else [])]
        if start:
            parts = [torch.rand(3, 5, generator=draw, dtype=torch.float64).requires_grad_() for _ in range(3)]
            state = layer.dynamics.equation.state_type(*parts)
            leaves += parts
        if compiled is None:
            layer.requested_engine = "reference"
            out = layer(x, state, weight)
        else:
            values = (layer.alpha, layer.beta, layer.threshold, layer.dynamics, state, NumbaBackend(compiled))
            out = layer(x, state, weight) if compiled else None
            if out is None:
                spk, mem, after = run_fused(x, *values, recurrent=weight, more=layer.more_values())
                out = type("Out", (), {"spk": spk, "mem": mem, "state": after})
        weights = torch.rand(12, 3, 5, generator=draw, dtype=torch.float64)
        loss = (out.spk * weights).sum() + (out.mem**2).sum() + (out.state.w**3).sum()
        results.append([out.spk, out.mem, out.state.w, *torch.autograd.grad(loss, leaves)])
    assert 0.05 < results[0][0].mean() < 0.9
    for a, b in zip(*results, strict=True):
        assert (a - b).abs().max() <= 1e-10 * a.abs().max()
    assert torch.equal(results[0][0], results[1][0])


def test_states_values_and_functions_of_torch_in_a_kernel():
    check_custom(NumbaBackend(compiled=False))


def test_learned_values_are_logged_and_kept_and_drawn_from_the_seed(adaptive):
    layer = layer_of(adaptive)
    assert set(layer.learned()) == {"threshold", "beta", "rho", "a"} and set(layer.state_dict()) >= {"raw_rho", "raw_a"}
    assert {id(p) for p in layer.decay_parameters()} == {id(p) for p in (layer.raw_beta, layer.raw_rho, layer.raw_a)}
    rho = layer.learned()["rho"]
    assert rho.shape == (5,) and rho.min() >= 0.8 and rho.max() <= 0.95 and rho.std() > 0
    assert torch.equal(layer_of(adaptive).raw_rho, layer.raw_rho)
    torch.manual_seed(3)
    weights = torch.rand(4)
    torch.manual_seed(3)
    SpikingLayer(NeuronConf(name="test", equation=adaptive), (5,), "sn2")
    assert torch.equal(torch.rand(4), weights)  # the weights' random numbers are their own
    layer.raw_rho.data.fill_(1.5)
    assert layer.learned()["rho"].max() == 1.0
    layer(torch.ones(3, 2, 5)).mem.sum().backward()
    assert layer.raw_rho.grad.abs().min() > 0  # so that it can come back


def test_it_trains_by_its_key_in_segments_too_and_shows_its_kernel(adaptive):
    key = f"neuron.equation={adaptive}"
    experiment = assembled(key, "neuron.params.a={init: 0.2, learn: true}", *SMALL)
    network = experiment.network
    assert experiment.engine() == ("numba", "fastest on cpu")
    assert experiment.tags()["code.neuron.equation"].startswith(f"{adaptive} sha256:")
    assert network.neurons["sn1"].learned()["a"].item() == pytest.approx(0.2)
    before = copy.deepcopy(network.neurons["sn1"].raw_rho.data)
    meter = ActivityMeter(network)
    train_pass(experiment, build_optimizer(experiment.conf.optimizer, network.parameter_groups()), 1, meter)
    assert not torch.equal(network.neurons["sn1"].raw_rho, before)
    assert "train/dead_fraction/sn1" in meter.metrics("train")
    text = "\n".join(kernel_sources(experiment))
    assert text.startswith("# sn1, sn2\n") and "new_w = rho * w_ + a_ * last_mem + c_0 * last_spk" in text
    grads = []
    for steps in (None, 2):
        network.checkpoint_steps = steps
        for layer in network.neurons.values():
            layer.requested_engine = "reference"  # nothing to compile
        network.zero_grad()
        out = network(torch.rand(4, 3, 1, 8, 8, generator=torch.Generator().manual_seed(0)))
        (out.mem.sum() + out.spk.sum()).backward()
        grads.append([p.grad.clone() for p in network.parameters()])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


def write(folder: Path, body: str, signature: str = "x, mem, spk, *, spike, beta, rho=0.5") -> str:
    (folder / "wrong.py").write_text(f"import torch\n\n\ndef step({signature}):\n    {body}\n    return mem, spk\n")
    return f"{folder / 'wrong.py'}:step"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (
            "mem = beta * men + x; spk = spike(mem - 1)",
            r"line 5: `mem = beta \* men .*`: NameError: name 'men' is not defined",
        ),
        ("mem = beta * mem + x; spk = spike(mem @ 1)", "line 5: .*unsupported operand"),
        ("return mem", r"line 4: .*it must return its 2 states \(mem, spk\)"),
    ],
)
def test_a_wrong_equation_names_its_line(tmp_path, body, words):
    with pytest.raises(ConfigError, match=words):
        layer_of(write(tmp_path, body), params={}, learn_threshold=False)


def test_what_cannot_be_compiled_runs_on_the_reference_and_says_where(tmp_path):
    reference = write(tmp_path, "mem = torch.sin(beta * mem) + rho * x; spk = spike(mem - 1)")
    layer = layer_of(reference, params={}, learn_threshold=False)
    layer(torch.ones(2, 1, 5))
    assert layer.engine == "reference" and "line 5" in layer.engine_reason and "torch.sin" in layer.engine_reason
    with pytest.raises(ConfigError, match=r"neuron.engine=numba: .*line 5: .*torch.sin cannot be compiled"):
        layer_of(reference, params={}, learn_threshold=False, engine="numba")(torch.ones(2, 1, 5))


def test_an_if_on_a_neurons_value_is_no_kernel(tmp_path):
    reference = write(tmp_path, "mem = beta * mem + (x if abs(x) >= 0 else mem); spk = spike(mem - rho)")
    with pytest.raises(ConfigError, match=r"line 5: .*`if` cannot look at a neuron's value.*: use torch.where"):
        layer_of(reference, (1,), params={}, learn_threshold=False, engine="numba")(torch.ones(2, 1, 1))


@pytest.mark.parametrize(
    ("reference", "options", "words"),
    [
        ("nothing.py:step", {}, "there is no file nothing.py"),
        ("no.such.module:step", {}, "loading no.such.module failed: ModuleNotFoundError"),
        ("step", {}, "write package.module:name"),
        ("math:sqrt", {}, "no function but builtin"),
        ("{}:stepp", {}, "Did you mean step?"),
        ("{}:step", {"params": {"rhoo": {"init": 1}}}, "neuron.params.rhoo: .* has the values a, rho"),
        ("{}:step", {"params": {"rho": {"inti": 1}}}, "neuron.params.rho.inti: no such key. Did you mean init?"),
        ("{}:step", {"params": {"rho": {"init": 2}}}, "neuron.params.rho.init=2: must be a number, .* from 0 to 1"),
        ("{}:step", {"params": {"a": {"per": "synapse"}}}, "layer, channel, neuron"),
        ("{}:step", {"params": {}, "learn_alpha": True}, "neuron.learn_alpha=true: the equation .* has no alpha"),
    ],
)  # fmt: skip
def test_wrong_references_and_values_are_refused(adaptive, reference, options, words):
    with pytest.raises(ConfigError, match=words):
        layer_of(reference.format(adaptive.removesuffix(":step")), **options)


def test_signatures_that_do_not_fit_are_refused(tmp_path):
    for signature, words in (
        ("x, mem, *, spike", "with `mem` and `spk` among the states"),
        ("x, mem, spk, *, rho", "the value `rho` has no start. Set neuron.params.rho.init"),
        ("x, mem, spk, **more", "name each state and value"),
        ("x, mem, spk, *, alpha", "neuron.alpha: .* needs it"),
        ("x, mem, spk, *, later", "have a `later` of their own"),
        ("x, mem, spk, counts, *, beta", "have a `counts` of their own"),
        ("x, mem, spk, *, near_radius", "have a `near_radius` of their own"),
        ("current, mem, spk, *, x", "have a `x` of their own"),
    ):
        with pytest.raises(ConfigError, match=words):
            layer_of(write(tmp_path, "pass", signature), params={}, learn_beta=False, learn_threshold=False)


def test_options_of_our_equation_that_nobody_would_heed_are_refused(adaptive):
    for overrides, words in (
        ([f"neuron.equation={adaptive}", "neuron.fire_once=true", "decoder=first_spike"], "has a step of its own"),
        (["neuron.params.rho=1"], "neuron.params.rho: only neuron.equation"),
        (["neuron.kwargs.beta=1"], "neuron.kwargs.beta: only neuron.module"),
        ([f"neuron.equation={adaptive}", "neuron.module=snntorch.Leaky"], "one or the other"),
    ):
        with pytest.raises(ConfigError, match=words):
            assembled(*overrides)


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("Leaky", {"beta": 0.9}),
        ("Synaptic", {"alpha": 0.9, "beta": 0.8}),
        ("Alpha", {"alpha": 0.9, "beta": 0.8}),
        ("Lapicque", {"beta": 0.9}),
    ],
)
def test_snntorchs_neurons_run_as_they_are(name, kwargs):
    count = len(snntorch.SpikingNeuron.instances)
    layer = build_layer(NeuronConf(name="test", module=f"snntorch.{name}", kwargs=kwargs), (4,), "sn1")
    assert len(snntorch.SpikingNeuron.instances) == count
    x = torch.rand(8, 2, 4, generator=torch.Generator().manual_seed(0)) * 2
    neuron = getattr(snntorch, name)(**kwargs)
    states = neuron.reset_mem()
    states, spks = list(states) if isinstance(states, tuple) else [states], []
    for x_t in x:
        spk, *states = neuron(x_t, *states)
        spks.append(spk)
    out = layer(x)
    assert torch.equal(out.spk, torch.stack(spks)) and torch.equal(out.mem[-1], states[-1])
    halves = layer(x[:3]), layer(x[3:], layer(x[:3]).state)
    assert torch.equal(torch.cat([half.spk for half in halves]), out.spk)
    run = layer(x, within=Within(None, counts=True, private=True))
    assert torch.equal(run.counts, out.spk.sum(0)) and layer.engine == "reference"
    del snntorch.SpikingNeuron.instances[count:]


class Mine(nn.Module):
    """A user's module: one step, one state."""

    def __init__(self, leak: float) -> None:
        super().__init__()
        self.leak = nn.Parameter(torch.tensor(leak))

    def forward(self, x, mem=None):
        mem = x if mem is None else self.leak * mem + x
        return (mem > 1).to(x.dtype) + (mem - mem.detach()), mem


def test_a_users_module_trains_with_the_same_record():
    experiment = assembled(
        f"neuron.module={__name__}:Mine",
        "neuron.kwargs={leak: 0.5}",
        "dataset.limit_train=40",
        "model.spec=FC8-SN-FC-SN",
    )
    network, meter = experiment.network, ActivityMeter(experiment.network)
    assert experiment.engine()[0] == "reference" and set(network.neurons["sn1"].learned()) == {"leak"}
    train_pass(experiment, build_optimizer(experiment.conf.optimizer, network.parameter_groups()), 1, meter)
    assert network.neurons["sn1"].module.leak.item() != 0.5
    assert "train/dead_fraction/sn1" in meter.metrics("train")
    with pytest.raises(ConfigError, match="missing 1 required positional argument: 'leak'"):
        assembled(f"neuron.module={__name__}:Mine")
    with pytest.raises(ConfigError, match="Did you mean Leaky"):
        assembled("neuron.module=snntorch.Lealy")
    with pytest.raises(ConfigError, match="runs step by step"):
        assembled("neuron.module=snntorch.Leaky", "neuron.kwargs={beta: 0.9}", "neuron.engine=numba")


def test_single_steps_of_a_users_equation_are_the_layers(adaptive):
    layer = layer_of(adaptive)
    x, state = torch.rand(4, 2, 5), layer.init_state(2)
    assert state._fields == ("mem", "spk", "w") and layer.states == 3
    out = layer(x)
    for t in range(4):
        spk, mem, state = layer.single_step(x[t], state)
        assert torch.equal(spk, out.spk[t]) and torch.equal(mem, out.mem[t])
    assert torch.equal(
        advance(x[0], layer.init_state(2), layer.values(), layer.dynamics, False).w, layer(x[:1]).state.w
    )
