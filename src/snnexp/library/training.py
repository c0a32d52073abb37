"""`snnexp.train`: one run from Python, as `snnexp ...` does it on the command line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from snnexp import ranks
from snnexp.errors import ConfigError, SnnexpError
from snnexp.library.borrowed import borrowed_process
from snnexp.library.composing import as_overrides, composed
from snnexp.tracking.metrics_log import History, read_history

if TYPE_CHECKING:
    from snnexp.library.net import Net


@dataclass(frozen=True)
class Run:
    """A run that has been trained. Its record is the same as the command's: in the store, and in its folder.

    Attributes:
        folder: its folder below state_dir.
        run_id: of the MLflow run; None with tracking=off.
        history: metric name -> (epoch, value) from epoch 0, the untrained network, on.
    """

    folder: Path
    run_id: str | None
    history: History

    @property
    def metrics(self) -> dict[str, float]:
        """The last value of every metric: `run.metrics["test/accuracy"]`."""
        return {name: points[-1][1] for name, points in self.history.items()}

    def load(self, checkpoint: str = "best", device: str = "cpu") -> Net:
        """The trained network. Own code that it needs was imported for training already."""
        from snnexp.library.loading import load

        return load(self, checkpoint=checkpoint, device=device, trust_code=True)


def train(overrides: str | Sequence[str] = (), *, progress: bool = True, config_dir: str | Path | None = None) -> Run:
    """Train, test once, and leave the same record as the command line with the same overrides.

        run = snnexp.train(["dataset=digits", "neuron=rouser", "trainer.max_epochs=5"])

    It continues an unfinished run of the same configuration, as the command does. Ctrl-C (a notebook's stop button)
    marks the run KILLED and raises KeyboardInterrupt; the same call continues it. Signal handlers, random numbers,
    Hydra's and torch's global settings are afterwards what they were.

    Args:
        overrides: as on the command line, without flags; one word alone is a data set. Sweeps: call once for each run.
        progress: show a line per epoch, and the table at the end.
        config_dir: a folder of configuration files of your own, as --config-dir.
    Raises: ConfigError, DataError, TrackingError, TrainingError with the command's message; nothing ends the process.
    """
    if ranks.announced() is not None:
        raise ConfigError("train(...) in a program that torchrun started: use the command, torchrun ... -m snnexp.")
    words = as_overrides(overrides, "dataset")
    task = [word.partition("=")[2] for word in words if word.lstrip("+").startswith("task=")]
    if task and task[-1] != "train":
        raise ConfigError(f"task={task[-1]}: train(...) trains. Other tasks are for the command line.")
    try:
        with borrowed_process():
            return _trained(words, progress, config_dir)
    except SystemExit as stop:
        raise SnnexpError(str(stop.code)) from stop


def _trained(words: Sequence[str], progress: bool, config_dir: str | Path | None) -> Run:
    conf, cfg = composed(words, config_dir)
    from snnexp.tasks.environment import absolute_paths, environment
    from snnexp.tasks.out_of_memory import memory_errors_in_words
    from snnexp.tasks.train import train_run

    absolute_paths(conf, cfg)
    with memory_errors_in_words(conf):
        folder, _ = train_run(conf, cfg, environment(cfg), quiet=not progress)
    return Run(folder.path, folder.record.mlflow_run_id, read_history(folder.metrics_path))
