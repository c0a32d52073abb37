"""The network: layers without state see all time steps at once as [T*B, ...], spiking layers see [T, B, ...].

The forward pass owns the time loop and all state; nothing survives it and nothing has to be reset.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import zip_longest
from math import prod
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from snnexp.config import DecoderConf, ModelConf, NeuronConf
from snnexp.data.base import DataInfo, EventFrames
from snnexp.encoders import ConstantInput, Input
from snnexp.errors import ConfigError
from snnexp.models.batch_norm import BatchNorm2d, per_step
from snnexp.models.delayed_recurrence import run_with_delays
from snnexp.models.delays import Delay, run_delay
from snnexp.models.flow import Flow, count_steps
from snnexp.models.layers import TimeDropout, build_stateless
from snnexp.models.memory_estimate import step_memory_bytes
from snnexp.models.needed import KEEPS, asks, needed_of
from snnexp.models.norm_in_engine import leave_to_engine, tapped
from snnexp.models.observer import Observer
from snnexp.models.residual import BRANCHES, inputs_behind
from snnexp.models.segments import Memory, recomputed, split_time
from snnexp.models.spec import (
    WEIGHT_KINDS,
    LayerPlan,
    Shape,
    constant_layers,
    effective_spec,
    plan,
    why_not_in_segments,
    why_not_on_engine,
)
from snnexp.models.sums import Sums, counted
from snnexp.models.weights import Conv2d, Linear, RecurrentLinear, build_weights, follow_spikes, normalised
from snnexp.neurons.engines import LayerRun, spikes_over_time
from snnexp.neurons.equation import Pool
from snnexp.neurons.layer import SpikingLayer, Within
from snnexp.neurons.module_layer import build_layer

__all__ = ["LayerRow", "Network", "Observer", "Output", "build_network"]

# Layers whose backward pass does not read their output, so that the engine may write over it.
_FRESH = frozenset({"conv", "linear", "batch_norm", "layer_norm", "avg_pool", "max_pool", "delay", "join"})

AddSpikes = Callable[[SpikingLayer, LayerRun], Tensor]


class Output(NamedTuple):
    """Spikes and membranes (before the reset) of the output layer, voted if the network votes: [T, B, K] each."""

    spk: Tensor
    mem: Tensor


@dataclass(frozen=True)
class LayerRow:
    """One row of the layer table."""

    name: str
    token: str
    in_shape: Shape
    out_shape: Shape
    parameters: int
    neurons: int  # 0 for layers that are not spiking


class Network(nn.Module):
    """A planned network, built. `layers` are the plans in order; the modules carry the plans' names."""

    def __init__(self, layers: list[LayerPlan], model: ModelConf, neuron: NeuronConf, info: DataInfo) -> None:
        super().__init__()
        self.layers = tuple(layers)
        self.num_steps = info.num_steps
        self.input_shape = tuple(info.shape)
        self.bn_per_step, self.sparse = model.bn_per_step, model.sparse
        self.gain = float(model.gain)  # of the initial weights
        self.normalises_weights = model.weight_norm
        self.channels_last = False
        self.checkpoint_steps: int | None = None
        self.truncate_steps: int | None = None  # in training, no gradient passes from a segment of so many steps back
        self.neurons: dict[str, SpikingLayer] = {}  # all of them; `spiking_layers` leaves out a mere integrator
        self.added_spikes: dict[str, AddSpikes] = {}  # in training, by layer: what the next layer sees instead

    # --- running --------------------------------------------------------------------------------------------------

    def forward(
        self, x: Tensor | ConstantInput | EventFrames, observer: Observer | None = None, sums: Sums | None = None
    ) -> Output:
        """Run all T steps.

        Args:
            x: [T, B, C, H, W], or one frame for all steps, or event lists.
            observer: is told each spiking layer's output and each connection's input.
            sums: gets the sums over time that it wishes for, with their gradients.
        Raises: ValueError if the input does not have the shape that the network was built for.
        """
        if self.training and self.truncate_steps is not None and self.truncate_steps < count_steps(x):
            return self._cut_off(x, self.truncate_steps, observer, sums)
        if self.checkpoint_steps is not None and self.checkpoint_steps < count_steps(x):
            return self._in_segments(x, self.checkpoint_steps, observer, sums)
        return self._run(Flow(*self._open(x), observer, sums))

    def _run(self, flow: Flow, start: int = 0) -> Output:
        """Run the layers from number `start` on."""
        end = max(index for index, layer in enumerate(self.layers) if layer.kind == "spiking")
        mem = torch.empty(0)
        pooled = -1  # the layer that the engine has done with the spikes before it
        for index, layer in enumerate(self.layers[start:], start):
            if layer.kind == "spiking":
                pool = self.pool_after(index) if flow.whole else None
                mem, done = self._spiking(layer, self.layers[max(index - 1, 0)], flow, pool, index == end)
                pooled = index + 1 if done else -1
            elif index > end:  # votes: of the membranes too
                vote = self.get_submodule(layer.name)
                flow.steps_x, mem = vote(flow.over_time()), vote(mem)
            elif index != pooled:
                self._stateless(layer, flow)
        return Output(flow.over_time(), mem)

    def pool_after(self, index: int) -> Pool | None:
        """The pooling layer right behind spiking layer `index`, if its windows lie side by side."""
        if index + 1 == len(self.layers) or self.layers[index + 1].kind not in ("max_pool", "avg_pool"):
            return None
        layer = self.layers[index + 1]
        if layer.args["k"] != layer.args["s"] or len(layer.in_shape) != 3:
            return None
        module = self.get_submodule(layer.name)
        if module._forward_hooks or module._forward_pre_hooks:  # somebody wants to see it run
            return None
        return Pool(layer.kind.removesuffix("_pool"), int(layer.args["k"]))

    def _in_segments(self, x: Input, steps: int, observer: Observer | None, sums: Sums | None) -> Output:
        """Run at most `steps` time steps at once. All but the last segment keep no activations for backward."""
        start, constant = 0, isinstance(x, ConstantInput)
        problem = why_not_in_segments(self.layers, self.bn_per_step, constant) if self.training else None
        if problem is not None:
            raise ConfigError(problem)
        if constant:  # once, for all segments
            flow, start = Flow(*self._open(x), observer), constant_layers(self.layers)
            for layer in self.layers[:start]:
                self._stateless(layer, flow)
            x = ConstantInput(flow.folded(), flow.steps)
        *pieces, final = split_time(x, steps)

        def run(x: Input, memory: Memory, repeated: bool, last: bool = False) -> tuple[tuple[Tensor, ...], Memory]:
            told, part = None if repeated else observer, None if sums is None else sums.part()
            if isinstance(x, ConstantInput):
                flow = Flow(x.frame, x.num_steps, x.frame.shape[0], True, told, part)
            else:
                flow = Flow(*self._open(x), told, part)
            flow.memory, flow.last, flow.whole = memory, last, False
            out, found = self._run(flow, start), {} if part is None else part.found
            names.extend(found if not names else ())
            return (*out, *found.values()), memory

        outputs, memory, names = [], Memory(), list[str]()
        for piece in pieces:
            if torch.is_grad_enabled():
                out, memory = recomputed(self, run, piece, memory)
            else:
                out, memory = run(piece, memory, False)
            outputs.append(out)
        outputs.append(run(final, memory, False, last=True)[0])
        for _, _, *found in outputs:
            for name, value in zip(names, found, strict=True):
                cast(Sums, sums).add(name, value)
        return Output(*(torch.cat(parts) for parts in zip(*(out[:2] for out in outputs), strict=True)))

    def _cut_off(self, x: Input, steps: int, observer: Observer | None, sums: Sums | None) -> Output:
        """Truncated backpropagation through time: the state goes on from segment to segment, its gradient does not."""
        problem = why_not_in_segments(self.layers, self.bn_per_step, isinstance(x, ConstantInput), "truncate_steps")
        if problem is not None:
            raise ConfigError(problem)
        pieces, memory, outputs = split_time(x, steps), Memory(), []
        for number, piece in enumerate(pieces, start=1):
            flow = Flow(*self._open(piece), observer, sums)
            flow.memory, flow.last, flow.whole = memory, number == len(pieces), False
            outputs.append(self._run(flow))
            memory = memory.with_tensors([tensor.detach() for tensor in memory.tensors()])
        return Output(*(torch.cat(parts) for parts in zip(*outputs, strict=True)))

    def _open(self, x: Tensor | ConstantInput | EventFrames) -> tuple[Tensor | EventFrames, int, int, bool]:
        """Input folded over time (or one frame, or event lists), T, B, and whether it is constant."""
        if isinstance(x, ConstantInput):
            shape, steps, batch = tuple(x.frame.shape[1:]), x.num_steps, x.frame.shape[0]
            folded: Tensor | EventFrames = x.frame
        elif isinstance(x, EventFrames):
            shape, steps, batch = x.shape, x.num_steps, x.batch_size
            folded = x if self.wants_events else x.to_dense(next(self.parameters()).dtype).flatten(0, 1)
        else:
            shape, steps, batch = tuple(x.shape[2:]), x.shape[0], x.shape[1]
            folded = x.flatten(0, 1)
        if shape != self.input_shape:
            raise ValueError(f"the network was built for input {self.input_shape} at each step, not {shape}")
        if self.channels_last and isinstance(folded, Tensor):
            folded = folded.contiguous(memory_format=torch.channels_last)
        return folded, steps, batch, isinstance(x, ConstantInput)

    def _spiking(
        self, layer: LayerPlan, before: LayerPlan, flow: Flow, pool: Pool | None, is_last: bool
    ) -> tuple[Tensor, bool]:
        """Run spiking layer `layer` on the flow; returns its membranes [T, B, ...], and whether `pool` is done, too."""
        neuron = self.neurons[layer.name]
        neuron.overwrite_input = before.kind in _FRESH and not flow.constant
        observer = flow.observer if neuron.dynamics.spiking else None
        current, state = flow.over_time(), flow.memory.neurons.get(layer.name)
        added = self.added_spikes.get(layer.name) if self.training else None
        sums = flow.sums if flow.sums is not None and layer.name in flow.sums.counts else None
        if pool and ((observer and flow.reads_spikes) or added or sums or not neuron.can_pool(current)):
            pool = None
        counts, near = bool(observer or sums or added), None
        weights = self.get_submodule(before.name) if before.kind == "recurrent" else None
        recurrent = weights.recurrent.weight if isinstance(weights, RecurrentLinear) else None
        if isinstance(weights, RecurrentLinear) and weights.delay is not None:
            out = run_with_delays(neuron, weights, before.name, current, flow, counts)
        elif flow.whole:
            private = not is_last and not neuron._forward_hooks and added is None  # a hook may keep what it sees
            needed = private and not flow.reads_spikes and asks(self, layer, pool)
            seen, near = flow.looked_at(layer.name, neuron, current, recurrent is not None)
            within = Within(pool, counts, private, needed, flow.norm, not seen, near)
            current = tapped(self, layer, flow, current, private)
            out = cast(LayerRun, neuron(current, recurrent=recurrent, within=within))
        else:  # the last membranes go on, and gradients come back through them: not private, and nothing is fused
            spk, mem, after = neuron(current, state, recurrent, last=flow.last)
            out = LayerRun(spk, mem, spikes_over_time(spk, neuron.dynamics.high_spikes) if counts else None)
            if not flow.last:
                flow.memory.remember(layer.name, after)
        if (flow.observer or flow.sums) and isinstance(weights, RecurrentLinear) and weights.delay is None:
            first = torch.zeros_like(out.spk[0]) if state is None else state.spk.to(out.spk.dtype)
            previous = torch.cat([first.unsqueeze(0), out.spk[:-1]]).flatten(0, 1)
            if flow.observer:
                flow.observer.connection(f"{before.name}.recurrent", weights.recurrent, previous, 1)
            if flow.sums is not None:
                flow.sums.spent(f"{before.name}.recurrent", previous)
        flow.tell(layer.name, neuron, out, pool is not None, near)
        if sums is not None and out.counts is not None:
            sums.add(layer.name, counted(out.spk, out.counts))
        flow.steps_x = out.spk if added is None else added(neuron, out)
        flow.needed = needed_of(self, layer, pool, out.needed)
        return out.mem, pool is not None

    def _stateless(self, layer: LayerPlan, flow: Flow) -> None:
        """Run any other layer on the flow."""
        if layer.kind == "flatten":
            flow.flatten()
            return
        if layer.kind in BRANCHES:
            flow.branch(layer.kind)
            return
        if layer.kind == "delay":
            run_delay(self.get_submodule(layer.name), layer.name, flow)
            return
        module, needed = self.get_submodule(layer.name), flow.needed
        if layer.kind in WEIGHT_KINDS:
            if flow.observer:
                flow.observer.connection(layer.name, module, flow.x, flow.steps if flow.constant else 1)
            if flow.sums is not None:
                flow.sums.spent(layer.name, flow.x)
            if isinstance(flow.x, EventFrames) and not isinstance(module, Conv2d):
                from snnexp.models.event_linear import event_linear  # numba takes 0.2 s to import

                assert isinstance(module, Linear)
                y = event_linear(flow.x, module.effective_weight(), module.bias)
                flow.x = y if module.affine is None else module.affine(y)
            else:
                flow.x = module(flow.x) if needed is None else module(flow.x, needed=needed)
        elif layer.kind == "neunorm":
            spk, flow.memory.traces[layer.name] = module(flow.over_time(), flow.memory.traces.get(layer.name))
            flow.x = spk.flatten(0, 1)
        elif layer.kind in ("dropout", "dropout_rate") and flow.constant:
            flow.x = module(flow.folded().unsqueeze(0)).squeeze(0)
        elif layer.kind == "dropout":
            assert isinstance(module, TimeDropout)
            masks, x = flow.memory.masks, flow.over_time()
            if layer.name not in masks:
                masks[layer.name] = module.draw_mask(x)
            flow.x = module(x, masks[layer.name]).flatten(0, 1)
        elif layer.kind in ("dropout_step", "dropout_rate"):
            flow.x = module(flow.over_time()).flatten(0, 1)
        elif layer.kind == "batch_norm" and self.bn_per_step and not flow.constant:
            flow.x = per_step(module, flow.over_time()).flatten(0, 1)
        elif layer.kind != "batch_norm" or not leave_to_engine(self, layer, flow):
            flow.x = module(flow.folded())
        if layer.kind in KEEPS:
            flow.needed = needed

    # --- looking in -----------------------------------------------------------------------------------------------

    @property
    def wants_events(self) -> bool:
        """Whether event lists can drive the first layer: fully connected, or a convolution that follows them."""
        first = next(layer for layer in self.layers if layer.kind not in ("flatten", "delay"))
        if first.kind == "conv":  # what comes out of a delay is dense, in training
            return first is self.layers[0] and cast(Conv2d, self.get_submodule(first.name)).rule is not None
        return first.kind in ("linear", "recurrent")

    @property
    def spiking_layers(self) -> dict[str, SpikingLayer]:
        """The layers that spike, by name, from input to output."""
        return {name: layer for name, layer in self.neurons.items() if layer.dynamics.spiking}

    @property
    def delays(self) -> dict[str, Delay]:
        """The delays, by the layer that has them: dl1, rfc1, ..."""
        return {name.removesuffix(".delay"): m for name, m in self.named_modules() if isinstance(m, Delay)}

    def set_epoch(self, epoch: int, epochs: int) -> None:
        """What changes with the epochs of training: the width of interpolated delays. Epoch 1 is the first one."""
        for delay in self.delays.values():
            delay.set_epoch(epoch, epochs)

    def bound(self) -> None:
        """Put parameters that have bounds back into them, after a step of the optimizer."""
        for delay in self.delays.values():
            delay.bound()

    def final_state(self) -> dict[str, Tensor]:
        """The state dict as evaluation uses it, with whole time steps for delays."""
        rounded = {f"{name}.position": m.steps() for name, m in self.named_modules() if isinstance(m, Delay)}
        return {key: rounded[key].to(t.dtype) if key in rounded else t for key, t in self.state_dict().items()}

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """All trainable parameters: weights (with biases, norms, affine), firing thresholds, decays, delays."""
        thresholds = [p for layer in self.neurons.values() for p in layer.threshold_parameters()]
        decays = [p for layer in self.neurons.values() for p in layer.decay_parameters()]
        delays = [delay.position for delay in self.delays.values() if isinstance(delay.position, nn.Parameter)]
        other = {id(p) for p in (*thresholds, *decays, *delays)}
        weights = [p for p in self.parameters() if id(p) not in other]
        groups = {"weights": weights, "thresholds": thresholds, "decays": decays}
        return groups | {"delays": delays} if delays else groups

    def layer_table(self) -> list[LayerRow]:
        """One row per layer, for `task=inspect`."""
        return list(self._rows())

    def _rows(self) -> Iterator[LayerRow]:
        modules = dict(self.named_children())
        for layer in self.layers:
            module = modules.get(layer.name)
            parameters = sum(p.numel() for p in module.parameters()) if module else 0
            count = prod(layer.out_shape) if layer.kind == "spiking" else 0
            yield LayerRow(layer.name, layer.token.text, layer.in_shape, layer.out_shape, parameters, count)

    def step_memory_bytes(self, batch_size: int) -> int:
        """Estimated memory of one training step in bytes; see `memory_estimate.py`."""
        return step_memory_bytes(self, batch_size)


