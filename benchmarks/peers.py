"""The same network with other libraries' neurons: their layers in their own way, our weights, our surrogate."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from benchmarks.triangle import triangle
from benchmarks.workloads import BETA, COMPACT, SLOPE, Workload
from snnexp.models.network import Network
from snnexp.models.spec import LayerPlan
from snnexp.models.tokens import BRANCHES
from snnexp.models.weights import Linear, RecurrentLinear

FOLDER = Path(__file__).parent / ".peers"  # where `make bench` puts them
PACKAGES = ("snntorch", "spikingjelly", "norse")


class Refused(Exception):
    """A peer cannot run a workload with the same dynamics; the message says why."""


def find_peers() -> dict[str, str | None]:
    """Version of each peer, None where it is not installed. Peers in FOLDER come last on the path: torch stays ours."""
    if FOLDER.is_dir() and str(FOLDER) not in sys.path:
        sys.path.append(str(FOLDER))
    found = {name: importlib.util.find_spec(name) is not None for name in PACKAGES}
    return {name: importlib.metadata.version(name) if there else None for name, there in found.items()}


# --- layers without state: plain torch modules with our weights --------------------------------------------------


def stateless(network: Network) -> dict[str, nn.Module]:
    """Plain torch modules for all layers of `network` but the spiking ones, by the layer's name."""
    modules: dict[str, nn.Module] = {}
    for layer in network.layers:
        if layer.kind == "flatten":
            modules[layer.name] = nn.Flatten()
        elif layer.kind != "spiking" and layer.kind not in BRANCHES:
            modules[layer.name] = _plain(network.get_submodule(layer.name))
    return modules


def _plain(module: nn.Module) -> nn.Module:
    if isinstance(module, Linear):
        plain: nn.Module = nn.Linear(module.in_features, module.out_features, module.bias is not None)
    elif isinstance(module, nn.Conv2d):
        k, s, p = module.kernel_size[0], module.stride[0], module.padding[0]
        has_bias = module.bias is not None
        plain = nn.Conv2d(module.in_channels, module.out_channels, k, s, p, bias=has_bias)
    elif isinstance(module, nn.BatchNorm2d):
        plain = nn.BatchNorm2d(module.num_features)
    elif isinstance(module, nn.MaxPool2d):
        return nn.MaxPool2d(module.kernel_size, module.stride)
    else:
        return module  # the vote: one mean; average pooling is torch's
    state = {k: v for k, v in module.state_dict().items() if not k.startswith("recurrent")}
    plain.load_state_dict(state)
    return plain


class Peer(nn.Module):
    """A network out of plain layers and a library's neurons. `forward`: dense input [T, B, ...] -> spikes [T, B, K]."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.plan: list[LayerPlan] = list(network.layers)
        self.layers = nn.ModuleDict(stateless(network))
        self.neurons = nn.ModuleDict()
        self.recurrent = nn.ModuleDict()
        for before, layer in zip(self.plan, self.plan[1:], strict=False):
            weights = network.get_submodule(before.name) if before.kind == "recurrent" else None
            if layer.kind == "spiking" and isinstance(weights, RecurrentLinear):
                linear = nn.Linear(layer.out_shape[0], layer.out_shape[0], bias=False)
                linear.load_state_dict(weights.recurrent.state_dict())
                self.recurrent[layer.name] = linear

    def begin(self) -> None:
        """Forget all state."""


def branch(kind: str, x: Tensor, kept: list[Tensor]) -> Tensor:
    """What goes on behind a mark of a residual block; `kept`: of blocks that are open, what will be added."""
    if kind == "fork":
        kept.append(x)
        return x
    other = kept.pop()
    if kind == "shortcut":  # goes on from the block's input
        kept.append(x)
        return other
    return x + other


class Folded(Peer):
    """Layers without state see all steps at once, as in SpikingJelly's multi-step mode; subclasses run the neurons."""

    channels_last = False

    def run(self, name: str, x: Tensor) -> Tensor:
        """Spikes of the spiking layer `name` for its input x [T, B, ...]."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        self.begin()
        steps, batch = x.shape[:2]
        constant, kept = x.stride(0) == 0, list[Tensor]()
        x = x[0] if constant else x.flatten(0, 1)  # layers before the first neurons see one image once
        if self.channels_last and any(layer.kind == "conv" for layer in self.plan):
            x = x.contiguous(memory_format=torch.channels_last)
        for layer in self.plan:
            if layer.kind == "spiking":
                over_time = x.expand(steps, *x.shape) if constant else x.view(steps, batch, *x.shape[1:])
                x, constant = self.run(layer.name, over_time).flatten(0, 1), False
            elif layer.kind in BRANCHES:
                x = branch(layer.kind, x, kept)
            else:
                x = cast(Tensor, self.layers[layer.name](x))
        return x.view(steps, batch, *x.shape[1:])


class WithoutNeurons(Folded):
    """The same network without its neurons: what any spiking network must cost with dense products."""

    channels_last = True

    def run(self, name: str, x: Tensor) -> Tensor:
        return x


# --- snnTorch -----------------------------------------------------------------------------------------------------


def _snntorch_neuron(w: Workload, layer: LayerPlan) -> nn.Module:
    """Its neuron for a layer. Recurrent layers use it, too: snn.RLeaky's reset to zero wipes the input of that step."""
    import snntorch as snn
    from snntorch import surrogate

    spike_grad = triangle(COMPACT) if w.compact else surrogate.fast_sigmoid(SLOPE)
    options: dict[str, Any] = {"spike_grad": spike_grad, "reset_mechanism": w.reset}
    if w.current_based:
        if w.reset == "zero":
            raise Refused("snn.Synaptic's reset to zero also wipes the input of that step")
        threshold = torch.full(layer.out_shape, 1.25)
        made = snn.Synaptic(alpha=0.75, beta=0.97, threshold=threshold, learn_threshold=True, **options)
    else:
        made = snn.Leaky(beta=BETA, **options)
    snn.SpikingNeuron.instances.clear()  # it keeps every neuron alive (snntorch#328)
    neuron: nn.Module = made
    return neuron


