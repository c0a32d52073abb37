"""Several processes in a test: forks of this one, which have imported and compiled everything already."""

from __future__ import annotations

import os
import pickle
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from snnexp import ranks


def on_ranks(size: int, folder: Path, work: Callable[..., Any], *arguments: Any) -> list[Any]:
    """`work(*arguments)` in `size` processes that share a run; returns what each returned, or the exception."""
    folder.mkdir(parents=True, exist_ok=True)
    children = {rank: child for rank in range(size) if (child := _fork(rank, size, folder, work, arguments))}
    for child in children.values():
        os.waitpid(child, 0)
    return [pickle.loads((folder / f"result-{rank}").read_bytes()) for rank in range(size)]


def _fork(rank: int, size: int, folder: Path, work: Callable[..., Any], arguments: tuple[Any, ...]) -> int:
    child = os.fork()
    if child:
        return child
    import torch
    import torch.distributed as dist

    try:
        torch.set_num_threads(1)  # OpenMP's threads do not survive a fork
        ranks.join(ranks.World(rank, size, rank, size), dist.FileStore(str(folder / "store"), size))
        result = work(*arguments)
    except BaseException as error:
        if ranks.note_failure(130 if isinstance(error, KeyboardInterrupt) else getattr(error, "exit_code", 1)) is None:
            traceback.print_exc()
        result = error
    try:
        (folder / f"result-{rank}").write_bytes(pickle.dumps(result))
    finally:
        os._exit(0)
