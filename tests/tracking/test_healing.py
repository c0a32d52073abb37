"""What died without a word is put right by whoever comes by; what lives is left alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from snnexp.config import TrackingConf
from snnexp.errors import TrackingError
from snnexp.tracking import healing, network_disk, sweep_folder
from snnexp.tracking.healing import after_job, heal_all, heal_runs
from snnexp.tracking.mlflow_store import connect
from snnexp.tracking.queries import search_all
from snnexp.tracking.runs import RunFolder, read_record
from snnexp.tracking.sweep import FOLDER_TAG, Sweep

Open = Callable[..., Any]


def die(folder: RunFolder) -> None:
    """What the kernel does to the lock of a process that is killed."""
    assert folder._lock is not None
    folder._lock.release()
    folder._lock = None


@pytest.fixture
def store(start_dir: Path) -> Any:
    found = connect(f"sqlite:///{start_dir}/mlflow.db", "snnexp")
    assert found is not None
    return found


@pytest.fixture
def sweep(start_dir: Path, store: Any) -> Sweep:
    """A parent that says RUNNING, with its folder."""
    folder = start_dir / "multirun" / "1"
    folder.mkdir(parents=True)
    tags = {"snnexp.role": "sweep", "sweep_id": "abc", "sweep_folder": str(folder), "command": "snnexp -m seed=0,1"}
    parent = store.client.create_run(store.experiment_id, tags=tags, run_name="sweep")
    names = {"run_id": parent.info.run_id, "sweep_id": "abc", "uri": store.uri, "experiment": store.experiment}
    (folder / sweep_folder.SWEEP_FILE).write_text(json.dumps(names))
    return Sweep(folder, parent.info.run_id, "abc")


def status(store: Any, run_id: str | None) -> str:
    assert run_id is not None
    return str(store.client.get_run(run_id).info.status)


def test_a_run_whose_process_was_killed_is_killed_in_the_store(open_run: Open, config: Any, store: Any) -> None:
    dead, folder = open_run(config)
    dead.log_epoch(1, {"val/accuracy": 0.5})
    alive, _ = open_run({**config, "seed": 1})
    die(folder)
    assert heal_runs(store) == 1
    assert status(store, dead.run_id) == "KILLED"
    assert store.client.get_run(dead.run_id).data.tags["status"] == "KILLED"
    assert status(store, alive.run_id) == "RUNNING"
    record = read_record(folder.path)
    assert record is not None and record.status == "KILLED"
    again, resumed = open_run(config)
    assert (resumed.action, again.run_id, status(store, dead.run_id)) == ("resume", dead.run_id, "RUNNING")


def test_a_lock_that_another_machine_does_not_see_is_not_all(
    open_run: Open, config: Any, store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker, folder = open_run(config, more_tags={"slurm_job": "12"})
    folder.update(host="node7")
    die(folder)
    states: dict[str, str] = {"11_1": "RUNNING"}
    answers = [None, states, states, states]  # Slurm is not there, or its controller restarts
    monkeypatch.setattr(healing.queue, "states", lambda jobs: answers.pop(0) if jobs == ["12"] else None)
    assert heal_runs(store) == 0
    assert heal_runs(store) == 0
    states["11_1"] = "SUSPENDED"
    assert heal_runs(store) == 0
    states["11_1"] = "FAILED"
    assert heal_runs(store) == 1
    assert status(store, tracker.run_id) == "KILLED"


def test_the_last_job_closes_a_sweep_whose_launcher_is_gone(
    open_run: Open, config: Any, store: Any, sweep: Sweep, start_dir: Path
) -> None:
    sweep_folder.note_jobs(sweep.folder, 2, [])
    conf = TrackingConf(**config["tracking"])
    for seed in (0, 1):
        tracker, folder = open_run({**config, "seed": seed}, parent_run_id=sweep.parent_run_id, sweep_id="abc")
        tracker.log_epoch(1, {"val/accuracy": 0.5 + 0.1 * seed})
        if seed == 0:
            die(folder)
        else:
            tracker.finish("FINISHED")
            folder.finish("FINISHED")
        sweep_folder.hold_launcher_lock(sweep.folder)
        after_job(conf, sweep, start_dir)  # the launcher lives: it will do it
        assert status(store, sweep.parent_run_id) == "RUNNING"
        sweep_folder._held.pop(str(sweep.folder)).release()
    after_job(conf, sweep, start_dir)
    parent = store.client.get_run(sweep.parent_run_id)
    assert parent.info.status == "KILLED"  # one of two is left
    assert (parent.data.metrics["children/finished"], parent.data.metrics["children/killed"]) == (1, 1)
    assert parent.data.metrics["best_child/val/accuracy"] == pytest.approx(0.6)

    tracker, folder = open_run(config, parent_run_id=sweep.parent_run_id, sweep_id="abc")
    tracker.finish("FINISHED")
    folder.finish("FINISHED")
    heal_all(store)  # task=report: a child ended after its parent was closed
    parent = store.client.get_run(sweep.parent_run_id)
    assert (parent.info.status, parent.data.metrics["children/finished"]) == ("FINISHED", 2)


def test_a_sweep_is_not_killed_because_its_last_job_ends_while_another_looks(
    open_run: Open, config: Any, store: Any, sweep: Sweep, start_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep_folder.note_jobs(sweep.folder, 2, [])
    opened = [open_run({**config, "seed": seed}, parent_run_id=sweep.parent_run_id, sweep_id="abc") for seed in (0, 1)]

    def finish(number: int) -> None:
        tracker, folder = opened[number]
        tracker.finish("FINISHED")
        folder.finish("FINISHED")

    def search(store: Any, words: str) -> Any:
        found = search_all(store, words)
        if "RUNNING" not in words:
            finish(1)
        return found

    finish(0)
    monkeypatch.setattr(healing, "search_all", search)
    conf = TrackingConf(**config["tracking"])
    after_job(conf, sweep, start_dir)
    assert status(store, sweep.parent_run_id) == "RUNNING"
    monkeypatch.undo()
    after_job(conf, sweep, start_dir)
    assert status(store, sweep.parent_run_id) == "FINISHED"


def test_a_sweep_with_jobs_in_the_queue_goes_on(
    open_run: Open, config: Any, store: Any, sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep_folder.note_jobs(sweep.folder, 2, ["12"])
    monkeypatch.setattr(sweep_folder.queue, "is_installed", lambda: True)
    states = {"12_0": "RUNNING", "12_1": "PENDING"}
    monkeypatch.setattr(sweep_folder.queue, "states", lambda arrays: states)
    _, folder = open_run(config, parent_run_id=sweep.parent_run_id, sweep_id="abc")
    die(folder)
    heal_all(store)
    parent = store.client.get_run(sweep.parent_run_id)
    assert (parent.info.status, parent.data.metrics["children/killed"]) == ("RUNNING", 1)
    states["12_1"] = "COMPLETED"
    heal_all(store)  # 12_0 may be the one that asks
    assert status(store, sweep.parent_run_id) == "KILLED"


def test_a_third_attempt_knows_the_jobs_of_the_first(tmp_path: Path) -> None:
    """The second one was cut off while it waited for them."""
    for number in (1, 2, 3):
        (tmp_path / str(number)).mkdir()
        before = str(tmp_path / str(number - 1)) if number > 1 else None
        (tmp_path / str(number) / sweep_folder.SWEEP_FILE).write_text(json.dumps({"before": before}))
    sweep_folder.note_jobs(tmp_path / "1", 2, ["12"])
    assert sweep_folder.earlier_arrays(tmp_path / "3") == sweep_folder.earlier_arrays(tmp_path / "2") == ["12"]
    assert sweep_folder.earlier_arrays(tmp_path / "1") == []
    one_for_all = {"before": str(tmp_path / "1")}  # hydra.sweep.dir
    (tmp_path / "1" / sweep_folder.SWEEP_FILE).write_text(json.dumps(one_for_all))
    assert sweep_folder.earlier_arrays(tmp_path / "1") == ["12"]


def test_jobs_of_every_attempt_count(tmp_path: Path) -> None:
    """Each attempt that comes so far launches all jobs; one that was cut off before has none of its own."""
    for number in (1, 2):
        (tmp_path / str(number)).mkdir()
        before = str(tmp_path / "1") if number > 1 else None
        (tmp_path / str(number) / sweep_folder.SWEEP_FILE).write_text(json.dumps({"before": before}))
    assert sweep_folder.size(tmp_path / "2") is None
    sweep_folder.note_jobs(tmp_path / "1", 12, ["3"])
    assert sweep_folder.size(tmp_path / "2") == 12
    sweep_folder.begin(tmp_path / "1")  # one folder for all: hydra.sweep.dir
    assert (sweep_folder.size(tmp_path / "1"), sweep_folder.arrays(tmp_path / "1")) == (12, ["3"])
    sweep_folder.note_jobs(tmp_path / "1", 12, ["4"])
    sweep_folder.begin(tmp_path / "1")
    assert (sweep_folder.size(tmp_path / "1"), sweep_folder.arrays(tmp_path / "1")) == (12, ["3", "4"])


def test_an_attempt_that_was_cut_off_early_leaves_the_sweep_as_far_as_it_was(
    open_run: Open, config: Any, store: Any, sweep: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed while it waited for the first one's jobs, which then came to their end."""
    sweep_folder.note_jobs(sweep.folder, 1, ["12"])
    second = tmp_path / "second"
    second.mkdir()
    (second / sweep_folder.SWEEP_FILE).write_text(json.dumps({"before": str(sweep.folder)}))
    store.client.set_tag(sweep.parent_run_id, FOLDER_TAG, str(second))
    monkeypatch.setattr(sweep_folder.queue, "is_installed", lambda: True)
    states: dict[str, str] | None = {"12_0": "PENDING"}
    monkeypatch.setattr(sweep_folder.queue, "states", lambda arrays: states)
    heal_all(store)
    assert status(store, sweep.parent_run_id) == "RUNNING"
    states = None  # Slurm does not answer
    heal_all(store)
    assert status(store, sweep.parent_run_id) == "RUNNING"
    states = {}
    tracker, folder = open_run(config, parent_run_id=sweep.parent_run_id, sweep_id="abc")
    tracker.finish("FINISHED")
    folder.finish("FINISHED")
    heal_all(store)
    assert status(store, sweep.parent_run_id) == "FINISHED"


