"""Binning: against a slow definition, against tonic and SpikingJelly where they define the same, and its laws."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from fake_files import random_events
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from snnexp.data.events.binning import Binning, DeviceBinning, bin_dense, bin_edges, bin_lists, build_binning

Sample = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]
SENSOR = (2, 6, 5)


def slow_bin(k: int, t: list[int], num_steps: int, bin_by: str, bin_us: float) -> int | None:
    """The time bin of event k, straight from the definition; None if it is cut."""
    if bin_by == "width":
        b = math.floor(t[k] / bin_us)
        return b if b < num_steps else None
    if bin_by == "time":
        duration = t[-1] - t[0]
        return 0 if duration == 0 else min((t[k] - t[0]) * num_steps // duration, num_steps - 1)
    per_bin = len(t) // num_steps
    return num_steps - 1 if per_bin == 0 else min(k // per_bin, num_steps - 1)


def slow_frames(
    sample: Sample,
    sensor: tuple[int, int, int],
    num_steps: int,
    bin_by: str,
    bin_ms: float = 1.0,
    value: str = "count",
    polarity: str = "both",
    crop: int | None = None,
    downsample: int = 1,
) -> NDArray[np.float32]:
    """[T, C, H, W] of one sample, event by event."""
    t, x, y, p = (column.tolist() for column in sample)
    _, height, width = sensor
    rows, columns = min(height, crop or height), min(width, crop or width)
    channels = sensor[0] if polarity == "both" else 1
    frames = np.zeros(
        (num_steps, channels, math.ceil(rows / downsample), math.ceil(columns / downsample)), dtype=np.float32
    )
    for k in range(len(t)):
        b = slow_bin(k, t, num_steps, bin_by, 1000 * bin_ms)
        row, column = y[k] - (height - rows) // 2, x[k] - (width - columns) // 2
        if b is None or not (0 <= row < rows and 0 <= column < columns):
            continue
        sign = -1 if polarity == "difference" and p[k] == 0 and sensor[0] == 2 else 1
        frames[b, p[k] if polarity == "both" else 0, row // downsample, column // downsample] += sign
    return np.sign(frames) if value == "binary" else frames


def stored(
    samples: list[Sample], sensor: tuple[int, int, int]
) -> tuple[NDArray[np.int32], NDArray[np.uint16], list[int]]:
    """Samples one after the other as the store has them, with something in front that belongs to no sample."""
    times, addresses, cuts = [np.array([7, 7])], [np.array([0, 1])], [2]
    for t, x, y, p in samples:
        times.append(t)
        addresses.append((p * sensor[1] + y) * sensor[2] + x)
        cuts.append(cuts[-1] + len(t))
    return np.concatenate(times).astype(np.int32), np.concatenate(addresses).astype(np.uint16), cuts


def run(samples: list[Sample], binning: Binning) -> torch.Tensor:
    """The dense frames of one batch; the lists and the device version must say the same."""
    time, address, cuts = stored(samples, binning.sensor)
    edges = bin_edges(time, np.array(cuts[:-1]), np.array(cuts[1:]), binning)
    dense = bin_dense(address, edges, binning)
    lists = bin_lists(address, edges, binning)
    assert torch.equal(lists.to_dense(), dense)
    assert lists.indices.numel() == torch.count_nonzero(dense)  # nothing listed twice, no zeros listed
    rows = [lists.indices[a:b] for a, b in zip(lists.offsets[:-1], lists.offsets[1:], strict=True)]
    assert all(bool((row.diff() > 0).all()) for row in rows)
    device = DeviceBinning(address, binning, torch.device("cpu"))
    assert torch.equal(device.dense(edges), dense)
    on_device = device.lists(edges)
    assert torch.equal(on_device.indices, lists.indices) and torch.equal(on_device.offsets, lists.offsets)
    assert on_device.values is lists.values is None or torch.equal(on_device.values, lists.values)
    return dense


@st.composite
def batches(draw: st.DrawFn) -> list[Sample]:
    samples = []
    for _ in range(draw(st.integers(1, 4))):
        count = draw(st.integers(0, 40))
        times = st.integers(0, draw(st.sampled_from([0, 3, 50, 9000])))
        t = sorted(draw(st.lists(times, min_size=count, max_size=count)))
        position = st.lists(st.integers(0, 29), min_size=count, max_size=count)
        where = np.array(draw(position), dtype=np.int64)
        p = np.array(draw(st.lists(st.integers(0, 1), min_size=count, max_size=count)), dtype=np.int64)
        samples.append((np.array(t, dtype=np.int64), where % 5, where // 5, p))
    return samples


@settings(max_examples=80, deadline=None)
@given(
    samples=batches(),
    num_steps=st.integers(1, 9),
    bin_by=st.sampled_from(["time", "count", "width"]),
    bin_ms=st.sampled_from([0.001, 0.7, 1.0, 14.0 / 3]),
    value=st.sampled_from(["count", "binary"]),
    polarity=st.sampled_from(["both", "merge", "difference"]),
    crop=st.sampled_from([None, 1, 3, 4, 99]),
    downsample=st.integers(1, 4),
)
def test_equals_the_slow_definition(
    samples: list[Sample],
    num_steps: int,
    bin_by: str,
    bin_ms: float,
    value: str,
    polarity: str,
    crop: int | None,
    downsample: int,
) -> None:
    binning = build_binning(SENSOR, num_steps, bin_by, bin_ms, value, polarity, crop, downsample)
    frames = run(samples, binning)
    expected = [slow_frames(s, SENSOR, num_steps, bin_by, bin_ms, value, polarity, crop, downsample) for s in samples]
    assert frames.shape == (num_steps, len(samples), *binning.shape)
    np.testing.assert_array_equal(frames.numpy(), np.stack(expected, axis=1))


@pytest.mark.parametrize("bin_by", ["time", "count"])
@pytest.mark.parametrize(("count", "duration"), [(1, 0), (7, 3), (1000, 98), (20_000, 19_999), (300, 299_999)])
def test_no_event_is_lost(bin_by: str, count: int, duration: int) -> None:
    """Where tonic's ToFrame keeps 757 of 1,000 and none of one."""
    rng = np.random.default_rng(0)
    sample = random_events(rng, count, 6, 5, duration + 1)
    assert run([sample], build_binning(SENSOR, 25, bin_by)).sum() == count


