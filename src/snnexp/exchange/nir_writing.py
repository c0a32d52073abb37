"""From a network to a NIR graph, or a refusal that names the layer: nothing is written that NIR reads otherwise."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from snnexp.atomic import replacing
from snnexp.errors import ConfigError
from snnexp.exchange import DT, import_nir
from snnexp.models.layers import Vote
from snnexp.models.network import Network
from snnexp.models.spec import WEIGHT_KINDS, LayerPlan
from snnexp.models.weights import Conv2d, Linear, RecurrentLinear
from snnexp.neurons.layer import SpikingLayer
from snnexp.neurons.module_layer import ModuleLayer

WRITTEN = {*WEIGHT_KINDS, "flatten", "avg_pool", "vote", "batch_norm", "spiking", "dropout", "dropout_step"}
# Layers that NIR has no node for, or none that anybody's reader runs, and what to do about it.
REFUSED = {
    "max_pool": "NIR has no max pooling; train with model.pooling=average",
    "layer_norm": "NIR has no normalisation by the sample's own statistics; BN can be folded into weights",
    "neunorm": "NIR has no NeuNorm, which subtracts a trace of neighbouring spikes",
    "delay": "no reader of NIR that it could be checked with runs its Delay node",
}


def graph_of(network: nn.Module, metadata: Mapping[str, Any] | None = None) -> Any:
    """The `nir.NIRGraph` of a trained network as it evaluates: dropout is left out, batch norm folded into weights.

    Nodes are called by number and layer, 00_conv1, 02_sn1: a file keeps them by the alphabet, and nirtorch builds a
    recurrent layer only after those before it. The input is one time step, [C, H, W]; the output is that of the last
    layer. A recurrent layer's neurons are a graph of their own: input -> lif -> output, lif -> w_rec -> lif.

    Raises: ConfigError that names the layer and the reason if NIR cannot say what the network does.
    """
    nir = import_nir()
    if type(network) is not Network:
        kind = getattr(network, "word", type(network).__name__)
        raise ConfigError(f"format=nir: {kind} is a module of your own, and NIR has nodes only for ours.")
    nodes: dict[str, Any] = {"input": nir.Input(np.array(network.input_shape))}
    order, digits = ["input"], max(2, len(str(len(network.layers))))
    folded: set[str] = set()
    for layer, after in zip(network.layers, (*network.layers[1:], None), strict=True):
        if layer.kind in ("dropout", "dropout_step") or layer.name in folded:
            continue
        norm = network.get_submodule(after.name) if after is not None and after.kind == "batch_norm" else None
        if norm is not None and layer.kind in WEIGHT_KINDS:
            assert after is not None
            folded.add(after.name)
        else:
            norm = None
        name = f"{layer.position:0{digits}}_{layer.name}"
        nodes[name] = _node(nir, network, layer, norm)
        order.append(name)
    nodes["output"] = nir.Output(np.array(network.layers[-1].out_shape))
    edges = list(zip(order, [*order[1:], "output"], strict=True))
    return nir.NIRGraph(nodes, edges, metadata={"dt": DT, **(metadata or {})})


def write(graph: Any, path: Path) -> None:
    """Write a graph as a NIR file (HDF5), whole or not at all."""
    nir, whole = import_nir(), io.BytesIO()
    nir.write(whole, graph)
    with replacing(path) as file:
        file.write(whole.getvalue())


def _node(nir: Any, network: Network, layer: LayerPlan, norm: nn.Module | None) -> Any:
    if layer.kind in REFUSED or (layer.kind == "recurrent" and "max" in layer.args):
        raise _refused(layer, REFUSED.get(layer.kind, REFUSED["delay"]))
    if layer.kind not in WRITTEN:
        raise _refused(layer, f"NIR has no node for a layer of this kind ({layer.kind})")
    if layer.kind == "flatten":
        return nir.Flatten({"input": np.array(layer.in_shape)}, start_dim=0, end_dim=-1)
    module = network.get_submodule(layer.name)
    if layer.kind in WEIGHT_KINDS:
        return _weights(nir, layer, module, norm)
    if layer.kind == "avg_pool":
        size, stride = int(layer.args["k"]), int(layer.args["s"])
        return nir.AvgPool2d(np.array([size, size]), np.array([stride, stride]), np.array([0, 0]))
    if isinstance(module, Vote):  # a mean over neighbours is a matrix
        return nir.Linear(
            np.kron(np.eye(layer.out_shape[0]), np.full((1, module.group), 1 / module.group)).astype("f4")
        )
    if layer.kind == "batch_norm":
        raise _refused(layer, "it does not follow a layer with weights, so that it cannot be folded into one")
    assert isinstance(module, SpikingLayer)
    before = network.layers[layer.position - 1] if layer.position else None
    return _neurons(nir, network, layer, module, before)


def _refused(layer: LayerPlan, reason: str) -> ConfigError:
    return ConfigError(f"format=nir: layer {layer.name} ({layer.token.text}): {reason}.")


def _weights(nir: Any, layer: LayerPlan, module: nn.Module, norm: nn.Module | None) -> Any:
    """The weights in effect, with affine and batch norm in them: scale (W x + b) + offset, per output channel."""
    assert isinstance(module, Conv2d | Linear)
    weight = module.effective_weight().detach().cpu()
    out = weight.shape[0]
    bias = torch.zeros(out) if module.bias is None else module.bias.detach().cpu()
    if module.affine is not None:
        gain, offset = (v.detach().cpu().flatten().expand(out) for v in (module.affine.gain, module.affine.offset))
        weight, bias = _scaled(weight, gain), gain * bias + offset
    if norm is not None:
        assert isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d)
        if norm.running_mean is None or norm.running_var is None:
            raise _refused(layer, "its batch norm has no running statistics to fold into the weights")
        scale = (norm.weight / torch.sqrt(norm.running_var + norm.eps)).detach().cpu()
        weight, bias = _scaled(weight, scale), scale * (bias - norm.running_mean.cpu()) + norm.bias.detach().cpu()
    if layer.kind == "conv":
        stride, pad = int(layer.args["s"]), int(layer.args["p"])
        shape = (int(layer.in_shape[1]), int(layer.in_shape[2]))
        pairs = [(n, n) for n in (stride, pad, 1)]
        return nir.Conv2d(shape, weight.numpy(), *pairs, groups=1, bias=bias.numpy())
    if module.bias is None and module.affine is None and norm is None:
        return nir.Linear(weight.numpy())
    return nir.Affine(weight.numpy(), bias.numpy())


def _scaled(weight: torch.Tensor, by: torch.Tensor) -> torch.Tensor:
    return weight * by.view(-1, *[1] * (weight.dim() - 1))


def _neurons(nir: Any, network: Network, layer: LayerPlan, module: SpikingLayer, before: LayerPlan | None) -> Any:
    for reason in _unsayable(module):
        raise _refused(layer, reason)
    node = _neuron(nir, module)
    weights = network.get_submodule(before.name) if before is not None and before.kind == "recurrent" else None
    if not isinstance(weights, RecurrentLinear):
        return node
    shape = np.array(module.shape)
    inner = {
        "input": nir.Input(shape),
        "lif": node,
        "output": nir.Output(shape),
        "w_rec": nir.Linear(weights.recurrent.weight.detach().cpu().numpy()),
    }
    return nir.NIRGraph(inner, [("input", "lif"), ("lif", "w_rec"), ("w_rec", "lif"), ("lif", "output")], metadata={})


def _unsayable(module: SpikingLayer) -> Iterator[str]:
    """What NIR's neurons do not do."""
    dynamics = module.dynamics
    if isinstance(module, ModuleLayer):
        yield f"its neurons are a module of their own ({module.source}), and NIR has nodes for LIF neurons only"
        return
    if dynamics.equation is not None:
        yield f"its neurons have an equation of their own ({dynamics.equation.reference}); NIR has LIF neurons only"
        return
    if dynamics.fire_once:
        yield "its neurons fire once per sample (neuron.fire_once), which NIR's neurons do not"
    if dynamics.spiking and dynamics.reset != "zero":
        yield f"neuron.reset={dynamics.reset}: NIR's neurons are set to v_reset after a spike, which is reset=zero"
    if dynamics.high_spikes:
        yield "neuron.spike_height=threshold: the spikes of NIR's neurons are 1"
    if module.initial_mem is not None:
        yield "neuron.initial_mem=running_mean: NIR's neurons start at rest"
    if module.noise and module.noise_always:
        yield "neuron.noise_in=always: NIR's neurons have no noise (noise_in=training is not part of what is exported)"
    values = [module.beta] if module.alpha is None else [module.alpha, module.beta]
    plain_if = module.alpha is None and dynamics.spiking and not dynamics.tau_form
    if any(bool((value >= 1).any()) for value in values) and not (plain_if and bool((module.beta == 1).all())):
        yield "some beta or alpha is 1, an infinite time constant, for which NIR has no neuron of this kind"


