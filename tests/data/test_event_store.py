"""The event store: built once, opened quickly, and never wrong in silence."""

from __future__ import annotations

import errno
import json
import logging
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fake_files import write_nmnist

from snnexp.config import EventDatasetConf
from snnexp.data.readers import nmnist
from snnexp.data.store import packing, stamps
from snnexp.data.store.packing import open_store, pack_in_memory
from snnexp.data.store.store import ARRAYS, EventStore, StoreDamage
from snnexp.errors import DataError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    write_nmnist(folder, per_class=2, test_per_class=1)
    return folder


def find(root: Path) -> nmnist.NMNISTReader:
    return nmnist.open_reader(EventDatasetConf(name="nmnist", root=str(root)))


def same(a: EventStore, b: EventStore) -> bool:
    """Whether two stores hold the same samples."""
    return all(
        np.array_equal(getattr(a, name), getattr(b, name)) for name in ("time", "address", "starts", "labels", "parts")
    ) and (a.names == b.names)


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """One entry per build."""
    seen: list[str] = []
    original = packing._write

    def counted(reader: nmnist.NMNISTReader, folder: Path, sources: str) -> dict[str, object]:
        seen.append(reader.key)
        return original(reader, folder, sources)

    monkeypatch.setattr(packing, "_write", counted)
    return seen


def test_holds_every_event_of_the_files(root: Path) -> None:
    store = open_store(find(root), root)
    assert len(store.labels) == 30 and store.starts[-1] == len(store.time) == len(store.address)
    for i, recording in enumerate(find(root).recordings()):
        events = slice(store.starts[i], store.starts[i + 1])
        assert np.array_equal(store.time[events], recording.time)
        assert np.array_equal(store.address[events], recording.address)
        assert (store.names[i], store.labels[i]) == (recording.name, recording.label)
    assert [len(store.indices(part)) for part in ("train", "val", "test", "all")] == [20, 0, 10, 0]
    assert store.address.dtype == np.uint16 and store.subjects is None
    assert same(store, pack_in_memory(find(root)))
    store.verify()


def test_is_built_once(root: Path, builds: list[str]) -> None:
    first = open_store(find(root), root)
    assert same(first, open_store(find(root), root)) and builds == ["nmnist"]
    assert sorted(path.name for path in (root / "event-store").iterdir()) in (
        ["nmnist"],
        ["nmnist", "nmnist.lock"],
    )  # no temporary folder stays; the lock's file may


def test_manifest_says_where_it_comes_from(root: Path) -> None:
    open_store(find(root), root)
    folder = root / "event-store/nmnist"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["samples"] == 30 and manifest["arrays"]["time.bin"]["bytes"] == 4 * manifest["events"]
    lines = (folder / "sources.tsv").read_text().splitlines()
    name, size, _, digest = lines[0].split("\t")
    import hashlib

    raw = (root / "NMNIST" / name).read_bytes()
    assert len(lines) == 30 and int(size) == len(raw) and digest == hashlib.sha256(raw).hexdigest()


@pytest.mark.parametrize("change", ["longer", "replaced", "gone", "new"])
def test_changed_raw_files_are_named_and_packed_again(
    root: Path, builds: list[str], caplog: pytest.LogCaptureFixture, change: str
) -> None:
    open_store(find(root), root)
    path = root / "NMNIST/Train/4/00005.bin"
    if change == "longer":
        path.write_bytes(path.read_bytes() + bytes([1, 1, 1, 1, 1]))
    elif change == "replaced":  # another recording of the same size, with the old time: only the ctime tells
        before = path.stat()
        path.write_bytes(bytes(reversed(path.read_bytes())))
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    elif change == "gone":
        path.unlink()
    else:
        path.with_name("00099.bin").write_bytes(bytes([1, 1, 1, 1, 1]))
    name = "Train/4/00099.bin" if change == "new" else "Train/4/00005.bin"
    again = open_store(find(root), root)
    assert name in caplog.text and "built anew" in caplog.text and len(builds) == 2
    assert same(again, pack_in_memory(find(root)))