def build_network(
    model: ModelConf,
    neuron: NeuronConf,
    decoder: DecoderConf,
    info: DataInfo,
    *,
    channels_last: bool = False,
    single_spike_input: bool = False,
    checkpoint_steps: int | None = None,
) -> Network:
    """Build the network of `model.spec` for the data `info`, with `neuron` at every SN.

    Args:
        channels_last: memory layout of maps, faster for convolutions; ignored without any.
        single_spike_input: each input fires once per sample (latency code). ETTFS' initialisation needs to know: other
            inputs to the first layer are scaled as if they had unit second moment at every step.
        checkpoint_steps: run at most so many time steps at once and recompute their activations in backward.
    Raises: ConfigError if the spec does not fit the data.
    """
    votes = decoder.votes if decoder.name == "vote" else 1
    bias = model.bias and model.affine == "none"  # the affine has an offset of its own
    layers = plan(effective_spec(model), info.shape, info.num_classes, votes, bias)
    if (problem := why_not_on_engine(layers, neuron.engine)) is not None:
        raise ConfigError(problem)
    network = Network(layers, model, neuron, info)
    network.checkpoint_steps = checkpoint_steps
    network.channels_last = channels_last and any(layer.kind == "conv" for layer in layers)
    last = [layer.name for layer in layers if layer.kind == "spiking"][-1]
    kept: list[tuple[bool, bool]] = []  # of residual blocks that are open
    analog, binary = True, False  # whether no spikes came before; whether what comes in is 0 or 1
    for layer, after in zip_longest(layers, layers[1:]):
        if layer.kind in WEIGHT_KINDS:
            spikes = 1.0 if analog and not single_spike_input else float(info.num_steps)
            weights = build_weights(layer, model, spikes, normalised=normalised(layers, layer))
            if isinstance(weights, Linear) and analog and network.wants_events and info.kind == "events":
                from snnexp.models.event_linear import event_driven_weight

                event_driven_weight(weights)
            if isinstance(weights, Conv2d) or binary:
                follow_spikes(weights, layer.name, model, network.channels_last, layers)
            network.add_module(layer.name, weights)
            analog = binary = False
        elif layer.kind == "delay":
            delay = Delay(layer.out_shape, int(layer.args["max"]), model.delay)
            delay.announce(layer.name, info.num_steps, info.kind == "events" and network.wants_events and analog)
            # interpolated spikes are fractions: products follow them in evaluation only, which `always` asks for
            binary = binary and (not delay.learns or model.sparse == "always")
            network.add_module(layer.name, delay)
        elif layer.kind == "spiking":
            # what follows sees spikes, even if it is the first layer with weights
            analog, binary = False, neuron.spike_height == "one"
            spiking = not (layer.name == last and decoder.name == "membrane" and decoder.integrate)
            network.neurons[layer.name] = build_layer(neuron, layer.out_shape, layer.name, spiking=spiking)
            network.add_module(layer.name, network.neurons[layer.name])
        elif layer.kind in BRANCHES:
            analog, binary = inputs_behind(layer.kind, analog, binary, kept)
        elif layer.kind != "flatten":
            module = build_stateless(layer, model)
            if isinstance(module, BatchNorm2d):  # a spiking layer makes its input's gradient for this layer alone
                module.overwrite_gradient = after is not None and after.kind == "spiking"
            network.add_module(layer.name, module)
            binary = binary and layer.kind == "max_pool"
    return network
