"""The workloads W1 to W6, W9, W10: networks, inputs and figures to reach; every candidate gets the same of each."""

from __future__ import annotations

import functools
import os
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from snnexp.config import DecoderConf, EventDatasetConf, ModelConf, NeuronConf, SurrogateConf
from snnexp.data.base import DataInfo, EventFrames
from snnexp.encoders import ConstantInput
from snnexp.models.network import Network, build_network

if TYPE_CHECKING:
    from snnexp.data.events.source import EventSource

SLOPE = 1.0  # of the surrogate 1/(1 + slope |x|)^2; with slope 1 all peers have it
COMPACT = 0.5  # half width of the triangle of area 1 that takes its place: 2 (1 - |x| / 0.5), 0 from |x| = 0.5 on
BETA = 0.9


class Inputs(NamedTuple):
    """One batch: dense [T, B, C, H, W], the same as event lists (None where the values are not counts), and labels.

    A constant input is a view of one frame, with stride 0 over T.
    """

    dense: Tensor
    events: EventFrames | None
    labels: Tensor


@dataclass(frozen=True)
class Workload:
    """One network on one kind of input.

    Args:
        density: share of inputs that are 1, the others are 0; None: normal numbers.
        current_based: alpha 0.75, beta 0.97, thresholds learned per neuron (Rouser), else LIF with beta 0.9.
        gain: of the initial weights, so that all layers spike.
        bias: of linear layers; Rouser's networks have none.
        compact: the surrogate is a triangle (COMPACT) instead of one with tails.
        constant: one image for all steps.
        data: keys of a data set whose real events are the input; its density is measured.
        precise: peers are held against ours in float64, on two samples: in deep networks a spike that rounding
            moves changes all that follows.
        goals: the figures to reach, by column of the table (see `report.py`).
    """

    name: str
    title: str
    spec: str
    shape: tuple[int, int, int]
    num_steps: int
    batch: int
    classes: int
    density: float | None = None
    current_based: bool = False
    reset: str = "zero"
    gain: float = 1.0
    bias: bool = True
    compact: bool = False
    constant: bool = False
    data: dict[str, Any] | None = None
    precise: bool = False
    goals: dict[str, float] = field(default_factory=dict)

    @property
    def from_events(self) -> bool:
        """Whether the input is made of events, which may come as lists."""
        return self.density is not None or self.data is not None

    def shrunk(self) -> Workload:
        """The same with few steps and samples, to try the bench out; heavier weights, so that all layers spike."""
        return replace(self, num_steps=min(self.num_steps, 20), batch=2, gain=2 * self.gain)


ROUSER: dict[str, Any] = {"current_based": True, "reset": "subtract", "bias": False}
NMNIST: dict[str, Any] = {"name": "nmnist", "num_steps": 60, "bin_by": "width", "bin_ms": 5.0}  # as neunorm_nmnist bins
SEW_BLOCKS = "-".join(
    f"+(c{n}k3s2-BN-SN-c{n}k3-BN-SN|c{n}k1s2-BN-SN)-+(c{n}k3-BN-SN-c{n}k3-BN-SN)" for n in (128, 256, 512)
)
SEW_RESNET18 = f"c64k3-BN-SN-+(c64k3-BN-SN-c64k3-BN-SN)x2-{SEW_BLOCKS}-AP4-FC10-SN"  # model=sew_resnet18

