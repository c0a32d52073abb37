"""What was measured on which processor: benchmarks/records/*.json, out of which docs/benchmarks.md is made.

    python -m benchmarks.records            # the page anew from what is kept, nothing is measured
    python -m benchmarks --only W3 --docs   # keeps this run's parts in the processor's file, then the same

A file holds the parts of one processor with one instruction set. Parts are measured in runs of their own, so each says
when, by which command and at which commit; a later run of a part takes the place of the earlier one.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "records"
DOCS = Path(__file__).parents[1] / "docs"
ABOUT = ("command", "quick", "clock", "load", "device", "machine", "versions", "roofline", "commit", "date")
WHOLE = {"data_path": "W7", "startup": "W8"}  # key of a run -> part; workloads have their own names
WHOLE |= {name: name for name in ("scaling", "density", "accuracy", "accuracy_5ms", "accuracy_1ms")}

Record = dict[str, Any]


def origin() -> dict[str, str]:
    """Commit and day, for what is measured now."""
    commit = "unknown"
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        asked = ["git", "describe", "--always", "--dirty", "--exclude", "*"]
        done = subprocess.run(asked, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
        commit = done.stdout.strip()
    return {"commit": commit, "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d")}


def emulated(machine: Record) -> bool:
    """Whether the instruction set is a smaller one than the processor has."""
    return bool(machine.get("emulated"))


def processor(machine: Record) -> str:
    """The processor and its instructions in a few words."""
    cpu = re.sub(r"\((R|TM)\)| Processor| CPU|@.*", "", str(machine["cpu"])).strip()
    how = f"{machine['capability']}, emulated" if emulated(machine) else str(machine["capability"])
    return f"{cpu}, {how}" + (f", {machine['gpu']}" if "gpu" in machine else "")


def emulation() -> str | None:
    """The variables that keep this process from instructions that the processor has; None if nothing does."""
    names = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS", "NUMBA_CPU_NAME")
    names += ("NUMBA_CPU_FEATURES",)  # empty: those of that name; without it numba takes the processor's own
    set_here = [f"{name}={os.environ[name]}" for name in names if name in os.environ]
    return " ".join(set_here) or None


def path_of(machine: Record, folder: Path = FOLDER) -> Path:
    """The file of a processor with its instruction set."""
    return folder / (re.sub(r"[^a-z0-9]+", "-", processor(machine).lower()).strip("-") + ".json")


def keep(record: Record, folder: Path = FOLDER) -> Path:
    """Put the parts of a run into the file of its processor; returns the file."""
    path = path_of(record["machine"], folder)
    kept: Record = json.loads(path.read_text()) if path.exists() else {"machine": record["machine"], "parts": {}}
    about = {key: record[key] for key in ABOUT if key in record}
    for name, result in record.get("workloads", {}).items():
        kept["parts"][name] = {"about": about, "result": result}
    for key, name in WHOLE.items():
        if record.get(key):
            kept["parts"][name] = {"about": about, "result": record[key]}
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(kept, indent=1) + "\n")
    return path


def all_kept(folder: Path = FOLDER) -> list[Record]:
    """What is kept of all processors, by name."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]


def main() -> None:
    """Write the page anew."""
    from benchmarks.page import write_docs

    write_docs(all_kept(), DOCS)


if __name__ == "__main__":
    main()
