"""The text files of the original DVS128 Gesture: which recordings are for training and test, and their trials.

Both are written by hand or by other people's programs, so they come in UTF-8 and UTF-16, with and without a header,
with commas, semicolons or tabs. What is listed but not there is named, never left out unseen.
"""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from snnexp.data.files import Finder, check_name, count_of, find_file, read_lines, some
from snnexp.errors import DataError

TRIAL_LISTS = {"trials_to_train.txt": "train", "trials_to_test.txt": "test"}
COLUMNS = (("class", "label", "gesture"), ("start", "begin", "onset"), ("end", "stop", "offset"))  # in headers
UNIT = re.compile(r"[_\s(\[]([unm]?)s(?:ec(?:onds?)?)?[)\]]?$")  # startTime_usec, start (ms), start_s
UNITS = {"": 1e6, "m": 1e3, "u": 1.0, "n": 1e-3}


class Trial(NamedTuple):
    """One row of a label file: class 1 to 11, start and end in us, and the line it stands on."""

    label: int
    start: int
    end: int
    line: int


@dataclass(frozen=True)
class Listed:
    """The recordings of both lists that are there: part, recording, label file; and what to note about the lists."""

    trials: tuple[tuple[str, Path, Path], ...]
    notes: tuple[str, ...]


def read_lists(folder: Path) -> Listed | None:
    """The recordings that the two lists in `folder` name; None if there is no list.

    Raises: DataError if one of the lists is missing, or names nothing that is there.
    """
    lists = {name: find_file(folder / name) for name in TRIAL_LISTS}
    if not any(lists.values()):
        return None
    trials: list[tuple[str, Path, Path]] = []
    notes: list[str] = []
    for name, part in TRIAL_LISTS.items():
        if lists[name] is None:
            raise DataError(f"{folder / name}: is missing beside the other list. It names the {part} recordings.")
        found = _resolve(folder, name, notes)
        if not found:
            raise DataError(
                f"{folder / name}: none of the recordings that it names is in {folder}. {' '.join(notes)}"
                " Put them there, each with its _labels.csv."
            )
        trials += [(part, path, _labels_of(path)) for path in found]
    parts = {path: {p for p, other, _ in trials if other == path} for _, path, _ in trials}
    if both := sorted(path.name for path, of in parts.items() if len(of) > 1):
        notes.append(f"{count_of(both, 'recording')} in both lists, for training and for test: {some(both)}")
    there = [path.name for path in Finder(folder).files(folder, ".aedat") if path not in parts]
    if there:
        notes.append(f"{count_of(there, 'recording')} in neither list: {some(there)}")
    return Listed(tuple(trials), tuple(notes))


def _labels_of(path: Path) -> Path:
    return path.with_name(f"{path.stem}_labels.csv")


def _resolve(folder: Path, name: str, notes: list[str]) -> list[Path]:
    """The recordings of one list that are there, sorted; what is missing or listed twice goes to the notes."""
    found: list[Path] = []
    missing, twice, odd = [], [], []
    for number, line in enumerate(read_lines(folder / name), start=1):
        words = [word.strip("\"'") for word in re.split(r"[,;\s]+", line.strip()) if word]
        if not words or words[0].startswith("#"):
            continue
        names = [word for word in words if word.lower().endswith(".aedat")]
        if not names:
            odd.append(f"line {number} ({line.strip()[:40]})")
        for word in names:
            path = _locate(folder, word)
            if path is None or find_file(_labels_of(path)) is None:
                missing.append(word if path is None else _labels_of(path).name)
            elif path in found:
                twice.append(word)
            else:
                found.append(path)
    for items, text in (
        (odd, "name no .aedat file"),
        (missing, "listed, but not there"),
        (twice, "listed twice, taken once"),
    ):
        if items:
            notes.append(f"{name}: {len(items):,} {text}: {some(items)}.")
    return sorted(found)


def _locate(folder: Path, word: str) -> Path | None:
    """The listed file below `folder`, also if the list has folders of another machine before its name."""
    parts = word.replace("\\", "/").split("/")
    for name in (parts, parts[-1:]):
        if ".." not in name and (path := find_file(folder.joinpath(*[part for part in name if part]))) is not None:
            return check_name(path)
    return None


def read_labels(path: Path) -> tuple[list[Trial], tuple[str, ...]]:
    """The trials of a label file, in its order, and notes about rows that overlap.

    Raises: DataError naming the file and the line, if a row is not class, start and end, or cannot be one.
    """
    lines = [(number, line) for number, line in enumerate(read_lines(path), start=1) if line.strip(" \t,;")]
    lines = [(number, line) for number, line in lines if not line.lstrip().startswith("#")]
    trials: list[Trial] = []
    order, factor = (0, 1, 2), 1.0
    for place, (number, line) in enumerate(lines):
        words = _split(line)
        if place == 0 and not any(_is_number(word) for word in words):
            order, factor = _header(path, number, words)
            continue
        trials.append(_trial(path, number, words, order, factor))
    if not trials:
        raise DataError(f"{path}: holds no row of class, start and end. Write one for each trial of its recording.")
    return trials, _overlaps(path, trials)


def _split(line: str) -> list[str]:
    separator = next((mark for mark in "\t;," if mark in line), None)
    words = [word.strip().strip("\"'") for word in line.strip().strip("\t;,").split(separator)]
    return [word.replace(",", ".") for word in words] if separator in ("\t", ";") else words  # decimal commas


def _is_number(word: str) -> bool:
    try:
        return math.isfinite(float(word))
    except ValueError:
        return False


def _header(path: Path, number: int, words: list[str]) -> tuple[tuple[int, int, int], float]:
    """Where class, start and end stand, by their names in the header; and how many us a unit of its times is."""
    places = [
        next((i for i, word in enumerate(words) if any(name in word.lower() for name in names)), -1)
        for names in COLUMNS
    ]
    if -1 in places or len(set(places)) < 3:
        if len(words) != 3:
            raise DataError(
                f"{path}: line {number} is not a header with class, start and end ({', '.join(words)[:60]}). Name them."
            )
        places = [0, 1, 2]
    unit = UNIT.search(words[places[1]].lower())
    return (places[0], places[1], places[2]), UNITS[unit.group(1)] if unit else 1.0


def _trial(path: Path, number: int, words: list[str], order: tuple[int, int, int], factor: float) -> Trial:
    if len(words) <= max(order) or not all(_is_number(words[place]) for place in order):
        raise DataError(f"{path}: line {number} is not class,start,end ({', '.join(words)[:60]}). Mend or remove it.")
    label, start, end = (float(words[place]) for place in order)
    start, end = start * factor, end * factor
    if label != int(label) or not 1 <= label <= 11 or start < 0 or end < start:
        raise DataError(
            f"{path}: line {number} has class {label:g}, start {start:,.0f}, end {end:,.0f}. Classes are 1 to 11, and a"
            " trial ends after its start (in us). Mend or remove the line."
        )
    return Trial(int(label), int(start), int(end), number)


def _overlaps(path: Path, trials: list[Trial]) -> tuple[str, ...]:
    ordered = sorted(trials, key=lambda trial: (trial.start, trial.end))
    pairs = [(a, b) for a, b in itertools.pairwise(ordered) if b.start < a.end]
    if not pairs:
        return ()
    first, second = pairs[0]
    more = f", and {len(pairs) - 1:,} more" if len(pairs) > 1 else ""
    return (
        f"{path.name}: the trials of lines {min(first.line, second.line)} and {max(first.line, second.line)} overlap by"
        f" {min(first.end, second.end) - second.start:,} us{more}",
    )
