"""A sweep (`-m`) is one parent run with the jobs' runs as its children.

The parent is made in the main process before any job starts, and its id is left in the sweep's folder, where jobs of
any launcher find it: in the same process, in joblib's workers, in a cluster's. A sweep that is run again continues its
old parent, found by the sweep id: a hash of what the user asked for.
"""

from __future__ import annotations

import atexit
import hashlib
import json
import logging
import os
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback

from snnexp import interrupts, ranks
from snnexp.atomic import write_atomically
from snnexp.commands import command_line, option_folders
from snnexp.errors import SnnexpError
from snnexp.search.conf import search_identity, search_of
from snnexp.terminal import wrapped
from snnexp.tracking import sweep_folder
from snnexp.tracking.identity import is_bookkeeping
from snnexp.tracking.provenance import code_tags
from snnexp.tracking.queries import ROLE_TAG
from snnexp.tracking.sweep_folder import SKIPPED_FOLDER, SWEEP_FILE
from snnexp.tracking.sweep_pages import Pages, sweep_pages

log = logging.getLogger(__name__)

FOLDER_TAG = "sweep_folder"
SEARCH_TAG = "search"  # of a parent whose runs are trials
SUMMARY = ("test/accuracy", "test/loss", "val/accuracy")


@dataclass(frozen=True)
class Sweep:
    """The sweep that a job belongs to; without a parent run (`tracking=off`) both ids are None."""

    folder: Path
    parent_run_id: str | None = None
    sweep_id: str | None = None

    def record_skip(self, run_id: str | None) -> None:
        """Let the parent's summary count a finished run that this sweep did not need to repeat."""
        if run_id is not None:
            (self.folder / SKIPPED_FOLDER).mkdir(parents=True, exist_ok=True)
            (self.folder / SKIPPED_FOLDER / run_id).touch()


def current_sweep(folder: Path | None = None) -> Sweep | None:
    """The sweep that the current Hydra job belongs to, or None in a single run.

    `folder` is the sweep's folder; by default Hydra knows it.
    """
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    if not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN:
        return None
    hydra = HydraConfig.get()
    folder = Path(hydra.runtime.cwd) / (folder or hydra.sweep.dir)
    values = sweep_folder.read(folder)
    return Sweep(folder, values.get("run_id"), values.get("sweep_id"))


def sweep_id(overrides: list[str], params: dict[str, Any] | None = None) -> str:
    """12 hex digits of what was asked for: task overrides and the sweeper's own parameters, in any order.

    Bookkeeping (tracking.uri, trainer.resume, ...) does not count, so `-m ... trainer.resume=never` is the same sweep.
    """
    asked = [text for text in overrides if not is_bookkeeping(text.partition("=")[0].lstrip("+~"))]
    asked += [f"{key}={value}" for key, value in (params or {}).items() if not is_bookkeeping(str(key))]
    return hashlib.sha256("\n".join(sorted(asked)).encode()).hexdigest()[:12]


def sweep_id_of(config: Any) -> str:
    """The id of the sweep that a composed configuration is for; a search is another one than a sweep over the same."""
    from omegaconf import OmegaConf

    params = OmegaConf.select(config, "hydra.sweeper.params")
    search = search_of(config)
    asked = {"hydra/sweeper": search_identity(search)} if search is not None else {}
    return sweep_id(list(config.hydra.overrides.task), {**(dict(params) if params else {}), **asked})


