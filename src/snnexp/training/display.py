"""What a user sees while a network trains: a live bar on a terminal, plain lines elsewhere, and a closing table."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from torch import Tensor

from snnexp.models.spec import effective_spec
from snnexp.tasks.prepare import describe_data
from snnexp.training.optimisation import learning_rates
from snnexp.training.passes import Progress as Report
from snnexp.training.passes import planned_samples
from snnexp.training.words import duration

if TYPE_CHECKING:
    from snnexp.config import Config
    from snnexp.experiment import Experiment
    from snnexp.tracking.runs import RunFolder
    from snnexp.training.state import Fit


class _Console(Console):
    """A console whose reader may go away (`snnexp | head`): training goes on in silence, and the record is complete."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Display:
    """Prints the progress of one run. `quiet` prints nothing."""

    def __init__(self, max_epochs: int, console: Console | None = None, quiet: bool = False) -> None:
        # highlight off: rich would colour every number in a plain log line
        self.console = console or _Console(highlight=False, quiet=quiet)
        self.max_epochs = max_epochs
        self._headed = False
        self._advised: set[str] = set()

    def say(self, text: str) -> None:
        """Print one message."""
        self.console.print(text, markup=False, soft_wrap=True)

    @contextmanager
    def epoch(self, epoch: int, batches: int) -> Iterator[Report]:
        """A progress bar over the training batches of an epoch, if this is a terminal."""
        with self._bar(f"epoch {epoch}/{self.max_epochs}", batches) as report:
            yield report

    @contextmanager
    def validation(self, epoch: int, batches: int) -> Iterator[Report]:
        """The same for an evaluation pass."""
        with self._bar(f"epoch {epoch}/{self.max_epochs} evaluating", batches) as report:
            yield report

    @contextmanager
    def testing(self, batches: int) -> Iterator[Report]:
        """The same for the test pass."""
        with self._bar("test", batches) as report:
            yield report

    @contextmanager
    def _bar(self, title: str, batches: int) -> Iterator[Report]:
        if not self.console.is_terminal:
            yield lambda *_: None
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeRemainingColumn(),
        )
        start = time.perf_counter()
        with Progress(*columns, console=self.console, transient=True) as bar:
            task = bar.add_task(title, total=batches, numbers="")

            def report(done: int, samples: int, loss: float, accuracy: float) -> None:
                rate = samples / max(time.perf_counter() - start, 1e-9)
                numbers = f"loss {loss:.4f}  accuracy {accuracy:.3f}  {rate:,.0f} samples/s"
                bar.update(task, completed=done, numbers=numbers)

            yield report

    def announce(self, experiment: Experiment, folder: RunFolder) -> None:
        """What is about to run: data, network, engine, and where its state lies."""
        conf, info = experiment.conf, experiment.source.info
        for line in describe_data(info):
            self.say(line)
        neurons = sum(row.neurons for row in experiment.network.layer_table())
        parameters = sum(p.numel() for p in experiment.network.parameters())
        self.say(f"model: {conf.model.name}, {effective_spec(conf.model)}")
        self.say(
            f"       {parameters:,} parameters, {neurons:,} {conf.neuron.name} neurons, T = {info.num_steps}, "
            f"on {experiment.device}, engine {experiment.engine()[0]}"
        )
        for line in recipe_lines(conf, experiment.network.parameter_groups()):
            self.say(line)
        self.say(f"state: {folder.path}")

    def finish_epoch(self, epoch: int, metrics: dict[str, float], improved: bool) -> None:
        """One line per finished epoch: loss and accuracy of both splits, dead neurons, speed, time; * is a new best."""
        if not self._headed:
            self._headed = True
            self.say(
                f"{'':<14}{'train loss':>10} {'acc':>6} {'val loss':>10} {'acc':>6} {'dead':>7} "
                f"{'samples/s':>10} {'time':>8}"
            )
        cells = [f"epoch {epoch:>{len(str(self.max_epochs))}}/{self.max_epochs}".ljust(14)]
        for split in ("train", "val"):
            known = f"{split}/loss" in metrics
            loss, accuracy = (metrics[f"{split}/loss"], metrics[f"{split}/accuracy"]) if known else (0.0, 0.0)
            cells.append(f"{loss:>10.4f} {accuracy:>6.3f}" if known else " " * 17)
        split = "val" if "val/dead_neurons" in metrics else "train"
        cells.append(f"{metrics.get(f'{split}/dead_neurons', 0):>7.0f}")
        if "time/samples_per_s" in metrics:
            left = (self.max_epochs - epoch) * metrics["time/epoch_s"]
            cells.append(f"{metrics['time/samples_per_s']:>10,.0f} {duration(metrics['time/epoch_s'], 1):>8}")
            cells.append(f"{duration(left)} left" if left > 0 else "")
        self.say(" ".join(cells).rstrip() + (" *" if improved else ""))

    def advise(self, findings: Sequence[tuple[str, str]]) -> None:
        """Print each finding (a key such as "sn1 dead", and its text) once per run, not once per epoch."""
        for key, text in findings:
            if key not in self._advised:
                self._advised.add(key)
                self.say(f"  ! {text}")

    def repeat(self, findings: Sequence[tuple[str, str]]) -> None:
        """The same about the test pass, after the table, whether it was said before or not."""
        for _, text in findings:
            self.say(f"  ! {text}")

    def closing_table(self, experiment: Experiment, metrics: dict[str, float], state: Fit | None = None) -> None:
        """The test result and what every spiking layer did in the test pass (*dead* depends on its samples)."""
        title = f"test: accuracy {metrics['test/accuracy']:.4f}, loss {metrics['test/loss']:.4f}"
        table = Table(
            title=f"{title}, {planned_samples(experiment, 'test'):,} samples",
            box=box.SIMPLE_HEAD,
            padding=(0, 1, 0, 0),
        )
        for column in ("layer", "neurons", "dead", "dead/sample", "saturated", "rate", "threshold", "beta"):
            table.add_column(column, justify="left" if column == "layer" else "right")
        for name, layer in experiment.network.spiking_layers.items():
            neurons = math.prod(layer.shape)
            shares = [
                metrics[f"test/{key}/{name}"] for key in ("dead_fraction", "dead_fraction_sample", "saturated_fraction")
            ]
            rate = metrics[f"test/firing_rate/{name}"]
            values = [_mean(layer.threshold), _mean(layer.beta)]
            table.add_row(name, f"{neurons:,}", *(f"{100 * share:.1f} %" for share in shares), f"{rate:.4f}", *values)
        self.console.print(table)
        operations = [f"{metrics[f'test/{key}']:,.0f} {key}" for key in ("synops", "macs") if f"test/{key}" in metrics]
        self.say(f"per test sample: {', '.join(operations)}")
        if state is not None:
            chosen = f"epoch {state.best.epoch}, chosen on validation (accuracy {state.best.accuracy:.4f})"
            if "val/accuracy" not in state.history:
                chosen = f"epoch {state.best.epoch}, the last (there is no validation split)"
            if state.epoch == 0:
                chosen = "epoch 0, the untrained network"
            epochs = f"{state.epoch} epoch{'s' * (state.epoch != 1)} in {duration(state.seconds)}"
            curve = "; the test curve (trainer.test_curve) selected nothing" * ("test_curve/accuracy" in state.history)
            self.say(f"weights of {chosen}; {epochs}; test was run once{curve}")

    def farewell(self, link: str | None, run_id: str | None, folder: RunFolder) -> None:
        """Where the record is, and what to type next."""
        self.say(f"record: {link or folder.path}")
        if run_id is not None:
            self.say(f"again:  snnexp task=evaluate run_id={run_id}")


