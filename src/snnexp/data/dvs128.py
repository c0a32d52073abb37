"""DVS128 Gesture (Amir et al. 2017) in its two public variants, which have different samples and counts.

tonic    the pre-processed archive: DVSGesture/ibmGesture{Train,Test}/user<n>_<light>/<label>.npy, 1077 / 264,
         one recording per label and file, columns x, y, p, t in milliseconds
trials   the original recordings, cut at every row of their label files: DvsGesture/user<n>_<light>.aedat with
         user<n>_<light>_labels.csv, trials_to_train.txt and trials_to_test.txt, 1176 / 288, microseconds
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from snnexp.config import EventDatasetConf
from snnexp.data.aedat import read_aedat31
from snnexp.data.facts import FACTS
from snnexp.data.recordings import Recording, damaged, missing_files, order_events
from snnexp.errors import ConfigError, DataError, unknown_choice

SHAPE = FACTS["dvs128"].shape
VARIANTS = {"tonic": {"train": 1077, "test": 264}, "trials": {"train": 1176, "test": 288}}
CLASS_NAMES = (
    "hand clapping",
    "right hand wave",
    "left hand wave",
    "right arm clockwise",
    "right arm counter-clockwise",
    "left arm clockwise",
    "left arm counter-clockwise",
    "arm roll",
    "air drums",
    "air guitar",
    "other gestures",
)
PARTS = {"ibmGestureTrain": "train", "ibmGestureTest": "test"}
TRIAL_LISTS = {"trials_to_train.txt": "train", "trials_to_test.txt": "test"}
CURRENT_FOLDERS = ("DVSGesture/DvsGesture", "DvsGesture", "DVSGesture")


def subject_of(name: str) -> int:
    """The person's number in `user07_led` and the like."""
    found = re.match(r"user(\d+)", name)
    return int(found.group(1)) if found else -1


@dataclass(frozen=True)
class TonicVariant:
    """The pre-processed npy files."""

    folder: Path
    files: tuple[Path, ...]
    name: str = "dvs128"
    variant: str | None = "tonic"
    key: str = "dvs128-tonic"
    shape: tuple[int, int, int] = SHAPE
    class_names: tuple[str, ...] = CLASS_NAMES
    origin: str = "https://doi.org/10.6084/m9.figshare.16458693 (pre-processed)"

    @property
    def official(self) -> dict[str, int]:
        """Samples per part of the whole variant."""
        return VARIANTS["tonic"]

    @property
    def total(self) -> int:
        """Number of recordings."""
        return len(self.files)

    def recordings(self) -> Iterator[Recording]:
        """Yield one recording per file."""
        for path in self.files:
            part, user, file = path.parts[-3:]
            columns = read_npy(path)
            time_us = columns[:, 3].astype(np.float64) * 1000.0
            time, address, dropped = order_events(time_us, columns[:, 0], columns[:, 1], columns[:, 2], SHAPE)
            yield Recording(
                f"{part}/{user}/{file}", PARTS[part], int(path.stem), time, address, subject_of(user), dropped
            )


def read_npy(path: Path) -> NDArray[np.generic]:
    """Load the [N, 4] columns x, y, p, t of one file. Raises: DataError naming the file."""
    try:
        columns = np.load(path, allow_pickle=False)
    except Exception as error:  # NumPy parses the header as Python: ValueError, SyntaxError, TokenError, and others
        raise DataError(damaged(path, f"not a readable .npy file ({error})")) from None
    if (
        not isinstance(columns, np.ndarray)
        or columns.ndim != 2
        or columns.shape[1] != 4
        or columns.dtype.kind not in "iuf"
    ):
        raise DataError(damaged(path, "not an array of numbers with the columns x, y, p, t"))
    return columns


