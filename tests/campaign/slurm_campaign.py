"""The campaign on a real Slurm: what is left after scancel, kill -9, a time limit and a dead launcher?

    python tests/campaign/slurm_campaign.py --folder /shared/campaign

Not collected by pytest: it needs `sbatch` on a cluster of one node that this machine is, and takes minutes. A sweep of
twelve small runs, two at a time, each of which stops in its second epoch until all harm is done:

    #0 is cancelled (scancel), #1 gets kill -9, #2 runs into its time limit (scontrol), the launcher gets kill -9

Then the same command is given again, while jobs are left in the queue. Meanwhile the store is read every second: for
how long did it call a run RUNNING whose process was gone, or a sweep that nobody worked on? At the end there must be
twelve FINISHED runs under one FINISHED parent, every epoch once. The exit code is 1 if anything is otherwise.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import closing
from pathlib import Path

JOBS, AT_ONCE, EPOCHS = 12, 2, 3
LIMIT_S = 60  # how long the store may call something RUNNING that is dead
CALLBACK = """
import time
from pathlib import Path

class Wait:
    def on_epoch(self, context):
        while context.epoch == 2 and not Path(__file__).with_name("go").exists():
            time.sleep(0.2)
"""


def say(text: str) -> None:
    """One line with the time."""
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def alive(pid: int) -> bool:
    """Whether a process of this machine lives; one that has ended and waits for its parent does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def queue(array: str = "") -> dict[str, str]:
    """Jobs in Slurm by id, with their state; all, or those of an array."""
    asked = ["squeue", "-h", "-r", "-o", "%i|%T", *(["-j", array] if array else [])]
    said = subprocess.run(asked, capture_output=True, text=True, check=False).stdout
    return dict(line.split("|") for line in said.split() if "|" in line)


class Watcher(threading.Thread):
    """Reads the store again and again; `longest` is by name for how long it called something RUNNING that was dead."""

    def __init__(self, folder: Path) -> None:
        super().__init__(daemon=True)
        self.folder, self.launchers = folder, list[int]()
        self.longest: dict[str, float] = {}
        self.looks = 0
        self._since: dict[str, float] = {}
        self.stop = threading.Event()

    def run(self) -> None:
        while not self.stop.wait(1.0):
            try:
                self.look()
            except (sqlite3.Error, ValueError, OSError):
                continue  # the database or a file is being written

    def look(self) -> None:
        rows = read(self.folder, "select run_uuid, name, status from runs")
        pids = {}
        for path in self.folder.glob("runs/*/*/run.json"):
            record = json.loads(path.read_text())
            pids[record["mlflow_run_id"]] = record["pid"]
        works = any(map(alive, self.launchers)) or bool(queue())
        self.looks += 1
        for run, name, status in rows:
            dead = not (alive(pids[run]) if run in pids else works)
            if status == "RUNNING" and dead:
                since = self._since.setdefault(run, time.monotonic())
                self.longest[name] = max(self.longest.get(name, 0.0), time.monotonic() - since)
            else:
                self._since.pop(run, None)


def read(folder: Path, question: str) -> list[tuple[str, ...]]:
    """Ask the store's database."""
    with closing(sqlite3.connect(folder / "mlflow.db", timeout=60)) as db:
        return db.execute(question).fetchall()


