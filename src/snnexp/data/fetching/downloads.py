"""Make sure that a data set's files are on disk: find them, unpack an archive that lies there, or fetch it.

One process at a time works on a data set; the others wait, look again and find it done.
"""

from __future__ import annotations

import logging
from pathlib import Path

from snnexp.config import DatasetConf
from snnexp.data.fetching.fetch import check_free_space, fetch, file_md5, write_error
from snnexp.data.fetching.sources import SOURCES, Archive, Source, unpacking_mark
from snnexp.data.fetching.unpacking import unpack
from snnexp.data.files import check_folder
from snnexp.errors import DataError

logger = logging.getLogger(__name__)

OWN = {
    "folder": "the files are yours; they are packed into the event store",
    "images": "the files are yours; they are read at every start",
    "own": "your reader (dataset.reader) knows where they are",
    "tonic": "tonic's loader looks for them, and what is missing is fetched",
}
LOCK_TIMEOUT_S = 24 * 3600.0  # a slow download of another job is worth waiting for, a dead lock holder frees it at once


def ensure(conf: DatasetConf) -> list[str]:
    """Make sure that the files of `conf.name` are under `conf.root`, fetching what is missing if `conf.download`.

    A part that is there in any amount counts as there: partial sets are the user's choice. An archive of the right name
    is taken instead of a download, after its MD5 has been checked.

    Returns: one line for each archive that was fetched or unpacked now.
    Raises: DataError naming the address, the MD5 and the folder if something stays missing.
    """
    source = SOURCES.get(conf.name)
    if source is None or not _wanted(source, conf):
        return []
    directory = source.directory(conf.root)
    check_folder(Path(conf.root).expanduser())
    check_folder(directory)
    if not conf.download and not any(_candidates(conf, archive, directory) for archive in source.missing(conf.root)):
        raise _missing(conf, source, directory, "dataset.download=false")  # before any folder is made
    from filelock import Timeout

    from snnexp.locks import file_lock

    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = file_lock(directory / f".{conf.name}.lock")
        try:
            lock.acquire(timeout=1)
        except Timeout:
            logger.warning("dataset=%s: waiting for another process that is busy in %s", conf.name, directory)
            lock.acquire(timeout=LOCK_TIMEOUT_S)
        try:
            return [_provide(conf, source, archive, directory) for archive in source.missing(conf.root)]
        finally:
            lock.release()
    except Timeout as error:
        raise DataError(f"dataset={conf.name}: another process has been busy in {directory} for a day.") from error
    except OSError as error:
        raise _missing(conf, source, directory, write_error(error, directory)) from error


def prepare(conf: DatasetConf) -> str:
    """What task=prepare does first: `ensure`, and say in a few lines what happened and where the files are."""
    done = ensure(conf)
    source = SOURCES.get(conf.name)
    if source is None and conf.name in OWN:
        return f"dataset={conf.name}: {OWN[conf.name]}."
    if source is None:
        return f"dataset={conf.name}: nothing to fetch, it is generated or comes with scikit-learn."
    where = source.directory(conf.root)
    return "\n".join(done or [f"dataset={conf.name}: the files are there already, in {where}."])


def _wanted(source: Source, conf: DatasetConf) -> bool:
    # The trial-cut recordings of DVS128 have no direct address; its reader looks for them and says where to get them.
    return getattr(conf, "variant", None) != "trials" and bool(source.missing(conf.root))


def _provide(conf: DatasetConf, source: Source, archive: Archive, directory: Path) -> str:
    path, fetched = _find_archive(conf, archive, directory), False
    if path is None:
        path, fetched = directory / archive.name, True
        if not conf.download:
            raise _missing(conf, source, directory, "dataset.download=false")
        try:
            check_free_space(directory, (archive.size or 0) + (archive.unpacked_size or 0))
            fetch(archive.urls, path, archive.md5, archive.size)
        except DataError as error:
            raise _missing(conf, source, directory, str(error)) from error
    if not archive.unpack:
        return f"dataset={conf.name}: fetched {path}."
    logger.info("dataset=%s: unpacking %s", conf.name, path)
    unpack(path, directory, unpacking_mark(directory, archive), archive.products)
    if archive in source.missing(conf.root):
        raise DataError(
            f"dataset={conf.name}: {archive.name} was unpacked into {directory}, but {archive.products[0]} is not"
            f" there. Please compare with {source.page}."
        )
    if fetched and not getattr(conf, "keep_archives", True):
        path.unlink()
    return f"dataset={conf.name}: {'fetched and ' if fetched else ''}unpacked {archive.name} into {directory}."


def _find_archive(conf: DatasetConf, archive: Archive, directory: Path) -> Path | None:
    """The user's own copy, after its MD5 has been checked."""
    for path in _candidates(conf, archive, directory):
        logger.info("dataset=%s: checking %s", conf.name, path)
        digest = file_md5(path)
        if digest == archive.md5:
            return path
        if path.parent == directory:
            raise DataError(
                f"dataset={conf.name}: {path} is damaged or another file: its MD5 is {digest} instead of {archive.md5}."
                " Remove it to have it fetched again."
            )
    return None


def _candidates(conf: DatasetConf, archive: Archive, directory: Path) -> list[Path]:
    """Files that may be the archive: in the data set's folder, where a wrong one is an error, or directly in the root,
    where names such as train.zip may mean anything."""
    paths = [directory / archive.name]
    if archive.unpack:
        paths.append(Path(conf.root).expanduser().absolute() / archive.name)
    return [path for path in dict.fromkeys(paths) if path.is_file()]


def _missing(conf: DatasetConf, source: Source, directory: Path, reason: str) -> DataError:
    wanted = "\n".join(
        f"  {archive.name}  MD5 {archive.md5}\n    {archive.urls[0]}" for archive in source.missing(conf.root)
    )
    folder = source.folder or "its folders"
    note = f"\n{source.note}" if source.note else ""
    return DataError(
        f"dataset={conf.name}: files are missing in {directory} ({reason.rstrip('.')}).\n"
        f"Fetch by hand into that folder:\n{wanted}\n"
        f"or set dataset.root (SNNEXP_DATA) to a folder that holds {folder}. Data set: {source.page}{note}"
    )