@pytest.mark.parametrize("read_only", [False, True])
def test_other_times_of_the_same_content_are_accepted_and_remembered(
    root: Path, builds: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, read_only: bool
) -> None:
    """A copy or chmod changes ctimes: the files are read once, in a store that cannot be written, too."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = open_store(find(root), root).folder
    assert folder is not None
    hashed: list[Path] = []
    original = stamps.sha256_of
    monkeypatch.setattr(stamps, "sha256_of", lambda path: hashed.append(path) or original(path))
    if read_only:
        monkeypatch.setattr(stamps, "_own_stamps", lambda folder: Path("/proc/nowhere/stamps.tsv"))
        monkeypatch.setattr(packing, "_writable", lambda _: False)
    else:
        (folder / stamps.STAMPS).write_text("damaged")
        open_store(find(root), root)
        assert len(hashed) == 30 and hashed.clear() is None  # all are in doubt
    path = root / "NMNIST/Train/4/00005.bin"
    os.utime(path, (1, 1))
    path.chmod(0o600)
    open_store(find(root), root)
    assert path in hashed and (read_only or hashed == [path])
    hashed.clear()
    open_store(find(root), root)
    assert not hashed and builds == ["nmnist"]


@pytest.mark.parametrize("name", [*ARRAYS, "manifest.json"])
@pytest.mark.parametrize("harm", ["missing", "cut", "longer", "flipped", "flipped in secret"])
def test_damaged_store_is_named_and_built_again(
    root: Path, builds: list[str], caplog: pytest.LogCaptureFixture, name: str, harm: str
) -> None:
    open_store(find(root), root)
    path = root / "event-store/nmnist" / name
    stat = path.stat()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    if harm == "missing":
        path.unlink()
    elif harm == "cut":
        os.truncate(path, stat.st_size // 2)
    elif harm == "longer":
        with open(path, "ab") as file:
            file.write(b"x")
    else:
        with open(path, "r+b") as file:
            file.write(content)
        if harm == "flipped in secret":  # size and mtime as they were
            os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    again = open_store(find(root), root)
    assert name in caplog.text and "built anew" in caplog.text and len(builds) == 2
    assert same(again, pack_in_memory(find(root)))


def test_a_copied_store_is_checked_once_and_used(root: Path, builds: list[str]) -> None:
    """Copying changes the times, not the content: no new build, and the next opening is quick again."""
    open_store(find(root), root)
    folder = root / "event-store/nmnist"
    for name in ARRAYS:
        os.utime(folder / name, (5, 5))
    before = (folder / "manifest.json").read_bytes()
    open_store(find(root), root)
    after = (folder / "manifest.json").read_bytes()
    open_store(find(root), root)
    assert builds == ["nmnist"] and before != after == (folder / "manifest.json").read_bytes()


def test_verify_reads_everything(root: Path) -> None:
    store = open_store(find(root), root)
    with open(root / "event-store/nmnist/address.bin", "r+b") as file:
        file.write(b"\xff")
    with pytest.raises(StoreDamage, match=r"address\.bin was changed"):
        store.verify()


def test_leftovers_of_a_killed_build_go_away(root: Path) -> None:
    leftover = root / "event-store/nmnist.tmp-12345"
    leftover.mkdir(parents=True)
    (leftover / "time.bin").write_bytes(b"half")
    store = open_store(find(root), root)
    assert not leftover.exists() and len(store.labels) == 30


def test_an_error_in_a_raw_file_leaves_nothing_behind(root: Path) -> None:
    (root / "NMNIST/Test/9/00010.bin").write_bytes(b"abc")
    with pytest.raises(DataError, match=r"Test/9/00010\.bin"):
        open_store(find(root), root)
    assert [path.name for path in (root / "event-store").glob("nmnist*/**")] == []


@pytest.mark.parametrize("after", [0, 3, 40])
def test_full_disk(root: Path, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """ENOSPC at some write: a clear message, nothing half-made, and all well once there is space."""
    calls = iter(range(10_000))
    original = packing._Output.write

    def write(self: packing._Output, data: bytes) -> None:
        if next(calls) >= after:
            raise OSError(errno.ENOSPC, "No space left on device")
        original(self, data)

    monkeypatch.setattr(packing._Output, "write", write)
    with pytest.raises(DataError, match=r"the disk is full.*dataset\.store"):
        open_store(find(root), root)
    assert not list((root / "event-store").glob("nmnist*/"))
    monkeypatch.undo()
    assert len(open_store(find(root), root).labels) == 30


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 100 kB."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("needs the right to mount a tmpfs")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_really_full_disk(tmp_path: Path, small_disk: Path) -> None:
    root = tmp_path / "data"
    write_nmnist(root, per_class=10, test_per_class=2, events=200)
    with pytest.raises(DataError, match="the disk is full"):
        open_store(find(root), root, str(small_disk))
    assert not list(small_disk.glob("nmnist*/"))


def test_read_only_root_uses_the_cache_folder(
    root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    original = packing._writable
    monkeypatch.setattr(packing, "_writable", lambda folder: root not in folder.parents and original(folder))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with caplog.at_level(logging.INFO):
        store = open_store(find(root), root)
    assert store.folder is not None and tmp_path / "cache" in store.folder.parents and str(tmp_path) in caplog.text
    assert not (root / "event-store").exists()
    assert open_store(find(root), root).folder == store.folder


def test_store_on_a_read_only_root_is_used_there(
    root: Path, builds: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = open_store(find(root), root).folder
    monkeypatch.setattr(packing, "_writable", lambda _: False)
    assert open_store(find(root), root).folder == folder and builds == ["nmnist"]


def test_really_read_only_root(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ["mount", "--bind", "-o", "ro", str(root), str(root)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("needs the right to mount")
    try:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        folder = open_store(find(root), root).folder
        assert folder is not None and tmp_path / "cache" in folder.parents
        with pytest.raises(DataError, match="cannot write there"):
            open_store(find(root), root, str(root / "elsewhere"))
    finally:
        subprocess.run(["umount", str(root)], check=True)


def test_raw_files_that_change_while_packing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = packing._write

    def slow(reader: nmnist.NMNISTReader, folder: Path, sources: str) -> dict[str, object]:
        manifest = original(reader, folder, sources)
        os.utime(reader.files[0], (1, 1))
        return manifest

    monkeypatch.setattr(packing, "_write", slow)
    with pytest.raises(DataError, match="changed while they were packed"):
        open_store(find(root), root)
    assert not (root / "event-store/nmnist").exists()


def test_an_open_store_survives_a_rebuild(root: Path) -> None:
    """A job that has the old store mapped goes on with the old data."""
    store = open_store(find(root), root)
    before = store.address.copy()
    path = root / "NMNIST/Train/0/00001.bin"
    path.write_bytes(path.read_bytes()[:5])
    assert len(open_store(find(root), root).time) < len(before)
    store.touched(10**12)  # pages are given back, and read again
    assert np.array_equal(store.address, before)
