"""Files that notice when they were changed: the bytes behind a checkpoint, with a checksum of their own.

    state   a file of torch.save with one line behind it: the SHA-256 of all bytes before. torch.load reads it as ever,
            but by itself notices no flipped bit in a tensor.
    weights a safetensors file whose header is in a fixed order, so that equal runs have equal files, and holds the
            SHA-256 of its tensors and of what is said about them.

Both are written under a temporary name, flushed to the disk and renamed, so that a kill at any moment leaves the old
file or the new one and nothing between. They are readable as the umask says.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor

from snnexp.atomic import replacing
from snnexp.errors import TrainingError

SEAL = b"\nsnnexp-sha256 "  # before the 64 digits at the end of a state
SEAL_BYTES = len(SEAL) + 65
CHUNK = 1 << 22


class Damaged(Exception):
    """The bytes are not those that were written; the text says how one can tell."""


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    """`atomic.replacing`. Raises: TrainingError if the disk is full or cannot be written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with replacing(path) as file:
            yield file
    except (OSError, RuntimeError, SafetensorError) as error:
        # torch and safetensors wrap "no space left on device" in errors of their own
        raise TrainingError(
            f"{path} could not be written: {error}. The files of the last finished epoch are intact. "
            "Free some disk space (or set state_dir=DIR), then give the same command again to continue."
        ) from error


class _Hashing:
    """A file that is written from front to back, and its checksum."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.digest = file, hashlib.sha256()

    def write(self, data: Any) -> int:
        self.digest.update(data)
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()


def write_sealed(path: Path, content: Any) -> None:
    """torch.save, with the checksum behind."""
    with _replacing(path) as file:
        hashing = _Hashing(file)
        torch.save(content, hashing)  # type: ignore[arg-type]
        file.write(SEAL + hashing.digest.hexdigest().encode() + b"\n")


def read_sealed(path: Path) -> tuple[Any, bool]:
    """What `write_sealed` wrote, on the CPU, and whether there was a checksum (older versions wrote none).

    Raises: Damaged; OSError.
    """
    sealed = _check_seal(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True), sealed
    except OSError:
        raise
    except Exception as error:  # truncated zips, bad pickles and wrong magic each raise something else
        raise Damaged(f"it cannot be read: {type(error).__name__}") from error


def _check_seal(path: Path) -> bool:
    size = path.stat().st_size
    with path.open("rb") as file:
        if size < SEAL_BYTES:
            return False
        file.seek(size - SEAL_BYTES)
        seal = file.read()
        if not seal.startswith(SEAL):
            return False
        file.seek(0)
        digest, left = hashlib.sha256(), size - SEAL_BYTES
        while left and (chunk := file.read(min(CHUNK, left))):
            digest.update(chunk)
            left -= len(chunk)
    if seal[len(SEAL) :] != digest.hexdigest().encode() + b"\n":
        raise Damaged("its checksum is wrong")
    return True


def digest_of(tensors: Mapping[str, Tensor], said: Mapping[str, Any]) -> str:
    """SHA-256 over `said` and over names, types, shapes and bytes of the tensors in the order of their names."""
    digest = hashlib.sha256(json.dumps(said, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"\n{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """A safetensors file with its header in a fixed order; the library's own order changes from call to call."""
    whole = save({name: tensors[name] for name in sorted(tensors)}, metadata=dict(metadata))
    length = struct.unpack("<Q", whole[:8])[0]
    header = json.loads(whole[8 : 8 + length])
    places = {name: header[name] for name in sorted(header) if name != "__metadata__"}
    text = json.dumps({"__metadata__": dict(sorted(metadata.items())), **places}).encode()
    text += b" " * (-len(text) % 8)  # the format wants the tensors at a multiple of 8
    with _replacing(path) as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.write(memoryview(whole)[8 + length :])
