"""Whether the raw files are still those that were packed: names, sizes and times at every opening, contents in doubt.

    sources.tsv  path, size, mtime and SHA-256 of every raw file as it was packed; never changes
    stamps.tsv   the checksum of sources.tsv, then path, size, mtime and ctime of each file as last found to be the same

Whoever puts another file in a raw file's place can keep its size and mtime, but not its ctime. A ctime also changes
without the content (a copy, chmod), so a file whose times differ is read and its SHA-256 compared, once.
"""

from __future__ import annotations

import hashlib
import logging
import os
from contextlib import suppress
from pathlib import Path

from snnexp.data.files import check_file, sha256_of, some
from snnexp.data.readers.recordings import EventReader
from snnexp.folders import user_cache

log = logging.getLogger(__name__)

SOURCES, STAMPS = "sources.tsv", "stamps.tsv"


def stamp_sources(reader: EventReader) -> str:
    """One line per raw file: path relative to the data set's folder, size, mtime and ctime in ns.

    Raises: DataError naming a file that is gone or is none.
    """
    if reader.folder is None:
        return ""
    lines = []
    for path in reader.files:
        found = check_file(path).stat()
        name = path.relative_to(reader.folder).as_posix()
        lines.append(f"{name}\t{found.st_size}\t{found.st_mtime_ns}\t{found.st_ctime_ns}\n")
    return "".join(lines)


def source_lines(reader: EventReader, present: str) -> list[str]:
    """The lines of sources.tsv; `present` is the present `stamp_sources(reader)`. Reads every file."""
    return [
        "\t".join([*line.split("\t")[:3], sha256_of(path)]) + "\n"
        for path, line in zip(reader.files, present.splitlines(), strict=True)
    ]


def changed_source(folder: Path, reader: EventReader, present: str, checksum: str) -> str | None:
    """What differs between the raw files and those that the store in `folder` was packed from; None if nothing does.

    Args: `present` as above; `checksum` is that of sources.tsv, in the store's manifest.
    """
    noted = {_own_stamps(folder), _stamps_elsewhere(folder)}
    if any(_read(path) == f"{checksum}\n{present}" for path in noted):
        return None
    packed: dict[str, tuple[str, str]] = {}
    for line in (folder / SOURCES).read_text(encoding="utf-8").splitlines():
        name, size, _, digest = line.split("\t")
        packed[name] = (size, digest)
    now = {line.split("\t")[0]: line for line in present.splitlines()}
    for word, names in (("is new", now.keys() - packed.keys()), ("is gone", packed.keys() - now.keys())):
        if names:
            return _name(names, word)
    resized = {name for name, line in now.items() if line.split("\t")[1] != packed[name][0]}
    if resized:
        return _name(resized, "was changed")
    known = {line for path in noted for line in _lines(path, checksum)}
    doubtful = [name for name, line in now.items() if line not in known]
    if doubtful:
        log.info("%s: reading %s again, whose times changed", reader.key, some(doubtful))
        assert reader.folder is not None
        replaced = {name for name in doubtful if sha256_of(reader.folder / name) != packed[name][1]}
        if replaced:
            return _name(replaced, "was replaced, with its size kept,")
    note_stamps(folder, present, checksum)
    return None


def note_stamps(folder: Path, present: str, checksum: str) -> None:
    """Note that the raw files with these stamps are the packed ones: in the store, or for this user beside it."""
    for path in (_own_stamps(folder), _stamps_elsewhere(folder)):
        temporary = path.with_name(f"{path.name}.{os.getpid()}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(f"{checksum}\n{present}", encoding="utf-8")
            temporary.replace(path)
        except OSError:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
        else:
            return
    log.debug("cannot note the check of the raw files of %s", folder)


def _own_stamps(folder: Path) -> Path:
    return folder / STAMPS


def _stamps_elsewhere(folder: Path) -> Path:
    return user_cache() / "stamps" / f"{hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]}.tsv"


def _read(path: Path) -> str:
    with suppress(OSError, UnicodeDecodeError):
        return path.read_text(encoding="utf-8")
    return ""


def _lines(path: Path, checksum: str) -> list[str]:
    """The stamps in a file; none if they belong to another sources.tsv."""
    first, *lines = _read(path).splitlines() or [""]
    return lines if first == checksum else []


def _name(names: set[str], word: str) -> str:
    more = f" and {len(names) - 1:,} more" if len(names) > 1 else ""
    return f"the raw file {min(names)}{more} {word} since it was packed"
