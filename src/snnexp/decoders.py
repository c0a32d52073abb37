"""From output spikes and membranes over time to class scores, and the loss that trains them.

All losses are batch means in float32, whatever the precision of the network (float64 stays float64), and none waits for
the device. They equal snnTorch's where the two define the same thing (the tests compare them); snnTorch's own loop over
steps is in Python, and its temporal losses' gradient over single elements, which on CUDA would wait for the device B*C
times per batch.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from snnexp.blame import blamed
from snnexp.coding_rules import check_decoder
from snnexp.config import DecoderConf, NeuronConf
from snnexp.errors import ConfigError
from snnexp.registry import LOSSES, load


def build_decoder(conf: DecoderConf, num_classes: int, num_steps: int) -> Decoder:
    """Return the decoder of the configuration. Raises: ConfigError if its loss or targets do not fit."""
    # What joins decoder and neuron is checked with the configuration; here a neuron that fits every decoder stands in.
    errors = check_decoder(conf, NeuronConf(name="any"), num_steps)
    if errors:
        raise ConfigError("\n".join(errors))
    decoder = Decoder(conf, num_classes)
    if conf.loss not in LOSSES.ours:
        _try_loss(decoder, num_steps)
    return decoder


def _try_loss(decoder: Decoder, num_steps: int) -> None:
    """Run a user's loss once, on the CPU. Raises: ConfigError if it fails or gives no gradient."""
    spk, mem = (torch.zeros(num_steps, 2, decoder.num_classes).requires_grad_() for _ in range(2))
    with torch.random.fork_rng(devices=[]):
        loss = decoder.loss(spk, mem, torch.tensor([0, decoder.num_classes - 1]))
    if not loss.requires_grad:
        raise ConfigError(f"{LOSSES.key}={decoder.conf.loss}: no gradient comes back from it: it is cut off (detach).")


