"""`dataset=folder`: every format read to the last event, what is unclear or malformed refused by name."""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from own_files import (
    COLUMNS,
    EVENTS,
    NAMED,
    csv_text,
    dat,
    every_format,
    evt2,
    evt3,
    evt21,
    folder_conf,
    h5_bytes,
    npz_bytes,
    write_folder,
)

from snnexp.data import open_data
from snnexp.data.readers.folder import open_reader
from snnexp.data.readers.tables import SUFFIXES
from snnexp.data.shapes import frame_shape, num_classes
from snnexp.errors import ConfigError, DataError
from snnexp.schema.dataset import FolderDatasetConf

NAMES = (
    *("plain.npy", "fields.npy", "a.npz", "a.csv", "a.txt", "a.h5", "a.hdf5", "a.bin", "v2.aedat", "v3.aedat"),
    *("a.aedat4", "evt2.raw", "evt21.raw", "evt21l.raw", "evt3.raw", "a.dat"),
)
SLOW = ("a.hdf5", "a.aedat4")  # each damaged file starts a process of its own
CLEAR = {"columns": "txyp", "time_unit": "us", "sensor_size": "32x32"}


def refused(base: Path, pattern: str, kind: type[Exception] = DataError, **keys: Any) -> str:
    """Reading fails with this message, which names a file of the folder or a key."""
    with pytest.raises(kind, match=pattern) as caught:
        list(open_reader(folder_conf(base, **keys)).recordings())
    message = str(caught.value)
    assert str(base) in message or "dataset." in message
    return message


@pytest.fixture(scope="module")
def formats(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[bytes, dict[str, Any]]]:
    return every_format(tmp_path_factory.mktemp("formats"))


def events_of(base: Path, **keys: Any) -> Iterator[list[tuple[int, int, int, int]]]:
    reader = open_reader(folder_conf(base, **keys))
    _, height, width = reader.shape
    for recording in reader.recordings():
        a = recording.address.astype(np.int64)
        yield list(
            zip(
                recording.time.tolist(),
                (a % width).tolist(),
                (a // width % height).tolist(),
                (a // (width * height)).tolist(),
                strict=True,
            )
        )


def test_every_suffix_has_a_file_here(formats: dict[str, Any]) -> None:
    assert {Path(name).suffix for name in formats} == set(SUFFIXES) and set(formats) == set(NAMES)


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n == "a.hdf5" else n for n in NAMES])
def test_every_format_gives_the_same_events(tmp_path: Path, formats: dict[str, Any], name: str) -> None:
    content, keys = formats[name]
    base = write_folder(tmp_path / "set", name, content)
    expected = [(t - EVENTS[0][0], x, y, p) for t, x, y, p in EVENTS]
    assert list(events_of(base, **keys)) == [expected, expected]


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in NAMES])
def test_a_file_that_is_cut_empty_or_garbage_is_named(tmp_path: Path, formats: dict[str, Any], name: str) -> None:
    content, keys = formats[name]
    base = write_folder(tmp_path / "set", name, content)
    victim = base / "right" / f"0-{name}"
    noise = np.random.default_rng(0).integers(0, 256, len(content), np.uint8).tobytes()
    cut = 40 if name.endswith((".h5", ".hdf5", ".npz")) else 3
    for damage in (content[:-cut], noise) if name == "a.h5" else (b"", content[:-cut], noise, b"\0" * 64):
        victim.write_bytes(damage)
        if name.endswith((".csv", ".txt")) and damage == content[:-cut]:
            damage = content + b"12,3\n"
            victim.write_bytes(damage)
        message = refused(base, ".", **keys)
        assert str(victim) in message or f"0-{name}" in message, (damage[:8], message)
        assert "\n" not in message


def test_columns_by_name_order_and_mapping(tmp_path: Path) -> None:
    for number, (header, keys) in enumerate(
        (
            ("timestamp [us],X,Y,Polarity\n", {}),
            ("ts,col,row,on\n", {"time_unit": "us"}),
            ("a,b,c,d\n", {"columns": {"t": "a", "x": "b", "y": "c", "p": "d"}, "time_unit": "us"}),
            ("a,b,c,d\n", {"columns": ["t", "x", "y", "p"], "time_unit": "us"}),
            ("a,b,c,d\n", {"columns": "t x y p", "time_unit": "us"}),
            ("", {"columns": {"t": 0, "x": 1, "y": 2, "p": 3}, "time_unit": "us"}),
        )
    ):
        base = write_folder(tmp_path / str(number), "a.csv", csv_text(header))
        first, _ = events_of(base, sensor_size=[32, 32], **keys)
        assert first == [(t - 1000, x, y, p) for t, x, y, p in EVENTS], header


