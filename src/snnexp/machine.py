"""What this machine gives to this process. Imported before torch."""

from __future__ import annotations

import contextlib
import os
from functools import cache
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
GPUS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")  # NVIDIA's driver, AMD's, and Windows' below Linux


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def granted_cores() -> int:
    """How many cores' time it gets: fewer than `cores` where Slurm or a control group's quota says so, at least 1."""
    granted = [cores(), *(count for count in (_slurm(), _quota()) if count is not None)]
    return max(min(granted), 1)


def _slurm() -> int | None:
    cpus = os.environ.get("SLURM_CPUS_PER_TASK") or os.environ.get("SLURM_CPUS_ON_NODE") or ""
    return int(cpus) if cpus.isascii() and cpus.isdigit() else None


def _quota() -> int | None:
    """Whole cores that the control groups (version 2, then 1) grant: the least of this process's and those around."""
    inner = [CGROUP]
    with contextlib.suppress(OSError, ValueError):
        lines = Path("/proc/self/cgroup").read_text().splitlines()
        own = Path(next(line for line in lines if line.startswith("0::")).removeprefix("0::/"))
        inner = [CGROUP / own, *(CGROUP / outer for outer in own.parents)]
    found = []
    for folder in inner:
        with contextlib.suppress(OSError, ValueError):
            quota, period = (folder / "cpu.max").read_text().split()  # "max" is no number
            found.append(int(quota) // int(period))
    with contextlib.suppress(OSError, ValueError):
        quota, period = ((CGROUP / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        if int(quota) > 0:
            found.append(int(quota) // int(period))
    return min(found, default=None)


def may_have_gpu() -> bool:
    """Whether there is a driver for a GPU, and nobody hides it from this process. Only torch knows for certain."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    return not hidden and any(Path(name).exists() for name in GPUS)


@cache
def processor_name() -> str:
    """The processor's name: a cache in a home folder may serve many machines."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line
    import platform

    return platform.processor()


def free_memory() -> int | None:
    """Bytes that this process may still take, or None if nobody can tell."""
    limits = [_machine(), _container(), _process()]
    return min((limit for limit in limits if limit is not None), default=None)


def _machine() -> int | None:
    """Linux: what can be had without swapping, and the free swap."""
    with contextlib.suppress(OSError, ValueError, KeyError, IndexError):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        values = {line.partition(":")[0]: int(line.split()[1]) * 1024 for line in lines}
        return values["MemAvailable"] + values.get("SwapFree", 0)
    return None


def _container() -> int | None:
    """The limit of the control group (containers, clusters), less what cannot be given back.

    Files that were read stay in its memory, a packed data set that was read twice on the active list; the kernel takes
    them out before it ends a process.
    """
    for root, limit, used, prefix in (
        ("", "memory.max", "memory.current", ""),
        ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
    ):
        with contextlib.suppress(OSError, ValueError):
            folder = CGROUP / root
            most = int((folder / limit).read_text())  # "max" is no number
            stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            free = sum(int(stat.get(f"{prefix}{kind}_file", 0)) for kind in ("active", "inactive"))
            return max(most - int((folder / used).read_text()) + free, 0)
    return None


def _process() -> int | None:
    """`ulimit -v`, less what is taken."""
    with contextlib.suppress(ImportError, OSError, ValueError, IndexError):
        import resource

        soft, _ = resource.getrlimit(resource.RLIMIT_AS)
        if soft != resource.RLIM_INFINITY:
            pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
            return max(soft - pages * os.sysconf("SC_PAGE_SIZE"), 0)
    return None