@dataclass(frozen=True)
class Decoder:
    """Scores [B, C] from output spikes and membranes [T, B, C], and the loss.

        rate, vote       score = (1/T) sum_t S[t]                     (vote: the model has averaged the votes already)
        membrane         score = U[T-1], mean_t U[t] or max_t U[t]
        first_spike      score = -(first spike time), silent: -T; equal times: larger membrane first, see `scores`
        temporal_weight  score = sum_t w[t] S[t],  w[t] = gamma (T - t)/T or gamma^-t   (ETTFS, arXiv:2410.23619)

    The predicted class has the largest score; equal scores go to the lowest class.
    """

    conf: DecoderConf
    num_classes: int

    @property
    def needs_membrane(self) -> bool:
        """Whether `mem` is read; the other decoders take None."""
        return self.conf.name in ("membrane", "first_spike")

    def scores(self, spk: Tensor, mem: Tensor | None) -> Tensor:
        """Class scores, float32 or float64 [B, C]; larger is likelier.

        first_spike: -t + 0.99 (sigmoid(U[t]) - 1/2) at the first spike time t: the order is by time, then by membrane
        (0.99 keeps the two apart). A silent neuron has t = T and its last membrane, and so follows those that fire at
        T - 1.
        """
        self._check(spk, mem)
        name = self.conf.name
        if name in ("rate", "vote"):
            return _exact(spk).mean(0)
        if name == "membrane":
            return self._reduced(mem)
        if name == "temporal_weight":
            return self._weighted(spk)
        first = first_spike_time(spk)
        at_spike = _given(mem).gather(0, first.clamp(max=spk.shape[0] - 1).unsqueeze(0)).squeeze(0)
        return 0.99 * (_exact(at_spike).sigmoid() - 0.5) - first

    def predict(self, scores: Tensor) -> Tensor:
        """Predicted classes, int64 [B]."""
        return scores.argmax(-1)

    def loss(self, spk: Tensor, mem: Tensor | None, labels: Tensor) -> Tensor:
        """The loss, a scalar. y is 1 for the right class and 0 else; target = correct_rate y + incorrect_rate (1 - y).

            cross_entropy  of scale * score; rate and vote: of scale * spike count      snnTorch's ce_count_loss
            mse            mean over B, C of (score - target)^2                         PLIF's and Rouser's rate MSE
            mse_step       mean over T, B, C of (S[t] - target)^2; membrane: U[t]       mse_membrane_loss
            ce_step        cross-entropy of scale * S[t] (membrane: U[t]), mean over T  ce_rate_loss
            tet            (1 - lambda) ce_step + lambda mean over T, B, C of (S[t] - level)^2; membrane: U[t]
            ce_temporal    cross-entropy of -scale * t_first                            ce_temporal_loss
            mse_temporal   mean over B, C of ((t_first - target step)/T)^2              mse_temporal_loss

        tet is temporal efficient training (Deng et al. 2022, arXiv:2202.11946; level is phi there).
        In the temporal losses silent neurons count as firing at T - 1, and dt_first/dS is -1 at that step, as there.
        """
        self._check(spk, mem)
        loss: Tensor = self._loss(spk, mem, labels)
        return loss

    @cached_property
    def _loss(self) -> Callable[..., Tensor]:
        """The loss's function; it gets the decoder, too, if it asks for it by name."""
        word = self.conf.loss
        function = load(LOSSES, word)
        if word not in LOSSES.ours:
            return OwnLoss(word, function, self)
        return partial(function, decoder=self)

    def distance(self, first: tuple[Tensor, Tensor | None], second: tuple[Tensor, Tensor | None]) -> Tensor:
        """How far two outputs (spk, mem) for the same batch are apart: (KL(p, q) + KL(q, p))/2, a mean over B and C.

        p and q are the softmax of `logits`. Source: LTMD, `kl_div_p12` of the authors' code, which takes the mean over
        the classes, too.
        """
        p, q = (F.log_softmax(self.logits(spk, mem), -1) for spk, mem in (first, second))
        return 0.5 * ((p.exp() - q.exp()) * (p - q)).mean()

    def logits(self, spk: Tensor, mem: Tensor | None) -> Tensor:
        """What the cross-entropy takes, [B, C]: scale * score; rate and vote: scale * spike count."""
        rates = self.conf.name in ("rate", "vote")
        return self.conf.scale * (_exact(spk).sum(0) if rates else self.scores(spk, mem))

    def _reduced(self, mem: Tensor | None) -> Tensor:
        mem = _exact(_given(mem))
        if self.conf.reduce == "last":
            return mem[-1]
        return mem.mean(0) if self.conf.reduce == "mean" else mem.amax(0)

    def _weighted(self, spk: Tensor) -> Tensor:
        steps, spk = spk.shape[0], _exact(spk)
        time = torch.arange(steps, device=spk.device, dtype=spk.dtype)
        linear = self.conf.weights == "linear"
        weights = self.conf.gamma * (steps - time) / steps if linear else self.conf.gamma**-time
        return (weights.view(-1, 1, 1) * spk).sum(0)

    def over_time(self, spk: Tensor, mem: Tensor | None) -> Tensor:
        """What the decoder reads at each step, [T, B, C]: spikes, or membranes."""
        return _exact(_given(mem) if self.conf.name == "membrane" else spk)

    def target_rates(self, labels: Tensor, like: Tensor) -> Tensor:
        """correct_rate for the right class and incorrect_rate for the others, [B, C]."""
        right = self._is_label(labels).to(like.dtype)
        return self.conf.incorrect_rate + (self.conf.correct_rate - self.conf.incorrect_rate) * right

    def target_times(self, labels: Tensor, steps: int, like: Tensor) -> Tensor:
        """The steps at which the classes should fire first, [B, C]."""
        off = steps - 1 if self.conf.off_target is None else self.conf.off_target
        return off + (self.conf.on_target - off) * self._is_label(labels).to(like.dtype)

    def _is_label(self, labels: Tensor) -> Tensor:
        return labels.unsqueeze(1) == torch.arange(self.num_classes, device=labels.device)

    def _check(self, spk: Tensor, mem: Tensor | None) -> None:
        out = mem if self.conf.name == "membrane" and mem is not None else spk
        if out.dim() != 3 or out.shape[2] != self.num_classes:
            raise ConfigError(
                f"decoder={self.conf.name}: the network's output is {list(out.shape)}, not [T, B, {self.num_classes}]."
                f" model.spec must end in one neuron per class (FC{self.num_classes}-SN), or use decoder=vote."
            )


def cross_entropy(spk: Tensor, mem: Tensor | None, labels: Tensor, decoder: Decoder) -> Tensor:
    """Of scale times the score; rate and vote: times the spike count."""
    return F.cross_entropy(decoder.logits(spk, mem), labels)


def mse(spk: Tensor, mem: Tensor | None, labels: Tensor, decoder: Decoder) -> Tensor:
    """(score - target)^2."""
    scores = decoder.scores(spk, mem)
    return F.mse_loss(scores, decoder.target_rates(labels, scores))