def test_units_are_converted_to_the_nearest_microsecond(tmp_path: Path) -> None:
    for unit, factor in (("s", 1e-6), ("ms", 1e-3), ("ns", 1000), ("us", 1)):
        rows = "".join(f"{t * factor:.9f},{x},{y},{p}\n" for t, x, y, p in EVENTS)
        base = write_folder(tmp_path / unit, "a.csv", rows.encode())
        first, _ = events_of(base, columns="txyp", time_unit=unit, sensor_size="32x32")
        assert [event[0] for event in first] == [0, 500, 500, 8000]
        if unit != "ns":
            first, _ = events_of(base, columns="txyp", time_unit=unit, sensor_size="32x32", time_origin="zero")
            assert [event[0] for event in first] == [1000, 1500, 1500, 9000]


def test_one_row_and_one_polarity(tmp_path: Path) -> None:
    base = write_folder(tmp_path / "set", "a.csv", b"times_ms,units\n0,5\n1.5,699\n")
    conf = folder_conf(base, sensor_size=700)
    assert (frame_shape(conf), num_classes(conf)) == ((1, 1, 700), 2)
    assert [event for events in events_of(base, sensor_size=700) for event in events][:2] == [
        (0, 5, 0, 0),
        (1500, 699, 0, 0),
    ]


def test_polarity_minus_one_is_off(tmp_path: Path) -> None:
    base = write_folder(tmp_path / "set", "a.csv", b"t_us,x,y,p\n0,1,1,-1\n5,1,1,1\n")
    assert [event[3] for event in next(events_of(base, sensor_size="4x4"))] == [0, 1]


# --- unclear ------------------------------------------------------------------------------------------------------


def test_what_nobody_says_is_asked_for_with_what_was_seen(tmp_path: Path, formats: dict[str, Any]) -> None:
    base = write_folder(tmp_path / "set", "a.npy", formats["plain.npy"][0])
    message = refused(base, "4 columns have no names.*dataset.columns=xytp")
    assert "1000, 3, 4, 1" in message and "dataset.time_unit" in message and "dataset.sensor_size" in message
    message = refused(base, "in what unit its times are.*dataset.time_unit", columns="txyp")
    assert "8,000" in message and "8 s if they are in ms" in message
    assert "dataset.sensor_size" in message and "x runs to 31" in message and "34x34 (N-MNIST)" in message
    refused(base, "how large the sensor is", columns="txyp", time_unit="us")
    refused(base, "has no column 7", columns={"t": 7, "x": 1}, time_unit="us", sensor_size="32x32")


@pytest.mark.parametrize(
    ("keys", "pattern"),
    [
        ({"columns": "xyp"}, r"dataset.columns=xyp.*t and x must be there"),
        ({"columns": "ttxy"}, r"dataset.columns=ttxy"),
        ({"columns": {"q": "a"}}, r"dataset.columns="),
        ({"time_unit": "hours"}, r"dataset.time_unit=hours: no such option.*us"),
        ({"sensor_size": "big"}, r"dataset.sensor_size=big: write width x height"),
        ({"sensor_size": "0x5"}, r"dataset.sensor_size=0x5"),
        ({"sensor_size": [1, 2, 3]}, r"dataset.sensor_size=\[1, 2, 3\]"),
    ],
)
def test_wrong_keys_are_refused(tmp_path: Path, keys: dict[str, Any], pattern: str) -> None:
    base = write_folder(tmp_path / "set", "a.csv", csv_text())
    refused(base, pattern, ConfigError, **{"sensor_size": "32x32", **keys})


def test_a_key_that_the_format_does_not_heed_is_refused(tmp_path: Path) -> None:
    base = write_folder(tmp_path / "set", "a.raw", evt2())
    refused(base, "Leave out dataset.time_unit=ms", time_unit="ms")
    refused(base, "Leave out dataset.columns", columns="xytp")
    assert (
        "sensor 64x32 (dataset.sensor_size; the file says 32x32)"
        in open_reader(folder_conf(base, sensor_size="64x32", time_unit="us")).understood
    )


