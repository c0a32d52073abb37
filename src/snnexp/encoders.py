"""From an image to input over time, on the device and a batch at a time: direct, rate, latency, delta.

Images come as uint8 and are scaled to 0..1 here. Nothing in this file waits for the device: `spikegen.latency` looks at
the smallest and largest value of every batch, so its equation stands here instead (the tests compare the two).
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from functools import lru_cache
from typing import cast

import torch
from torch import Tensor

from snnexp import collectives
from snnexp.blame import blamed
from snnexp.coding_rules import check_encoder
from snnexp.collectives import gathered_rows, padded
from snnexp.config import DeltaEncoderConf, EncoderConf, LatencyEncoderConf, RateEncoderConf
from snnexp.data.base import DataInfo, EventFrames
from snnexp.errors import ConfigError
from snnexp.ranks import Rows
from snnexp.registry import ENCODERS, load

LEVEL_TOLERANCE = 1e-5  # of a threshold: 0.3 * 10 / (10 * 0.1) must count as 3 although it is 2.9999998 in float32


@dataclass(frozen=True)
class ConstantInput:
    """The same real-valued frame at every step: layers without state need to see it only once."""

    frame: Tensor  # float32 [B, C, H, W]
    num_steps: int

    def to_dense(self) -> Tensor:
        """The input at every step, [T, B, C, H, W], as a view without copies."""
        return self.frame.expand(self.num_steps, *self.frame.shape)


Input = Tensor | ConstantInput | EventFrames


def encode(frames: Tensor | EventFrames, conf: EncoderConf, info: DataInfo, normalize: bool = False) -> Input:
    """Turn a batch into what the network sees; see `Encoder`, which a run builds once."""
    return Encoder(conf, info, normalize)(frames)


class Encoder:
    """The encoder of a configuration.

    Args:
        conf: the encoder and its parameters.
        info: of the data set; `num_steps` is T, `channel_mean` and `channel_std` are used if `normalize`.
        normalize: subtract the mean and divide by the standard deviation per channel; direct encoding only.
    Raises: ConfigError if the encoder does not fit the data, or one of the user's own cannot be made.
    The rate encoder draws from torch's global random numbers of the frames' device; where several processes share a
    batch, each draws for all of it and takes its rows.
    """

    def __init__(self, conf: EncoderConf, info: DataInfo, normalize: bool = False) -> None:
        errors = check_encoder(conf, info.kind, normalize)
        if errors:
            raise ConfigError("\n".join(errors))
        self.conf, self.info, self.normalize = conf, info, normalize
        self.function = load(ENCODERS, conf.name)
        self.own = conf.name not in ENCODERS.ours
        if self.own:
            self._try()

    def __call__(self, frames: Tensor | EventFrames) -> Input:
        """Turn a batch into what the network sees.

        Args:
            frames: uint8 [B, C, H, W] for images; float [T, B, C, H, W] or `EventFrames` for events, which pass
                unchanged.
        Returns: `ConstantInput` (direct), or spikes, float32 [T, B, C, H, W] (the others).
        """
        if self.info.kind == "events":
            return frames
        if not isinstance(frames, Tensor) or frames.dtype != torch.uint8 or frames.dim() != 4:
            raise TypeError(f"images must be a uint8 tensor [B, C, H, W], got {getattr(frames, 'dtype', type(frames))}")
        x = frames.to(torch.float32) / 255
        mine = collectives.rows()
        if self.own:  # it may look at several samples at a time
            return self._of_the_user(x) if mine is None else _own(self._of_the_user(gathered_rows(x, mine)), mine)
        x = _standardise(x, self.info) if self.normalize else x
        if mine is not None and self.conf.name == "rate":  # what is drawn for a pixel does not depend on the others
            return _own(self.function(padded(x, mine), self.info.num_steps, self.conf), mine)
        return cast(Input, self.function(x, self.info.num_steps, self.conf))

    def _of_the_user(self, x: Tensor) -> Tensor:
        key, steps = f"encoder={self.conf.name}", self.info.num_steps
        with blamed("encoder", self.conf.name, self.function.__module__):
            made = self.function(x, steps, **self.conf.kwargs)
        if not isinstance(made, Tensor) or made.shape != (steps, *x.shape):
            shown = list(made.shape) if isinstance(made, Tensor) else type(made).__name__
            raise ConfigError(f"{key}: from {list(x.shape)} it must make {[steps, *x.shape]}, but it made {shown}.")
        return made.to(x.dtype)

    def _try(self) -> None:
        if not callable(self.function):
            raise ConfigError(f"encoder={self.conf.name}: this is no function but {type(self.function).__name__}.")
        try:
            inspect.signature(self.function).bind(None, 1, **self.conf.kwargs)
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"encoder={self.conf.name}: it must take (x, num_steps) and encoder.kwargs: {error}."
            ) from error
        with torch.random.fork_rng(devices=[]):
            self._of_the_user(torch.rand(2, *self.info.shape))


def _own(spk: Tensor, mine: Rows) -> Tensor:
    """This process's rows of [T, B, ...], laid out as a batch of its own: layers choose their memory layout by it."""
    return spk[:, mine.part].contiguous()