def mse_step(spk: Tensor, mem: Tensor | None, labels: Tensor, decoder: Decoder) -> Tensor:
    """(output - target)^2 at each step."""
    out = decoder.over_time(spk, mem)
    return F.mse_loss(out, decoder.target_rates(labels, out).expand_as(out))


def ce_step(spk: Tensor, mem: Tensor | None, labels: Tensor, decoder: Decoder) -> Tensor:
    """The cross-entropy of each step."""
    out = decoder.over_time(spk, mem)
    return F.cross_entropy((decoder.conf.scale * out).flatten(0, 1), labels.repeat(out.shape[0]))


def tet(spk: Tensor, mem: Tensor | None, labels: Tensor, decoder: Decoder) -> Tensor:
    """`ce_step`, and the distance to a level."""
    out, share = decoder.over_time(spk, mem), decoder.conf.tet_lambda
    to_level = (out - decoder.conf.tet_level).square().mean()
    return (1 - share) * ce_step(spk, mem, labels, decoder) + share * to_level


def ce_temporal(spk: Tensor, mem: Tensor | None, labels: Tensor, decoder: Decoder) -> Tensor:
    """The cross-entropy of the first spike's time."""
    return F.cross_entropy(-decoder.conf.scale * _soft_first_spike(spk), labels)


def mse_temporal(spk: Tensor, mem: Tensor | None, labels: Tensor, decoder: Decoder) -> Tensor:
    """(first spike's time - target step)^2, in samples' lengths."""
    time, steps = _soft_first_spike(spk), spk.shape[0]
    return F.mse_loss(time / steps, decoder.target_times(labels, steps, time) / steps)


def _soft_first_spike(spk: Tensor) -> Tensor:
    return cast(Tensor, _FirstSpike.apply(spk))  # type: ignore[no-untyped-call]


class OwnLoss:
    """A user's loss: fn(spk, mem, labels), and by name `decoder` if it takes that. Raises: ConfigError."""

    def __init__(self, word: str, function: Any, decoder: Decoder) -> None:
        if not callable(function):
            raise ConfigError(f"{LOSSES.key}={word}: this is no function but {type(function).__name__}.")
        try:
            takes = inspect.signature(function)
            more = {"decoder": decoder} if "decoder" in takes.parameters else {}
            takes.bind(None, None, None, **more)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{LOSSES.key}={word}: it must take (spk, mem, labels): {error}.") from error
        self.word, self.function, self.more = word, function, more

    def __call__(self, spk: Tensor, mem: Tensor | None, labels: Tensor) -> Tensor:
        with blamed(LOSSES.key, self.word, self.function.__module__):
            loss = self.function(spk, mem, labels, **self.more)
        if not isinstance(loss, Tensor) or loss.dim() != 0:
            what = f"a tensor of shape {list(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise ConfigError(f"{LOSSES.key}={self.word}: it must return one number, a tensor of shape [], not {what}.")
        return loss


def first_spike_time(spk: Tensor) -> Tensor:
    """Step of the first spike, int64 [B, C] from spikes [T, B, C]; T where there is none."""
    steps = spk.shape[0]
    time = torch.arange(steps, device=spk.device).view(-1, *[1] * (spk.dim() - 1))
    return torch.where(spk > 0, time, steps).amin(0)


class _FirstSpike(torch.autograd.Function):
    """First spike time as a float, T - 1 if silent; its derivative by the spike at that step is taken as -1."""

    @staticmethod
    def forward(ctx: Any, spk: Tensor) -> Tensor:
        time = first_spike_time(spk).clamp(max=spk.shape[0] - 1)
        ctx.save_for_backward(time)
        ctx.spikes = spk.shape, spk.dtype
        return time.to(torch.float64 if spk.dtype == torch.float64 else torch.float32)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (time,) = ctx.saved_tensors
        shape, dtype = ctx.spikes
        grad_spk = torch.zeros(shape, device=time.device, dtype=dtype)
        return grad_spk.scatter_(0, time.unsqueeze(0), -grads[0].unsqueeze(0).to(dtype))


def _exact(x: Tensor) -> Tensor:
    """At least in float32: half precision cannot count spikes past 256."""
    return x if x.dtype == torch.float64 else x.float()


def _given(mem: Tensor | None) -> Tensor:
    if mem is None:
        raise TypeError("this decoder reads the membranes of the output layer, but got none")
    return mem