def test_files_that_claim_more_than_they_hold_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("t.npy", bytes(200 << 20))
    refused(
        write_folder(tmp_path / "1", "a.npz", (tmp_path / "x.npz").read_bytes()), "more than its size can stand for"
    )
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("t", (1 << 34,), "i8", chunks=(1 << 10,))  # 128 GiB that were never written
    refused(write_folder(tmp_path / "2", "a.h5", (tmp_path / "x.h5").read_bytes()), "more than the file can hold")


def test_names_that_are_not_clear_and_files_that_differ(tmp_path: Path) -> None:
    refused(
        write_folder(tmp_path / "1", "a.csv", csv_text("when,x,y,p\n")), "cannot tell from the names.*when, x, y, p"
    )
    refused(write_folder(tmp_path / "2", "a.csv", csv_text("t_us,ts,y,x\n")), "cannot tell from the names")
    base = write_folder(tmp_path / "3", "a.csv", csv_text())
    (base / "right" / "0-a.csv").write_bytes(csv_text("t_ms,x,y,p\n"))
    assert "right/0-a.csv" in refused(base, "differs from 0-a.csv.*times in ms.*times in us", sensor_size="32x32")


# --- malformed values ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "pattern"),
    [
        ("nan,1,1,1", "time is nan in event 4"),
        ("inf,1,1,1", "time is inf in event 4"),
        ("8000,1,1,1", "time falls from 9,000.* to 8,000.*dataset.sort_events=true"),
        ("9999,-1,1,1", "x is -1 in event 4, outside the sensor of 32x32.*count from 0"),
        ("9999,32,1,1", "x is 32 in event 4.*dataset.sensor_size"),
        ("9999,1,99,1", "y is 99 in event 4.*y runs to 99.*dataset.sensor_size"),
        ("9999,1.5,1,1", "x is 1.5 in event 4, not a whole number"),
        ("9999,nan,1,1", "x is nan in event 4"),
        ("9999,1,1,3", "polarities are 0, 1, 3"),
        ("9999,1,1", "line 6 has 3 values, not 4"),
        ("9999,1,one,1", "line 6: 'one' is not a number"),
        ("9e9,1,1,1", "run over 9,000 s if they are in us.*dataset.time_unit"),
    ],
)
def test_a_bad_event_is_refused_with_its_row(tmp_path: Path, row: str, pattern: str) -> None:
    base = write_folder(tmp_path / "set", "a.csv", csv_text())
    (base / "right" / "0-a.csv").write_bytes(csv_text() + f"{row}\n".encode())
    assert "right/0-a.csv" in refused(base, pattern, sensor_size="32x32")


def test_sort_events_is_a_way_out_that_works(tmp_path: Path) -> None:
    base = write_folder(tmp_path / "set", "a.csv", csv_text() + b"8000,1,1,1\n")
    first, _ = events_of(base, sensor_size="32x32", sort_events=True)
    assert [event[0] for event in first] == [0, 500, 500, 7000, 8000]


def test_a_clock_that_jumps_back_in_a_camera_file_is_refused(tmp_path: Path) -> None:
    late = ((500_000, 1, 1, 1), (100_000, 2, 2, 1))
    for number, content in enumerate((evt2(late), evt21(events=late), dat(late))):
        base = write_folder(tmp_path / str(number), "a.dat" if number == 2 else "a.raw", content)
        refused(base, "time falls by 0.4 s after event 0")
    slightly = ((5_000, 1, 1, 1), (4_000, 2, 2, 1))
    assert next(events_of(write_folder(tmp_path / "fine", "a.raw", evt2(slightly)))) == [(0, 2, 2, 1), (1000, 1, 1, 1)]


@pytest.mark.parametrize(
    ("array", "pattern"),
    [
        (np.array([[1, "a"]]), "holds <U21"),
        (np.zeros((4, 3, 2)), "shape 4x3x2"),
        (np.zeros((4, 900)), "one row per event is wanted. Transpose it"),
        (np.array([[1 + 1j, 2, 3, 4]]), "complex"),
        (np.array([{"t": 1}]), "Python objects"),
        (np.zeros((0, 4)), "holds no event"),
        (NAMED[:0], "holds no event"),
    ],
)
def test_arrays_of_another_kind_are_refused(tmp_path: Path, array: np.ndarray, pattern: str) -> None:
    np.save(tmp_path / "x.npy", array, allow_pickle=True)
    base = write_folder(tmp_path / "set", "a.npy", (tmp_path / "x.npy").read_bytes())
    refused(base, pattern, **CLEAR)


