"""Build the event store (`store.py`) from a reader's recordings: once, under a lock, all or nothing."""

from __future__ import annotations

import errno
import glob
import hashlib
import logging
import os
import sys
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from filelock import Timeout

from snnexp.atomic import sync_folder
from snnexp.data.readers.recordings import EventReader, Recording
from snnexp.data.store.losses import Tally, judge, total_dropped
from snnexp.data.store.stamps import SOURCES, note_stamps, source_lines, stamp_sources
from snnexp.data.store.store import (
    ARRAYS,
    PARTS,
    SAMPLE_TYPE,
    WRITER_VERSION,
    EventStore,
    StoreDamage,
    _assemble,
    _crc_of,
    _stamp,
    digest_events,
    load_store,
    remove_folder,
    write_manifest,
)
from snnexp.errors import DataError
from snnexp.folders import user_cache
from snnexp.locks import file_lock
from snnexp.version import __version__
from snnexp.waiting import telling

log = logging.getLogger(__name__)


def open_store(reader: EventReader, root: Path, chosen: str | None = None) -> EventStore:
    """Open the packed store of this data set, building it first if it is missing, outdated or damaged.

    Args:
        reader: the raw files, as found now.
        root: dataset.root; the store goes to `<root>/event-store`, or to the user's cache folder if that is read-only.
        chosen: dataset.store, a folder to use instead.
    Raises: DataError if a raw file is damaged, the disk is full, or the chosen folder cannot be written.
    """
    sources = stamp_sources(reader)
    parent = Path(chosen) if chosen else root / "event-store"
    folder = parent / reader.key
    # another user's store in a folder that both may write to: it can be used, but not be built anew
    if not _writable(parent) or (folder.is_dir() and not os.access(folder, os.W_OK)):
        if folder.is_dir():
            try:
                return load_store(folder, reader, sources)
            except StoreDamage as damage:
                log.warning("event store %s cannot be used: %s", folder, damage)
        if chosen:
            raise DataError(f"dataset.store={chosen}: cannot write there. Choose a folder that you may write to.")
        read_only, parent = parent, cache_folder(root)
        log.info("%s is not ours to write: the event store is kept in %s", read_only, parent)
        if not _writable(parent):
            raise DataError(f"neither {root} nor {parent} can be written. Set dataset.store to a folder of yours.")
    folder = parent / reader.key
    with _locked(parent / f"{reader.key}.lock", folder):
        _sweep(folder)
        if folder.exists():
            try:
                return load_store(folder, reader, sources)
            except StoreDamage as damage:
                log.warning("event store %s: %s. It is built anew.", folder, damage)
        _build(reader, folder, sources)
        return load_store(folder, reader, sources)


def cache_folder(root: Path) -> Path:
    """The user's cache folder for data below a read-only root; one per root."""
    return user_cache() / "event-store" / hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:12]


