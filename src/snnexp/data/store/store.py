"""The event store: raw files packed once into flat, memory-mapped arrays that every experiment reads.

    <store>/<key>/      time.bin      int32, microseconds from the sample's start, rising within a sample
                        address.bin   uint16 or uint32, (polarity * H + y) * W + x on the sensor
                        samples.npy   per sample: where its events stop, label, subject, part, digest of its events
                        names.txt     per sample: its identity
                        sources.tsv   per raw file: path, size, mtime in ns, SHA-256
                        stamps.tsv    per raw file: sizes and times when it was last found to be the packed one
                        manifest.json what it is, counts, versions, sizes and CRC-32 of the arrays; written last

A build happens in a temporary folder that is renamed when complete, under a file lock: a killed build leaves nothing
that could be taken for a store, and parallel jobs wait for one builder. Opening compares names, sizes and times of the
raw files and of the arrays; what has other times is read and compared by checksum.
"""

from __future__ import annotations

import hashlib
import json
import logging
import mmap
import shutil
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from snnexp.atomic import write_atomically
from snnexp.data.readers.recordings import EventReader
from snnexp.data.store.stamps import SOURCES, changed_source

log = logging.getLogger(__name__)

WRITER_VERSION = 3
PARTS = ("train", "val", "test", "all")
SAMPLE_TYPE = np.dtype([("stop", "<i8"), ("label", "<i4"), ("subject", "<i4"), ("part", "u1"), ("digest", "<u8")])
ARRAYS = ("time.bin", "address.bin", "samples.npy", "names.txt", SOURCES)
MANIFEST = "manifest.json"
RELEASE_BYTES = 256 << 20  # mapped pages touched before they are handed back


class StoreDamage(Exception):
    """The folder is not a usable store; the text says which file and why."""


@dataclass
class EventStore:
    """All events of a data set. Sample i has events `starts[i]` to `starts[i + 1]` of `time` and `address`."""

    time: NDArray[np.int32]
    address: NDArray[np.unsignedinteger]
    starts: NDArray[np.int64]
    labels: NDArray[np.int64]
    subjects: NDArray[np.int64] | None
    parts: NDArray[np.uint8]  # indices into PARTS
    digests: NDArray[np.uint64]  # of each sample's events: `digest_events`
    names: list[str]
    manifest: dict[str, Any]
    folder: Path | None = None  # None: in memory
    _maps: list[mmap.mmap] = field(default_factory=list, repr=False)
    _touched: int = field(default=0, repr=False)

    def indices(self, part: str) -> NDArray[np.int64]:
        """The samples of one official part, in order."""
        return np.flatnonzero(self.parts == PARTS.index(part))

    @property
    def dropped(self) -> dict[str, int]:
        """Events left out while packing: reason -> number."""
        return dict(self.manifest["dropped"])

    @property
    def notes(self) -> list[str]:
        """What was found while packing, for the record."""
        return list(self.manifest.get("notes", ()))

    @property
    def windowed(self) -> bool:
        """Whether its samples are windows of recordings."""
        return bool(self.manifest.get("windowed", False))

    def touched(self, events: int) -> None:
        """Say that so many events were read; now and then gives the mapped pages back.

        Pages stay in the system's cache, shared by all jobs, but no longer count as this process's memory, which
        therefore does not grow with the data set.
        """
        self._touched += events * (self.time.itemsize + self.address.itemsize)
        if self._touched > RELEASE_BYTES and self._maps:
            self._touched = 0
            for mapped in self._maps:
                mapped.madvise(mmap.MADV_DONTNEED)

    def verify(self) -> None:
        """Read everything and compare the checksums. Raises: StoreDamage with the file's name."""
        if self.folder is not None:
            _check_arrays(self.folder, self.manifest, everything=True)


def digest_events(time: bytes, address: bytes) -> int:
    """64 bits that name one sample's events as they lie in the store; labels and order are not in it."""
    return int.from_bytes(hashlib.blake2b(time + address, digest_size=8).digest(), "little")


# --- opening ------------------------------------------------------------------------------------------------------