def test_archives_of_another_kind_are_refused(tmp_path: Path) -> None:
    t, x, y, _ = COLUMNS
    for number, (arrays, pattern) in enumerate(
        (
            ({"t": t, "x": x[:2], "y": y}, "differ in length"),
            ({"a": np.zeros((3, 4)), "b": t}, "one array per column, or a single"),
            ({"t": t}, "cannot tell from the names"),
            ({}, "cannot tell from the names"),
        )
    ):
        np.savez(tmp_path / "x.npz", **arrays)  # type: ignore[arg-type]
        base = write_folder(tmp_path / str(number), "a.npz", (tmp_path / "x.npz").read_bytes())
        refused(base, pattern, time_unit="us", sensor_size="32x32")


def test_an_encoding_that_is_not_read_is_refused(tmp_path: Path) -> None:
    for number, (content, pattern) in enumerate(
        (
            (evt2().replace(b"evt 2.0", b"evt 4.0"), "encoding EVT4.0.*EVT 2.0, 2.1 and 3.0"),
            (evt21().replace(b"little", b"big"), "byte order big"),
            (evt3()[:-1], "not a multiple of 2"),
            (evt3() + b"\x00\x10", "has type 0x1, which does not exist"),
            (evt2().replace(b"32x32", b"0x32"), "sensor has 0x32 pixels"),
        )
    ):
        refused(write_folder(tmp_path / str(number), "a.raw", content), pattern)
    refused(write_folder(tmp_path / "dat", "a.dat", dat().replace(b"Version 2", b"Version 1")), "version 1")
    refused(
        write_folder(tmp_path / "aedat", "a.aedat", every_format(tmp_path)["v2.aedat"][0]), "AEDAT 2.0 does not say"
    )


# --- folders ------------------------------------------------------------------------------------------------------


