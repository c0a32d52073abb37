"""Unpack zip and tar archives safely: nothing outside the folder, no links, bounded size and count, all or nothing."""

from __future__ import annotations

import fnmatch
import gzip
import lzma
import shutil
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Generator, Iterable
from contextlib import closing
from pathlib import Path, PurePosixPath
from typing import IO

from snnexp.data.fetching.fetch import check_free_space, write_error
from snnexp.errors import DataError

MAX_FILES = 300_000  # N-MNIST's train.zip has 60,000
MAX_BYTES = 60 << 30  # all data sets here unpack to less
MAX_RATIO = 300  # unpacked to packed; event data reaches about 10, zip bombs 1000 and more
CHUNK = 1 << 20
DAMAGE = (  # what the standard library raises on malformed bytes; RuntimeError: an encrypted entry
    zipfile.BadZipFile,
    tarfile.TarError,
    gzip.BadGzipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    NotImplementedError,
    RuntimeError,
    UnicodeError,
)


def unpack(archive: Path, directory: Path, mark: Path, products: tuple[str, ...] = ("*",)) -> None:
    """Unpack `archive` into `directory` so that a cut-off run leaves no half set behind.

    Files go to a temporary folder in `directory` first. Only when all are there are its entries renamed to their place;
    `mark` exists while that happens, and readers of the folder treat the set as missing as long as it does. Zip files
    at the archive's top level are unpacked too. The caller sees to it that no other process unpacks here.

    Args:
        products: glob patterns below `directory` of what the archive is wanted for. An entry that none of them begins
            with (a licence, say) is dropped if there is one of its name already.
    Raises: DataError if the archive is damaged or unsafe, if the disk is full, or if a product is there already.
    """
    prefix = f".unpacking-{archive.name}-"
    try:
        for stale in directory.glob(f"{prefix}*"):  # of a run that was killed
            shutil.rmtree(stale)
        with tempfile.TemporaryDirectory(prefix=prefix, dir=directory) as folder:
            _extract(archive, Path(folder))
            for inner in sorted(Path(folder).glob("*.zip")):
                _extract(inner, Path(folder))
                inner.unlink()
            _move(Path(folder), directory, mark, archive, {pattern.split("/")[0] for pattern in products})
    except OSError as error:
        raise DataError(write_error(error, directory)) from error


def _extract(archive: Path, folder: Path) -> None:
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as packed, closing(_zip_entries(packed, archive)) as entries:
                _write_all(archive, folder, entries)
        elif tarfile.is_tarfile(archive):
            with tarfile.open(archive) as tar:
                with closing(_tar_entries(tar, archive)) as entries:
                    _write_all(archive, folder, entries)
                while tar.fileobj is not None and tar.fileobj.read(CHUNK):
                    pass  # tar stops at its own end, but the checksum of the gzip around it comes after that
        else:
            raise _unsafe(archive, "is neither a zip nor a tar file")
    except DAMAGE as error:
        raise _unsafe(archive, f"is damaged ({error})") from error
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        raise _unsafe(archive, "holds the same path twice") from error


Entry = tuple[str, int, IO[bytes] | None]  # path in the archive, size, content; None: a folder


def _zip_entries(packed: zipfile.ZipFile, archive: Path) -> Generator[Entry]:
    entries = packed.infolist()
    total = sum(entry.file_size for entry in entries)
    _check_totals(archive, len(entries), total)
    check_free_space(archive.parent, total)
    for entry in entries:
        kind = entry.external_attr >> 28  # the Unix file type; 0 if the zip was not made on Unix
        if kind not in (0, 0o10, 0o04):
            raise _unsafe(archive, f"holds {entry.filename!r}, a link or device")
        if entry.is_dir():
            yield entry.filename, 0, None
        else:
            with packed.open(entry) as content:
                yield entry.filename, entry.file_size, content


def _tar_entries(tar: tarfile.TarFile, archive: Path) -> Generator[Entry]:
    count = total = 0
    for member in tar:  # as they come: a list first would unpack the whole file twice
        count, total = count + 1, total + member.size
        _check_totals(archive, count, total)
        check_free_space(archive.parent, member.size)
        if member.isdir():
            yield member.name, 0, None
        elif member.isreg():
            with tar.extractfile(member) as content:  # type: ignore[union-attr]
                yield member.name, member.size, content
        else:
            raise _unsafe(archive, f"holds {member.name!r}, a link or device")


def _check_totals(archive: Path, count: int, total: int) -> None:
    if count > MAX_FILES:
        raise _unsafe(archive, f"holds more than {MAX_FILES:,} files")
    if total > min(MAX_BYTES, MAX_RATIO * max(archive.stat().st_size, CHUNK)):
        raise _unsafe(archive, f"unpacks to {total / 1e9:.1f} GB or more from {archive.stat().st_size / 1e9:.3f} GB")


def _write_all(archive: Path, folder: Path, entries: Iterable[Entry]) -> None:
    for name, size, content in entries:
        if PurePosixPath(name).parts[:1] == ("__MACOSX",):  # what macOS adds to a zip
            continue
        path = folder / _safe_name(name, archive)
        if content is None:
            path.mkdir(parents=True, exist_ok=True)
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        written = 0
        with path.open("xb") as file:
            while chunk := content.read(CHUNK):
                written += len(chunk)
                if written > size:
                    raise _unsafe(archive, f"holds {name!r}, which is larger than it says")
                file.write(chunk)
        if written < size:
            raise _unsafe(archive, f"is damaged ({name!r} ends after {written:,} of {size:,} bytes)")


def _safe_name(name: str, archive: Path) -> PurePosixPath:
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or "\0" in name or (path.parts and ":" in path.parts[0]):
        raise _unsafe(archive, f"holds {name!r}, a path outside its folder")
    return path


def _move(folder: Path, directory: Path, mark: Path, archive: Path, wanted: set[str]) -> None:
    entries = []
    cut_off = mark.exists()  # an earlier move stopped half-way: what it left is ours to replace
    for entry in sorted(folder.iterdir()):
        there = directory / entry.name
        if there.is_dir() and not there.is_symlink() and not any(there.iterdir()):
            there.rmdir()
        elif there.exists() and not any(fnmatch.fnmatch(entry.name, pattern) for pattern in wanted):
            continue
        elif there.exists() and not cut_off:
            raise DataError(
                f"{archive.name} cannot be unpacked: {there} is there already, but is not what was looked for."
                " Move it away and start again."
            )
        entries.append(entry)
    mark.touch()
    for entry in entries:
        there = directory / entry.name
        if there.is_dir() and not there.is_symlink():
            shutil.rmtree(there)
        entry.replace(there)
    mark.unlink()


def _unsafe(archive: Path, reason: str) -> DataError:
    return DataError(f"{archive} {reason}. Nothing was unpacked. Remove it to have it fetched again.")
