"""Time checkpointing: a network that runs in segments of time against the same network that keeps all steps."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace
from typing import Any

import pytest
import torch
from composing import compose_words
from networks import as_events, make_info, make_network, make_spikes
from torch import Tensor, nn

from snnexp.analysis.activity import ActivityMeter
from snnexp.analysis.synops import SynopsMeter
from snnexp.config import Config, DecoderConf, NeuNormConf, NeuronConf
from snnexp.data.base import EventFrames
from snnexp.encoders import ConstantInput, Input
from snnexp.errors import ConfigError
from snnexp.models.network import Network
from snnexp.models.observer import Firing, Observer, Observers
from snnexp.models.segments import segment_lengths, split_time
from snnexp.neurons.names import RESETS
from snnexp.training.outcome import _Raster
from snnexp.validation import validate

STEPS = 7  # cut into 2 + 2 + 3, or single steps
INFO = make_info((2, 6, 6), steps=STEPS)


def configuration(*overrides: str) -> Config:
    return validate(compose_words(*overrides))


def run(network: Network, x: Input, steps: int | None, observer: Observer | None = None) -> list[Tensor]:
    """Outputs, gradients of everything that learns, and buffers, from one training step without the update."""
    network.checkpoint_steps = steps
    torch.manual_seed(3)
    out = network(x, observer)
    generator = torch.Generator().manual_seed(4)
    a, b = torch.rand(2, *out.mem.shape, generator=generator, dtype=torch.float64)
    loss = (a * out.spk).sum() + (b * out.mem**2).sum()
    grads = torch.autograd.grad(loss, list(network.parameters()))
    return [out.spk.detach(), out.mem.detach(), *grads, *(t.clone() for t in network.buffers())]


def compare(network: Network, x: Input, steps: int) -> None:
    """Equal to 1e-10, and about something: it spikes, and the gradients are not zero."""
    network.double().train()
    start = {name: value.clone() for name, value in network.state_dict().items()}
    whole = run(network, x, None)
    network.load_state_dict(start)  # running statistics
    pieces = run(network, x, steps)
    assert whole[0].max() > 0 or not list(network.neurons.values())[-1].dynamics.spiking
    assert max(grad.abs().max() for grad in whole[2:]) > 1e-6
    for a, b in zip(whole, pieces, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-10, atol=1e-10 * max(1.0, a.abs().max().item()))


def counts(info: Any = INFO, batch: int = 3) -> Tensor:
    return make_spikes(info, batch=batch).double() * 2


# --- the same numbers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["reference", "numba"])
@pytest.mark.parametrize("preset", ["fixed", "rouser", "plif", "ttfs", "ltmd", "dietsnn"])
def test_every_preset(preset: str, engine: str) -> None:
    neuron = replace(configuration(f"neuron={preset}").neuron, engine=engine)
    network = make_network("c4k3-SN-MP2-FC12-SN-FC-SN", INFO, neuron=neuron, gain=8)
    compare(network, counts(), 3)


RESET_CASES = [
    # the presets compile some of them; on a fresh machine each of the others compiles two kernels for ten seconds
    pytest.param(reset, detach, engine, marks=[pytest.mark.slow] if engine == "numba" and reset != "zero" else [])
    for reset in RESETS
    for detach in (True, False)
    for engine in ("reference", "numba")
]


@pytest.mark.parametrize(("reset", "detach", "engine"), RESET_CASES)
def test_every_reset(reset: str, detach: bool, engine: str) -> None:
    neuron = NeuronConf(
        name="made", engine=engine, reset=reset, detach_reset=detach, threshold=0.3, beta=0.8, alpha=0.6, tau_form=True,
        learn_threshold=True, learn_beta=True, learn_alpha=True, threshold_per="neuron", beta_per="channel",
    )  # fmt: skip
    compare(make_network("FC12-SN-RFC9-SN-FC-SN", INFO, neuron=neuron, gain=3), counts(), 3)


@pytest.mark.parametrize("engine", ["reference", "numba"])
@pytest.mark.parametrize("steps", [1, 2, 6])
def test_silent_neurons_are_forced_to_fire_at_the_very_last_step_only(steps: int, engine: str) -> None:
    neuron = NeuronConf(
        name="made", engine=engine, beta=0.5, threshold=1.0, fire_once=True, force_last_spike=True, learn_threshold=True
    )
    network = make_network("FC12-SN-FC-SN", INFO, neuron=neuron, gain=2)
    compare(network, counts(), steps)
    network.checkpoint_steps = steps
    spk = network(counts()).spk
    assert spk.sum(0).eq(1).all()  # each once in the whole sample, not once in each segment
    assert 0 < spk[-1].mean() < 1


@pytest.mark.parametrize(
    "spec",
    [
        "c4k3-SN-NN-MP2-c6k3-SN-NN-AP2-FC12-SN-FC-SN-VOTE2",
        "RFC12-SN-RFC9-SN-FC-SN",
        "c4k3-SN-DP0.5-FC12-SN-DP0.3-FC-SN",
        "SN-c4k3-LN-SN-FC-SN",
        "c4k3-BN-SN-MP2-FC12-BN-SN-FC-SN",
    ],
)
@pytest.mark.parametrize("engine", ["reference", "numba"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_every_layer(spec: str, engine: str, channels_last: bool) -> None:
    neuron = NeuronConf(name="made", engine=engine, beta=0.5, threshold=0.2, learn_beta=True)
    network = make_network(
        spec, INFO, neuron=neuron, build={"channels_last": channels_last}, bn_per_step=True,
        neunorm=NeuNormConf(form="mean"), gain=2,
    )  # fmt: skip
    compare(network, counts(), 3)


@pytest.mark.parametrize("spec", ["DL4-c4k3-SN-DL2-MP2-FC12-SN-DL9-FC-SN", "DL3-RFC12DL4-SN-RFC9DL1-SN-FC-SN"])
@pytest.mark.parametrize("kind", ["dense", "events", "constant"])
@pytest.mark.parametrize("steps", [1, 3])
def test_what_delays_hold_back_crosses_the_borders(spec: str, kind: str, steps: int) -> None:
    network = make_network(spec, INFO, gain=4)
    x: Input = as_events(counts()) if kind == "events" else counts()
    if kind == "constant":
        x = ConstantInput(torch.rand(3, *INFO.shape, generator=torch.Generator().manual_seed(1)).double(), STEPS)
    compare(network, x, steps)
    network.eval()
    results = []
    for most in (None, steps):
        network.checkpoint_steps = most
        with torch.no_grad():
            results.append(network(x))
    assert torch.equal(results[0].spk, results[1].spk) and results[0].spk.max() > 0


@pytest.mark.parametrize("engine", ["reference", "numba"])
def test_nothing_that_backward_reads_is_overwritten(engine: str) -> None:
    """A second backward pass gives the same bits."""
    neuron = NeuronConf(name="made", engine=engine, beta=0.5, threshold=0.2, learn_beta=True)
    spec, build = "c4k3-BN-SN-MP2-c4k3-BN-SN-FC-SN", {"channels_last": True}
    network = make_network(spec, INFO, neuron=neuron, build=build, bn_per_step=True, gain=3)
    network.checkpoint_steps = 3
    mem, parameters = network.double()(counts()).mem, list(network.parameters())
    first, second = (torch.autograd.grad(mem.square().sum(), parameters, retain_graph=True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("spec", ["c4k3-BN-DP0.3-SN-MP2-FC12-SN-FC-SN", "SN-FC12-SN-FC-SN", "FC12-SN-RFC9-SN-FC-SN"])
def test_a_constant_input(spec: str) -> None:
    frame = torch.rand(3, *INFO.shape, generator=torch.Generator().manual_seed(1)).double()
    compare(make_network(spec, INFO, gain=3), ConstantInput(frame, STEPS), 3)


@pytest.mark.parametrize("values", [True, False])
@pytest.mark.parametrize("spec", ["FC20-SN-FC-SN", "RFC20-SN-FC-SN", "c4k3-SN-MP2-FC-SN"])
def test_event_lists(spec: str, values: bool) -> None:
    compare(make_network(spec, INFO, gain=2), as_events(counts() if values else counts() / 2, values=values), 3)


def test_hidden_layers_that_follow_spikes() -> None:
    network = make_network("c4k3-SN-MP2-FC12-SN-FC-SN", INFO, sparse="always", gain=4)
    assert network.get_submodule("fc1").sparse_below > 1
    compare(network, counts(), 3)


def test_a_readout_that_integrates() -> None:
    compare(make_network("FC12-SN-FC-SN", INFO, decoder=DecoderConf(name="membrane"), gain=3), counts(), 3)


def test_normalised_weights_and_the_affine() -> None:
    compare(make_network("FC12-SN-FC-SN", INFO, weight_norm=True, affine="channel", gain=3), counts(), 2)


def test_the_gradient_of_the_input() -> None:
    network = make_network("c4k3-SN-FC-SN", INFO, gain=2).double()
    grads = []
    for steps in (None, 3):
        network.checkpoint_steps = steps
        x = counts().requires_grad_()
        grads.append(torch.autograd.grad(network(x).mem.square().sum(), x)[0])
    assert grads[0].abs().max() > 0
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-10, atol=1e-12)


def test_dropout_per_step_repeats_its_masks_in_backward() -> None:
    """The masks are others than without segments, so the last layer's gradient is held against what went into it.

    The readout integrates, U[t] = sum of beta^(t-s) W x[s]: d(sum of U)/dW counts x[s] with 1 + beta + ... of the steps
    that are left.
    """
    network = make_network("FC12-SN-DPT0.5-FC-SN", INFO, decoder=DecoderConf(name="membrane"), gain=3).double()
    network.checkpoint_steps = 2
    beta = network.neurons["sn2"].beta
    seen: list[Tensor] = []
    hook = network.get_submodule("dpt1").register_forward_hook(lambda m, i, out: seen.append(out.detach()))
    mem = network(counts()).mem
    hook.remove()
    (grad,) = torch.autograd.grad(mem.sum(), [network.get_submodule("fc2").weight])
    share = torch.stack([sum(beta**k for k in range(STEPS - t)) for t in range(STEPS)])
    inputs = torch.cat(seen)
    assert len(seen) == 4 and 0.1 < inputs.count_nonzero() / inputs.numel() < 0.6
    torch.testing.assert_close(grad, torch.einsum("tbn,t->n", inputs, share.double()).expand_as(grad))


def test_bfloat16_trains_every_weight() -> None:
    quiet = NeuronConf(name="quiet", beta=0.5, threshold=50.0, engine="reference")  # a spike more or less would hide it
    network = make_network("RFC9-SN-FC-SN", INFO, neuron=quiet, decoder=DecoderConf(name="membrane"))
    grads = []
    for steps in (None, 3):
        network.checkpoint_steps = steps
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mem = network(counts().float()).mem
        grads.append(torch.autograd.grad(mem.square().sum(), list(network.parameters())))
    assert grads[0][0].dtype == torch.float32
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(b, a, rtol=0.05, atol=0.05 * a.abs().max().item())


# --- observers ---------------------------------------------------------------------------------------------------


class Order:
    """Remembers in which order it was told what."""

    reads_spikes = True

    def __init__(self) -> None:
        self.told: list[tuple[str, int, bool]] = []

    def spiking(self, name: str, layer: nn.Module, firing: Firing) -> None:
        assert firing.spk is not None and torch.equal(firing.counts, firing.spk.sum(0))
        self.told.append((name, len(firing.mem), firing.last))

    def connection(self, name: str, module: nn.Module, x: Tensor | EventFrames, repeat: int) -> None:
        rows = x.num_steps * x.batch_size if isinstance(x, EventFrames) else len(x)
        self.told.append((name, rows * repeat // 3, True))


def test_an_observer_sees_every_segment_once_and_no_repetition() -> None:
    told = Order()
    run(make_network("FC12-SN-FC-SN", INFO, gain=3).double(), counts(), 3, told)
    expected = []
    for steps, last in ((2, False), (2, False), (3, True)):
        expected += [("fc1", steps, True), ("sn1", steps, last), ("fc2", steps, True), ("sn2", steps, last)]
    assert told.told == expected


@pytest.mark.parametrize("kind", ["dense", "events", "constant"])
@pytest.mark.parametrize("training", [True, False])
def test_meters_count_the_same(kind: str, training: bool) -> None:
    network = make_network("RFC20-SN-FC-SN", INFO, gain=2).double().train(training)
    results = []
    for steps in (None, 3):
        network.checkpoint_steps = steps
        activity, synops = ActivityMeter(network), SynopsMeter(network)
        for seed in (1, 2):
            x: Input = make_spikes(INFO, seed=seed, share=0.1).double()
            if kind == "events":
                x = as_events(x)
            elif kind == "constant":
                x = ConstantInput(x[0], STEPS)
            with torch.set_grad_enabled(training):
                out = network(x, Observers([activity, synops]))
            if training:
                out.mem.sum().backward()
        peaks = {name: layer.peaks for name, layer in (activity.metrics("val") and activity.last).items()}
        results.append((activity._to_host() or activity.last, peaks, synops.metrics("val"), synops.result().dense))
    (whole, peaks, metrics, dense), (again, same_peaks, same_metrics, same_dense) = results
    assert whole["sn1"].dead_fraction_sample > whole["sn1"].dead_fraction_batch > 0
    for name in whole:
        assert torch.equal(whole[name].rates, again[name].rates)
        assert whole[name].dead_fraction_batch == again[name].dead_fraction_batch
        assert whole[name].dead_fraction_sample == again[name].dead_fraction_sample
        torch.testing.assert_close(same_peaks[name], peaks[name])
    assert (same_metrics, same_dense) == (metrics, dense)


def test_the_raster_has_all_steps_of_all_layers_of_the_first_sample_once() -> None:
    neuron = NeuronConf(name="made", beta=0.5, threshold=0.2, engine="numba")
    spec = "c4k3-SN-MP2-c4k3-SN-MP2-FC-SN"  # without segments the engine pools, unless somebody reads the spikes
    network = make_network(spec, INFO, neuron=neuron, build={"channels_last": True}, gain=4)
    rasters = []
    for steps in (None, 3):
        network.checkpoint_steps, raster = steps, _Raster()
        for seed in (1, 2):
            network(make_spikes(INFO, seed=seed), Observers([raster, ActivityMeter(network)]))
        rasters.append(raster.spikes)
    whole, pieces = rasters
    assert {name: tuple(spk.shape) for name, spk in whole.items()} == {"sn1": (7, 144), "sn2": (7, 36), "sn3": (7, 10)}
    for name, spk in whole.items():
        assert 0 < spk.mean() < 1 and torch.equal(pieces[name], spk)


# --- memory ------------------------------------------------------------------------------------------------------


def kept_bytes(network: Network, x: Input, steps: int | None) -> int:
    """Bytes of the tensors that are alive between forward and backward because of the forward pass."""

    def alive() -> dict[int, int]:
        gc.collect()
        tensors = [o for o in gc.get_objects() if issubclass(type(o), Tensor)]
        return {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}

    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    network.checkpoint_steps = steps
    before = alive()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = network(x)
    held = {**alive(), **saved}
    del out
    return sum(size for pointer, size in held.items() if pointer not in before)


@pytest.mark.parametrize("engine", ["reference", "numba"])
def test_what_is_kept_does_not_grow_with_the_number_of_steps_but_by_states(engine: str) -> None:
    neuron = NeuronConf(name="made", beta=0.5, threshold=0.2, engine=engine)
    sizes = {}
    for steps in (20, 80):
        info = make_info((2, 6, 6), steps=steps)
        network = make_network("c8k3-SN-FC12-SN-FC-SN", info, neuron=neuron)
        x = make_spikes(info)
        sizes[steps] = [kept_bytes(network, x, k) for k in (None, 5)]
    assert sizes[80][0] > 3.8 * sizes[20][0]
    states = 2 * 4 * 3 * (8 * 36 + 12 + 10)  # mem and spk, float32, 3 samples
    output = 2 * 4 * 3 * 10  # spk and mem of each step
    random = torch.get_rng_state().nbytes
    assert sizes[80][1] - sizes[20][1] == 12 * (states + random) + 60 * output  # 12 more segments, 60 more steps


def test_the_graph_goes_when_the_output_goes() -> None:
    network = make_network("FC12-SN-FC-SN", INFO, gain=3)
    network.checkpoint_steps = 2
    gc.collect()
    gc.disable()
    try:
        out = network(counts().float())
        node = out.mem.grad_fn.next_functions[0][0]
        out.mem.sum().backward()
        witness = weakref.ref(node)
        assert "Recomputed" in node.name()
        del out, node
        assert witness() is None
    finally:
        gc.enable()


def test_the_estimate_by_hand() -> None:
    network = make_network("FC20-SN-FC-SN", make_info((1, 2, 2), steps=10), bias=False)
    kept = 20 + 40 + 10 + 20  # fc1, sn1 with membrane, fc2, sn2 with membrane
    parameters = 5 * (4 * 20 + 20 * 10)  # value, sum of gradients, a segment's gradient, two moments
    network.checkpoint_steps = 4  # 3 + 3 + 4 steps: two states, mem and spk of 30 neurons each
    assert network.step_memory_bytes(3) == 4 * (4 * 3 * (kept + 2 * 20) + 2 * 3 * 2 * 30 + parameters)


# --- pieces, and what is refused ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("steps", "most", "expected"), [(7, 3, [2, 2, 3]), (6, 3, [3, 3]), (3, 1, [1, 1, 1])])
def test_segments_are_few_and_of_nearly_equal_length(steps: int, most: int, expected: list[int]) -> None:
    assert segment_lengths(steps, most) == expected


def test_event_lists_are_cut_where_the_dense_input_is() -> None:
    frames = counts()
    frames[2:4] = 0  # a segment without events
    for values in (True, False):
        pieces = split_time(as_events(frames, values=values), 3)
        dense = [piece.to_dense(torch.float64) for piece in pieces if isinstance(piece, EventFrames)]
        assert torch.equal(torch.cat(dense), frames if values else (frames > 0).double())


def test_batch_norm_over_time_is_refused() -> None:
    network = make_network("c4k3-BN-SN-FC-SN", INFO)
    network.checkpoint_steps = 3
    with pytest.raises(ConfigError, match=r"bn1 .*model\.bn_per_step=true"):
        network(counts().float())
    spk, _ = network.eval()(counts().float())  # running statistics do not care
    network.checkpoint_steps = None
    assert torch.equal(network(counts().float()).spk, spk)


def test_the_command_refuses_it_before_any_work() -> None:
    spec = "model.spec=c4k3-SN-FC16-BN-SN-FC-SN"
    with pytest.raises(ConfigError, match=r"checkpoint_steps: bn1 .*model\.bn_per_step=true"):
        configuration(spec, "trainer.checkpoint_steps=3")
    assert configuration(spec, "trainer.checkpoint_steps=3", "model.bn_per_step=true").trainer.checkpoint_steps == 3
    configuration(spec, "trainer.checkpoint_steps=10")  # all steps of digits
    first = "model.spec=c4k3-BN-SN-FC-SN"  # sees a constant image once
    configuration(first, "trainer.checkpoint_steps=3")
    with pytest.raises(ConfigError, match="bn1"):
        configuration(first, "trainer.checkpoint_steps=3", "encoder=rate")
    with pytest.raises(ConfigError, match=r"trainer.checkpoint_steps=0: must be >= 1"):
        configuration("trainer.checkpoint_steps=0")
