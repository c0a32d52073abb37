"""From run folders to the JSON file of a claim: every number with its command, commit and data."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from snnexp.atomic import write_atomically
from snnexp.claims.conf import ClaimConf
from snnexp.claims.judge import Run, quantity
from snnexp.tracking.identity import run_identity
from snnexp.tracking.metrics_log import MetricsLog
from snnexp.tracking.runs import ATTEMPT, read_record

log = logging.getLogger(__name__)

# Beside the metrics that a claim names: what one looks at when a number surprises.
CURVES = (
    "*/accuracy",
    "val/dead_fraction/*",
    "val/gradient_dead/*",
    "val/dead_fraction_batch/*",
    "*/mean/*",
    "time/epoch_s",
)
FACTS: tuple[str, ...] = ("device", "device_name", "engine", "threads", "cpu_capability")
FACTS += ("data_fingerprint", "split_hash", "snnexp.version")


def find_finished(cfg: dict[str, Any], state_dir: Path) -> Path | None:
    """Folder of the newest finished run of this configuration."""
    home = state_dir / f"{cfg['dataset']['name']}-{cfg['neuron']['name']}-{run_identity(cfg)}"
    if not home.is_dir():
        return None
    for path in sorted((p for p in home.iterdir() if ATTEMPT.fullmatch(p.name)), key=lambda p: -int(p.name)):
        record = read_record(path)
        if record is not None and record.whole:
            return path
    return None


def read_run(folder: Path, arm: str, seed: int, command: str, claim: ClaimConf) -> Run:
    """What the claim needs of a finished run."""
    record = json.loads((folder / "record.json").read_text(encoding="utf-8"))
    tags: Mapping[str, str] = record["tags"]
    history = MetricsLog(folder / "metrics.jsonl").history()
    named = {quantity(claim, value).metric for value in claim.values}
    named |= {quantity(claim, compare).metric for compare in claim.compare}
    named |= {curve.metric or claim.metric for curve in claim.curves}
    curves = {
        name: [[step, _rounded(value)] for step, value in points]
        for name, points in sorted(history.items())
        if len(points) > 1 and (name in named or any(fnmatch(name, pattern) for pattern in CURVES))
    }
    seconds = sum(value for _, value in history.get("time/epoch_s", []))
    epochs = max((step for step, _ in history.get("time/epoch_s", [])), default=0)
    return Run(
        arm=arm,
        seed=seed,
        command=command,
        commit=tags.get("git.commit", "unknown"),
        dirty=tags.get("git.dirty") != "false",
        samples={key.removeprefix("samples."): int(n) for key, n in tags.items() if key.startswith("samples.")},
        complete=tags.get("complete", "").lower() == "true" and not _limited(record["params"]),
        epochs=int(epochs),
        seconds=round(seconds, 1),
        metrics={name: _rounded(points[-1][1]) for name, points in sorted(history.items())},
        curves=curves,
        facts={key: tags[key] for key in FACTS if key in tags} | _names(record["params"]),
    )


def _names(params: Mapping[str, str]) -> dict[str, str]:
    """What a figure's title says: the data set and the neuron."""
    return {group: params[f"{group}.name"] for group in ("dataset", "neuron") if f"{group}.name" in params}


def _limited(params: Mapping[str, str]) -> bool:
    """Whether the command used fewer samples or batches than there are."""
    keys = ("dataset.limit_train", "dataset.limit_val", "dataset.limit_test", "trainer.smoke_steps")
    return any(params.get(key, "null") != "null" for key in keys)


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")


def on_the_same_data(runs: Sequence[Run]) -> list[Run]:
    """The runs on the data that most of them saw; runs on other data are left out, and it is said."""
    prints = [str(run.facts.get("data_fingerprint", "")) for run in runs]
    if len(set(prints)) <= 1:
        return list(runs)
    chosen = max(set(prints), key=prints.count)
    log.warning("%d of %d runs were made on other data and are left out", len(prints) - prints.count(chosen), len(runs))
    return [run for run, which in zip(runs, prints, strict=True) if which == chosen]


def write_results(path: Path, content: dict[str, Any]) -> None:
    """Write the JSON file, atomically; short lists stay on one line, so that a diff shows what has changed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, _compact(content) + "\n")


def read_results(path: Path) -> tuple[dict[str, Any], ClaimConf, list[Run]]:
    """The file as it is, its claim, and its runs."""
    from omegaconf import OmegaConf

    content = json.loads(path.read_text(encoding="utf-8"))
    claim = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(ClaimConf), content["claim"]))
    assert isinstance(claim, ClaimConf)
    return content, claim, [Run(**run) for run in content["runs"]]


def runs_as_dicts(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Plain containers for JSON."""
    return [asdict(run) for run in runs]


def _compact(value: Any, indent: int = 0) -> str:
    pad = " " * (indent + 1)
    if isinstance(value, dict) and value and len(json.dumps(value)) > 100:
        items = [f"{pad}{json.dumps(key)}: {_compact(item, indent + 1)}" for key, item in value.items()]
        return "{\n" + ",\n".join(items) + "\n" + " " * indent + "}"
    if isinstance(value, list) and value and any(isinstance(item, dict) for item in value):
        return "[\n" + ",\n".join(pad + _compact(item, indent + 1) for item in value) + "\n" + " " * indent + "]"
    return json.dumps(value)