def test_hand_computed_edges() -> None:
    """Ten events at 0, 10, ... 90 us: D = 90, T = 3; the last event is in the last bin."""
    t = np.arange(0, 100, 10)
    zero = np.zeros(10, dtype=np.int64)
    sample = (t, zero, zero, zero)
    assert run([sample], build_binning((1, 1, 1), 3, "time")).flatten().tolist() == [3, 3, 4]
    assert run([sample], build_binning((1, 1, 1), 4, "count")).flatten().tolist() == [2, 2, 2, 4]
    assert run([sample], build_binning((1, 1, 1), 12, "count")).flatten().tolist() == [0] * 11 + [10]
    assert run([sample], build_binning((1, 1, 1), 2, "width", 0.03)).flatten().tolist() == [3, 3]  # 60 to 90 us: cut


# spikingjelly 2.0.0, integrate_events_by_fixed_frames_number(dict(t=10 k^2, x=7k%3, y=5k%3, p=k%2), ..., H=3, W=3),
# k = 0 to 22; the duration of 4840 us is a multiple of 4, where its "time" loses nothing and means the same as ours
# fmt: off
SPIKINGJELLY = {
    ("count", 5): [
        [1, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, 0], [1, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, 0, 1, 0],
        [0, 0, 0, 0, 0, 1, 0, 1, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0], [1, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, 0],
        [1, 0, 0, 0, 0, 1, 0, 2, 0, 1, 0, 0, 0, 0, 1, 0, 1, 0],
    ],
    ("time", 4): [
        [2, 0, 0, 0, 0, 2, 0, 2, 0, 2, 0, 0, 0, 0, 1, 0, 2, 0], [1, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 1, 0],
        [1, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, 0, 1, 0], [0, 0, 0, 0, 0, 1, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0],
    ],
}
# fmt: on


@pytest.mark.parametrize(("bin_by", "num_steps"), list(SPIKINGJELLY))
def test_equals_spikingjelly(bin_by: str, num_steps: int) -> None:
    k = np.arange(23)
    sample = (k * k * 10, k * 7 % 3, k * 5 % 3, k % 2)
    frames = run([sample], build_binning((2, 3, 3), num_steps, bin_by))
    assert frames.view(num_steps, -1).int().tolist() == SPIKINGJELLY[bin_by, num_steps]