def test_a_search_whose_launcher_is_gone_is_not_finished(open_run: Open, config: Any, store: Any, sweep: Sweep) -> None:
    """All trials that it asked for are; nobody asks for the others."""
    store.client.set_tag(sweep.parent_run_id, "search", "optuna")
    sweep_folder.note_jobs(sweep.folder, 1, [])
    tracker, folder = open_run(config, parent_run_id=sweep.parent_run_id, sweep_id="abc")
    tracker.finish("FINISHED")
    folder.finish("FINISHED")
    heal_all(store)
    assert status(store, sweep.parent_run_id) == "KILLED"


@pytest.mark.parametrize("note", [None, "first", "front"])
def test_search_and_sweep_name_the_same_run_as_the_best(
    open_run: Open, config: Any, store: Any, sweep: Sweep, note: str | None
) -> None:
    store.client.set_tag(sweep.parent_run_id, "search", "optuna")
    runs = []
    for trial in (0, 1, 2):  # equal values: the first trial; the newest run comes first from the store
        tracker, folder = open_run({**config, "seed": trial}, parent_run_id=sweep.parent_run_id, sweep_id="abc")
        tracker.log_tags({"trial": str(trial)})
        tracker.log_epoch(1, {"val/accuracy": 0.4 if trial == 0 else 0.5})
        tracker.finish("FINISHED")
        folder.finish("FINISHED")
        runs.append(tracker.run_id)
    # of a search for another objective
    best = {"first": runs[:1], "front": runs[:2]}.get(note or "")
    if best is not None:
        (sweep.folder / sweep_folder.SEARCH_NOTE).write_text(json.dumps({"lines": [], "best": best}))
    heal_all(store)
    tags = store.client.get_run(sweep.parent_run_id).data.tags
    assert tags.get("best_child") == {None: runs[1], "first": runs[0], "front": ""}[note]


