"""Windows of long recordings: their events by hand, and one recording never on both sides of a split."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_files import write_nmnist
from own_files import folder_conf

from snnexp.config import EventDatasetConf, MotionDatasetConf
from snnexp.data import open_data
from snnexp.data.events.source import EventSource
from snnexp.data.readers.folder import open_reader
from snnexp.data.readers.windows import OUTSIDE, WindowedReader, recording_of
from snnexp.errors import ConfigError

CPU = torch.device("cpu")


def write(base: Path, label: str, number: int, times: list[int]) -> None:
    (base / label).mkdir(parents=True, exist_ok=True)
    rows = "".join(f"{t},{number},{i % 8},1\n" for i, t in enumerate(times))
    (base / label / f"{number}.csv").write_text("t_ms,x,y,p\n" + rows)


def windows(base: Path, window_ms: float, stride_ms: float) -> list[tuple[str, list[int], dict[str, int]]]:
    reader = WindowedReader(
        open_reader(folder_conf(base, sensor_size="32x32")), int(window_ms * 1000), int(stride_ms * 1000)
    )
    return [(r.name, (r.time // 1000).tolist(), r.dropped) for r in reader.recordings() if r.name.startswith("a/")]


def test_windows_by_hand(tmp_path: Path) -> None:
    write(tmp_path / "set", "a", 0, [0, 4, 10, 25, 29, 31])  # 31 ms: three whole windows of 10, and a rest
    write(tmp_path / "set", "b", 0, [0, 5])
    assert windows(tmp_path / "set", 10, 10) == [
        ("a/0.csv@0ms", [0, 4], {OUTSIDE: 1}),
        ("a/0.csv@10ms", [0], {}),
        ("a/0.csv@20ms", [5, 9], {}),
    ]
    assert windows(tmp_path / "set", 20, 5) == [
        ("a/0.csv@0ms", [0, 4, 10], {OUTSIDE: 1}),  # the last window ends at 30
        ("a/0.csv@5ms", [5], {}),
        ("a/0.csv@10ms", [0, 15, 19], {}),
    ]
    assert windows(tmp_path / "set", 4, 12) == [  # 0-4, 12-16, 24-28: what lies between is in none, the second is empty
        ("a/0.csv@0ms", [0], {OUTSIDE: 4}),
        ("a/0.csv@24ms", [1], {}),
    ]
    assert windows(tmp_path / "set", 100, 100) == [("a/0.csv@0ms", [0, 4, 10, 25, 29, 31], {})]
    assert recording_of("a/x@y.csv@0ms") == "a/x@y.csv"


@pytest.mark.parametrize("seed", range(3))
def test_a_recording_is_never_on_both_sides(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    for number in range(12):
        for label in ("a", "b"):
            write(tmp_path / "set", label, number, sorted(rng.integers(0, 60 + 40 * (number % 3), 40).tolist()))
    conf = folder_conf(
        tmp_path / "set", sensor_size="32x32", window_ms=20, stride_ms=10, split_seed=seed, val_fraction=0.25
    )
    source = open_data(conf, CPU)
    assert isinstance(source, EventSource)
    of = {s: {recording_of(source.store.names[i]) for i in chosen} for s, chosen in source.splits.items()}
    assert [len(of[split]) for split in ("train", "val", "test")] == [14, 6, 4]  # of 24 recordings, by class
    assert not (of["train"] & of["val"] or of["train"] & of["test"] or of["val"] & of["test"])
    assert source.info.counts["train"] > 3 * len(of["train"])
    whole = open_data(replace(conf, window_ms=None, stride_ms=None), CPU)
    assert isinstance(whole, EventSource)
    assert {s: {whole.store.names[i] for i in chosen} for s, chosen in whole.splits.items()} == of  # the same split


def test_our_own_sets_take_windows_and_generated_ones_refuse(tmp_path: Path) -> None:
    write_nmnist(tmp_path)
    conf = EventDatasetConf(name="nmnist", root=str(tmp_path), window_ms=100.0, val_fraction=0.25)
    source = open_data(conf, CPU)
    assert isinstance(source, EventSource)
    of = {s: {recording_of(source.store.names[i]) for i in chosen} for s, chosen in source.splits.items()}
    assert [len(of[split]) for split in ("train", "val", "test")] == [30, 10, 20] and not of["train"] & of["val"]
    assert sum(source.info.counts.values()) >= 120  # at least two of each
    assert any("40 of 60,000 train" in note for note in source.info.notes)  # recordings count, not windows
    with pytest.raises(ConfigError, match=r"dataset.window_ms=5.*dataset=motion never reads this key.*generated"):
        open_data(MotionDatasetConf(name="motion", root=str(tmp_path), window_ms=5.0), CPU)
    with pytest.raises(ConfigError, match=r"dataset.stride_ms=5: how long is a window"):
        open_data(replace(conf, window_ms=None, stride_ms=5.0), CPU)
