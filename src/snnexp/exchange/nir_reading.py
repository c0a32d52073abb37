"""From a NIR graph to a network that runs on our engines, all time steps of a layer at once.

Any graph without loops through several layers: Affine, Linear, Conv2d, AvgPool2d, SumPool2d, Scale, Flatten; LIF,
CubaLIF, IF, LI, CubaLI; neurons that feed back to themselves through one Linear or Affine, as a graph of their own or
as a loop. Several edges into a node add up.
"""

from __future__ import annotations

from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snnexp.errors import DataError
from snnexp.exchange import DT, import_nir
from snnexp.models.network import Output
from snnexp.models.observer import Firing
from snnexp.neurons.layer import NeuronOutput, SpikingLayer
from snnexp.schema.neuron import NeuronConf

NEURONS = ("LIF", "CubaLIF", "IF", "LI", "CubaLI")


class Neurons(nn.Module):
    """A NIR neuron node: a layer of ours, its input scaled, and its recurrent weights if it has some."""

    scale: Tensor
    recurrent: Tensor | None
    offset: Tensor | None

    def __init__(self, name: str, node: Any, loop: Any = None) -> None:
        super().__init__()
        kind = type(node).__name__
        shape = tuple(int(n) for n in np.shape(node.r))
        zero = {"v_leak": getattr(node, "v_leak", 0), "v_reset": getattr(node, "v_reset", 0)}
        for key, value in zero.items():
            if value is not None and np.any(np.asarray(value) != 0):
                raise ValueError(f"node {name}: {key} is not 0, which our neurons cannot do")
        tau_mem = getattr(node, "tau", getattr(node, "tau_mem", None))
        leak = np.zeros(shape) if tau_mem is None else DT / np.asarray(tau_mem, "f8")
        gain = np.asarray(node.r, "f8") * (DT if tau_mem is None else leak)
        scale = np.ones(shape)
        if kind.startswith("Cuba"):
            scale = np.asarray(node.w_in, "f8") * DT / np.asarray(node.tau_syn, "f8")
        tau_form = tau_mem is not None and bool(np.allclose(gain, leak, rtol=1e-9, atol=0))
        if not tau_form:
            scale = scale * gain  # the current is never reset, so its scale is its input's
        alpha = 1 - DT / np.asarray(node.tau_syn, "f8") if kind.startswith("Cuba") else None
        values = {"beta": 1 - leak, "threshold": np.asarray(getattr(node, "v_threshold", np.ones(shape)))}
        values |= {} if alpha is None else {"alpha": alpha}
        per = {f"{key}_per": "layer" if np.unique(value).size == 1 else "neuron" for key, value in values.items()}
        conf = NeuronConf(
            name="nir", reset="zero", strict=True, tau_form=tau_form, alpha=None if alpha is None else 0.5
        )
        for key, word in per.items():
            setattr(conf, key, word)
        self.layer = SpikingLayer(conf, shape, name, spiking="v_threshold" in vars(node))
        with torch.no_grad():
            for key, value in values.items():
                raw = getattr(self.layer, f"raw_{key}")
                raw.copy_(torch.from_numpy(np.asarray(value.flat[0] if raw.dim() == 0 else value)))
        plain = np.allclose(scale, 1, rtol=1e-9)
        self.register_buffer("scale", None if plain else torch.from_numpy(scale.astype("f4")))
        self.register_buffer("recurrent", None if loop is None else torch.from_numpy(np.asarray(loop.weight, "f4")))
        bias = getattr(loop, "bias", None)
        self.register_buffer("offset", None if bias is None else torch.from_numpy(np.asarray(bias, "f4")))

    def forward(self, x: Tensor) -> NeuronOutput:
        """All time steps of x [T, B, *shape]; an integrator's membrane is its output."""
        if self.offset is not None:
            x = x + self.offset
        recurrent = self.recurrent
        if self.scale is not None:
            x = x * self.scale
            recurrent = None if recurrent is None else recurrent * self.scale.view(-1, 1)
        out = self.layer(x, recurrent=recurrent)
        assert isinstance(out, NeuronOutput)
        return out