class SweepParent(Callback):
    """Hydra callback that opens and closes the parent run. It holds plain values only: joblib pickles it."""

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._open: dict[str, str] | None = None  # run_id, uri, experiment, folder
        self._jobs: Counter[str] = Counter()

    def on_multirun_start(self, config: Any, **_: Any) -> None:
        """Make (or find) the parent run and leave its id in the sweep's folder.

        An unreachable store ends the sweep here with the message and exit code of a single run; Hydra would turn an
        ordinary exception of a callback into a warning and let every job find out by itself.
        """
        try:
            ranks.refuse(config.task, sweeps=True)
            if search_of(config) is not None:
                from snnexp.search.preparing import prepare  # imports numpy

                prepare(config, sweep_id_of(config))
            if config.tracking.name == "off" or config.task != "train":
                return
            self._start(config)
        except SnnexpError as error:
            if ranks.note_failure(error.exit_code) is None:
                print(f"snnexp: error: {error}", file=sys.stderr, flush=True)
            raise SystemExit(error.exit_code) from error
        # on_multirun_end is not called after a failed job or Ctrl-C
        atexit.register(self._close, complete=False)

    def on_job_start(self, config: Any, **_: Any) -> None:
        """Count jobs; other processes' copies count for nobody."""
        self._jobs["started"] += 1

    def count(self, started: int, failed: int, left: int = 0) -> None:
        """Jobs that a launcher ran in other processes; left: those that were cut off, which a search lives through."""
        self._jobs.update(started=started, failed=failed, left=left)

    def on_job_end(self, config: Any, job_return: Any, **_: Any) -> None:
        """Count jobs and failures; not called for a job that Ctrl-C ended."""
        from hydra.core.utils import JobStatus

        if job_return.status == JobStatus.FAILED:
            self._jobs["failed"] += 1

    def on_multirun_end(self, config: Any, **_: Any) -> None:
        """Close the parent run of a sweep whose jobs all came to an end, or whose search went on without them."""
        self._close(complete=not self._jobs["left"])

    def _start(self, config: Any) -> None:
        from snnexp.tracking.address import resolve_experiment, resolve_uri
        from snnexp.tracking.mlflow_store import connect
        from snnexp.tracking.unsent import send_unsent

        cwd = Path(config.hydra.runtime.cwd)
        uri = resolve_uri(config.tracking.uri, cwd)
        store = connect(uri, resolve_experiment(config.tracking.experiment))
        assert store is not None  # create=True
        send_unsent(cwd / Path(config.state_dir).expanduser(), store)  # of runs that this sweep will skip as finished
        overrides = list(config.hydra.overrides.task)
        identity = sweep_id_of(config)
        found = store.client.search_runs(
            [store.experiment_id],
            f"tags.sweep_id = '{identity}' and tags.`{ROLE_TAG}` = 'sweep'",
            max_results=1,
            order_by=["attributes.start_time DESC"],
        )
        folder = cwd / config.hydra.sweep.dir
        folder.mkdir(parents=True, exist_ok=True)
        sweep_folder.hold_launcher_lock(folder)
        sweep_folder.begin(folder)
        before = None
        if found:
            run_id = str(found[0].info.run_id)
            before = found[0].data.tags.get(FOLDER_TAG)
            store.client.update_run(run_id, status="RUNNING")
            store.client.set_tag(run_id, FOLDER_TAG, str(folder))
        else:
            command = command_line(["-m", *option_folders(config.hydra), *_of_sweeper(config), *overrides])
            tags = {
                ROLE_TAG: "sweep",
                "sweep_id": identity,
                FOLDER_TAG: str(folder),
                "overrides": " ".join(overrides)[:8000],
                **({SEARCH_TAG: "optuna"} if search_of(config) is not None else {}),
                "mlflow.source.type": "LOCAL",
                "mlflow.source.name": "snnexp",
                "command": command[:5000],
                "mlflow.note.content": f"`{command[:5000]}`",
                **code_tags(),
            }
            name = ("sweep " + " ".join(overrides))[:100]
            run_id = str(store.client.create_run(store.experiment_id, tags=tags, run_name=name).info.run_id)
        names = {"run_id": run_id, "sweep_id": identity, "uri": uri, "experiment": store.experiment}
        write_atomically(folder / SWEEP_FILE, json.dumps({**names, "before": before}) + "\n")
        self._open = {**names, "folder": str(folder)}

    def _close(self, complete: bool) -> None:
        opened = self._open
        if opened is None or os.getpid() != self._pid:
            return
        self._open = None
        try:
            lines = close_parent(opened, complete, self._jobs, interrupted=interrupts.cause() is not None)
        except Exception as error:  # at exit: the runs themselves are safe, and there is nobody to catch it
            log.warning("The sweep's parent run could not be closed: %s", error)
            return
        print("\n".join(map(shown, lines)), flush=True)


def shown(line: str) -> str:
    """For the terminal; an address or a command, which stands below its title, stays whole: it is to be copied."""
    title, newline, copied = line.partition("\n")
    return wrapped(title) + newline + copied


