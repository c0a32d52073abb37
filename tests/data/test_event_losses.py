"""Events that cannot be used: said with their share, by column, and refused with the likely cause if they are many."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from fake_files import (
    aedat2_bytes,
    aedat4_bytes,
    nmnist_bytes,
    random_events,
    write_cifar10dvs,
    write_dvs_npy,
    write_heidelberg,
    write_nmnist,
)

from snnexp.config import EventDatasetConf
from snnexp.data.events.source import EventSource, open_events
from snnexp.data.readers.nmnist import NMNISTReader
from snnexp.data.readers.recordings import Recording, order_events
from snnexp.data.store.losses import Tally, judge, sensor_of
from snnexp.errors import DataError

CPU = torch.device("cpu")
Change = Callable[[np.ndarray], np.ndarray]


def source(root: Path, name: str, **keys: object) -> EventSource:
    conf = EventDatasetConf(name=name, root=str(root), **{"val_fraction": 0.0, **keys})  # type: ignore[arg-type]
    return open_events(conf, CPU)


def change_npy(root: Path, change: Change, parts: tuple[str, ...] = ("Train", "Test")) -> int:
    """Write a small dvs128 and change its columns x, y, p, t; returns the number of events."""
    write_dvs_npy(root)
    count = 0
    for path in sorted(root.rglob("*.npy")):
        columns = np.load(path).astype(np.int64)
        count += len(columns)
        if path.parts[-3].removeprefix("ibmGesture") in parts:
            np.save(path, change(columns))
    return count


def add(t: int = 0, p: int = 0) -> Change:
    return lambda a: a + np.array([0, 0, p, t])


def times(x: float = 1, y: float = 1, p: int = 1, t: float = 1) -> Change:
    return lambda a: (a * np.array([x, y, p, t])).astype(np.int64)


@pytest.mark.parametrize(
    ("change", "column", "cause"),
    [
        (add(t=1_695_355_587_880), "Times run from 1,695,355,587,8", "count from another moment .*2023-09-22"),
        (add(t=-450), "Times run from -450 to 49 ms", "Take each recording's first time off"),
        (times(t=12_000), "Times run from", "in us, not ms .*Divide them by 1,000"),
        (
            lambda a: a * np.array([1, 1, 1, 1000]) + np.array([0, 0, 0, 1_695_355_587_880_000]),
            "Times",
            "Also: .*in us",
        ),
        (lambda a: a[:, [3, 0, 1, 2]], "x runs from 0 to 499", "in the order t, x, y, p, not x, y, p, t"),
        (lambda a: a[:, [0, 1, 3, 2]], "Polarity runs from 0 to 499", "in the order x, y, t, p, not"),
        (lambda a: a[:, [2, 3, 0, 1]], "y from 0 to 499", "in the order p, t, x, y, not"),
        (times(x=5, y=3), "y from 0 to 381 on a sensor of 128x128", r"640x480 \(DVXplorer"),
        (times(x=2.7, y=2), "x runs from 0 to 342", r"346x260 \(DAVIS346\)"),
        (add(p=1), "Polarity runs from 1 to 2", "Take 1 off"),
        (times(p=255), "Polarity runs from 0 to 255", "255 stands for on"),
        (
            lambda a: (a * np.array([1, 1, 1, 300])).astype(np.int16),
            "Times run from -3",
            "integer of 16 bits.*wider type",
        ),
        (lambda a: a + np.array([0, 0, 0, np.nan]), "Times: not one finite number", "failed at the times"),
        (lambda a: a + np.array([np.nan, 0, 0, 0]), "x: not one finite number and y from 0", "failed at the positions"),
        (lambda a: a + np.array([0, 0, np.nan, 0]), "Polarity: not one finite number", "another column"),
    ],
)
def test_a_misread_set_is_refused_with_column_and_cause(
    tmp_path: Path, change: Change, column: str, cause: str
) -> None:
    count = change_npy(tmp_path, change)
    with pytest.raises(DataError, match=rf"of {count:,} \(\d.* %\) events cannot be used.*{column}.*{cause}"):
        source(tmp_path, "dvs128")
    assert not (tmp_path / "event-store/dvs128-tonic").exists()


def test_one_part_alone_is_refused_too(tmp_path: Path) -> None:
    change_npy(tmp_path, add(t=-450), parts=("Test",))  # 23 % of the set, 90 % of the test part
    with pytest.raises(DataError, match=r"test part: .* of 2,200 \(\d\d %\) events cannot be used"):
        source(tmp_path, "dvs128")


@pytest.mark.parametrize("kind", [np.int16, np.float64])
def test_polarity_minus_one_and_one_is_read(tmp_path: Path, kind: type) -> None:
    write_dvs_npy(tmp_path / "plain")
    change_npy(tmp_path / "signed", lambda a: (a * np.array([1, 1, 2, 1]) - np.array([0, 0, 1, 0])).astype(kind))
    plain, signed = (source(tmp_path / name, "dvs128").info for name in ("plain", "signed"))
    assert signed.data_fingerprint == plain.data_fingerprint and signed.events == 8800 and not signed.dropped_events


def test_mixed_polarities_are_not_guessed() -> None:
    zeros = np.zeros(3, int)
    events = order_events(np.arange(3), zeros, zeros, np.array([-1, 0, 1]), (2, 1, 1))
    assert events.dropped == {"with a polarity out of range": 1} and events.address.tolist() == [0, 1]
    off = order_events(np.arange(3), zeros, zeros, np.array([-1, -1, -1]), (2, 1, 1))
    assert off.address.tolist() == [0, 0, 0] and not off.dropped


def test_small_losses_are_counted_with_their_share(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    count = change_npy(tmp_path, lambda a: a + np.array([1, 1, 0, 0]))  # positions counted from 1
    info = source(tmp_path, "dvs128").info
    (lost,) = info.dropped_events.values()
    assert 0 < lost < 0.03 * count and info.events == count
    assert f"{lost:,} of {count:,} (2 %) events dropped: {lost:,} outside the sensor" in info.notes
    assert any("counted from 1" in note for note in info.notes) and "events dropped" in caplog.text


def rescale_h5(root: Path, factor: float, kind: type) -> None:
    write_heidelberg(root, "shd", per_class=2)
    for path in sorted(root.rglob("*.h5")):
        with h5py.File(path, "r+") as file:
            rows = [row.astype(np.float64) * factor for row in file["spikes/times"]]
            del file["spikes/times"]
            made = file.create_dataset("spikes/times", (len(rows),), dtype=h5py.vlen_dtype(kind))
            with np.errstate(over="ignore"):
                for i, row in enumerate(rows):
                    made[i] = row.astype(kind)


@pytest.mark.parametrize(
    ("factor", "kind", "cause"),
    [
        (1e3, np.float32, "recordings last .* s or longer if their times are in s.*in ms, not s.*Divide them by 1,000"),
        (1e6, np.float64, "Times run from .*in us, not s .*Divide them by 1,000,000"),
        (1e6, np.float16, "non-finite time.*overflowed"),
    ],
)
def test_shd_in_other_units(tmp_path: Path, factor: float, kind: type, cause: str) -> None:
    rescale_h5(tmp_path, factor, kind)
    with pytest.raises(DataError, match=cause):
        source(tmp_path, "shd", num_steps=100, bin_by="width", bin_ms=14.0)


def test_times_in_a_coarser_unit_are_noted(tmp_path: Path) -> None:
    change_npy(tmp_path, lambda a: a / np.array([1, 1, 1, 1000]))
    assert any("in another unit than ms" in note for note in source(tmp_path, "dvs128").info.notes)


def test_nmnist_format_of_a_larger_sensor(tmp_path: Path) -> None:
    write_nmnist(tmp_path, per_class=2)
    rng = np.random.default_rng(0)
    for path in tmp_path.rglob("*.bin"):
        path.write_bytes(nmnist_bytes(*random_events(rng, 90, 180, 240, 300_000)))
    with pytest.raises(DataError, match=r"240x180 \(DAVIS240\)"):
        source(tmp_path, "nmnist")


@pytest.mark.parametrize("variant", ["aedat", "aedat4"])
def test_cifar10dvs_of_a_davis(tmp_path: Path, variant: str) -> None:
    write_cifar10dvs(tmp_path, variant, per_class=2)
    rng = np.random.default_rng(0)
    for path in tmp_path.rglob("*.aedat*"):
        t, x, y, p = random_events(rng, 100, 260, 346, 10_000)
        path.write_bytes(
            aedat4_bytes([(t, x, y, p)])
            if variant == "aedat4"
            else aedat2_bytes(t, ((1 - p) << 11 | x << 12 | y << 22).astype(np.int64))
        )
    with pytest.raises(DataError, match=r"346x260 \(DAVIS346\)"):
        source(tmp_path, "cifar10dvs")


def test_external_events_of_a_dvs128_are_named(tmp_path: Path) -> None:
    write_cifar10dvs(tmp_path, "aedat", per_class=2)
    for path in tmp_path.rglob("*.aedat"):
        t, x, y, p = random_events(np.random.default_rng(0), 100, 128, 128, 10_000)
        path.write_bytes(aedat2_bytes(t, np.where(np.arange(100) < 30, 1 << 15, p | x << 1 | y << 8)))
    with pytest.raises(
        DataError, match=r"first such recording is airplane/.*30 of its 100 addresses .* events from outside"
    ):
        source(tmp_path, "cifar10dvs")


def test_transforms_may_take_out_what_they_like() -> None:
    none = np.empty(0, np.int32)
    tally = Tally()
    tally.add(Recording("a", "train", 0, none, none.astype(np.uint32), dropped={"by Decimation": 90}))
    assert judge(NMNISTReader(Path(), ()), {"train": tally}) == [] and (tally.lost, tally.events) == (0, 90)


def test_sensors_are_the_smallest_that_fits() -> None:
    assert [sensor_of(127, 127)[:7], sensor_of(239, 10)[:7], sensor_of(5000, 9)[:6]] == ["128x128", "240x180", "5001x1"]


# --- the same recording twice -------------------------------------------------------------------------------------


def test_the_same_recording_in_training_and_test_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_nmnist(tmp_path, per_class=4)
    folder = tmp_path / "NMNIST"
    (folder / "Test/5/00006.bin").write_bytes((folder / "Train/3/00004.bin").read_bytes())
    (folder / "Train/3/00034.bin").write_bytes((folder / "Train/3/00014.bin").read_bytes())
    notes = source(tmp_path, "nmnist").info.notes
    shared = "train and test share 1 recording of equal content: Train/3/00004.bin = Test/5/00006.bin"
    assert f"{shared} (as classes 3 and 5)" in notes and shared in caplog.text
    assert "train repeats 1 recording of equal content: Train/3/00014.bin = Train/3/00034.bin" in notes
    for seed in range(8):  # wherever the split puts them
        held = source(tmp_path, "nmnist", val_fraction=0.5, split_seed=seed).info.notes
        assert sum("equal content" in note for note in held) == 2
    assert any("val and test share 1" in note for note in held) or any("train and test" in note for note in held)
