"""Where every random number of a run comes from: (seed, what for, epoch), and nothing else.

Because each epoch starts from its own seed, epoch k draws the same numbers whether the run got there in one go or was
killed and continued: resuming bit for bit needs no stored generator states, but within an epoch.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping
from typing import Any

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


def generators(device: torch.device) -> dict[str, Any]:
    """States of all generators that `seed_everything` sets, in plain containers, numbers and tensors."""
    numpys: Any = np.random.get_state(legacy=False)
    states = {"python": random.getstate(), "torch": torch.get_rng_state()}
    states["numpy"] = {**numpys, "state": {**numpys["state"], "key": numpys["state"]["key"].tolist()}}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def set_generators(states: Mapping[str, Any], device: torch.device) -> None:
    """Go on drawing from there."""
    random.setstate(states["python"])
    numpys = states["numpy"]
    np.random.set_state({**numpys, "state": {**numpys["state"], "key": np.array(numpys["state"]["key"], np.uint32)}})
    torch.set_rng_state(states["torch"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], device)
