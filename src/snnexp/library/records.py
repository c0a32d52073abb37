"""`snnexp.runs`: all runs as a pandas table, from the MLflow store and from the runs' own folders."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from snnexp import collector
from snnexp.tracking.address import resolve_experiment, resolve_uri
from snnexp.tracking.identity import is_bookkeeping
from snnexp.tracking.local import read_local, with_group_names
from snnexp.tracking.metrics_log import read_history
from snnexp.tracking.mlflow_store import Store, connect
from snnexp.tracking.queries import ROLE_TAG, search_all
from snnexp.tracking.runs import read_record, run_folders

if TYPE_CHECKING:
    import pandas as pd

FIRST = ("run_id", "status", "started", "folder", "dataset", "neuron", "model", "seed", "test/accuracy")
TAGS = (
    "best_epoch",
    "data_fingerprint",
    "diagnosis",
    "engine",
    "git.commit",
    "pruned",
    "sweep_id",
)  # no parameter is called so


def runs(
    experiment: str | None = None, *, state_dir: str | Path = "./runs", tracking_uri: str | None = None
) -> pd.DataFrame:
    """One row per run, newest first, without the parents of sweeps.

        table = snnexp.runs()
        table[table.status == "FINISHED"].groupby("neuron")["test/accuracy"].agg(["mean", "std", "count"])

    Rows are the runs of `experiment` in the store, and those below `state_dir` that are in no store (tracking=off, or a
    store that was away).

    Args:
        experiment: in the store; None: $MLFLOW_EXPERIMENT_NAME, else snnexp.
        state_dir: where runs' folders lie.
        tracking_uri: None: $MLFLOW_TRACKING_URI, else sqlite:///mlflow.db in the current folder; "off": no store.
    Returns: columns run_id (or the name that `load` takes), status, started (UTC), folder (if it is here), then
        the parameters that can change a number by dotted key and group (`neuron.beta`, `neuron`), the last value of
        every metric (`test/accuracy`, `test/dead_fraction/sn1`), and some tags. Numbers, true, false and null are what
        they say.
    Raises: TrackingError if the store cannot be reached.
    """
    with collector.lent():
        import pandas as pd

        state_dir = Path(state_dir).expanduser().resolve()
        rows = list(_from_folders(state_dir))
        if tracking_uri != "off":
            store = connect(resolve_uri(tracking_uri, Path.cwd()), resolve_experiment(experiment), create=False)
            here = {row["run_id"]: row["folder"] for row in rows}
            stored = [] if store is None else list(_from_store(store, here))
            known = {row["run_id"] for row in stored}
            rows = [*stored, *(row for row in rows if row["_off"] and row["run_id"] not in known)]
    # a folder's record knows its start to the second: attempts of one second go by their number
    rows.sort(key=lambda row: (row["started"], row["folder"] or ""), reverse=True)
    names = {name for row in rows for name in row} - {"_off"}
    rest = sorted(names - set(FIRST), key=lambda name: ("/" in name, name))
    return pd.DataFrame(rows, columns=[*FIRST, *rest])


def _from_store(store: Store, folders: dict[str, str]) -> Iterator[dict[str, Any]]:
    for run in search_all(store):
        tags = run.data.tags
        if ROLE_TAG in tags:
            continue
        yield {
            **_described(run.data.params, tags),
            **run.data.metrics,
            "run_id": run.info.run_id,
            "status": run.info.status,
            "started": datetime.fromtimestamp(run.info.start_time / 1000, UTC),
            "folder": folders.get(run.info.run_id),
        }


def _from_folders(state_dir: Path) -> Iterator[dict[str, Any]]:
    for folder in run_folders(state_dir):
        record, local = read_record(folder, quiet=True), read_local(folder)
        if record is None or local is None:
            continue
        params, tags = local
        yield {
            **_described(params, tags),
            **{name: points[-1][1] for name, points in read_history(folder / "metrics.jsonl").items()},
            "run_id": record.mlflow_run_id or f"{folder.parent.name}/{folder.name}",
            "status": record.status,
            "started": datetime.fromisoformat(record.created),
            "folder": str(folder),
            "_off": record.mlflow_run_id is None or record.unsent,
        }


def _described(params: Mapping[str, str], tags: Mapping[str, str]) -> dict[str, Any]:
    """What can change a number, and some tags."""
    values = {key: _value(text) for key, text in with_group_names(params).items() if not is_bookkeeping(key)}
    return {**values, **{key: tags[key] for key in TAGS if key in tags}}


def _value(text: str) -> Any:
    """What the command line would read: a parameter is kept as text."""
    if text in ("true", "false", "null"):
        return {"true": True, "false": False, "null": None}[text]
    if re.fullmatch(r"[+-]?\d+", text):
        return int(text)
    try:
        return float(text)
    except ValueError:
        return text