def recipe_lines(conf: Config, parameters: Mapping[str, Sequence[Any]]) -> list[str]:
    """What a comparison of neurons depends on beside the neuron: decoder, loss, optimizer, rates, initial weights."""
    learned = {kind: rate for kind, rate in learning_rates(conf.optimizer).items() if parameters.get(kind)}
    others = ", ".join(f"{kind} {rate:g}" for kind, rate in learned.items() if kind != "weights")
    schedule = "" if conf.scheduler.name == "none" else f", {conf.scheduler.name} schedule"
    clip = "" if conf.trainer.grad_clip is None else f", gradient clipped at {conf.trainer.grad_clip:g}"
    extras = [
        word for word, on in (("weight norm", conf.model.weight_norm), ("affine", conf.model.affine != "none")) if on
    ]
    init = ", ".join([f"init {conf.model.init}" + ("" if conf.model.gain == 1 else f" x {conf.model.gain:g}"), *extras])
    return [
        f"recipe: {conf.recipe}; decoder {conf.decoder.name}, loss {conf.decoder.loss}; {conf.optimizer.name} lr "
        f"{conf.optimizer.lr:g}{f' ({others})' if others else ''}{schedule}{clip}; {init}"
    ]


def _mean(values: Tensor) -> str:
    """One value, or the mean of learned ones marked with a tilde."""
    values = values.detach().float()
    return f"{float(values):.3f}" if values.numel() == 1 else f"~{float(values.mean()):.3f}"
