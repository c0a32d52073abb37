"""What reaches the network: empty samples are counted, a short window or a small crop is said, silence is refused."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_files import write_dvs_npy, write_nmnist

from snnexp.config import EventDatasetConf
from snnexp.data.events.source import EventSource, open_events
from snnexp.errors import ConfigError, DataError

CPU = torch.device("cpu")


def source(root: Path, name: str = "nmnist", **keys: object) -> EventSource:
    return open_events(EventDatasetConf(name=name, root=str(root), **keys), CPU)  # type: ignore[arg-type]


def empty_npy(root: Path, part: str, labels: range) -> None:
    for label in labels:
        (path,) = (root / f"DVSGesture/ibmGesture{part}").glob(f"user*/{label}.npy")
        np.save(path, np.empty((0, 4), np.int32))


def test_a_few_empty_samples_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_dvs_npy(tmp_path)
    empty_npy(tmp_path, "Test", range(1))  # 1 of 11
    info = source(tmp_path, "dvs128", val_fraction=0).info
    assert info.empty_samples == {"train": 0, "val": 0, "test": 1}
    assert "test: 1 of 11 samples are empty" in caplog.text and any("are empty" in note for note in info.notes)


def test_many_empty_samples_are_refused_by_name(tmp_path: Path) -> None:
    write_dvs_npy(tmp_path)
    empty_npy(tmp_path, "Test", range(3))
    with pytest.raises(
        DataError, match=r"3 of 11 test samples hold no event \(ibmGestureTest/user24_led/0\.npy, .*10 %"
    ):
        source(tmp_path, "dvs128", val_fraction=0)


def test_a_short_window_is_said_and_silence_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_nmnist(tmp_path)
    keys = {"bin_by": "width", "num_steps": 2, "val_fraction": 0.25}
    with caplog.at_level(logging.WARNING):
        info = source(tmp_path, bin_ms=30.0, **keys).info  # 60 of 300 ms
    assert "longer than 60 ms" in caplog.text and 0.1 < info.reach < 0.3 and sum(info.empty_samples.values()) == 0
    with pytest.raises(ConfigError, match=r"samples reaches the network.*window is 0\.2 ms.*dataset\.bin_by=time"):
        source(tmp_path, bin_ms=0.1, **keys)
    assert source(tmp_path, bin_by="time", val_fraction=0.25).info.reach == 1  # the way out


def test_a_small_crop_is_said_and_silence_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_nmnist(tmp_path, events=60)
    with caplog.at_level(logging.WARNING):
        data = source(tmp_path, crop=16, val_fraction=0.25)
    assert "dataset.crop keeps" in caplog.text
    kept = sum(int(batch.frames.to_dense().sum()) for batch in data.batches("train"))  # type: ignore[union-attr]
    total = sum(int(np.diff(data.store.starts)[i]) for i in data.splits["train"])
    assert data.info.reach == pytest.approx(kept / total)
    with pytest.raises(ConfigError, match=r"dataset\.crop keeps the centre of 1x1 pixels"):
        source(tmp_path, crop=1, val_fraction=0.25)
