"""Batch norm that the spiking layer behind it does as it loads its input, so that the normalised map is never written.

The statistics are batch norm's own (`BatchNorm2d.left_to_engine`). Where the membranes of a block of neurons over all T
fit into a second-level cache, backward does not read them either, and they are written only if an observer does:
backward reads x, which batch norm keeps in any case, works them out again, and takes the two sums per channel that
batch norm's gradient needs while the gradient is in a cache. These are added up in another order than batch norm's own,
whoever watches; all else is the same bit for bit.
Where a convolution that follows spikes comes first in the network, only its weights' gradient reads the gradient of x,
and works it out as it reads (`NormGradient`); or, if the spikes are pooled, the engine sums that up as it goes, and the
gradient of x is never written (`neurons/engines/numba_taps.py`). Behind a convolution by Winograd's algorithm its
weights' gradient works that of x out, in the place of y's, before the input's gradient reads it.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn.modules.module import _has_any_global_hook

from snnexp.models.batch_norm import BatchNorm2d
from snnexp.models.flow import Flow
from snnexp.models.needed import HOOKS
from snnexp.models.spec import LayerPlan
from snnexp.models.weights import Conv2d


def leave_to_engine(network: Any, layer: LayerPlan, flow: Flow) -> bool:
    """Prepare a batch norm for the spiking layer behind it, if that can do it unseen; returns whether it did."""
    norm, after = network.get_submodule(layer.name), network.layers[layer.position + 1 : layer.position + 2]
    neuron = network.neurons.get(after[0].name) if after else None
    if neuron is None or not isinstance(norm, BatchNorm2d) or not flow.whole or flow.constant:
        return False
    hooked = _has_any_global_hook()  # type: ignore[no-untyped-call]
    if hooked or any(getattr(module, hooks) for module in (norm, neuron) for hooks in HOOKS):
        return False
    x = flow.folded()
    if not neuron.can_normalise(flow.over_time()):
        return False
    found = norm.left_to_engine(x, sole=_made_for_it(network, layer))
    if found is not None:
        flow.x, flow.norm = found
    return found is not None


def _made_for_it(network: Any, layer: LayerPlan) -> bool:
    """Whether the layer before is a convolution, and nobody else sees its output."""
    before = network.layers[layer.position - 1] if layer.position else None
    if before is None or before.kind != "conv":
        return False
    conv = network.get_submodule(before.name)
    return isinstance(conv, Conv2d) and conv.affine is None and not any(getattr(conv, hooks) for hooks in HOOKS)


def tapped(network: Any, layer: LayerPlan, flow: Flow, current: Tensor, private: bool) -> Tensor:
    """A spiking layer's input, which lets the engine sum up the weights' gradient of a convolution that made it.

    If nobody else sees that, nor its gradient, which is not made then; see `neurons/engines/numba_taps.py`.
    private: the layer's membranes are nobody's.
    """
    neuron = network.neurons[layer.name]
    if private and flow.norm is None and _made_for_it(network, layer):
        hooked = _has_any_global_hook() or any(getattr(neuron, hooks) for hooks in HOOKS)  # type: ignore[no-untyped-call]
        found = None if hooked else getattr(flow.folded().grad_fn, "alone", None)
        every = found is not None and found.frames == flow.steps * flow.batch  # not one frame for all steps
        current.taps = found if every else None  # type: ignore[attr-defined]
    return current