def _writable(folder: Path) -> bool:
    """Whether files can be made there; found out by making one, since permission bits do not say (root, mounts)."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _disk_full(folder) from None
        return False


@contextmanager
def _locked(path: Path, folder: Path) -> Iterator[None]:
    lock = file_lock(path)
    try:
        lock.acquire(timeout=0.2)
    except Timeout:
        log.info("another process works on the event store %s; waiting for it", folder)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _disk_full(folder: Path) -> DataError:
    return DataError(
        f"the disk is full: the event store cannot be written to {folder}. Nothing half-made was left there. Free some"
        " space, or set dataset.store to a folder on another disk."
    )


def _sweep(folder: Path) -> None:
    """Remove what killed builders left. The caller holds the lock: nobody else is at it."""
    for leftover in folder.parent.glob(f"{glob.escape(folder.name)}.tmp-*"):
        remove_folder(leftover)
    for leftover in folder.glob("*.[0-9]*"):  # of a manifest: <name>.<process>.tmp, in older versions without .tmp
        if leftover.name.removesuffix(".tmp").rpartition(".")[2].isdecimal():
            with suppress(OSError):
                leftover.unlink()


def _build(reader: EventReader, folder: Path, sources: str) -> None:
    """Pack into a temporary folder next to `folder` and rename it. The caller holds the lock."""
    temporary = folder.parent / f"{folder.name}.tmp-{os.getpid()}"
    try:
        temporary.mkdir()
        manifest = _write(reader, temporary, sources)
        if stamp_sources(reader) != sources:
            raise DataError(f"the raw files of {reader.name} changed while they were packed. Run the command again.")
        note_stamps(temporary, sources, manifest["arrays"][SOURCES]["crc32"])
        write_manifest(temporary, manifest)
        remove_folder(folder)  # jobs that have the old one mapped keep their pages until they end
        os.replace(temporary, folder)
        sync_folder(folder.parent)
    except BaseException as error:
        remove_folder(temporary)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _disk_full(folder) from None
        raise
    log.info("packed %s recordings, %s events, into %s", f"{manifest['samples']:,}", f"{manifest['events']:,}", folder)


class _Output:
    """A file that keeps a running checksum; a context that closes it. `sync` must come before a good end."""

    def __init__(self, path: Path) -> None:
        self.file: BinaryIO = open(path, "wb", buffering=1 << 20)  # noqa: SIM115 - closed by __exit__
        self.crc = 0

    def write(self, data: bytes) -> None:
        self.file.write(data)
        self.crc = zlib.crc32(data, self.crc)

    def sync(self) -> None:
        self.file.flush()
        os.fsync(self.file.fileno())

    def __enter__(self) -> _Output:
        return self

    def __exit__(self, *_: object) -> None:
        # After sync there is nothing left to write. After an error the file goes away, and a full disk, which makes
        # closing fail as well, must not hide the first error.
        with suppress(OSError):
            self.file.close()


def _write(reader: EventReader, folder: Path, sources: str) -> dict[str, Any]:
    """Stream all recordings into the arrays; memory for one recording, and a row per sample."""
    address_type = address_dtype(reader.shape)
    samples: list[tuple[int, int, int, int, int]] = []
    tallies: dict[str, Tally] = {}
    events = 0
    with ExitStack() as stack:
        outputs = {
            name: stack.enter_context(_Output(folder / name)) for name in ("time.bin", "address.bin", "names.txt")
        }
        for recording in _with_progress(reader):
            check_recording(recording, reader)
            time, address = event_bytes(recording, address_type)
            outputs["time.bin"].write(time)
            outputs["address.bin"].write(address)
            outputs["names.txt"].write(f"{recording.name}\n".encode())
            events += len(recording.time)
            part = PARTS.index(recording.part)
            samples.append((events, recording.label, recording.subject, part, digest_events(time, address)))
            tallies.setdefault(recording.part, Tally()).add(recording)
        notes = judge(reader, tallies)
        for output in outputs.values():
            output.sync()
    with open(folder / "samples.npy", "wb") as file:
        np.save(file, np.array(samples, dtype=SAMPLE_TYPE))
        file.flush()
        os.fsync(file.fileno())
    with open(folder / SOURCES, "w", encoding="utf-8") as out:
        out.writelines(source_lines(reader, sources))
        out.flush()
        os.fsync(out.fileno())
    checksums = {name: f"{output.crc:08x}" for name, output in outputs.items()}
    return {
        "name": reader.name,
        "variant": reader.variant,
        "key": reader.key,
        "shape": list(reader.shape),
        "origin": reader.origin,
        "samples": len(samples),
        "windowed": getattr(reader, "windowed", False),
        "events": events,
        "dropped": total_dropped(tallies),
        "notes": notes,
        "address_type": np.dtype(address_type).str,
        "writer_version": WRITER_VERSION,
        "snnexp_version": __version__,
        "numpy_version": np.__version__,
        "arrays": {
            name: {"bytes": (folder / name).stat().st_size, "crc32": checksums.get(name) or _crc_of(folder / name)}
            for name in ARRAYS
        },
        "stamps": {name: _stamp(folder / name) for name in ARRAYS},
    }


def check_recording(recording: Recording, reader: EventReader) -> None:
    """What the store relies on; a reader that breaks it has a bug or met a file that it misunderstood."""
    size = reader.shape[0] * reader.shape[1] * reader.shape[2]
    ok = (
        len(recording.time) == len(recording.address)
        and 0 <= recording.label < len(reader.class_names)
        and (len(recording.time) == 0 or (int(recording.address.max()) < size and int(recording.time[0]) >= 0))
        and not bool((recording.time[1:] < recording.time[:-1]).any())
        and "\n" not in recording.name
    )
    if not ok:
        raise DataError(
            f"{reader.name}: {recording.name} (label {recording.label}) does not fit {reader.shape} and"
            f" {len(reader.class_names)} classes. The file is damaged, or is not of this data set."
        )


def event_bytes(recording: Recording, address_type: np.dtype[Any]) -> tuple[bytes, bytes]:
    """A recording's times and positions as the store has them."""
    time = np.ascontiguousarray(recording.time, dtype="<i4").tobytes()
    return time, np.ascontiguousarray(recording.address, dtype=address_type).tobytes()


def address_dtype(shape: tuple[int, int, int]) -> np.dtype[Any]:
    """The smaller unsigned type that holds all positions of the sensor."""
    return np.dtype("<u2") if shape[0] * shape[1] * shape[2] <= 1 << 16 else np.dtype("<u4")


def _with_progress(reader: EventReader) -> Iterator[Recording]:
    if not sys.stderr.isatty():
        log.info("packing %s: %s recordings, once", reader.key, f"{reader.total:,}")
        with telling(f"packing {reader.key}: {reader.total:,} recordings; this is done once"):
            yield from reader.recordings()
        return
    from rich.console import Console
    from rich.progress import track

    yield from track(
        reader.recordings(), f"packing {reader.key}", total=reader.total, console=Console(stderr=True), transient=True
    )


def pack_in_memory(reader: EventReader) -> EventStore:
    """The same store without a folder, for small generated sets."""
    recordings = list(reader.recordings())
    tallies: dict[str, Tally] = {}
    for recording in recordings:
        check_recording(recording, reader)
        tallies.setdefault(recording.part, Tally()).add(recording)
    address_type = address_dtype(reader.shape)
    stops = np.cumsum([len(recording.time) for recording in recordings])
    samples = np.array(
        [
            (stop, r.label, r.subject, PARTS.index(r.part), digest_events(*event_bytes(r, address_type)))
            for stop, r in zip(stops, recordings, strict=True)
        ],
        dtype=SAMPLE_TYPE,
    )
    time = np.concatenate([r.time for r in recordings]) if recordings else np.empty(0, np.int32)
    address = np.concatenate([r.address for r in recordings]) if recordings else np.empty(0, np.uint32)
    store = _assemble(time, address.astype(address_type), samples, [r.name for r in recordings])
    store.manifest = {
        "name": reader.name,
        "variant": reader.variant,
        "key": reader.key,
        "events": len(time),
        "samples": len(recordings),
        "windowed": getattr(reader, "windowed", False),
        "dropped": total_dropped(tallies),
        "notes": judge(reader, tallies),
    }
    return store