class _SnnTorchNeuron(nn.Module):
    """A neuron with its state: (spikes), current, membrane."""

    def __init__(self, w: Workload, layer: LayerPlan, recurrent: nn.Module | None) -> None:
        super().__init__()
        self.neuron = _snntorch_neuron(w, layer)
        self.recurrent = recurrent
        self.number = 2 if w.current_based else 1

    def start(self, like: Tensor) -> tuple[Tensor, ...]:
        """The state at rest, spikes first."""
        return (torch.zeros_like(like),) * (1 + self.number)

    def forward(self, x_t: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """One step; returns the new state, spikes first."""
        if self.recurrent is not None:
            x_t = x_t + self.recurrent(state[0])
        spk, *rest = self.neuron(x_t, *state[1:])
        return spk.to(x_t.dtype), *rest  # its surrogates make float32 of any number


def _snntorch_neurons(peer: Peer, w: Workload) -> None:
    for layer in peer.plan:
        if layer.kind == "spiking":
            recurrent = peer.recurrent[layer.name] if layer.name in peer.recurrent else None  # noqa: SIM401
            peer.neurons[layer.name] = _SnnTorchNeuron(w, layer, recurrent)


class SnnTorchStepwise(Peer):
    """As in snnTorch's tutorials: all layers within the loop over time."""

    def __init__(self, network: Network, w: Workload) -> None:
        super().__init__(network)
        _snntorch_neurons(self, w)

    def forward(self, x: Tensor) -> Tensor:
        states: dict[str, tuple[Tensor, ...]] = {}
        out, kept = [], list[Tensor]()
        for x_t in x.unbind(0):
            for layer in self.plan:
                if layer.kind in BRANCHES:
                    x_t = branch(layer.kind, x_t, kept)
                    continue
                if layer.kind != "spiking":
                    x_t = self.layers[layer.name](x_t)
                    continue
                neuron = self.neurons[layer.name]
                assert isinstance(neuron, _SnnTorchNeuron)
                states[layer.name] = neuron(x_t, states.get(layer.name) or neuron.start(x_t.detach()))
                x_t = states[layer.name][0]
            out.append(x_t)
        return torch.stack(out)


class SnnTorchFolded(Folded):
    """Not in its tutorials, but faster: layers without state at once, only the neurons in a loop."""

    channels_last = True

    def __init__(self, network: Network, w: Workload) -> None:
        super().__init__(network)
        _snntorch_neurons(self, w)

    def run(self, name: str, x: Tensor) -> Tensor:
        neuron = self.neurons[name]
        assert isinstance(neuron, _SnnTorchNeuron)
        state, out = neuron.start(x[0].detach()), []
        for x_t in x.unbind(0):
            state = neuron(x_t, state)
            out.append(state[0])
        return torch.stack(out)


# --- SpikingJelly -------------------------------------------------------------------------------------------------


class SpikingJelly(Folded):
    """SpikingJelly's multi-step mode. On the CPU 2.0 has one implementation (torch); CUDA: SJ_LIF_CUDA_IMPLEMENTATION.

    A recurrent layer runs its neuron step by step, as its LinearRecurrentContainer does.
    """

    def __init__(self, network: Network, w: Workload, channels_last: bool = False) -> None:
        super().__init__(network)
        if w.current_based:
            raise Refused("it has no current-based neuron with learned thresholds")
        from spikingjelly.activation_based import neuron, surrogate

        self.channels_last = channels_last
        derivative = surrogate.PiecewiseQuadratic(1 / COMPACT) if w.compact else surrogate.SuperSpike(SLOPE)
        for layer in self.plan:
            if layer.kind == "spiking":
                self.neurons[layer.name] = neuron.LIFNode(
                    tau=1 / (1 - BETA),
                    decay_input=False,
                    surrogate_function=derivative,
                    detach_reset=True,
                    step_mode="s" if layer.name in self.recurrent else "m",
                )

    def begin(self) -> None:
        from spikingjelly.activation_based import functional

        functional.reset_net(self)

    def run(self, name: str, x: Tensor) -> Tensor:
        node = self.neurons[name]
        if name not in self.recurrent:
            spikes: Tensor = node(x)
            return spikes
        return _recurrent_loop(x, self.recurrent[name], node)


def _recurrent_loop(x: Tensor, recurrent: nn.Module, node: Callable[[Tensor], Tensor]) -> Tensor:
    spk, out = torch.zeros_like(x[0]), []
    for x_t in x.unbind(0):
        spk = node(x_t + recurrent(spk))
        out.append(spk)
    return torch.stack(out)


# --- Norse --------------------------------------------------------------------------------------------------------


def _detached_reset(z: Tensor, v: Tensor, reset: Tensor, th: Tensor) -> Tensor:
    return (1 - z.detach()) * v  # its own, reset_value, lets the gradient through the reset


class Norse(Folded):
    """Norse's LIFBoxCell, v += (x - v) / tau: the same neuron if its input is 1 / (1 - beta) times larger.

    That factor goes into the weights before each neuron. Its surrogate is 1/(1 + |v - threshold|)^2.
    """

    channels_last = True

    def __init__(self, network: Network, w: Workload) -> None:
        super().__init__(network)
        if w.current_based:
            raise Refused("its current-based neuron updates membrane and current in another order")
        if w.compact:
            raise Refused("its triangle has another width")
        from norse.torch import LIFBoxCell, LIFBoxParameters  # type: ignore[import-not-found]

        parameters = LIFBoxParameters(
            tau_mem_inv=torch.tensor((1 - BETA) * 1000),
            v_th=torch.tensor(1.0),
            method="super",
            reset_method=_detached_reset,
        )
        for before, layer in zip(self.plan, self.plan[1:], strict=False):
            if layer.kind == "spiking":
                self.neurons[layer.name] = LIFBoxCell(parameters, dt=0.001)
                scaled = [*self.layers[before.name].parameters()]
                if layer.name in self.recurrent:
                    scaled += self.recurrent[layer.name].parameters()
                for parameter in scaled:
                    parameter.data.mul_(1 / (1 - BETA))

    def run(self, name: str, x: Tensor) -> Tensor:
        cell = self.neurons[name]
        state: Any = None

        def node(x_t: Tensor) -> Tensor:
            nonlocal state
            spk, state = cell(x_t, state)
            spikes: Tensor = spk
            return spikes

        if name in self.recurrent:
            return _recurrent_loop(x, self.recurrent[name], node)
        return torch.stack([node(x_t) for x_t in x.unbind(0)])


BUILDERS: dict[str, tuple[str, Callable[[Network, Workload], Peer]]] = {
    "snntorch": ("snntorch", SnnTorchStepwise),
    "snntorch, layers folded": ("snntorch", SnnTorchFolded),
    "spikingjelly": ("spikingjelly", SpikingJelly),
    "spikingjelly, channels_last": ("spikingjelly", lambda network, w: SpikingJelly(network, w, channels_last=True)),
    "norse": ("norse", Norse),
}
"""Name in the table -> the package it needs and what builds it."""
