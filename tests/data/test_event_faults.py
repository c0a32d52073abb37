"""Builders that are killed, builders at the same time, and bytes that are not what they claim to be."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fake_files import (
    aedat2_bytes,
    aedat4_bytes,
    aedat31_bytes,
    random_events,
    write_h5,
    write_nmnist,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from snnexp.config import EventDatasetConf
from snnexp.data import isolated
from snnexp.data.readers import aedat, cifar10dvs, dvs128, heidelberg, nmnist
from snnexp.data.store.packing import open_store, pack_in_memory
from snnexp.errors import DataError

BUILD = """
import sys, time
from pathlib import Path
from snnexp.config import EventDatasetConf
from snnexp.data.readers import nmnist
from snnexp.data.store import packing
root = Path(sys.argv[1])
reader = nmnist.open_reader(EventDatasetConf(name="nmnist", root=str(root)))
print("ready", flush=True)
sys.stdin.readline()
original = packing._write
def counted(*arguments):
    print("build", flush=True)
    return original(*arguments)
packing._write = counted
store = packing.open_store(reader, root)
print(len(store.labels), int(store.address.astype("int64").sum()), flush=True)
"""


def start(root: Path) -> subprocess.Popen[str]:
    """A process that opens the store as soon as it gets a line."""
    process = subprocess.Popen(
        [sys.executable, "-c", BUILD, str(root)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


def go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def time_to_build(root: Path) -> float:
    """Seconds from the word until the store is there, on this machine and now; removes it again."""
    process = start(root)
    go(process)
    began = time.perf_counter()
    while not (root / "event-store/nmnist").exists() and process.poll() is None:
        time.sleep(0.001)
    took = time.perf_counter() - began
    process.communicate()
    for path in (root / "event-store/nmnist").iterdir():
        path.unlink()
    return took


def kill_at_random(root: Path, times: int) -> int:
    """Kill builders at random moments; returns how many died before the store was there."""
    reader = nmnist.open_reader(EventDatasetConf(name="nmnist", root=str(root)))
    expected = pack_in_memory(reader)
    pause = random.Random(0)
    unfinished, built_after = 0, time_to_build(root)
    for _ in range(times):
        process = start(root)
        go(process)
        time.sleep(pause.uniform(0, 1.5 * built_after))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        if not (root / "event-store/nmnist").exists():
            unfinished += 1
        else:  # complete, or it would not be there
            store = open_store(reader, root)
            store.verify()
            assert np.array_equal(store.address, expected.address) and np.array_equal(store.time, expected.time)
            for path in (root / "event-store/nmnist").iterdir():
                path.unlink()
            (root / "event-store/nmnist").rmdir()
    store = open_store(reader, root)
    assert np.array_equal(store.address, expected.address) and store.names == expected.names
    assert not list((root / "event-store").glob("*.tmp-*"))
    return unfinished


def test_killed_builders(tmp_path: Path) -> None:
    write_nmnist(tmp_path, per_class=20, test_per_class=2)
    assert kill_at_random(tmp_path, 4) >= 1


@pytest.mark.slow
def test_builders_killed_at_20_random_moments(tmp_path: Path) -> None:
    write_nmnist(tmp_path, per_class=20, test_per_class=2)
    assert kill_at_random(tmp_path, 20) >= 5


@pytest.mark.parametrize("number", [2, pytest.param(8, marks=pytest.mark.slow)])
def test_processes_that_start_on_an_empty_store_at_once(tmp_path: Path, number: int) -> None:
    write_nmnist(tmp_path, per_class=20, test_per_class=2)
    processes = [start(tmp_path) for _ in range(number)]
    for process in processes:
        go(process)
    lines = [process.communicate()[0].splitlines() for process in processes]
    assert all(process.returncode == 0 for process in processes)
    assert sum(line.count("build") for line in lines) == 1
    assert len({line[-1] for line in lines}) == 1 and lines[0][-1].startswith("220 ")


# --- malformed bytes: a clear error that names the file, or a counted drop ------------------------------------------

FUZZ = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@st.composite
def damage(draw: st.DrawFn, content: bytes) -> bytes:
    """The content with flipped bits, cut off, with a piece missing or with foreign bytes in it."""
    out = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        if not out:
            break
        at = draw(st.integers(0, len(out) - 1))
        kind = draw(st.sampled_from(["flip", "cut", "remove", "insert", "word"]))
        if kind == "flip":
            out[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "cut":
            del out[at:]
        elif kind == "remove":
            del out[at : at + draw(st.integers(1, 40))]
        elif kind == "insert":
            out[at:at] = draw(st.binary(max_size=20))
        else:
            out[at : at + 4] = draw(st.sampled_from([b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\0\0"]))
    return bytes(out)


EVENTS = random_events(np.random.default_rng(0), 60, 128, 128, 10_000)


def check_reader(read: object, path: Path) -> None:
    """Read; only a DataError with the file's name is allowed. Whatever comes back has columns of one length."""
    try:
        columns = read(path)  # type: ignore[operator]
    except DataError as error:
        assert path.name in str(error)
    else:
        assert len({len(column) for column in columns if isinstance(column, np.ndarray)}) == 1