def test_folders_that_are_not_clear_are_refused(tmp_path: Path) -> None:
    base = write_folder(tmp_path / "set", "a.csv", csv_text())
    for make, pattern in (
        (lambda: (base / "Left").mkdir(), "differ in case only"),
        (lambda: (base / "train").mkdir(), "beside it, left, right"),
        (lambda: (base / "test").mkdir(), "no train/"),
        (lambda: (base / "empty").mkdir(), "empty: has no file that ends in"),
        (lambda: (base / "left" / "deeper").mkdir(), "is a folder within the class folder"),
        (lambda: os.symlink("/nowhere", base / "left" / "1-a.csv"), "is a link to /nowhere"),
        (lambda: os.mkfifo(base / "left" / "2-a.csv"), "is a pipe"),
    ):
        made = set(base.rglob("*"))
        make()
        if pattern == "differ in case only":
            (base / "Left" / "x.csv").write_bytes(csv_text())
        refused(base, pattern, sensor_size="32x32")
        for path in sorted(set(base.rglob("*")) | {p for p in base.rglob("*") if p.is_symlink()} - made, reverse=True):
            if path not in made:
                path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
    refused(tmp_path / "nowhere", "no such folder")
    with pytest.raises(ConfigError, match=r"dataset.path=DIR"):
        open_reader(FolderDatasetConf(name="folder"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    base = write_folder(tmp_path / "set", "a.csv", csv_text())
    (base / "left" / "0-a.csv").chmod(0)
    refused(base, r"left/0-a.csv: cannot be read", sensor_size="32x32")


def test_links_are_followed_and_companions_passed_over(tmp_path: Path) -> None:
    base = write_folder(tmp_path / "set", "a.csv", csv_text())
    (tmp_path / "elsewhere.csv").write_bytes(csv_text())
    os.symlink(tmp_path / "elsewhere.csv", base / "left" / "1.csv")
    (base / "left" / ".hidden.csv").write_bytes(b"junk")
    (base / "README.md").write_text("mine")
    reader = open_reader(folder_conf(base, sensor_size="32x32"))
    assert [r.name for r in reader.recordings()] == ["left/0-a.csv", "left/1.csv", "right/0-a.csv"]
    assert reader.notes == ("1 file passed over: README.md",)


# --- through the store --------------------------------------------------------------------------------------------


def test_one_folder_is_split_and_a_changed_file_is_noticed(tmp_path: Path) -> None:
    base = tmp_path / "set"
    for number in range(20):
        for label in ("class10", "class9"):
            (base / label).mkdir(parents=True, exist_ok=True)
            (base / label / f"{number}.csv").write_text(
                f"t_us,x,y,p\n0,{number},1,1\n7,{number},2,{label == 'class9':d}\n"
            )
    conf = folder_conf(base, sensor_size="32x32", batch_size=7)
    source = open_data(conf, torch.device("cpu"))
    info = source.info
    assert info.class_names == ("class9", "class10") and info.complete
    assert info.counts == {"train": 28, "val": 4, "test": 8} and info.shape == (2, 32, 32)
    assert {split: counts[0] for split, counts in info.class_counts.items()} == {"train": 14, "val": 2, "test": 4}
    assert any("sensor 32x32 (dataset.sensor_size)" in words for words in info.understood)
    assert sum(int(batch.labels.sum()) for batch in source.batches("train")) == 14
    assert open_data(conf, torch.device("cpu")).info.data_fingerprint == info.data_fingerprint
    (base / "class9" / "3.csv").write_text("t_us,x,y,p\n0,30,1,1\n7,31,2,1\n")
    changed = open_data(conf, torch.device("cpu")).info
    assert changed.split_hash == info.split_hash and changed.data_fingerprint != info.data_fingerprint


def test_parts_are_taken_as_they_are(tmp_path: Path) -> None:
    base = tmp_path / "set"
    for part, count in (("Train", 10), ("valid", 2), ("test", 3)):
        write_folder(base / part, "a.csv", csv_text(), count)
    info = open_data(folder_conf(base, sensor_size="32x32"), torch.device("cpu")).info
    assert info.counts == {"train": 20, "val": 4, "test": 6}
    for key in ("val_fraction", "test_fraction"):
        refused(base, rf"dataset.{key}=0.3: .*Leave it out", ConfigError, sensor_size="32x32", **{key: 0.3})
    assert any(re.search("train and test share", note) for note in info.notes)
    (base / "test" / "other").mkdir()
    (base / "test" / "other" / "1.csv").write_bytes(csv_text())
    refused(base, "is a class of test that train/ does not have", sensor_size="32x32")


def test_hdf5_and_npz_say_what_they_say(tmp_path: Path) -> None:
    base = write_folder(tmp_path / "a", "a.h5", h5_bytes(tmp_path / "x.h5"))
    assert "times in us (the file says so)" in open_reader(folder_conf(base)).understood
    content = npz_bytes(tmp_path / "x.npz", time_unit="fortnights", width=32, height=32)
    refused(
        write_folder(tmp_path / "b", "a.npz", content), "says that its times are in 'fortnights'.*dataset.time_unit"
    )


def test_the_command_shows_what_it_understood(snnexp, tmp_path: Path) -> None:
    write_folder(tmp_path / "gestures", "a.csv", csv_text(), 5)
    words = ("task=inspect", "dataset=folder", "dataset.path=gestures", "dataset.val_fraction=0.25")
    done = snnexp(*words, "dataset.sensor_size=32x32")
    assert done.returncode == 0, done.stderr
    shown = " ".join(done.stdout.split())  # lines are broken where the terminal ends
    for line in (
        "columns: t = t_us, x = x, y = y, p = p (by name)",
        "times in us (from the name t_us)",
        "sensor 32x32 (dataset.sensor_size)",
        "(t in us, x, y, p): (0, 3, 4, 1) (500, 31, 0, 0) (500, 0, 31, 1) (8000, 7, 8, 0)",
        "0.008 s long",
        "classes (train + val + test): left 3+1+1, right 3+1+1",
    ):
        assert line in shown, done.stdout
    (picture,) = (tmp_path / "outputs").rglob("samples.png")
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_the_command_refuses_by_name(snnexp, tmp_path: Path) -> None:
    base = write_folder(tmp_path / "gestures", "a.csv", csv_text(), 5)
    (base / "right" / "2-a.csv").write_bytes(csv_text()[:-6] + b"\n")
    done = snnexp("dataset=folder", "dataset.path=gestures", "dataset.sensor_size=32x32", "dataset.val_fraction=0.25")
    assert done.returncode == 2 and "right/2-a.csv: line 5 has" in done.stderr and "Traceback" not in done.stderr
    assert not list(tmp_path.rglob("event-store/folder*")) or not list(tmp_path.rglob("manifest.json"))