def load_store(folder: Path, reader: EventReader, sources: str) -> EventStore:
    """Open a packed store after checking that it is whole and belongs to the raw files as they are now.

    Args: `sources` is the present `stamp_sources(reader)`.
    Raises: StoreDamage naming what is missing, changed or damaged.
    """
    manifest = _read_manifest(folder)
    if manifest["writer_version"] != WRITER_VERSION:
        raise StoreDamage(f"it was packed by version {manifest['writer_version']} of the writer, not {WRITER_VERSION}")
    if (manifest["name"], manifest["key"], tuple(manifest["shape"])) != (reader.name, reader.key, reader.shape):
        raise StoreDamage(f"it holds {manifest['key']} with shape {manifest['shape']}")
    if fresh := _check_arrays(folder, manifest):
        _refresh_stamps(folder, manifest, fresh)
    if reason := changed_source(folder, reader, sources, manifest["arrays"][SOURCES]["crc32"]):
        raise StoreDamage(reason)

    events = int(manifest["events"])
    time, time_map = _map(folder / "time.bin", np.dtype("<i4"), events)
    address, address_map = _map(folder / "address.bin", np.dtype(manifest["address_type"]), events)
    samples = np.load(folder / "samples.npy", allow_pickle=False)
    store = _assemble(time, address, samples, (folder / "names.txt").read_text(encoding="utf-8").split("\n")[:-1])
    store.manifest, store.folder = manifest, folder
    store._maps = [m for m in (time_map, address_map) if m is not None]
    return store


def _assemble(
    time: NDArray[np.int32], address: NDArray[np.unsignedinteger], samples: NDArray[Any], names: list[str]
) -> EventStore:
    starts = np.concatenate([np.zeros(1, dtype=np.int64), samples["stop"].astype(np.int64)])
    subjects = samples["subject"].astype(np.int64)
    return EventStore(
        time=time,
        address=address,
        starts=starts,
        labels=samples["label"].astype(np.int64),
        subjects=subjects if (subjects >= 0).all() and len(subjects) else None,
        parts=samples["part"].copy(),
        digests=samples["digest"].copy(),
        names=names,
        manifest={},
    )


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise StoreDamage(f"{MANIFEST} cannot be read ({error.strerror})") from None
    except ValueError:
        raise StoreDamage(f"{MANIFEST} is not valid JSON") from None
    if not isinstance(manifest, dict) or manifest.pop("checksum", None) != _manifest_checksum(manifest):
        raise StoreDamage(f"{MANIFEST} was changed or is incomplete")
    return manifest


def _manifest_checksum(manifest: dict[str, Any]) -> str:
    """Of everything but the time stamps, which are refreshed without a new build."""
    kept = {key: value for key, value in manifest.items() if key != "stamps"}
    return f"{zlib.crc32(json.dumps(kept, sort_keys=True).encode()):08x}"


def _stamp(path: Path) -> list[int]:
    """Size, mtime and ctime: whoever writes to a file changes its ctime, which cannot be set back."""
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]


def _check_arrays(folder: Path, manifest: dict[str, Any], everything: bool = False) -> dict[str, list[int]]:
    """Compare sizes and times, and checksums where times differ. Returns the new stamps of files found unchanged."""
    fresh: dict[str, list[int]] = {}
    for name in ARRAYS:
        path = folder / name
        recorded = manifest["arrays"][name]
        try:
            stamp = _stamp(path)
        except OSError as error:
            raise StoreDamage(f"{name} cannot be read ({error.strerror})") from None
        if stamp[0] != recorded["bytes"]:
            raise StoreDamage(f"{name} has {stamp[0]:,} bytes instead of {recorded['bytes']:,}")
        if everything or stamp != manifest.get("stamps", {}).get(name):
            if _crc_of(path) != recorded["crc32"]:
                raise StoreDamage(f"{name} was changed: its checksum is wrong")
            fresh[name] = stamp
    return fresh


def _refresh_stamps(folder: Path, manifest: dict[str, Any], fresh: dict[str, list[int]]) -> None:
    """Note that a copied or moved store was read and found whole, so that the next opening is quick again."""
    manifest["stamps"] = {**manifest.get("stamps", {}), **fresh}
    try:
        write_manifest(folder, manifest)
    except OSError:
        log.debug("cannot note the check of %s: read-only", folder)


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Write the manifest with its own checksum, whole or not at all."""
    whole = {**manifest, "checksum": _manifest_checksum(manifest)}
    write_atomically(folder / MANIFEST, json.dumps(whole, indent=1))


def _crc_of(path: Path) -> str:
    value = 0
    with open(path, "rb") as file:
        while chunk := file.read(1 << 22):
            value = zlib.crc32(chunk, value)
    return f"{value:08x}"


def _map(path: Path, dtype: np.dtype[Any], count: int) -> tuple[NDArray[Any], mmap.mmap | None]:
    if count == 0:
        return np.empty(0, dtype=dtype), None  # an empty file cannot be mapped
    with open(path, "rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return np.frombuffer(mapped, dtype=dtype, count=count), mapped


def remove_folder(folder: Path) -> None:
    """Delete a store or a leftover of a build, if it is there."""
    if folder.exists():
        shutil.rmtree(folder, ignore_errors=True)