WORKLOADS = {
    w.name: w
    for w in (
        Workload("W1", "Linear(512, 512) and LIF, dense input", "FC512-SN", (1, 1, 512), 500, 16, 512,
                 goals={"snntorch": 6, "spikingjelly": 3, "no neurons": 1.15, "memory": 0.9}),
        Workload("W2", "SHD-like 700-256-20, 10 % density", "FC256-SN-FC20-SN", (1, 1, 700), 100, 128, 20,
                 density=0.1, gain=2.0,
                 goals={"snntorch": 3, "spikingjelly": 2.2, "no neurons": 1.0, "memory": 0.7}),
        Workload("W2r", "W2 with a recurrent hidden layer", "RFC256-SN-FC20-SN", (1, 1, 700), 100, 128, 20,
                 density=0.1, gain=2.0, goals={"snntorch": 2, "spikingjelly": 2.5}),
        Workload("W3", "N-MNIST-like 2x34x34, two convolutions", "c12k5p0-SN-MP2-c64k5p0-SN-MP2-FC10-SN", (2, 34, 34),
                 20, 64, 10, density=0.05, gain=2.0,
                 goals={"snntorch": 3.5, "spikingjelly": 3, "no neurons": 0.6, "memory": 0.55}),
        Workload("W4", "DVS-like 2x64x64, four convolutions with BN", "(c32k3-BN-SN-MP2)x4-FC110-SN-VOTE10",
                 (2, 64, 64), 16, 16, 11, density=0.05, gain=2.0,
                 goals={"snntorch": 3.2, "spikingjelly": 2.5, "no neurons": 0.5, "memory": 0.55}),
        Workload("W5", "N-MNIST MLP 2312-500-500-10, events at 0.6 %", "FC500-SN-FC500-SN-FC10-SN", (2, 34, 34),
                 300, 32, 10, density=0.006, **ROUSER,
                 goals={"snntorch": 10, "no neurons": 0.5, "memory": 0.5}),
        Workload("W6", "DVS128 MLP 32768-64-11, events at 0.2 %", "FC64-SN-FC11-SN", (2, 128, 128), 300, 8, 11,
                 density=0.002, **ROUSER, goals={"snntorch": 20, "no neurons": 0.2, "memory": 0.3}),
        Workload("W9", "N-MNIST's own events in bins of 5 ms, W3's network, compact surrogate",
                 "c12k5p0-SN-MP2-c64k5p0-SN-MP2-FC10-SN", (2, 34, 34), 60, 16, 10, data=NMNIST, gain=2.0, compact=True,
                 goals={"snntorch": 5, "spikingjelly": 4, "no neurons": 0.4}),
        Workload("W10", "SEW ResNet-18 at 32x32, one image for all steps", SEW_RESNET18, (3, 32, 32), 4, 16, 10,
                 constant=True, precise=True, goals={"snntorch": 2, "spikingjelly": 1.7, "no neurons": 0.9}),
    )
}  # fmt: skip


CONV = replace(WORKLOADS["W3"], name="conv", title="W3's network, batch 16", batch=16, goals={})


def find(name: str) -> Workload:
    """A workload by name; conv@0.02 is CONV with inputs of that density."""
    if name.startswith("conv@"):
        return replace(CONV, name=name, density=float(name[5:]))
    return WORKLOADS[name]


def neuron_conf(w: Workload, engine: str = "auto") -> NeuronConf:
    """Our neuron for the workload; no gradient through the reset, as in snnTorch and (detach_reset) SpikingJelly."""
    surrogate = SurrogateConf(name="fast_sigmoid", slope=SLOPE)
    if w.compact:
        surrogate = SurrogateConf(name="triangular", scale=1 / COMPACT, width=COMPACT)
    if not w.current_based:
        return NeuronConf(name="bench", engine=engine, beta=BETA, reset=w.reset, surrogate=surrogate)
    return NeuronConf(
        name="bench", engine=engine, alpha=0.75, beta=0.97, threshold=1.25, learn_threshold=True,
        threshold_per="neuron", reset=w.reset, ignore_reset_in_backward=w.reset == "zero", surrogate=surrogate,
    )  # fmt: skip


def our_network(
    w: Workload,
    engine: str = "auto",
    bn_per_step: bool = False,
    channels_last: bool = True,
    sparse: str = "auto",
) -> Network:
    """Build our network with the weights of seed 0; the peers get copies of them."""
    info = DataInfo(
        name=w.name,
        kind="events" if w.from_events else "image",
        shape=w.shape,
        num_steps=w.num_steps,
        class_names=tuple(map(str, range(w.classes))),
        counts={},
        class_counts={},
        complete=True,
        split_hash="",
    )
    init = "kaiming_uniform" if w.current_based else "default"
    keys: dict[str, Any] = {"gain": w.gain, "bias": w.bias, "init": init, "bn_per_step": bn_per_step, "sparse": sparse}
    model = ModelConf(name="bench", spec=w.spec, **keys)
    torch.manual_seed(0)
    return build_network(model, neuron_conf(w, engine), DecoderConf(name="rate"), info, channels_last=channels_last)


