"""A campaign of random kills: does every chain of kills and continuations end as an undisturbed run does?

    python tests/campaign/kill_campaign.py --kills 150 --seed 1
    python tests/campaign/kill_campaign.py --kills 30 --phase database --signals KILL,INT,TERM,HUP
    sudo python tests/campaign/kill_campaign.py --kills 10 --phase disk        # a small tmpfs that fills (needs root)

Not collected by pytest: it takes minutes to hours. A chain starts a small real run in a folder of its own and stops it
at a random moment, up to --chain times, then lets it finish. After every stop it looks at run.json and the MLflow run,
after the last at everything: status, weights and metrics against an undisturbed run bit for bit, the database's
integrity, points lost or logged twice, tracebacks, files left over. Every fault is printed with its folder, which is
kept; the exit code is 1 if there was any. The same seed chooses the same moments; the machine's load still shifts them.

Phases: any (the whole life of a process), database (while the first mlflow.db is made), disk (no signal: the disk is
full until the chain's last start).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path

# everything that a continuation must bring back: a random encoder, dropout, augmentation, learned values, a schedule
JOB = (
    "dataset=digits",
    "neuron=rouser",
    "encoder=rate",
    "scheduler=cosine",
    "model.spec=FC32-BN-SN-DP0.2-FC-SN",
    "dataset.augment.shift=1",
    "dataset.num_steps=6",
    "dataset.limit_train=400",
    "dataset.limit_val=100",
    "dataset.limit_test=100",
    "trainer.max_epochs=4",
)
STOPPED = {"KILLED"}
ALLOWED = {"mlflow.db", "mlflow.db.lock", "mlartifacts", "runs", "outputs", "log.txt"}
WAIT_S = 900.0  # a process that has not ended by then hangs


@dataclass
class Chain:
    """One folder with its stops, and what was wrong in it."""

    folder: Path
    stops: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


def start(folder: Path) -> subprocess.Popen[bytes]:
    """Start the job, with its output appended to log.txt."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_TRACKING", "MLFLOW_EXP"))}
    environment |= {"OMP_NUM_THREADS": "1", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with (folder.parent / f"{folder.name}.log").open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "snnexp", *JOB], cwd=folder, stdout=output, stderr=output, env=environment
        )


def records(folder: Path) -> list[dict[str, object]]:
    """All run.json, oldest attempt first."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("runs/*/*/run.json"))]


def store(folder: Path) -> list[tuple[str, str]]:
    """(run id, status) of the MLflow runs; opens the database as a user's other program would."""
    path = folder / "mlflow.db"
    if not path.exists():
        return []
    with closing(sqlite3.connect(path, timeout=60)) as connection:
        return list(connection.execute("SELECT run_uuid, status FROM runs WHERE lifecycle_stage = 'active'"))


