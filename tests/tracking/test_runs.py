"""Which folder a command gets: the decisions of `claim`, with real processes behind the locks."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from snnexp.errors import ConfigError
from snnexp.tracking.runs import RunFolder, claim, read_record

HOLD = """
import json, sys
from snnexp.tracking.runs import claim
folder = claim(json.loads(sys.argv[1]), sys.argv[2], *sys.argv[3:])
print(folder.action, folder.path, flush=True)
sys.stdin.read()
"""


@contextmanager
def other_process(config: dict[str, Any], state_dir: Path, *more: str) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """A live process that has claimed the run; killed with SIGKILL at the end."""
    arguments = [sys.executable, "-c", HOLD, json.dumps(config), str(state_dir), *more]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            action, _, path = process.stdout.readline().strip().partition(" ")
            assert action in ("new", "resume")
            yield process, Path(path)
        finally:
            process.kill()


def test_a_first_run_gets_attempt_001(config: dict[str, Any], tmp_path: Path) -> None:
    folder = claim(config, tmp_path)
    record = read_record(folder.path)
    assert record is not None
    assert (folder.action, folder.path.name, record.status, record.pid) == ("new", "001", "RUNNING", os.getpid())
    assert folder.path.parent.name == f"digits-fixed-{record.identity}"
    folder.finish("FINISHED")


def test_a_finished_run_is_followed_by_a_new_attempt(config: dict[str, Any], tmp_path: Path) -> None:
    claim(config, tmp_path).finish("FINISHED")
    second = claim(config, tmp_path)
    assert (second.action, second.attempt) == ("new", 2)
    second.finish("FINISHED")


@pytest.mark.parametrize("status", ["FAILED", "KILLED"])
def test_an_unfinished_run_is_continued(config: dict[str, Any], tmp_path: Path, status: Any) -> None:
    first = claim(config, tmp_path)
    first.update(mlflow_run_id="abc", tracking_uri="sqlite:///x.db")
    first.finish(status)
    again = claim(config, tmp_path)
    assert (again.action, again.path, again.record.mlflow_run_id) == ("resume", first.path, "abc")
    assert read_record(again.path).status == "RUNNING"  # type: ignore[union-attr]
    again.finish("FINISHED")


def test_another_seed_is_another_run(config: dict[str, Any], tmp_path: Path) -> None:
    claim(config, tmp_path).finish("KILLED")
    other = claim({**config, "seed": 1}, tmp_path)
    assert (other.action, other.attempt) == ("new", 1)
    other.finish("FINISHED")


def test_a_process_killed_with_sigkill_leaves_a_run_to_continue(config: dict[str, Any], tmp_path: Path) -> None:
    with other_process(config, tmp_path) as (process, path):
        pass
    assert process.returncode == -9
    assert read_record(path).status == "RUNNING"  # type: ignore[union-attr]
    folder = claim(config, tmp_path)
    assert (folder.action, folder.path, folder.record.pid) == ("resume", path, os.getpid())
    folder.finish("FINISHED")


def test_a_live_process_is_named_in_the_error(config: dict[str, Any], tmp_path: Path) -> None:
    with other_process(config, tmp_path) as (process, path):
        with pytest.raises(ConfigError) as error:
            claim(config, tmp_path)
        assert str(process.pid) in str(error.value)
        assert str(path) in str(error.value)
        assert "trainer.resume=never" in str(error.value)


def test_resume_never_runs_beside_a_live_process_and_after_an_unfinished_one(
    config: dict[str, Any], tmp_path: Path
) -> None:
    with other_process(config, tmp_path):
        second = claim(config, tmp_path, "never")
        assert (second.action, second.attempt) == ("new", 2)
        second.finish("KILLED")
    third = claim(config, tmp_path, "never")
    assert (third.action, third.attempt) == ("new", 3)
    third.finish("FINISHED")


def test_the_same_process_counts_as_live_too(config: dict[str, Any], tmp_path: Path) -> None:
    first = claim(config, tmp_path)
    with pytest.raises(ConfigError, match=str(os.getpid())):
        claim(config, tmp_path)
    first.finish("FINISHED")


def test_the_newest_unfinished_attempt_is_continued(config: dict[str, Any], tmp_path: Path) -> None:
    for _ in range(2):
        claim(config, tmp_path, "never").finish("KILLED")
    folder = claim(config, tmp_path)
    assert folder.attempt == 2
    folder.finish("FINISHED")
    new = claim(config, tmp_path)  # not back to 001, which may be the damaged one that 002 was begun to leave behind
    assert (new.action, new.attempt) == ("new", 3)
    new.finish("FINISHED")
    assert claim(config, tmp_path, in_sweep=True).attempt == 3


def test_attempts_are_counted_as_numbers(config: dict[str, Any], tmp_path: Path) -> None:
    first = claim(config, tmp_path)
    first.finish("FINISHED")
    first.path.rename(first.path.with_name("999"))
    folder = claim(config, tmp_path)
    assert folder.path.name == "1000"
    folder.finish("FINISHED")
    assert claim(config, tmp_path).path.name == "1001"


def test_a_sweep_skips_what_is_finished_only(config: dict[str, Any], tmp_path: Path) -> None:
    first = claim(config, tmp_path, in_sweep=True)
    assert first.action == "new"
    first.finish("FAILED")
    retried = claim(config, tmp_path, in_sweep=True)
    assert retried.action == "resume"
    retried.update(mlflow_run_id="abc", tracking_uri="sqlite:///x.db")
    retried.finish("FINISHED")
    skipped = claim(config, tmp_path, in_sweep=True)
    assert skipped.action == "skip"
    assert "abc" in skipped.skip_reason
    skipped.finish("FAILED")  # the caller's `finally` must not undo what is finished
    assert read_record(first.path).status == "FINISHED"  # type: ignore[union-attr]
    assert claim(config, tmp_path, "never", in_sweep=True).action == "new"


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"identity": "x", "status": "DONE"}', '{"status": "FAILED"}', "\x00\x01"]
)
def test_a_damaged_record_is_named_and_left_alone(
    config: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str
) -> None:
    first = claim(config, tmp_path)
    first.finish("FINISHED")
    (first.path / "run.json").write_text(text)
    with caplog.at_level(logging.WARNING):
        second = claim(config, tmp_path)
    assert (second.action, second.attempt) == ("new", 2)
    assert str(first.path / "run.json") in caplog.text
    assert (first.path / "run.json").read_text() == text
    second.finish("FINISHED")


def test_a_folder_without_a_record_is_passed_over(config: dict[str, Any], tmp_path: Path) -> None:
    first = claim(config, tmp_path)
    first.finish("FAILED")
    (first.path / "run.json").unlink()
    assert claim(config, tmp_path).attempt == 2


def test_finish_writes_once(config: dict[str, Any], tmp_path: Path) -> None:
    folder = claim(config, tmp_path)
    folder.finish("KILLED")
    folder.finish("FAILED")
    assert read_record(folder.path).status == "KILLED"  # type: ignore[union-attr]


def test_update_refuses_unknown_fields(config: dict[str, Any], tmp_path: Path) -> None:
    folder = claim(config, tmp_path)
    with pytest.raises(AttributeError, match="colour"):
        folder.update(colour="blue")
    folder.finish("FINISHED")


def test_a_state_dir_that_cannot_be_made(config: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"state_dir=.*file/runs.*cannot write"):
        claim(config, tmp_path / "file" / "runs")


def test_one_of_three_processes_gets_an_interrupted_run(config: dict[str, Any], tmp_path: Path) -> None:
    interrupted = claim(config, tmp_path)
    interrupted.finish("KILLED")
    script = HOLD.replace("sys.stdin.read()", "sys.stdin.readline()")
    arguments = [sys.executable, "-c", script, json.dumps(config), str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(arguments, **pipes) for _ in range(3)]  # type: ignore[call-overload]
    # each either prints its line and waits, or ends with the error: so reading one line of each ends the race
    lines = [process.stdout.readline().strip() for process in processes]
    errors = [process.communicate("\n")[1] for process in processes]
    assert sorted(lines) == ["", "", f"resume {interrupted.path}"]
    assert sum("ConfigError" in error for error in errors) == 2


def test_paths(config: dict[str, Any], tmp_path: Path) -> None:
    folder: RunFolder = claim(config, tmp_path)
    assert {path.parent for path in (folder.state, folder.best, folder.last, folder.metrics_path)} == {folder.path}
    folder.finish("FINISHED")