@FUZZ
@given(content=st.one_of(st.binary(max_size=300), damage(b"\x01\x02\x83\x04\x05" * 40)))
def test_fuzz_nmnist(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "NMNIST/Train/7/00001.bin"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    reader = nmnist.NMNISTReader(tmp_path / "NMNIST", (path,))
    try:
        (recording,) = reader.recordings()
    except DataError as error:
        assert "00001.bin" in str(error) and (len(content) % 5 or not content)
    else:
        entries = np.frombuffer(content, np.uint8).reshape(-1, 5)
        kept = len(recording.time) + sum(recording.dropped.values())
        assert kept == len(entries) - np.count_nonzero(entries[:, 1] == 240)
        assert (np.diff(recording.time) >= 0).all() and (recording.address < 2 * 34 * 34).all()


@FUZZ
@given(content=st.one_of(st.binary(max_size=300), damage(aedat31_bytes(EVENTS))))
def test_fuzz_aedat31(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "user01_led.aedat").write_bytes(content)
    check_reader(aedat.read_aedat31, tmp_path / "user01_led.aedat")


@FUZZ
@given(content=st.one_of(st.binary(max_size=300), damage(aedat2_bytes(EVENTS[0], EVENTS[1] << 1 | EVENTS[2] << 8))))
def test_fuzz_aedat2(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "cifar10_cat_0.aedat").write_bytes(content)
    check_reader(cifar10dvs.read_original, tmp_path / "cifar10_cat_0.aedat")


@pytest.fixture(scope="module")
def decoder() -> Iterator[aedat.Aedat4Decoder]:
    with aedat.Aedat4Decoder() as made:
        yield made


@settings(FUZZ, max_examples=100)
@given(content=st.one_of(st.binary(max_size=300), damage(aedat4_bytes([EVENTS, EVENTS]))))
def test_fuzz_aedat4(tmp_path: Path, decoder: aedat.Aedat4Decoder, content: bytes) -> None:
    (tmp_path / "cifar10_cat_0.aedat4").write_bytes(content)
    check_reader(decoder.read, tmp_path / "cifar10_cat_0.aedat4")


def crash(path: str) -> str:
    os.abort()


def test_a_decoder_that_crashes_takes_nobody_with_it(
    tmp_path: Path, decoder: aedat.Aedat4Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "cifar10_cat_0.aedat4"
    path.write_bytes(aedat4_bytes([EVENTS]))
    with monkeypatch.context() as patch:
        patch.setattr(aedat, "_decode_aedat4", crash)
        with pytest.raises(DataError, match=r"cifar10_cat_0\.aedat4: its decoder crashed"):
            decoder.read(path)
    assert decoder.read(path)[0].tolist() == EVENTS[0].tolist()


def sleep(path: str) -> None:
    time.sleep(60)


def test_a_decoder_that_never_returns_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some damaged HDF5 heaps make the library loop for ever."""
    monkeypatch.setattr(isolated, "SECONDS", 0.5)
    with isolated.Isolated() as worker, pytest.raises(DataError, match=r"a\.h5: not decoded within 0\.5 s"):
        worker.call(sleep, tmp_path / "a.h5")


def npy_bytes(tmp_path: Path) -> bytes:
    t, x, y, p = EVENTS
    np.save(tmp_path / "good.npy", np.stack([x, y, p, t], axis=1).astype(np.int32))
    return (tmp_path / "good.npy").read_bytes()


@FUZZ
@given(data=st.data())
def test_fuzz_dvs_npy(tmp_path: Path, data: st.DataObject) -> None:
    good = npy_bytes(tmp_path)
    path = tmp_path / "DVSGesture/ibmGestureTrain/user01_led/3.npy"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.draw(st.one_of(st.binary(max_size=300), damage(good))))
    reader = dvs128.TonicVariant(tmp_path / "DVSGesture", (path,))
    try:
        (recording,) = reader.recordings()
    except DataError as error:
        assert "3.npy" in str(error)
    else:
        assert (np.diff(recording.time) >= 0).all() and (recording.address < 2 * 128 * 128).all()


@pytest.fixture(scope="module")
def good_h5(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("h5") / "good.h5"
    rng = np.random.default_rng(0)
    times = [np.sort(rng.random(30)).astype(np.float16) for _ in range(5)]
    write_h5(path, times, [rng.integers(0, 700, 30).astype(np.uint16) for _ in range(5)], [0, 1, 2, 3, 4], 20, [0] * 5)
    return path.read_bytes()


@pytest.fixture(scope="module")
def worker() -> Iterator[isolated.Isolated]:
    with pytest.MonkeyPatch.context() as patch, isolated.Isolated() as made:
        patch.setattr(isolated, "SECONDS", 5.0)
        yield made


@settings(FUZZ, max_examples=80)
@given(data=st.data())
def test_fuzz_h5(tmp_path: Path, worker: isolated.Isolated, good_h5: bytes, data: st.DataObject) -> None:
    """An answer or a DataError, whatever HDF5 does: some damaged heaps make it loop for ever."""
    path = tmp_path / "shd_train.h5"
    path.write_bytes(data.draw(st.one_of(st.binary(max_size=300), damage(good_h5))))
    try:
        count = worker.call(heidelberg.count_samples, path)
        rows = worker.call(heidelberg.read_rows, path, 0, 256)
    except DataError as error:
        assert "shd_train.h5" in str(error)
    else:
        assert len(rows) == min(count, 256)