def test_equals_tonic() -> None:
    """tonic's three ways, each on events where it drops nothing (its own tail is lost otherwise, tonic#313)."""
    from tonic.functional import to_frame_numpy

    rng = np.random.default_rng(1)
    t, x, y, p = random_events(rng, 4000, 34, 34, 100_000)
    t[0], t[-1] = 0, 99_999  # so that windows from the first event and from the start are the same
    events = np.zeros(4000, dtype=[("x", int), ("y", int), ("t", int), ("p", int)])
    events["x"], events["y"], events["t"], events["p"] = x, y, t, p
    sensor = (2, 34, 34)

    by_width = to_frame_numpy(events, (34, 34, 2), time_window=10_000, include_incomplete=True)
    ours = run([(t, x, y, p)], build_binning(sensor, 10, "width", 10.0))[:, 0]
    np.testing.assert_array_equal(ours.numpy(), by_width)

    by_count = to_frame_numpy(events, (34, 34, 2), n_event_bins=8)  # 4000 is a multiple of 8
    ours = run([(t, x, y, p)], build_binning(sensor, 8, "count"))[:, 0]
    np.testing.assert_array_equal(ours.numpy(), by_count)

    shorter = events[(t < 90_000)].copy()
    shorter["t"][-1] = 90_000  # the one event that tonic drops: at the end of the last window
    by_time = to_frame_numpy(shorter, (34, 34, 2), n_time_bins=9)
    columns = tuple(shorter[name] for name in ("t", "x", "y", "p"))
    ours = run([columns], build_binning(sensor, 9, "time"))[:, 0]
    assert ours.sum() == by_time.sum() + 1
    ours[8, shorter["p"][-1], shorter["y"][-1], shorter["x"][-1]] -= 1
    np.testing.assert_array_equal(ours.numpy(), by_time)


def test_bf16_is_the_rounded_float32() -> None:
    rng = np.random.default_rng(2)
    time, address, cuts = stored([random_events(rng, 3000, 6, 5, 1000)], SENSOR)
    binning = build_binning(SENSOR, 3, "time")
    edges = bin_edges(time, np.array(cuts[:-1]), np.array(cuts[1:]), binning)
    frames = bin_dense(address, edges, binning, torch.bfloat16)
    assert frames.dtype == torch.bfloat16
    assert torch.equal(frames, bin_dense(address, edges, binning).bfloat16())
    device = DeviceBinning(address, binning, torch.device("cpu"))
    assert torch.equal(device.dense(edges, torch.bfloat16), frames)


def test_large_sensors_use_32_bits() -> None:
    """Positions beyond 65,535 survive the way through a signed type on the device."""
    binning = build_binning((2, 200, 200), 1, "time")
    address = np.array([79_999, 40_000, 79_999], dtype=np.uint32)
    edges = bin_edges(np.array([0, 1, 2], dtype=np.int32), np.array([0]), np.array([3]), binning)
    frames = bin_dense(address, edges, binning)
    assert frames[0, 0, 1, 199, 199] == 2 and frames[0, 0, 1, 0, 0] == 1 and frames.sum() == 3
    assert torch.equal(DeviceBinning(address, binning, torch.device("cpu")).dense(edges), frames)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("value", ["count", "binary"])
@pytest.mark.parametrize("polarity", ["both", "merge", "difference"])
def test_cuda_equals_cpu(value: str, polarity: str) -> None:
    rng = np.random.default_rng(3)
    time, address, cuts = stored([random_events(rng, 5000, 34, 34, 1000) for _ in range(4)], (2, 34, 34))
    binning = build_binning((2, 34, 34), 10, "time", value=value, polarity=polarity, crop=30, downsample=2)
    edges = bin_edges(time, np.array(cuts[:-1]), np.array(cuts[1:]), binning)
    device = DeviceBinning(address, binning, torch.device("cuda"))
    assert torch.equal(device.dense(edges).cpu(), bin_dense(address, edges, binning))
    assert torch.equal(device.lists(edges).to_dense().cpu(), bin_dense(address, edges, binning))
