"""Encoders by hand, against snntorch.spikegen where the two define the same thing, and their error messages."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import pytest
import torch
from snntorch import spikegen

from snnexp.config import DeltaEncoderConf, EncoderConf, LatencyEncoderConf, RateEncoderConf
from snnexp.data.base import DataInfo
from snnexp.encoders import ConstantInput, delta, encode, latency, rate
from snnexp.errors import ConfigError

LINEAR = LatencyEncoderConf(name="latency")
LOGARITHMIC = LatencyEncoderConf(name="latency", linear=False)


def info(kind: str = "image", num_steps: int = 5, channels: int = 1) -> DataInfo:
    return DataInfo(
        name="toy",
        kind=kind,
        shape=(channels, 1, 3),
        num_steps=num_steps,
        class_names=("a", "b"),
        counts={},
        class_counts={},
        complete=True,
        split_hash="",
        channel_mean=(0.2,) * channels,
        channel_std=(0.4,) * channels,
    )


def pixels(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.uint8).view(1, 1, 1, -1)


def times(spk: torch.Tensor) -> list[list[int]]:
    """Per pixel, the steps at which it spikes."""
    return [torch.nonzero(row).flatten().tolist() for row in spk.flatten(1).T]


def test_direct_repeats_the_grey_levels() -> None:
    encoded = encode(pixels(0, 51, 255), EncoderConf(name="direct"), info())
    assert isinstance(encoded, ConstantInput)
    assert encoded.frame.flatten().tolist() == pytest.approx([0.0, 0.2, 1.0])
    assert encoded.to_dense().shape == (5, 1, 1, 1, 3)
    assert (encoded.to_dense() == encoded.frame).all()


def test_direct_can_be_normalised() -> None:
    encoded = encode(pixels(0, 51, 255), EncoderConf(name="direct"), info(), normalize=True)
    assert isinstance(encoded, ConstantInput)
    assert encoded.frame.flatten().tolist() == pytest.approx([-0.5, 0.0, 2.0])


def test_rate_equals_spikegen_and_repeats_with_the_seed() -> None:
    conf = RateEncoderConf(name="rate", gain=0.8, offset=0.1)
    frames = torch.randint(0, 256, (4, 3, 6, 6), dtype=torch.uint8)
    torch.manual_seed(3)
    ours = encode(frames, conf, info(num_steps=7))
    torch.manual_seed(3)
    theirs = spikegen.rate(frames / 255, num_steps=7, gain=0.8, offset=0.1)
    assert torch.equal(ours, theirs)
    assert not torch.equal(ours, encode(frames, conf, info(num_steps=7)))


def test_rate_is_the_probability() -> None:
    torch.manual_seed(0)
    spk = rate(torch.tensor([0.0, 0.3, 1.0, 2.0]), 4000, RateEncoderConf(name="rate"))
    mean = spk.mean(0)
    assert mean[0] == 0 and mean[2] == 1 and mean[3] == 1
    assert mean[1].item() == pytest.approx(0.3, abs=4 * (0.21 / 4000) ** 0.5)  # four standard deviations


def test_latency_by_hand() -> None:
    # T = 5: t = 4 (1 - x). 1 -> 0, 0.5 -> 2, 0.02 -> 3.92 -> 4; 0.005 is below the threshold 0.01.
    spk = latency(torch.tensor([1.0, 0.5, 0.02, 0.005]), 5, LINEAR)
    assert times(spk) == [[0], [2], [4], []]
    unclipped = latency(torch.tensor([1.0, 0.005, 0.0]), 5, LatencyEncoderConf(name="latency", clip=False))
    assert times(unclipped) == [[0], [4], [4]]


def test_logarithmic_latency_by_hand() -> None:
    # tau ln(x / (x - 0.01)), tau = 5: x = 1 -> 0.05 -> 0; 0.02 -> 5 ln 2 = 3.47 -> 3; 0.0101 -> 23.1, beyond T = 8.
    spk = latency(torch.tensor([1.0, 0.02, 0.0101, 0.009]), 8, LOGARITHMIC)
    assert times(spk) == [[0], [3], [7], []]


def test_black_pixels_stay_silent_by_default() -> None:
    """Both libraries let them fire at the last step unless told otherwise (methods/related.md, trap 13)."""
    spk = encode(pixels(0, 1, 2, 3), LINEAR, info(num_steps=8))
    assert times(spk) == [[], [], [], [7]]  # 0.01 * 255 = 2.55


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("num_steps", [1, 2, 5, 16])
def test_linear_latency_equals_spikegen(num_steps: int, clip: bool) -> None:
    x = torch.arange(256) / 255
    theirs = spikegen.latency(x, num_steps=num_steps, normalize=True, linear=True, clip=clip)
    ours = latency(x, num_steps, LatencyEncoderConf(name="latency", clip=clip))
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize(("num_steps", "tau"), [(10, 5.0), (25, 12.0), (50, 5.0)])
def test_logarithmic_latency_equals_spikegen(num_steps: int, tau: float) -> None:
    x = torch.arange(256) / 255
    theirs = spikegen.latency(x, num_steps=num_steps, tau=tau, clip=True, bypass=True)
    ours = latency(x, num_steps, LatencyEncoderConf(name="latency", linear=False, tau=tau))
    in_time = theirs.sum(0) > 0
    assert in_time.sum() > 240
    assert torch.equal(ours[:, in_time], theirs[:, in_time])


def test_latency_fires_at_most_once_and_brighter_is_earlier() -> None:
    x = torch.linspace(0, 1, 500)
    for conf in (LINEAR, LOGARITHMIC):
        spk = latency(x, 12, conf)
        assert spk.sum(0).max() == 1
        first = spk[:, x >= 0.01].argmax(0)
        assert (first.diff() <= 0).all()


def test_latency_of_one_image_does_not_depend_on_its_batch() -> None:
    """spikegen's normalize rescales by the batch's own extremes; ours must not."""
    dark, bright = torch.full((1, 1, 2, 2), 0.3), torch.full((1, 1, 2, 2), 1.0)
    for conf in (LINEAR, LOGARITHMIC):
        assert torch.equal(latency(torch.cat((dark, bright)), 10, conf)[:, :1], latency(dark, 10, conf))


def test_delta_by_hand() -> None:
    # T = 4, threshold 0.25. x = 1 rises by 0.25 per step; 0.5 by 0.125: crosses at steps 1 and 3; 0.2 never.
    spk = delta(torch.tensor([1.0, 0.5, 0.2]), 4, DeltaEncoderConf(name="delta", threshold=0.25))
    assert times(spk) == [[0, 1, 2, 3], [1, 3], []]


@pytest.mark.parametrize(("num_steps", "threshold"), [(10, "0.1"), (10, "0.15"), (20, "0.05"), (7, "0.3")])
def test_delta_counts_the_thresholds_exactly(num_steps: int, threshold: str) -> None:
    """Every grey level against fractions: also where float32 falls just short of a multiple of the threshold."""
    spk = delta(torch.arange(256) / 255, num_steps, DeltaEncoderConf(name="delta", threshold=float(threshold)))
    for grey in range(256):
        levels = [Fraction(grey * step, 255 * num_steps) // Fraction(threshold) for step in range(num_steps + 1)]
        expected = [int(new - old >= 1) for old, new in pairwise(levels)]
        assert spk[:, grey].tolist() == expected, grey


def test_delta_with_off_spikes_fades_out_again() -> None:
    conf = DeltaEncoderConf(name="delta", threshold=0.5, off_spike=True)
    # T = 5: shades 1/3, 2/3, 1, then 1/2, 0. x = 1: levels 0 1 2 1 0. x = 0.5: 0 0 1 0 0.
    assert delta(torch.tensor([1.0]), 5, conf).flatten().tolist() == [0, 1, 1, -1, -1]
    assert delta(torch.tensor([0.5]), 5, conf).flatten().tolist() == [0, 0, 1, -1, 0]
    assert delta(torch.tensor([0.5]), 1, conf).flatten().tolist() == [1]


def test_delta_equals_spikegen_of_the_levels() -> None:
    x, steps, threshold = torch.rand(200), 8, 0.15
    swept = torch.stack([x * (step + 1) / steps for step in range(steps)])
    theirs = spikegen.delta(torch.floor(swept / threshold), threshold=1.0)
    assert torch.equal(delta(x, steps, DeltaEncoderConf(name="delta", threshold=threshold)), theirs)


def test_events_pass_unchanged() -> None:
    frames = torch.rand(5, 2, 1, 1, 3)
    assert encode(frames, EncoderConf(name="none"), info("events")) is frames


@pytest.mark.parametrize(
    "conf",
    [
        EncoderConf(name="direct"),
        RateEncoderConf(name="rate"),
        LINEAR,
        LOGARITHMIC,
        DeltaEncoderConf(name="delta", off_spike=True),
    ],
)
def test_no_encoder_waits_for_the_device(conf: EncoderConf) -> None:
    """Meta tensors have no values: whatever would copy one to the host raises."""
    encoded = encode(torch.empty(4, 1, 2, 3, dtype=torch.uint8, device="meta"), conf, info(), conf.name == "direct")
    dense = encoded.to_dense() if isinstance(encoded, ConstantInput) else encoded
    assert isinstance(dense, torch.Tensor) and dense.shape == (5, 4, 1, 2, 3)
    with pytest.raises(RuntimeError):
        dense.sum().item()


@pytest.mark.parametrize(
    ("conf", "kind", "normalize", "words"),
    [
        (EncoderConf(name="none"), "image", False, "Use encoder=direct"),
        (EncoderConf(name="direct"), "events", False, "take encoder=none"),
        (LINEAR, "image", True, "dataset.normalize=false or encoder=direct"),
        (EncoderConf(name="direkt"), "image", False, "Did you mean direct"),
        (LatencyEncoderConf(name="latency", linear=False, threshold=0.0), "image", False, "encoder.linear=true"),
    ],
)
def test_what_does_not_fit_is_an_error(conf: EncoderConf, kind: str, normalize: bool, words: str) -> None:
    with pytest.raises(ConfigError, match=words.replace(".", r"\.")):
        encode(pixels(1, 2, 3), conf, info(kind), normalize)