# --- SQLite on network file systems ---

MOUNTS = r"""22 1 8:1 / / rw - ext4 /dev/sda1 rw
23 22 0:41 / /home rw - nfs4 server:/home rw
24 23 0:42 / /home/my\040disk rw - ext4 /dev/sdb1 rw
25 22 0:43 / /scratch rw - fuse.sshfs me@host: rw
"""


def test_network_file_systems_are_recognised(tmp_path: Path) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(MOUNTS)
    kinds = {"/home/me/mlflow.db": "nfs4", "/home/my disk/mlflow.db": None, "/homes/mlflow.db": None}
    kinds |= {"/scratch/a/b.db": "sshfs", "/tmp/mlflow.db": None}
    assert {path: network_disk.kind_of(Path(path), mounts) for path in kinds} == kinds
    assert network_disk.kind_of(tmp_path, tmp_path / "none") is None


def test_several_machines_are_answered_with_three_lines(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(network_disk, "kind_of", lambda path: "nfs4")
    with pytest.raises(TrackingError) as raised:
        network_disk.refuse_for_many("sqlite:////home/me/mlflow.db")
    lines = str(raised.value).splitlines()[1:]
    assert [Path(line.split()[0]).name for line in lines] == ["mlflow", "export", "snnexp"]
    network_disk.refuse_for_many("http://server:5000")
    network_disk.warn_of_one("sqlite:////home/me/mlflow.db")
    network_disk.warn_of_one("sqlite:////home/me/mlflow.db")
    assert caplog.text.count("mlflow server") == 1