def start(folder: Path, number: int) -> subprocess.Popen[bytes]:
    """The sweep's command; always the same."""
    command = [
        sys.executable,
        "-m",
        "snnexp",
        "-m",
        "hydra/launcher=slurm",
        f"hydra.launcher.array_parallelism={AT_ONCE}",
    ]
    command += ["hydra.launcher.timeout_min=60", "hydra.launcher.signal_delay_s=60", "trainer.max_epochs=3"]
    command += ["dataset.limit_train=200", "dataset.limit_val=100", "dataset.limit_test=100", "trainer.plots=false"]
    command += [f"seed={','.join(map(str, range(JOBS)))}", f"trainer.callbacks=[{folder}/wait.py:Wait]"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_TRACKING", "SNNEXP_START"))}
    environment |= {"OMP_NUM_THREADS": "1", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with (folder / f"command{number}.txt").open("w") as out:
        return subprocess.Popen(command, cwd=folder, env=environment, stdout=out, stderr=out, start_new_session=True)


def in_second_epoch(folder: Path, seed: int) -> int | None:
    """The process of the run with this seed if it has finished its first epoch and lives."""
    for path in folder.glob("runs/*/001/run.json"):
        config, metrics = path.parent / "artifacts" / "config.yaml", path.parent / "metrics.jsonl"
        if config.is_file() and re.search(rf"^seed: {seed}$", config.read_text(), re.M):
            record = json.loads(path.read_text())
            if metrics.is_file() and len(metrics.read_text().splitlines()) > 1 and alive(record["pid"]):
                return int(record["pid"])
    return None


def wait_for(folder: Path, seed: int, launcher: subprocess.Popen[bytes]) -> int:
    """Until that run is in its second epoch; returns its process."""
    while (pid := in_second_epoch(folder, seed)) is None:
        if launcher.poll() is not None:
            sys.exit(f"the command ended: {(folder / 'command1.txt').read_text()}")
        time.sleep(1)
    return pid


def harm(folder: Path, launcher: subprocess.Popen[bytes]) -> str:
    """All that is done to the first attempt; returns the array's id."""
    pids = [wait_for(folder, 0, launcher), wait_for(folder, 1, launcher)]
    found = re.search(r"squeue -j (\d+)", (folder / "command1.txt").read_text())
    assert found is not None
    array = found[1]
    subprocess.run(["scancel", f"{array}_0"], check=True)
    say(f"scancel {array}_0 (process {pids[0]})")
    os.kill(pids[1], signal.SIGKILL)
    say(f"kill -9 {pids[1]} (job {array}_1)")
    pid = wait_for(folder, 2, launcher)
    passed = subprocess.run(["squeue", "-h", "-o", "%M", "-j", f"{array}_2"], capture_output=True, text=True).stdout
    minutes = int(passed.strip().split(":")[0]) + 2  # of which the last one is for closing the run
    subprocess.run(["scontrol", "update", f"JobId={array}_2", f"TimeLimit={minutes}"], check=True)
    say(f"time limit of {array}_2 (process {pid}) set to {minutes} minutes; {passed.strip()} have passed")
    while alive(pid):
        time.sleep(1)
    say(f"process {pid} has ended; Slurm says {queue(array).get(f'{array}_2', 'nothing')} of its job")
    subprocess.run(["scontrol", "update", f"JobId={array}_2", "TimeLimit=60"], check=False)
    launcher.kill()
    launcher.wait()
    say(f"kill -9 {launcher.pid}: the launcher")
    return array


def faults(folder: Path, watcher: Watcher, code: int) -> list[str]:
    """Everything that is not as it should be at the end."""
    found = [] if code == 0 else [f"the second command ended with {code}"]
    parents = read(
        folder, "select status from runs where run_uuid in (select run_uuid from tags where key = 'snnexp.role')"
    )
    children = read(
        folder, "select run_uuid, status from runs where run_uuid in (select run_uuid from tags where key = 'run_uid')"
    )
    if parents != [("FINISHED",)]:
        found.append(f"parents: {parents}")
    if Counter(status for _, status in children) != {"FINISHED": JOBS}:
        found.append(f"children: {children}")
    points = read(
        folder, "select run_uuid, step, count(*) from metrics where key = 'train/loss' group by run_uuid, step"
    )
    if Counter(points) != Counter((run, step, 1) for run, _ in children for step in range(1, EPOCHS + 1)):
        found.append(f"epochs: {points}")
    done = Counter(
        (path.name.split("_")[1], epoch)
        for path in folder.glob("multirun/*/*/slurm/*_log.out")
        for epoch in re.findall(r"^(?:.*\| )?epoch (\d+)/", path.read_text(), re.M)
    )
    if set(done) != {(str(job), str(epoch)) for job in range(JOBS) for epoch in range(EPOCHS + 1)}:
        found.append(f"epochs printed: {sorted(done)}")
    found += [f"epoch {epoch} of job {job} was done {n} times" for (job, epoch), n in done.items() if n > 1]
    found += [f"{name}: RUNNING for {s:.0f} s while dead" for name, s in watcher.longest.items() if s > LIMIT_S]
    return found


def main() -> int:
    """Returns: the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--folder", type=Path, help="empty, on a disk that all nodes see; default: a new one")
    folder = (parser.parse_args().folder or Path(tempfile.mkdtemp(prefix="slurm-campaign-"))).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "wait.py").write_text(CALLBACK)
    say(f"folder {folder}")
    watcher = Watcher(folder)
    first = start(folder, 1)
    watcher.launchers.append(first.pid)
    watcher.start()
    array = harm(folder, first)
    second = start(folder, 2)
    watcher.launchers.append(second.pid)
    say(f"the same command again, with {len(queue(array))} jobs of the first one in the queue")
    (folder / "go").touch()
    code = second.wait()
    time.sleep(2)
    watcher.stop.set()
    watcher.join()
    for line in (folder / "command2.txt").read_text().splitlines():
        print("    " + line)
    print(f"The store was read {watcher.looks} times. RUNNING while dead, longest: ", end="")
    print(", ".join(f"{name} {s:.0f} s" for name, s in sorted(watcher.longest.items(), key=lambda p: -p[1])) or "never")
    wrong = faults(folder, watcher, code)
    print("\n".join(wrong) or f"{JOBS} FINISHED under one parent, every epoch once.")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
