"""The tables that a run prints, as lines of text: they fit a terminal of 60 columns, and from 80 on they are whole."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from snnexp.analysis.activity import SATURATED_RATE
from snnexp.training.words import short_duration

if TYPE_CHECKING:
    from snnexp.models.network import Network

WHOLE = 80  # columns in which both tables have everything


class EpochTable:
    """One line per finished epoch. What does not fit goes from the right: first the speed, then the time left."""

    def __init__(self, max_epochs: int, validates: bool) -> None:
        self.max_epochs = max_epochs
        self.validates = validates
        self._epoch_width = len(f"epoch {max_epochs}/{max_epochs}")

    @property
    def split(self) -> str:
        """The split whose dead neurons are shown."""
        return "val" if self.validates else "train"

    def legend(self) -> str:
        """What the columns mean."""
        passes = "validation (val)" if self.validates else "training"
        best = "; *: the best epoch so far" if self.validates else ""
        return f"acc: share of samples classified right; dead: neurons without a spike in the {passes} pass{best}"

    def header(self, columns: int) -> list[str]:
        """Two lines above the numbers."""
        above = ["", "train", "", *(["val", ""] if self.validates else []), "", "", "", ""]
        below = ["", "loss", "acc", *(["loss", "acc "] if self.validates else []), "dead", "time", "left", "samples/s"]
        return [self._line(above, columns), self._line(below, columns)]

    def row(self, epoch: int, metrics: Mapping[str, float], improved: bool, columns: int) -> str:
        """An epoch's numbers; what was not measured (training, before the first epoch) is left blank."""
        cells = [f"epoch {epoch:>{len(str(self.max_epochs))}}/{self.max_epochs}"]
        for split in ("train", "val")[: 1 + self.validates]:
            known = f"{split}/loss" in metrics
            star = " " * (split == "val") if not (improved and split == self.split) else "*" * (split == "val")
            cells += (
                [_loss(metrics[f"{split}/loss"]), f"{metrics[f'{split}/accuracy']:.3f}{star}"] if known else [""] * 2
            )
        cells.append(f"{metrics.get(f'{self.split}/dead_neurons', 0):,.0f}")
        if "time/epoch_s" in metrics:
            left = (self.max_epochs - epoch) * metrics["time/epoch_s"]
            cells += [short_duration(metrics["time/epoch_s"]), short_duration(left) if left > 0 else ""]
            cells.append(f"{metrics['time/samples_per_s']:,.0f}")
        return self._line(cells, columns)

    def _line(self, cells: Sequence[str], columns: int) -> str:
        widths = [8, 6, *([8, 7] if self.validates else []), 8, 8, 9, 10]
        line = cells[0].ljust(self._epoch_width)
        for cell, width in zip(cells[1:], widths, strict=False):
            if len(line) + width > columns:
                break
            line += cell.rjust(width)
        return line.rstrip()


def _loss(value: float) -> str:
    """Seven characters: four decimals, or as many as there is room for."""
    return next((text for digits in (4, 3, 2, 1) if len(text := f"{value:.{digits}f}") <= 7), f"{value:.1g}")


def layer_table(network: Network, metrics: Mapping[str, float], columns: int) -> list[str]:
    """What every spiking layer did in the test pass: a line each, below a header and a rule.

    In a narrow terminal the threshold and beta of layers that did not learn them are left out first.
    """
    header = ["layer", "neurons", "dead", "dead/sample", "saturated", "rate", "threshold", "beta"]
    rows, learned = [], {"threshold": False, "beta": False}
    for name, layer in network.spiking_layers.items():
        shares = [
            metrics[f"test/{key}/{name}"] for key in ("dead_fraction", "dead_fraction_sample", "saturated_fraction")
        ]
        values = {key: layer.effective(key) for key in ("threshold", "beta")}
        learned = {key: learned[key] or key in layer.learned() for key in values}
        rows.append(
            [
                name,
                f"{math.prod(layer.shape):,}",
                *(f"{100 * share:.1f} %" for share in shares),
                f"{metrics[f'test/firing_rate/{name}']:.4f}",
                *map(_mean, values.values()),
            ]
        )
    expendable = [key for key in ("beta", "threshold") if not learned[key]] + ["saturated", "beta", "threshold"]
    table = [header, *rows]
    lines = _aligned(table, 2)
    while len(lines[0]) > columns and expendable:
        lines = _aligned(table, 1)
        if len(lines[0]) > columns:
            key = expendable.pop(0)
            if key in table[0]:
                place = table[0].index(key)
                table = [row[:place] + row[place + 1 :] for row in table]
                lines = _aligned(table, 2)
    return [lines[0], "─" * len(lines[0]), *(line.rstrip() for line in lines[1:])]


def layer_legend(samples: int) -> str:
    """What the columns of the layer table mean."""
    return (
        f"dead: no spike in these {samples:,} samples; dead/sample: no spike in a sample, mean over samples; "
        f"saturated: fires in {100 * SATURATED_RATE:.0f} % of the steps or more; rate: spikes per neuron and step; "
        "~: mean of values that differ"
    )


def _aligned(table: Sequence[Sequence[str]], gap: int) -> list[str]:
    """The first column to the left, the others to the right."""
    widths = [max(len(row[n]) for row in table) for n in range(len(table[0]))]
    return [
        (" " * gap).join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in table
    ]


def _mean(values: Tensor | None) -> str:
    """One value, or the mean of several marked with a tilde; a dash if the neurons have none."""
    if values is None:
        return "-"
    values = values.detach().float()
    return f"{float(values):.3f}" if values.numel() == 1 else f"~{float(values.mean()):.3f}"