def close_parent(opened: dict[str, str], complete: bool, jobs: Counter[str], interrupted: bool = True) -> list[str]:
    """Write the children's summary and the final status on the parent; returns the lines to show at the end.

    The best child is the one with the best validation accuracy, the first of several; of a search that came to its end
    the one that it names. Its test accuracy is reported, not selected by.

    interrupted: what was not completed was ended from outside; else by an error.
    """
    from snnexp.tracking.mlflow_store import connect
    from snnexp.tracking.queries import PRUNED_TAG, best_value, is_whole, search_all

    store = connect(opened["uri"], opened["experiment"])
    assert store is not None
    client, parent = store.client, opened["run_id"]
    children = search_all(store, f"tags.`mlflow.parentRunId` = '{parent}'")
    known = {run.info.run_id for run in children}
    skipped = Path(opened["folder"]) / SKIPPED_FOLDER
    if skipped.is_dir():
        children += _found(client, [path.name for path in sorted(skipped.iterdir()) if path.name not in known])
    counts = Counter(str(run.info.status) for run in children)
    folder = Path(opened["folder"])
    going_on = _going_on(folder, complete, counts["RUNNING"])

    asked = client.get_run(parent).data.tags
    closings = int(asked.get("closings", "0")) + 1
    metrics = {f"children/{word.lower()}": float(counts[word]) for word in ("FINISHED", "FAILED", "KILLED")}
    if pruned := sum(bool(run.data.tags.get(PRUNED_TAG)) for run in children):
        metrics["children/pruned"] = float(pruned)
    tags = {"closings": str(closings)}
    searched = SEARCH_TAG in asked
    note = _search_note(folder) if searched else {}
    lines = _how_it_ended(counts, complete, jobs, going_on, pruned, interrupted)
    scored = [(best_value(store, run, "val/accuracy"), run) for run in children if is_whole(run)]
    ranked = ranking([(score, run) for score, run in scored if score is not None])
    if "best" in note:  # of a front nobody is the best
        ranked = [(score, run) for score, run in ranked if [run.info.run_id] == note["best"]]
        tags |= {"best_child": "", "best_child_overrides": ""}
    if ranked:
        best = ranked[0][1]
        values = {key: best.data.metrics[key] for key in SUMMARY if key in best.data.metrics}
        values["val/accuracy"] = ranked[0][0]
        # under a name of their own: the mean of `metrics.test/accuracy` over an experiment must not count a run twice
        metrics.update({f"best_child/{key}": value for key, value in values.items()})
        tags["best_child"] = best.info.run_id
        tags["best_child_overrides"] = best.data.tags.get("overrides", "")
        results = ", ".join(f"{key} {values[key]:.4f}" for key in ("val/accuracy", "test/accuracy") if key in values)
        lines.append(f"Best{'' if searched else ' on validation'}: {best.info.run_name}: {results}")
    # a search's trials, ordered by what they reached on test, would ask to be selected by it
    table = [] if searched else _means([(run, score) for score, run in scored])
    pages = sweep_pages(store, opened, children)
    said = note.get("lines", []) if searched else table
    tags["mlflow.note.content"] = _note(asked, lines, said, pages)
    for key, number in metrics.items():
        client.log_metric(parent, key, number, step=closings)
    for key, text in tags.items():
        client.set_tag(parent, key, text)
    status = "RUNNING" if going_on is None or going_on else _status(complete, counts, jobs)
    if status == "FAILED" and searched and counts["FINISHED"]:
        status = "FINISHED" if complete else "KILLED"  # a search goes on without what failed
    if status == "RUNNING":
        client.update_run(parent, status=status)
    else:
        client.set_terminated(parent, status)
    return [*lines, *table, *pages.lines]


def _of_sweeper(config: Any) -> list[str]:
    """What was typed about a sweeper that is not Hydra's own."""
    if search_of(config) is None:
        return []
    return [word for word in config.hydra.overrides.hydra if word.startswith(("hydra/sweeper=", "hydra.sweeper."))]


def _going_on(folder: Path, complete: bool, running: int) -> int | None:
    """How many of its jobs run or wait, whoever launched them; None: Slurm does not say."""
    if sweep_folder.size(folder) is None:
        running = 0  # they ran one by one in the launcher's process
    waiting = [] if complete else sweep_folder.queued(folder)
    return None if waiting is None else running + len(waiting)


