"""An error of memory, said in words: what ran out, and what to lower."""

from __future__ import annotations

import errno
import logging
import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from snnexp.config import Config
from snnexp.errors import SnnexpError, TrainingError

log = logging.getLogger(__name__)

# torch's and its libraries' own words; they are plain RuntimeErrors
SIGNS = re.compile(
    r"not enough memory|out of memory|can't allocate memory|bad_alloc|STATUS_ALLOC_FAILED", re.IGNORECASE
)


@contextmanager
def memory_errors_in_words(conf: Config) -> Iterator[None]:
    """Turn an error of memory that comes out of the block into a message that says what to lower.

    Raises: TrainingError.
    """
    try:
        yield
    except SnnexpError:
        raise
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        log.info("out of memory", exc_info=error)  # with its traceback, to the job's log
        message = advice(error, conf)
        traceback.clear_frames(error.__traceback__)  # they hold the tensors, and a sweep goes on
        error.__traceback__ = None
        _give_back()
        raise TrainingError(message) from None


def is_out_of_memory(error: BaseException) -> bool:
    """Python's, numpy's, torch's on the CPU and on CUDA, and the system's."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and SIGNS.search(str(error)) is not None)


def advice(error: BaseException, conf: Config) -> str:
    """What ran out and what to lower, with the values as they are now."""
    data = conf.dataset
    said = str(error).strip().splitlines()
    amount = re.search(r"allocate ([\d.]+ [KMG]iB|\d+ bytes)", said[0] if said else "")
    where = "on the GPU" if "CUDA" in str(error) or "CUBLAS" in str(error) else "in main memory"
    lower = [f"dataset.batch_size (now {data.batch_size})"]
    if data.eval_batch_size is not None:
        lower.append(f"dataset.eval_batch_size (now {data.eval_batch_size})")
    lower.append(f"dataset.num_steps (now {data.num_steps})")
    steps = conf.trainer.checkpoint_steps
    segments = f"set trainer.checkpoint_steps={max(data.num_steps // 4, 1)}" if steps is None else ""
    segments = segments or f"lower trainer.checkpoint_steps (now {steps})"
    return (
        f"out of memory {where}{f': could not allocate {amount.group(1)}' if amount else ''}. "
        f"Lower {', '.join(lower)}, or {segments}; dataset.limit_train if the data themselves do not fit. "
        "task=inspect estimates what a step needs. What was finished is kept."
    )


def _give_back() -> None:
    import gc
    import sys

    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