def _neuron(nir: Any, module: SpikingLayer) -> Any:
    """The node of one layer of neurons; arrays have the layer's shape."""

    def whole(value: torch.Tensor) -> Any:
        return value.detach().cpu().expand(module.shape).numpy()

    # float64, so that 1 - DT/tau rounds to the very float32 that beta is
    beta, zero = whole(module.beta).astype("f8"), np.zeros(module.shape, "f4")
    threshold = whole(module.threshold).astype("f4").copy()
    if not module.dynamics.strict:
        threshold = np.nextafter(threshold, np.float32(-np.inf))
    if not module.has_current and (beta == 1).all():
        return nir.IF(r=zero + 1 / DT, v_threshold=threshold, v_reset=zero)
    tau = DT / (1 - beta)
    r = np.ones_like(tau) if module.dynamics.tau_form else tau / DT  # what the input counts: 1 - beta, or 1
    spikes = {"v_threshold": threshold, "v_reset": zero} if module.dynamics.spiking else {}
    if module.alpha is None:
        return (nir.LIF if spikes else nir.LI)(tau=tau, r=r, v_leak=zero, **spikes)
    tau_syn = DT / (1 - whole(module.alpha).astype("f8"))
    kind = nir.CubaLIF if spikes else nir.CubaLI
    return kind(tau_syn=tau_syn, tau_mem=tau, r=r, v_leak=zero, w_in=tau_syn / DT, **spikes)


def snntorch_notes(network: Network) -> list[str]:
    """What snnTorch's importer (1.0.0) refuses or reads otherwise, by layer: NIR says it, snnTorch does not."""
    notes = []
    for name, module in network.neurons.items():
        tau_form = module.dynamics.tau_form
        if not module.dynamics.spiking:
            notes.append(f"{name}: it has no neurons without spikes (nir.LI, CubaLI)")
        elif _differ(module.threshold):
            notes.append(f"{name}: it takes one threshold per layer")
        elif bool((module.threshold <= 0).any()):
            notes.append(f"{name}: its neurons at rest are above a threshold of 0 or less")
        elif bool((module.beta == 1).all()):
            notes.append(f"{name}: it takes nir.IF (beta = 1) for a neuron that leaks")
        elif tau_form and (module.has_current or _differ(module.beta)):
            notes.append(f"{name}: it takes inputs divided by tau (neuron.tau_form) for one tau per layer only")
    return notes


def _differ(values: torch.Tensor) -> bool:
    return bool((values != values.flatten()[0]).any())