def ranking(scored: list[tuple[float, Any]]) -> list[tuple[float, Any]]:
    """Values and their runs, the best first; of equal ones the trial with the lowest number, or the run begun first."""

    def order(pair: tuple[float, Any]) -> tuple[float, int, int]:
        trial = pair[1].data.tags.get("trial", "")
        return -pair[0], int(trial) if trial.isdigit() else 0, int(pair[1].info.start_time or 0)

    return sorted(scored, key=order)


def _search_note(folder: Path) -> dict[str, Any]:
    """What the search wrote at its end: lines, and the runs of the best trial or the front. Empty: it was cut off."""
    note = sweep_folder.read(folder, sweep_folder.SEARCH_NOTE)
    return note if isinstance(note, dict) else {"lines": note}  # of an older version


def _how_it_ended(
    counts: Counter[str],
    complete: bool,
    jobs: Counter[str],
    going_on: int | None,
    pruned: int,
    interrupted: bool = True,
) -> list[str]:
    """Children by status, those without a record, and what was left by whatever ended it.

    going_on: jobs that run or wait; None: Slurm does not say.
    """
    if not counts and not jobs["failed"] and going_on == 0:
        if not complete and not interrupted:
            return ["Sweep: it ended with an error before its first run began: see above."]
        how = "it had nothing to run" if complete else "it was interrupted before its first run began"
        return [f"Sweep: {how}. The same command starts it."]
    line = f"Sweep: {counts['FINISHED']} finished{f' ({pruned} of them pruned)' if pruned else ''}"
    line += f", {counts['FAILED']} failed, {counts['KILLED']} killed"
    if counts["RUNNING"]:
        line += f", {counts['RUNNING']} still running"
    lines = [line + "."]
    unrecorded = jobs["failed"] - counts["FAILED"]
    if unrecorded > 0:
        what = "run ended with an error before it" if unrecorded == 1 else "runs ended with errors before they"
        lines.append(f"{unrecorded} more {what} began, and left no record: see above.")
    if going_on is None:
        lines.append("Slurm does not answer (squeue), so jobs may run or wait in it, and go on by themselves.")
    elif going_on:
        lines.append(f"{going_on} of its jobs run or wait, and go on by themselves.")
    elif not complete and not jobs["failed"]:
        how = "was interrupted" if interrupted else "ended with an error (see above)"
        lines.append(f"It {how}; the same command goes on with what is left.")
    return lines


def _means(finished: list[tuple[Any, float | None]]) -> list[str]:
    """Means and sd over seeds of each setting, paired differences, and what else differed between the settings."""
    from snnexp.analysis.comparison import also_differs, paired
    from snnexp.analysis.seeds import as_result, group_runs, rows

    newest_first = sorted(finished, key=lambda pair: -int(pair[0].info.start_time or 0))
    if len(finished) < 2:
        return []
    groups = group_runs([as_result(run, score) for run, score in newest_first])
    header, cells = rows(groups)
    table = [[*row[:-1]] for row in (header, *cells)]  # without the run ids
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]
    return [*lines, *paired(groups), *also_differs(groups)]


def _note(tags: dict[str, str], lines: list[str], table: list[str], pages: Pages) -> str:
    """The parent's description, in Markdown: the command, how it ended, the means, and links within the pages."""
    parts = [f"`{tags['command']}`"] if "command" in tags else []
    parts += [" ".join(lines), *pages.markdown]
    if table:
        parts.append("\n".join(["```", *table, "```"]))
    return "\n\n".join(parts)[:8000]


def _found(client: Any, run_ids: list[str]) -> list[Any]:
    """The runs that are in this store: one that was skipped may have its record in another."""
    from mlflow.exceptions import MlflowException

    runs = []
    for run_id in run_ids:
        try:
            runs.append(client.get_run(run_id))
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
    return runs


def _status(complete: bool, counts: Counter[str], jobs: Counter[str]) -> str:
    if counts["FAILED"] or jobs["failed"]:
        return "FAILED"
    if complete:
        return "FINISHED"
    # jobs that ran in this process would have been counted if they had failed, so it was Ctrl-C between two of them
    cut_off = counts["KILLED"] or counts["RUNNING"] or jobs["started"]
    return "KILLED" if cut_off else "FAILED"
