"""Files that are whole or not there: a reader, or a kill at any moment, meets the old one or the new one."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A temporary file beside `path`, which takes its place when the block ends, and is gone if the block fails.

    Its name is <name>.<process>.tmp; one that a killed process leaves is swept away by the next owner of the folder.
    Raises: OSError if the disk is full or cannot be written.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:  # a full disk, Ctrl-C
        with contextlib.suppress(OSError):  # the disk has other troubles
            temporary.unlink(missing_ok=True)
        raise


def write_atomically(path: Path, text: str) -> None:
    """Write `text` to `path`, whole or not at all. Raises: OSError as `replacing`."""
    with replacing(path) as file:
        file.write(text.encode())


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` outlast a power cut, where its file system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
