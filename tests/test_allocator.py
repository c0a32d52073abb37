"""The command prepares the allocator before torch is there, and SNNEXP_ALLOC=0 keeps its hands off."""

import subprocess
import sys

PROGRAM = """
import os, resource, sys
from snnexp.allocator import prepare_allocator
done = prepare_allocator()
assert "torch" not in sys.modules
import torch
def step():
    for _ in range(20):
        torch.ones(5_000_000)  # 20 MB, written to and freed
step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
step()
print(done, os.environ.get("THP_MEM_ALLOC_ENABLE"), resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def run(environment: dict[str, str]) -> list[str]:
    import os

    kept = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "SNNEXP_", "THP_"))}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env={**kept, **environment}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_freed_memory_is_kept() -> None:
    done, huge_pages, faults = run({})
    assert (done, huge_pages) == ("True", "1")
    if sys.platform == "linux":
        assert int(faults) < 100  # without: 20 MB / 4 KiB = 4,900 for each of 20 tensors, or 10 huge pages each
    assert run({"SNNEXP_ALLOC": "0"})[:2] == ["False", "None"]


def test_the_users_own_settings_stay() -> None:
    assert run({"THP_MEM_ALLOC_ENABLE": "0"})[1] == "0"