class NirNetwork(nn.Module):
    """A NIR graph, built. Modules carry the nodes' names; `input_shape` is that of one time step."""

    def __init__(self, graph: Any) -> None:
        """Raises: ValueError, KeyError and the like for what is not supported, with the node's name."""
        super().__init__()
        nodes, edges = dict(graph.nodes), [(str(a), str(b)) for a, b in graph.edges]
        loops = _take_loops(nodes, edges)
        by_kind: dict[str, list[str]] = {"Input": [], "Output": []}
        for name, node in nodes.items():
            by_kind.setdefault(type(node).__name__, []).append(name)
        if len(by_kind["Input"]) != 1 or len(by_kind["Output"]) != 1:
            raise ValueError(
                f"it has {len(by_kind['Input'])} inputs and {len(by_kind['Output'])} outputs, not one each"
            )
        (self.entrance,), (self.exit,) = by_kind["Input"], by_kind["Output"]
        self.before = {name: [a for a, b in edges if b == name] for name in nodes}
        try:
            self.order = list(TopologicalSorter(self.before).static_order())
        except CycleError as error:
            raise ValueError(f"a loop through several layers is not supported: {' <- '.join(error.args[1])}") from error
        self.behind = _behind_neurons(self.order, self.before, nodes)
        self.input_shape = tuple(int(n) for n in np.atleast_1d(nodes[self.entrance].input_type["input"]))
        self.modules_of = {name: _attribute(name) for name in nodes}
        for name, node in nodes.items():
            if name not in (self.entrance, self.exit):
                self.add_module(self.modules_of[name], _module(name, node, loops.get(name)))

    @property
    def spiking_layers(self) -> dict[str, SpikingLayer]:
        """The layers that spike, by node name from input to output."""
        found = ((name, self._modules.get(self.modules_of[name])) for name in self.order)
        return {name: m.layer for name, m in found if isinstance(m, Neurons) and m.layer.dynamics.spiking}

    def forward(self, x: Tensor, observer: Any = None) -> Output:
        """Run x [T, B, *input_shape] from rest.

        Returns: what arrives at the output, and the membranes of the last neurons, passed through a Linear behind
        them as well: [T, B, ...] each.
        """
        sent: dict[str, tuple[Tensor, Tensor]] = {self.entrance: (x, x)}  # what a node sends on, and its membranes
        for name in self.order:
            if name == self.entrance:
                continue
            parts = [sent[source] for source in self.before[name]]
            if not parts:
                continue  # leads nowhere from the input
            value, mem = parts[0]
            for more, membranes in parts[1:]:
                value, mem = value + more, mem + membranes
            module = self._modules.get(self.modules_of[name])
            if isinstance(module, Neurons):
                out = module(value)
                value, mem = (out.spk if module.layer.dynamics.spiking else out.mem), out.mem
                if observer is not None and module.layer.dynamics.spiking:
                    observer.spiking(name, module.layer, Firing(out.spk.sum(0), out.mem, out.spk))
            elif module is not None:
                after = _stepwise(module, value)
                # membranes are asked for behind the last neurons only
                value, mem = after, (_stepwise(module, mem) if name in self.behind and mem is not value else after)
            sent[name] = (value, mem)
        return Output(*sent[self.exit])


def _behind_neurons(order: list[str], before: dict[str, list[str]], nodes: dict[str, Any]) -> set[str]:
    """Nodes from which no neurons can be reached."""
    inner: set[str] = set()
    for name in reversed(order):
        if name in inner or type(nodes[name]).__name__ in NEURONS:
            inner.update(before[name])
    return set(order) - inner


def _stepwise(module: nn.Module, x: Tensor) -> Tensor:
    folded: Tensor = module(x.flatten(0, 1))
    return folded.view(*x.shape[:2], *folded.shape[1:])


def read(path: Path) -> tuple[NirNetwork, dict[str, Any]]:
    """The network in a NIR file, and the file's metadata.

    Raises: DataError that names the file if it is damaged, none, or has what is not supported; ConfigError without nir.
    """
    nir = import_nir()
    if not path.is_file():
        raise DataError(f"{path}: no such file.")
    try:
        graph = nir.read(path)
        network = NirNetwork(graph)
    except PermissionError as error:
        raise DataError(f"{path}: {error.strerror}. Make it readable for you.") from error
    except Exception as error:  # h5py and nir raise anything for bytes that are not theirs, assertions included
        said = str(error) or type(error).__name__
        raise DataError(f"{path}: this is no NIR graph that snnexp can run ({said}).") from error
    return network.eval(), dict(graph.metadata) if isinstance(graph.metadata, dict) else {}