def stop(chain: Chain, process: subprocess.Popen[bytes], how: str, twice: bool) -> None:
    """Send the signal, wait for the end, and check what it leaves."""
    process.send_signal(getattr(signal, f"SIG{how}"))
    if twice and how != "KILL":
        time.sleep(0.3)
        with suppress(ProcessLookupError):
            process.send_signal(getattr(signal, f"SIG{how}"))
    try:
        code = process.wait(timeout=WAIT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        chain.faults.append(f"{how}: still there after {WAIT_S:.0f} s")
        return
    if how == "KILL" or code == 0:
        return
    expected = 130
    # before the program has taken the signals over, Python and the kernel answer them
    early = -getattr(signal, f"SIG{how}")
    if code not in (expected, early):
        chain.faults.append(f"{how}: exit code {code}, not {expected}")
    if code == early and not records(chain.folder):
        return
    inside = [str(record["status"]) for record in records(chain.folder)]
    outside = [status for _, status in store(chain.folder)]
    if code == early and set(inside) | set(outside) == {"FINISHED"}:
        return  # while Python was taking itself apart
    if set(inside) - STOPPED or (set(outside) - STOPPED):
        chain.faults.append(f"{how}: run.json says {inside}, MLflow {outside}")


def finish(chain: Chain) -> bool:
    """Let the chain end."""
    code = start(chain.folder).wait(timeout=2 * WAIT_S)
    if code != 0:
        chain.faults.append(f"the last start ended with {code}")
    return code == 0


def metrics(folder: Path) -> dict[tuple[str, int], float]:
    """Every metric of the run folder but times, from metrics.jsonl."""
    found: dict[tuple[str, int], float] = {}
    for line in next(folder.glob("runs/*/001/metrics.jsonl")).read_text().splitlines():
        entry = json.loads(line)
        for key, value in entry["metrics"].items():
            if not key.startswith("time/"):
                found[key, entry["step"]] = value
    return found


def stored_points(folder: Path) -> Counter[tuple[str, int]]:
    """How often each (key, step) stands in the database, times left out."""
    with closing(sqlite3.connect(folder / "mlflow.db")) as connection:
        rows = connection.execute("SELECT key, step FROM metrics WHERE key NOT LIKE 'time/%'")
        return Counter((key, step) for key, step in rows)


def compare(chain: Chain, reference: Path) -> None:
    """The ended chain against the undisturbed run."""
    from safetensors.torch import load_file

    folder, faults = chain.folder, chain.faults
    statuses = ([str(r["status"]) for r in records(folder)], [status for _, status in store(folder)])
    if statuses != (["FINISHED"], ["FINISHED"]):
        faults.append(f"at the end run.json says {statuses[0]}, MLflow {statuses[1]}")
    for name in ("best.safetensors", "last.safetensors"):
        ours, theirs = (load_file(next(place.glob(f"runs/*/001/{name}"))) for place in (folder, reference))
        if set(ours) != set(theirs) or any(not ours[key].equal(theirs[key]) for key in ours):
            faults.append(f"{name} differs")
    ours, theirs = metrics(folder), metrics(reference)
    if ours != theirs:
        wrong = sorted(key for key in set(ours) | set(theirs) if ours.get(key) != theirs.get(key))
        faults.append(f"{len(wrong)} metrics differ, the first: {wrong[:3]}")
    points = stored_points(folder)
    lost, double = set(theirs) - set(points), [key for key, count in points.items() if count > 1]
    if lost or double:
        faults.append(f"MLflow: {len(lost)} points lost, {len(double)} double: {sorted(lost)[:3]} {double[:3]}")
    with closing(sqlite3.connect(folder / "mlflow.db")) as connection:
        if connection.execute("PRAGMA integrity_check").fetchone() != ("ok",):
            faults.append("the database is damaged")
    left = [path for path in folder.rglob("*") if ".tmp" in path.name or path.name.endswith(("-journal", ".old"))]
    left += [path for path in folder.iterdir() if path.name not in ALLOWED]
    if left:
        faults.append(f"left over: {sorted(str(path.relative_to(folder)) for path in left)}")
    if "Traceback" in (folder.parent / f"{folder.name}.log").read_text(errors="replace"):
        faults.append("a traceback in its log")


def moment(phase: str, whole_s: float, database: tuple[float, float], chance: random.Random) -> float:
    """Seconds after the start at which to stop."""
    if phase == "database":
        first, last = database
        return chance.uniform(first, last)
    return chance.uniform(0.0, 1.05 * whole_s)


def database_window(folder: Path, process: subprocess.Popen[bytes]) -> tuple[float, float]:
    """When, after the start, the first file of a database appeared, and when it was complete."""
    began, first, last = time.monotonic(), 0.0, 0.0
    while process.poll() is None:
        there = [path.name for path in folder.glob("mlflow.db*")]
        if any(name != "mlflow.db.lock" for name in there) and not first:
            first = time.monotonic() - began
        if "mlflow.db" in there and not last:
            last = time.monotonic() - began
        time.sleep(0.02)
    return max(0.0, first - 0.5), last + 0.5


def full_disk(work: Path, reference: Path, kills: int, chance: random.Random) -> list[Chain]:
    """Chains on a tmpfs that is too small for the run until it is enlarged."""
    chains = []
    for number in range(kills):
        chain = Chain(work / f"disk{number:03d}")
        chain.folder.mkdir()
        size = chance.randint(40, 4000)  # KiB; a finished run needs about 5,000
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}k", "snnexp", str(chain.folder)], check=True)
        try:
            code = start(chain.folder).wait(timeout=WAIT_S)
            chain.stops.append(f"FULL at {size} KiB")
            if code not in (0, 1, 2):
                chain.faults.append(f"full disk: exit code {code}")
            words = (work / f"{chain.folder.name}.log").read_text(errors="replace")
            if code and "No space left" not in words and "disk is full" not in words:
                chain.faults.append("full disk: not said so")
            subprocess.run(["mount", "-o", "remount,size=64m", str(chain.folder)], check=True)
            if finish(chain):
                compare(chain, reference)
        finally:
            subprocess.run(["umount", "-l", str(chain.folder)], check=False)
        chains.append(report(chain))
    return chains


