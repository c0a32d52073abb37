"""What a user sees while a network trains: a live bar on a terminal, plain lines elsewhere, and a closing table."""

from __future__ import annotations

import logging
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from snnexp import ranks
from snnexp.models.spec import effective_spec
from snnexp.tasks.prepare import describe_data
from snnexp.terminal import wrapped
from snnexp.training.optimisation import learning_rates
from snnexp.training.passes import Progress as Report
from snnexp.training.passes import planned_samples
from snnexp.training.table import WHOLE, EpochTable, layer_legend, layer_table
from snnexp.training.words import duration

if TYPE_CHECKING:
    from snnexp.config import Config
    from snnexp.experiment import Experiment
    from snnexp.tracking.runs import RunFolder
    from snnexp.training.state import Fit

log = logging.getLogger(__name__)


class _Console(Console):
    """A console whose reader may go away (`snnexp | head`): training goes on in silence, and the record is complete."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Display:
    """Prints the progress of one run, and keeps what it printed in the job's log. `quiet` prints nothing.

    name: of the run, before each line, where several runs print to one terminal at the same time.
    """

    def __init__(self, max_epochs: int, console: Console | None = None, quiet: bool = False, name: str = "") -> None:
        # highlight off: rich would colour every number in a plain log line
        # force_jupyter: in a notebook rich would make a page element of every line
        self.console = console or _Console(highlight=False, quiet=quiet, force_jupyter=False)
        self.max_epochs = max_epochs
        self.name = f"{name} | " if name else ""
        self._table: EpochTable | None = None
        self._advised: set[str] = set()

    @property
    def columns(self) -> int:
        """Room for a line beside the run's name."""
        return max(self.console.width - len(self.name), 20)

    def say(self, text: str, hang: int = 2) -> None:
        """Print one message, broken between words where a line ends; `hang` spaces before the lines that go on."""
        self._print(wrapped(text, self.columns, hang).splitlines())
        log.info("%s", text)

    def command(self, title: str, text: str) -> None:
        """An address or a command, in one piece whatever its length, since it is to be copied."""
        lines = [f"{title} {text}"] if len(title) + 1 + len(text) <= self.columns else [title.rstrip(), f"  {text}"]
        self._print(lines)
        log.info("%s %s", title, text)

    def _print(self, lines: Sequence[str]) -> None:
        for line in lines:
            self.console.print(f"{self.name}{line}", markup=False, soft_wrap=True)

    def _both(self, lines: Callable[[int], Sequence[str]]) -> None:
        """Lines of a table: what fits to the terminal, all of it to the log."""
        self._print(lines(self.columns))
        for line in lines(max(WHOLE, self.columns)):
            log.info("%s", line)

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
        if not self.console.is_terminal or self.name:  # bars of several runs would overwrite each other
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
        for line in describe_data(info, conf):
            self.say(line)
        neurons = sum(row.neurons for row in experiment.network.layer_table())
        parameters = sum(p.numel() for p in experiment.network.parameters())
        for line in spec_lines(f"model: {conf.model.name}, {effective_spec(conf.model)}", self.columns):
            self.say(line)
        self.say(
            f"       {parameters:,} parameters, {neurons:,} {conf.neuron.called} neurons, T = {info.num_steps}, "
            f"on {experiment.device}{_together()}, engine {experiment.engine()[0]}",
            hang=0,
        )
        for line in recipe_lines(conf, experiment.network.parameter_groups()):
            self.say(line, hang=8)
        self.say(f"state: {folder.path}")

    def finish_epoch(self, epoch: int, metrics: dict[str, float], improved: bool) -> None:
        """One line per finished epoch: loss and accuracy of both splits, dead neurons, time, speed; * is a new best."""
        if self._table is None:
            table = self._table = EpochTable(self.max_epochs, any(key.startswith("val/") for key in metrics))
            self.say(table.legend())
            self._both(table.header)
        table = self._table
        self._both(lambda columns: [table.row(epoch, metrics, improved, columns)])

    def advise(self, findings: Sequence[tuple[str, str]]) -> None:
        """Print each finding (a key such as "sn1 dead", and its text) once, not once per epoch; see `forget`."""
        for key, text in findings:
            if key not in self._advised:
                self._advised.add(key)
                self.say(f"  ! {text}", hang=2)

    def forget(self, is_over: Callable[[str], bool]) -> None:
        """Findings with keys that are over are printed again if they return."""
        self._advised = {key for key in self._advised if not is_over(key)}

    def repeat(self, findings: Sequence[tuple[str, str]]) -> None:
        """The same about the test pass, after the table, whether it was said before or not."""
        for _, text in findings:
            self.say(f"  ! {text}", hang=2)

    def closing_table(
        self, experiment: Experiment, metrics: dict[str, float], graded: Sequence[str], state: Fit | None = None
    ) -> str:
        """The test result and what every spiking layer did in the test pass (*dead* depends on its samples).

        graded: layers with weights whose input is not spikes; see `Synops`.
        Returns: the same as text, 80 columns wide.
        """
        samples = planned_samples(experiment, "test")
        title = f"test: accuracy {metrics['test/accuracy']:.4f}, loss {metrics['test/loss']:.4f}, {samples:,} samples"
        after = [
            layer_legend(samples),
            operations_line(metrics, graded),
            *([] if state is None else [_weights_of(state)]),
        ]

        def lines(columns: int) -> list[str]:
            return layer_table(experiment.network, metrics, columns)

        self.say(title)
        self._both(lines)
        for line in after:
            self.say(line)
        return "\n".join([title, *lines(WHOLE), *(wrapped(line, WHOLE) for line in after)])

    def farewell(self, link: str | None, again: str, folder: RunFolder) -> None:
        """Where the record is, and what to type next: a command that evaluates the run again."""
        self.command("record:", link or str(folder.path))
        self.command("again: ", again)