def make_inputs(w: Workload, seed: int = 1) -> Inputs:
    """Draw one batch. Events are drawn sparse, row by row, so that the dense tensor is the only large one."""
    if w.from_events:
        events, labels = make_events(w, seed)
        return Inputs(events.to_dense(), events, labels)
    rng = np.random.default_rng(seed)
    labels = torch.from_numpy(rng.integers(0, w.classes, w.batch))
    steps = 1 if w.constant else w.num_steps
    dense = torch.from_numpy(rng.standard_normal((steps, w.batch, *w.shape), dtype=np.float32))
    return Inputs(dense.expand(w.num_steps, *dense.shape[1:]), None, labels)


def make_events(w: Workload, seed: int = 1) -> tuple[EventFrames, Tensor]:
    """A batch of real training events, or binary ones of the workload's density, uniformly distributed; and labels."""
    if w.data is not None:
        with closing(real_events(w).batches("train", 1, seed)) as batches:
            batch = next(batches)
        assert isinstance(batch.frames, EventFrames)
        return batch.frames, batch.labels
    assert w.density is not None
    rng = np.random.default_rng(seed)
    labels = torch.from_numpy(rng.integers(0, w.classes, w.batch))
    rows, features = w.num_steps * w.batch, int(np.prod(w.shape))
    counts = rng.binomial(features, w.density, rows)
    indices = [np.sort(rng.choice(features, n, replace=False, shuffle=False)) for n in counts]
    offsets = np.concatenate([[0], np.cumsum(counts)])
    flat = torch.from_numpy(np.concatenate(indices).astype(np.int32))
    return EventFrames(flat, torch.from_numpy(offsets), None, w.num_steps, w.batch, w.shape), labels


def real_events(w: Workload) -> EventSource:
    """The data set of a workload below $SNNEXP_DATA, as event lists. Raises: DataError if it is not there."""
    return _open(
        os.environ.get("SNNEXP_DATA", "data"), **(w.data or {}) | {"num_steps": w.num_steps}, batch_size=w.batch
    )


@functools.lru_cache(maxsize=2)
def _open(root: str, **keys: Any) -> EventSource:
    from snnexp.data.events.source import open_events  # the other workloads do without numba

    return open_events(EventDatasetConf(root=root, download=False, sparse="always", **keys), torch.device("cpu"))


def as_read(w: Workload, dense: Tensor) -> Tensor | ConstantInput:
    """The dense input as our network reads it."""
    return ConstantInput(dense[0], w.num_steps) if w.constant else dense


def matrix_flops(w: Workload) -> float:
    """Floating-point operations of the dense matrix products and convolutions of one step: forward and backward.

    Backward costs twice forward: gradients of weights and of inputs; the first layer needs no input gradient.
    """
    total, first = 0.0, True
    for layer in our_network(w).layers:
        if layer.kind in ("conv", "linear", "recurrent"):
            steps = 1 if first and w.constant else w.num_steps
            forward = 2.0 * float(np.prod(layer.out_shape)) * layer.fan_in * steps * w.batch
            total += forward * (2 if first else 3)
            if layer.kind == "recurrent":
                total += 6.0 * layer.out_shape[0] ** 2 * w.num_steps * w.batch
            first = False
    return total


def neuron_bytes(w: Workload) -> float:
    """Bytes that spiking layers must move in one step in float32, if nothing is fused with its neighbours.

    Forward reads the input, writes membranes and spikes; backward reads membranes and the spikes' gradient and writes
    the input's gradient.
    """
    neurons = sum(float(np.prod(layer.out_shape)) for layer in our_network(w).layers if layer.kind == "spiking")
    return 6 * 4 * neurons * w.num_steps * w.batch