def none(x: Tensor, num_steps: int, conf: EncoderConf) -> Tensor:
    """Events are spikes already: `Encoder` lets them pass, and images never come here."""
    raise TypeError("encoder=none takes events")


def direct(x: Tensor, num_steps: int, conf: EncoderConf) -> ConstantInput:
    """The grey levels themselves, the same at every step."""
    return ConstantInput(x, num_steps)


def rate(x: Tensor, num_steps: int, conf: RateEncoderConf) -> Tensor:
    """Bernoulli spikes with probability clamp(gain x + offset, 0, 1) at each step, independent of each other."""
    from snntorch import spikegen

    return cast(Tensor, spikegen.rate(x, num_steps=num_steps, gain=conf.gain, offset=conf.offset))


def latency(x: Tensor, num_steps: int, conf: LatencyEncoderConf) -> Tensor:
    """One spike per pixel, bright pixels first.

        linear:       t = (T - 1)(1 - x)
        logarithmic:  t = tau ln(x / (x - threshold)),  the time at which a membrane with input x reaches the threshold

    t is rounded to the nearest step (a half to the even one) and at most T - 1. Pixels below the threshold stay
    silent, or fire at the last step if not `clip`. Same as `spikegen.latency` (linear: with normalize=True) for every
    pixel that fires within T steps; later ones fire at the last step here, where spikegen raises or drops them.

    Returns: float32 [T, *x.shape], 0 or 1.
    """
    if conf.linear:
        time = (num_steps - 1) * (1 - x)
    else:
        bright = x.clamp(min=conf.threshold + 1e-7)  # 1e-7: spikegen's, keeps the logarithm finite
        time = conf.tau * torch.log(bright / (bright - conf.threshold))
    dark = x < conf.threshold
    step = torch.where(dark, num_steps - 1, time.round().clamp(0, num_steps - 1)).to(torch.int64)
    spk = torch.zeros(num_steps, *x.shape, device=x.device, dtype=x.dtype)
    fires = (~dark).to(x.dtype) if conf.clip else torch.ones_like(x)
    return spk.scatter_(0, step.unsqueeze(0), fires.unsqueeze(0))


def delta(x: Tensor, num_steps: int, conf: DeltaEncoderConf) -> Tensor:
    """A spike whenever the image, faded in linearly from black over T steps, has become brighter by another threshold.

        level[t] = floor(x (t + 1) / (T threshold)),   S[t] = 1 if level[t] - level[t-1] >= 1

    A pixel of value x spikes floor(x / threshold) times, at most T, evenly spread. With `off_spike` the image is faded
    in over the first half of the steps (rounded up) and out over the rest, S = -1 for a threshold crossed downwards.

    Returns: float32 [T, *x.shape], 0, 1 or -1.
    """
    from snntorch import spikegen

    rising = (num_steps + 1) // 2 if conf.off_spike else num_steps
    shade = torch.arange(1, num_steps + 1, device=x.device, dtype=x.dtype) / rising
    if conf.off_spike and num_steps > rising:
        falling = torch.arange(1, num_steps - rising + 1, device=x.device, dtype=x.dtype) / (num_steps - rising)
        shade = torch.cat((shade[:rising], 1 - falling))
    swept = shade.view(-1, *[1] * x.dim()) * x
    level = torch.floor(swept / conf.threshold + LEVEL_TOLERANCE)
    return cast(Tensor, spikegen.delta(level, threshold=1.0, off_spike=conf.off_spike))


def _standardise(x: Tensor, info: DataInfo) -> Tensor:
    if info.channel_mean is None or info.channel_std is None:
        raise ConfigError(f"dataset.normalize=true: dataset={info.name} has no channel mean and deviation.")
    mean, std = _channel_statistics(info.channel_mean, info.channel_std, x.device)
    return (x - mean) / std


@lru_cache(maxsize=8)  # copying them from the host for every batch would wait for the device
def _channel_statistics(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    shape = (-1, 1, 1)
    # A channel without contrast has deviation 0; dividing by 1 leaves it at 0 after the mean is gone.
    safe = [deviation if deviation > 0 else 1.0 for deviation in std]
    return torch.tensor(mean, device=device).view(shape), torch.tensor(safe, device=device).view(shape)
