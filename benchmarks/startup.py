"""W8: how long the command takes to answer, against importing what it cannot do without."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from typing import Any

import torch

from benchmarks.harness import interleave

FIRST_STEP = """
import os, sys
from torch.optim.optimizer import register_optimizer_step_post_hook
register_optimizer_step_post_hook(lambda *_: os._exit(0))
sys.argv[1:] = ["tracking=off"]
from snnexp.cli import main
main()
"""

COMMANDS: dict[str, list[str]] = {
    "snnexp --help": ["-m", "snnexp", "--help"],
    "python -c 'import hydra'": ["-c", "import hydra"],
    "snnexp task=inspect": ["-m", "snnexp", "task=inspect"],
    "python -c 'import torch, snntorch'": ["-c", "import torch, snntorch"],
    "snnexp, until the first training step is done": ["-c", FIRST_STEP],
}


def measure_startup(rounds: int) -> dict[str, Any]:
    """Time each command in turns, in an empty folder, after one run that fills the caches."""
    with tempfile.TemporaryDirectory(prefix="snnexp-bench-") as folder:

        def run(arguments: list[str]) -> None:
            environment = {**os.environ, "PYTHONWARNINGS": "ignore", "SNNEXP_AHEAD": "0"}  # kernels are there
            environment.pop("PYTHONDONTWRITEBYTECODE", None)  # as a user's own shell has it
            subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, check=True)

        runs = {name: lambda a=arguments: run(a) for name, arguments in COMMANDS.items()}
        timings = interleave(runs, torch.device("cpu"), rounds, warmup=1, warm=False)
    return {name: timing.record() for name, timing in timings.items()}
