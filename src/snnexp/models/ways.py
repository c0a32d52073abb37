"""What drives each spiking layer and what reads its spikes, in the list of layers. Pure Python, like the notation.

In a residual block body and shortcut are two ways: both drive the neurons behind the sum, each from where it starts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from snnexp.models.residual import BRANCHES, inputs_behind
from snnexp.models.spec import DROPOUT_KINDS, NORMS, WEIGHT_KINDS, LayerPlan

KEEPS_SPIKES = frozenset({"flatten", "max_pool", "delay", *DROPOUT_KINDS})


@dataclass(frozen=True)
class Way:
    """Names of: a layer with weights that drives a spiking layer; a norm between the two; the neurons before it."""

    weights: str
    norm: str | None
    before: str | None  # None: no spiking layer comes before


@dataclass(frozen=True)
class Surroundings:
    """Of one spiking layer: its ways, and the layers with weights whose inputs are its channels and no others'."""

    ways: tuple[Way, ...]
    readers: tuple[str, ...]


@dataclass(frozen=True)
class _Flow:
    """What goes on from a layer."""

    ways: tuple[Way, ...] = ()  # since the last spiking layer
    before: str | None = None  # the last spiking layer
    owners: frozenset[str] = frozenset()  # whose channels these are; of sums, more than one


def surroundings(layers: Sequence[LayerPlan]) -> dict[str, Surroundings]:
    """By spiking layer."""
    ways: dict[str, tuple[Way, ...]] = {}
    readers: dict[str, list[str]] = {}
    flow, kept = _Flow(), list[_Flow]()
    for layer in layers:
        if layer.kind == "spiking":
            ways[layer.name], readers[layer.name] = flow.ways, []
            flow = _Flow((), layer.name, frozenset({layer.name}))
        elif layer.kind in WEIGHT_KINDS:
            if len(flow.owners) == 1:
                readers[next(iter(flow.owners))].append(layer.name)
            flow = _Flow((Way(layer.name, None, flow.before),), flow.before)
        elif layer.kind in NORMS:
            flow = replace(flow, ways=tuple(replace(way, norm=layer.name) for way in flow.ways))
        elif layer.kind == "fork":
            kept.append(flow)
        elif layer.kind == "shortcut":
            flow, kept[-1] = kept[-1], flow
        elif layer.kind == "join":
            other = kept.pop()
            both = tuple(dict.fromkeys((*other.ways, *flow.ways)))
            flow = _Flow(both, flow.before or other.before, flow.owners | other.owners)
    return {name: Surroundings(ways[name], tuple(readers[name])) for name in ways}


def accumulating(layers: Sequence[LayerPlan]) -> list[LayerPlan]:
    """The layers with weights whose input are spikes of the network's own, 0 or 1, that nothing scales or adds up."""
    found, spikes, kept = list[LayerPlan](), False, list[tuple[bool, bool]]()
    for layer in layers:
        if layer.kind in WEIGHT_KINDS:
            found += [layer] if spikes else []
            spikes = False
        elif layer.kind in BRANCHES:
            _, spikes = inputs_behind(layer.kind, False, spikes, kept)
        else:
            spikes = layer.kind == "spiking" or (spikes and layer.kind in KEEPS_SPIKES)
    return found
