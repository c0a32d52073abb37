"""Where every random number of a run comes from: (seed, what for, epoch), and nothing else.

Because each epoch starts from its own seed, epoch k draws the same numbers whether the run got there in one go or was
killed and continued: resuming bit for bit needs no stored generator states.
"""

from __future__ import annotations

import hashlib
import random

import numpy as np
import torch


def derive_seed(seed: int, *purpose: object) -> int:
    """A 63-bit seed for one purpose, e.g. `derive_seed(0, "train", 3)`; equal inputs give equal seeds anywhere."""
    text = ":".join(str(part) for part in (seed, *purpose))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy, torch and CUDA; libraries that we call may draw from any of them."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