def _take_loops(nodes: dict[str, Any], edges: list[tuple[str, str]]) -> dict[str, Any]:
    """Take neurons that feed back to themselves out of `nodes` and `edges`; returns their weights by neuron."""
    loops: dict[str, Any] = {}
    for name, node in list(nodes.items()):
        if type(node).__name__ == "NIRGraph":
            nodes[name], loops[name] = _cell(name, node)
    weights = [n for n, node in nodes.items() if type(node).__name__ in ("Linear", "Affine")]
    for weight in weights:
        sources, targets = ([a for a, b in edges if b == weight], [b for a, b in edges if a == weight])
        if len(sources) == 1 and sources == targets and type(nodes[sources[0]]).__name__ in NEURONS:
            loops[sources[0]] = nodes.pop(weight)
            edges[:] = [edge for edge in edges if weight not in edge]
    return loops


def _cell(name: str, graph: Any) -> tuple[Any, Any]:
    """The neurons and the recurrent weights of a graph that holds just those."""
    inner, edges = dict(graph.nodes), [(str(a), str(b)) for a, b in graph.edges]
    loops = _take_loops(inner, edges)
    neurons = [n for n, node in inner.items() if type(node).__name__ in NEURONS]
    if len(neurons) != 1 or len(inner) != 3 or len(edges) != 2:
        raise ValueError(f"node {name}: a graph inside the graph that is more than neurons with recurrent weights")
    return inner[neurons[0]], loops.get(neurons[0])


def _module(name: str, node: Any, loop: Any) -> nn.Module:
    kind = type(node).__name__
    if kind in NEURONS:
        return Neurons(name, node, loop)
    if kind in ("Linear", "Affine"):
        weight = torch.from_numpy(np.asarray(node.weight, "f4"))
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=kind == "Affine")
        return _with(linear, weight=weight, bias=getattr(node, "bias", None))
    if kind == "Conv2d":
        weight = torch.from_numpy(np.asarray(node.weight, "f4"))
        stride, padding, dilation = (
            v if isinstance(v, str) else tuple(int(n) for n in np.broadcast_to(v, 2))
            for v in (node.stride, node.padding, node.dilation)
        )
        groups = int(node.groups)
        channels = weight.shape[1] * groups
        conv = nn.Conv2d(channels, weight.shape[0], tuple(weight.shape[2:]), stride, padding, dilation, groups)  # type: ignore[arg-type]
        return _with(conv, weight=weight, bias=node.bias)
    if kind in ("AvgPool2d", "SumPool2d"):
        sizes = ([int(n) for n in np.broadcast_to(v, 2)] for v in (node.kernel_size, node.stride, node.padding))
        return _Pool(kind, *sizes)
    if kind == "Flatten":
        end = int(node.end_dim)
        return nn.Flatten(int(node.start_dim) + 1, end + 1 if end >= 0 else end)  # NIR counts without the batch
    if kind == "Scale":
        return _Scale(torch.from_numpy(np.asarray(node.scale, "f4")))
    raise ValueError(f"node {name} is a {kind}, which snnexp does not run")


def _with(module: nn.Module, **values: Any) -> nn.Module:
    """The module with these parameters, which must fit."""
    with torch.no_grad():
        for key, value in values.items():
            parameter = getattr(module, key)
            if parameter is not None:
                parameter.copy_(torch.as_tensor(np.asarray(value, "f4")))
    return module


class _Pool(nn.Module):
    """Average or sum over windows; a window at the border counts its zeros."""

    def __init__(self, kind: str, size: list[int], stride: list[int], padding: list[int]) -> None:
        super().__init__()
        self.size, self.stride, self.padding = size, stride, padding
        self.times = size[0] * size[1] if kind == "SumPool2d" else 1

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, self.size, self.stride, self.padding) * self.times


class _Scale(nn.Module):
    """Each value by its own factor."""

    def __init__(self, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("scale", scale)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.get_buffer("scale")


def _attribute(name: str) -> str:
    """A node's name as a module's: without dots, and no attribute that modules have."""
    plain = name.replace(".", "_")
    return f"{plain}_node" if hasattr(nn.Module, plain) or plain in ("before", "order", "entrance", "exit") else plain