@dataclass(frozen=True)
class TrialsVariant:
    """The original recordings with their label files."""

    folder: Path
    files: tuple[Path, ...]  # aedat and csv files and the two lists
    trials: tuple[tuple[str, Path, Path], ...]  # part, recording, its labels
    total: int
    name: str = "dvs128"
    variant: str | None = "trials"
    key: str = "dvs128-trials"
    shape: tuple[int, int, int] = SHAPE
    class_names: tuple[str, ...] = CLASS_NAMES
    origin: str = "https://research.ibm.com/dvsgesture"

    @property
    def official(self) -> dict[str, int]:
        """Samples per part of the whole variant."""
        return VARIANTS["trials"]

    def recordings(self) -> Iterator[Recording]:
        """Yield one recording per row of the label files: events with start <= t < end, as SpikingJelly cuts them."""
        for part, path, labels in self.trials:
            t, x, y, p, invalid = read_aedat31(path)
            for row, (label, start, end) in enumerate(read_labels(labels)):
                inside = (t >= start) & (t < end)  # not a search: some recordings have stamps out of order
                time, address, dropped = order_events(t[inside] - start, x[inside], y[inside], p[inside], SHAPE)
                if invalid and row == 0:
                    dropped["marked invalid by the camera"] = invalid
                yield Recording(f"{path.stem}/{row}", part, label - 1, time, address, subject_of(path.stem), dropped)


def read_labels(path: Path) -> list[tuple[int, int, int]]:
    """Rows of class (1 to 11), start and end in us. Raises: DataError naming the file and line."""
    rows = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(damaged(path, f"cannot be read ({error})")) from None
    for number, line in enumerate(lines[1:], start=2):
        if not line.strip():
            continue
        try:
            label, start, end = (int(word) for word in line.split(","))
        except ValueError:
            raise DataError(damaged(path, f"line {number} is not class,start,end")) from None
        if not 1 <= label <= len(CLASS_NAMES) or start < 0 or end < start:
            raise DataError(damaged(path, f"line {number} has class {label}, start {start}, end {end}"))
        rows.append((label, start, end))
    return rows


def open_reader(conf: EventDatasetConf) -> TonicVariant | TrialsVariant:
    """Find the variant that is there; `dataset.variant` decides if both are."""
    root = Path(conf.root)
    if conf.variant is not None and conf.variant not in VARIANTS:
        raise ConfigError(unknown_choice("dataset.variant", conf.variant, VARIANTS))
    wanted = list(VARIANTS) if conf.variant is None else [conf.variant]
    found = [
        reader
        for variant in wanted
        if (reader := (find_npy(root) if variant == "tonic" else find_trials(root))) is not None
    ]
    if len(found) == 2:
        raise ConfigError(
            f"{root} has both variants of dvs128, which are not comparable. Choose dataset.variant=tonic (1077/264)"
            " or dataset.variant=trials (1176/288)."
        )
    if not found:
        layouts = {
            "tonic": "DVSGesture/ibmGesture{Train,Test}/user*/<label>.npy",
            "trials": "DvsGesture/*.aedat with *_labels.csv and trials_to_{train,test}.txt",
        }
        raise DataError(missing_files("dvs128", " or ".join(layouts[variant] for variant in wanted), root))
    return found[0]


def find_npy(root: Path) -> TonicVariant | None:
    """The pre-processed files, sorted by part, class and user; None if a part is missing."""
    folder = root / "DVSGesture"
    files: list[Path] = []
    for part in PARTS:
        found = [path for path in (folder / part).glob("user*/*.npy") if path.stem.isdigit()]
        if not found:
            return None
        files += sorted(found, key=lambda path: (int(path.stem), path.parent.name))
    return TonicVariant(folder, tuple(files))


def find_trials(root: Path) -> TrialsVariant | None:
    """The original recordings named in the two lists; None if a list is missing or names no file that is there."""
    for folder in (root / name for name in CURRENT_FOLDERS):
        if not all((folder / name).is_file() for name in TRIAL_LISTS):
            continue
        trials: list[tuple[str, Path, Path]] = []
        for name, part in TRIAL_LISTS.items():
            for line in sorted(set((folder / name).read_text(encoding="utf-8").split())):
                path = folder / line
                labels = path.with_name(f"{path.stem}_labels.csv")
                if path.is_file() and labels.is_file():
                    trials.append((part, path, labels))
        if {part for part, _, _ in trials} != set(TRIAL_LISTS.values()):
            continue
        files = [folder / name for name in TRIAL_LISTS] + [path for trial in trials for path in trial[1:]]
        total = sum(len(read_labels(labels)) for _, _, labels in trials)
        return TrialsVariant(folder, tuple(sorted(files)), tuple(trials), total)
    return None