def report(chain: Chain) -> Chain:
    """One line per chain; a clean one is removed."""
    print(f"{chain.folder.name}: {', '.join(chain.stops)}: {'; '.join(chain.faults) or 'identical'}", flush=True)
    if not chain.faults:
        shutil.rmtree(chain.folder, ignore_errors=True)
    return chain


def main() -> int:
    """Run the campaign and print the counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="stops in all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--signals", default="KILL,INT,TERM,HUP")
    parser.add_argument("--phase", choices=("any", "database", "disk"), default="any")
    parser.add_argument("--chain", type=int, default=3, help="stops of one run at most")
    parser.add_argument("--folder", type=Path, help="where to work; a new temporary folder by default")
    options = parser.parse_args()
    chance = random.Random(options.seed)
    work = options.folder or Path(tempfile.mkdtemp(prefix="kill-campaign-"))
    work.mkdir(parents=True, exist_ok=True)

    reference = Chain(work / "reference")
    reference.folder.mkdir()
    finish(reference)  # warm: compiles kernels
    shutil.rmtree(reference.folder)
    reference.folder.mkdir()
    began = time.monotonic()
    process = start(reference.folder)
    window = database_window(reference.folder, process)
    whole_s = time.monotonic() - began
    if process.returncode != 0:
        print(f"The undisturbed run fails: see {work}/reference.log")
        return 1
    print(f"{work}: undisturbed {whole_s:.1f} s, its database made between {window[0]:.1f} and {window[1]:.1f} s")

    chains: list[Chain] = []
    done = 0
    if options.phase == "disk":
        chains = full_disk(work, reference.folder, options.kills, chance)
    while options.phase != "disk" and done < options.kills:
        chain = Chain(work / f"chain{len(chains):03d}")
        chain.folder.mkdir()
        for _ in range(min(chance.randint(1, options.chain), options.kills - done)):
            how, twice = chance.choice(options.signals.split(",")), chance.random() < 0.25
            wait_s = moment(options.phase, whole_s, window, chance)
            process = start(chain.folder)
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=wait_s)
            done += 1
            if process.poll() is not None:
                chain.stops.append(f"ended before {how}")
                break
            chain.stops.append(f"{how}{' twice' if twice and how != 'KILL' else ''} at {wait_s:.1f} s")
            stop(chain, process, how, twice)
            if any(record["status"] == "FINISHED" for record in records(chain.folder)):
                break  # the signal came when the run was complete
        if any(record["status"] == "FINISHED" for record in records(chain.folder)) or finish(chain):
            compare(chain, reference.folder)
        chains.append(report(chain))

    faulty = [chain for chain in chains if chain.faults]
    kinds = Counter(stop.partition(" ")[0] for chain in chains for stop in chain.stops)
    print(f"stops: {sum(kinds.values())} ({', '.join(f'{count} {kind}' for kind, count in sorted(kinds.items()))})")
    print(
        f"chains: {len(chains)}, identical to the undisturbed run: {len(chains) - len(faulty)}, faulty: {len(faulty)}"
    )
    return 1 if faulty else 0


if __name__ == "__main__":
    sys.exit(main())
