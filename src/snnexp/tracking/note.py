"""A run's description in MLflow's pages: what it was, what came out, the closing table, and its plots, in Markdown."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from urllib.parse import quote

from snnexp.tracking.local import MAX_TAG, LocalRecord

SUMMARY = "summary.txt"  # what the terminal showed at the end of the run
PLOTS = {
    "dead_neurons": "dead neurons per layer over epochs",
    "learning_curves": "loss and accuracy over epochs",
    "firing_rates": "how many neurons fire how often in the test pass",
    "raster": "every spike of one test sample",
    "confusion_matrix": "true against predicted classes",
    "threshold": "learned thresholds over epochs",
    "beta": "learned decays of the membrane over epochs",
    "alpha": "learned decays of the current over epochs",
    "delay": "learned delays over epochs",
}
SHOWN = ("dead_neurons", "learning_curves")  # as pictures, in the description itself


def run_note(local: LocalRecord, folder: Path, run_id: str) -> str:
    """The description of a run as far as it has come."""
    tags, params, history = local.tags, local.params, local.history()
    what = ", ".join(params.get(key, "?") for key in ("dataset.name", "neuron.name"))
    # once tested, only what belongs to the tested epoch stands beside the test
    finished = ("test/accuracy", "best/val_accuracy")
    keys = finished if "test/accuracy" in history else ("val/accuracy", "train/accuracy")
    results = [f"{key} {history[key][-1][1]:.4f}" for key in keys if key in history]
    parts = [f"**{what}, seed {params.get('seed', '?')}**" + (": " + ", ".join(results) if results else "")]
    command = tags.get("command") or f"snnexp {tags.get('overrides', '')}"  # runs of earlier versions have no command
    parts.append(f"`{command.strip()[:2000]}`")
    if SUMMARY in local.files and local.file(SUMMARY).is_file():
        parts.append(f"```\n{local.file(SUMMARY).read_text(encoding='utf-8')[:3500].rstrip()}\n```")
    if "split_hash" in tags:
        counts = ", ".join(f"{tags[f'samples.{s}']} {s}" for s in ("train", "val", "test") if f"samples.{s}" in tags)
        partial = "" if tags.get("complete") == "true" else " (not the complete data set)"
        parts.append(f"Samples: {counts}{partial}. Split `{tags['split_hash'][:12]}`.")
    parts += _plots(local, run_id)
    parts.append(f"Folder: `{folder}`")
    return "\n\n".join(parts)[:MAX_TAG]


def _plots(local: LocalRecord, run_id: str) -> list[str]:
    """Two of them as pictures, and the names of all; the address is relative, since nobody knows where it is served."""
    names = [PurePosixPath(name).stem for name in local.files if name.startswith("plots/") and name.endswith(".png")]
    if not names:
        return []
    pictures = [
        f"![{PLOTS[name]}](get-artifact?path={quote(f'plots/{name}.png', safe='')}&run_uuid={run_id})"
        for name in SHOWN
        if name in names
    ]
    listed = [f"* `{name}`: {PLOTS.get(name, PLOTS.get(name.partition('_')[0], name))}" for name in names]
    return [" ".join(pictures), "Plots (in *Artifacts*, `plots/`, as PNG and PDF):", "\n".join(listed)]
