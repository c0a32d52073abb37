"""Layers without spikes of their own: NeuNorm, voting, dropout over time, norms over time, pooling."""

from __future__ import annotations

from math import sqrt

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snnexp import collectives
from snnexp.config import ModelConf, NeuNormConf
from snnexp.models.batch_norm import BatchNorm1d, BatchNorm2d
from snnexp.models.spec import NORMS, LayerPlan


class NeuNorm(nn.Module):
    """Neuron normalisation: what a layer sends on is reduced by a learned share of its neighbours' recent mean.

        x[t](i,j) = k x[t-1](i,j) + (v/F) sum_f S_f[t](i,j)       x[-1] = 0
        out_c[t]  = S_c[t] - A_c x[t]

    form "literal": k + v F = 1 as printed, so that x settles at rate/F; "mean": k + v = 1, and x at the mean rate.
    A is [C, H, W], or [1, H, W] if shared. Source: Wu et al., arXiv:1809.05793, by way of SpikingJelly's NeuNorm.
    """

    def __init__(self, shape: tuple[int, ...], conf: NeuNormConf) -> None:
        super().__init__()
        channels, height, width = shape
        self.k = float(conf.k)
        v = (1 - self.k) / channels if conf.form == "literal" else 1 - self.k
        self.share = v / channels
        self.weight = nn.Parameter(torch.empty(1 if conf.shared else channels, height, width))
        with torch.random.fork_rng(devices=[]):  # so that the other layers start alike with and without NeuNorm
            nn.init.kaiming_uniform_(self.weight, a=sqrt(5))

    def forward(self, spk: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Spikes [T, B, C, H, W] and x of the step before [B, 1, H, W] (None: 0); returns the output and the last x."""
        drive = spk.sum(2, keepdim=True) * self.share
        x = torch.zeros_like(drive[0]) if state is None else state
        trace = []
        for step in drive.unbind(0):
            x = self.k * x + step
            trace.append(x)
        return spk - self.weight * torch.stack(trace), x


class Vote(nn.Module):
    """Mean over each `group` = n neighbouring neurons: 0..n-1 vote for class 0, and so on. [..., C*n] -> [..., C]."""

    def __init__(self, group: int) -> None:
        super().__init__()
        self.group = group

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:-1], -1, self.group).mean(-1)


class TimeDropout(nn.Module):
    """Dropout on [T, B, ...]: one mask per sample for all T steps (PLIF), or one per step (STBP's released code)."""

    def __init__(self, rate: float, per_step: bool) -> None:
        super().__init__()
        self.rate = rate
        self.per_step = per_step

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """mask [B, ...]: an earlier one of `draw_mask`, for the same samples' next time steps."""
        if not self.training or self.rate == 0:
            return x
        if self.per_step:
            return F.dropout(x, self.rate) if collectives.rows() is None else x * self._drawn(x, 1)
        return x * (self.draw_mask(x) if mask is None else mask)

    def draw_mask(self, x: Tensor) -> Tensor:
        """What all steps of x [T, B, ...] are multiplied by: 0 or 1/(1 - rate)."""
        return self._drawn(x[0], 0)

    def _drawn(self, x: Tensor, dim: int) -> Tensor:
        return collectives.drawn(lambda like: F.dropout(torch.ones_like(like), self.rate, self.training), x, dim)


class ModerateDropout(nn.Module):
    """Dropout that rarely firing inputs undergo more than others, on [T, B, ...]; one mask for all T steps.

        r_i  = (1/T) sum_t x_i[t], scaled to 0..1 over the batch and its inputs
        keep = min(max(1 - p (1 - r_i)/(1 - mean r), 0), 1)      out_i[t] = x_i[t] m_i/keep, m_i = 1 with chance keep

    Source: LTMD (Wang, Cheng, Lim, NeurIPS 2022), `dropout_layer` of the authors' code; like there 1/keep has a
    gradient. Inputs of one and the same rate, where theirs divides by 0, are all kept with chance 1 - p.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return x
        keep = self.keep(x)
        mask = torch.bernoulli(keep.detach())
        if (mine := collectives.rows()) is not None:
            keep, mask = keep[mine.part], mask[mine.part]
        return x * (mask / torch.where(keep > 0, keep, torch.ones_like(keep)))

    def keep(self, x: Tensor) -> Tensor:
        """The chance to stay of each input of x [T, B, ...], shape [B, ...]; several processes: of the whole batch."""
        rate = collectives.seen_by_all(x.mean(0))
        low, high = rate.amin(), rate.amax()
        scaled = (rate - low) / torch.where(high > low, high - low, torch.ones_like(high))
        return (1 - self.rate * (1 - scaled) / (1 - scaled.mean())).clamp(0, 1)


def build_batch_norm(shape: tuple[int, ...]) -> nn.BatchNorm1d | nn.BatchNorm2d:
    """Batch norm over [T*B, ...] per channel."""
    return BatchNorm2d(shape[0]) if len(shape) == 3 else BatchNorm1d(shape[0])


def build_layer_norm(shape: tuple[int, ...]) -> nn.GroupNorm:
    """Layer norm: over all features of one sample at one step, with a learned scale and shift per channel."""
    return nn.GroupNorm(1, shape[0])


def build_stateless(layer: LayerPlan, model: ModelConf) -> nn.Module:
    """Build any layer but those of weights, neurons and delays."""
    if layer.kind == "max_pool":
        return nn.MaxPool2d(int(layer.args["k"]), int(layer.args["s"]))
    if layer.kind == "avg_pool":
        return nn.AvgPool2d(int(layer.args["k"]), int(layer.args["s"]))
    if layer.kind in NORMS:
        norm = (build_batch_norm if layer.kind == "batch_norm" else build_layer_norm)(layer.in_shape)
        with torch.no_grad():
            norm.weight.mul_(float(model.gain))
        return norm
    if layer.kind == "neunorm":
        return NeuNorm(layer.in_shape, model.neunorm)
    if layer.kind == "vote":
        return Vote(int(layer.args["n"]))
    if layer.kind == "dropout_rate":
        return ModerateDropout(float(layer.args["rate"]))
    return TimeDropout(float(layer.args["rate"]), per_step=layer.kind == "dropout_step")