def _together() -> str:
    world = ranks.world()
    return "" if world is None else f" in {world.size} processes"


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
    waits = getattr(conf.rescue, "when", "start") == "diagnosed"
    cure = "" if conf.rescue.name == "none" else f"; rescue {conf.rescue.name}{' once diagnosed' * waits}"
    budget = "" if conf.decoder.synops is None else f"; budget {conf.decoder.synops:,g} synops per sample"
    return [
        f"recipe: {conf.recipe}; decoder {conf.decoder.name}, loss {conf.decoder.loss}; {conf.optimizer.name} lr "
        f"{conf.optimizer.lr:g}{f' ({others})' if others else ''}{schedule}{clip}; {init}{cure}{budget}"
    ]


def _weights_of(state: Fit) -> str:
    """Which epoch's weights were tested, and why those."""
    chosen = f"epoch {state.best.epoch}, chosen on validation (accuracy {state.best.accuracy:.4f})"
    if "val/accuracy" not in state.history:
        chosen = f"epoch {state.best.epoch}, the last (there is no validation split)"
    if state.epoch == 0:
        chosen = "epoch 0, the untrained network"
    epochs = f"{state.epoch} epoch{'s' * (state.epoch != 1)} in {duration(state.seconds)}"
    curve = "; the test curve (trainer.test_curve) selected nothing" * ("test_curve/accuracy" in state.history)
    return f"weights of {chosen}; {epochs}; test was run once{curve}"


def spec_lines(text: str, columns: int) -> list[str]:
    """A line with a network in it, broken after the dashes of the notation where it is longer than the terminal."""
    lines, line = [], ""
    for token in re.split(r"(?<=-)(?=\S)", text):
        if line and len(line) + len(token) > columns:
            lines.append(line)
            line = "       "
        line += token
    return [*lines, line]


def operations_line(metrics: Mapping[str, float], graded: Sequence[str]) -> str:
    """Operations per test sample, and why some, or all, are not synaptic operations."""
    known = [(key, metrics[f"test/{key}"]) for key in ("synops", "macs") if f"test/{key}" in metrics]
    line = f"per test sample: {', '.join(f'{value:,.0f} {key}' for key, value in known)}"
    line += " (synops: additions that a spike of 0 or 1 causes"
    if graded:
        line += f"; macs: multiply-accumulates, in {', '.join(graded)}, whose input is more than 0 and 1 (an image, "
        line += "averaged or scaled spikes)"
        if not metrics.get("test/synops"):
            line += ": here all of them"
    return line + ")"
