"""DVS128 Gesture (Amir et al. 2017) in its two public variants, which have different samples and counts.

tonic    the pre-processed archive: DVSGesture/ibmGesture{Train,Test}/user<n>_<light>/<label>.npy, 1077 / 264,
         one recording per label and file, columns x, y, p, t in milliseconds
trials   the original recordings, cut at every row of their label files: DvsGesture/user<n>_<light>.aedat with
         user<n>_<light>_labels.csv, trials_to_train.txt and trials_to_test.txt, 1176 / 288, microseconds
"""

from __future__ import annotations

import gzip
import io
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from snnexp.config import EventDatasetConf
from snnexp.data.facts import FACTS
from snnexp.data.files import Finder, damaged, missing_files, read_bytes
from snnexp.data.readers.aedat import read_aedat31
from snnexp.data.readers.recordings import MARKED_INVALID, MICROSECONDS, Layout, Recording, order_events
from snnexp.data.readers.trial_lists import TRIAL_LISTS, Trial, read_labels, read_lists
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
NPY_LAYOUT = Layout(unit="ms", unit_us=1000.0, columns="x, y, p, t", usual_s=6.0)
WANTED_NPY = "a NumPy array with the columns x, y, p, t"
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
    layout: Layout = NPY_LAYOUT
    notes: tuple[str, ...] = ()

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
            time_us = columns[:, 3].astype(np.float64) * NPY_LAYOUT.unit_us
            events = order_events(time_us, columns[:, 0], columns[:, 1], columns[:, 2], SHAPE)
            yield Recording.of(events, f"{part}/{user}/{file}", PARTS[part], int(path.stem), subject_of(user))


def read_npy(path: Path) -> NDArray[np.generic]:
    """Load the [N, 4] columns x, y, p, t of one file: .npy, also gzipped, or .npz with one array, by its first bytes.

    Raises: DataError naming the file.
    """
    content = read_bytes(path)
    try:
        if content.startswith(b"\x1f\x8b"):
            content = gzip.decompress(content)
        loaded = np.load(io.BytesIO(content), allow_pickle=False)
        if isinstance(loaded, np.lib.npyio.NpzFile):
            if len(loaded.files) != 1:
                raise DataError(f"{path}: is an archive of {len(loaded.files)} arrays, but {WANTED_NPY} is wanted.")
            loaded = loaded[loaded.files[0]]
    except DataError:
        raise
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(damaged(path, f"cut off or damaged ({error})")) from None
    except Exception as error:  # NumPy parses the header as Python: ValueError, SyntaxError, TokenError, and others
        if "allow_pickle" in str(error) and content.startswith(b"\x93NUMPY"):
            raise DataError(f"{path}: holds Python objects, which are never loaded. Save {WANTED_NPY}.") from None
        kind = "" if content.startswith(b"\x93NUMPY") else WANTED_NPY
        raise DataError(damaged(path, f"not a readable .npy file ({error})", kind)) from None
    return _columns(path, loaded)


def _columns(path: Path, array: Any) -> NDArray[np.generic]:
    """The columns of an array, which may also have them as named fields."""
    if isinstance(array, np.ndarray) and array.ndim == 1 and {"x", "y", "p", "t"} <= set(array.dtype.names or ()):
        array = np.stack([array[name].astype(np.int64) for name in ("x", "y", "p", "t")], axis=1)
    if not isinstance(array, np.ndarray) or array.ndim != 2 or array.shape[1] != 4 or array.dtype.kind not in "iufb":
        turned = " It seems to be turned: save its transpose." if array.ndim == 2 and array.shape[0] == 4 else ""
        shape = "x".join(map(str, array.shape)) or "no dimension"
        raise DataError(
            f"{path}: holds {array.dtype} values of shape {shape}, not an array of numbers with the columns x, y, p, t."
            f"{turned or ' Save it that way.'}"
        )
    columns: NDArray[np.generic] = array.astype(np.uint8) if array.dtype.kind == "b" else array
    return columns


@dataclass(frozen=True)
class TrialsVariant:
    """The original recordings with their label files."""

    folder: Path
    files: tuple[Path, ...]  # aedat and csv files and the two lists
    trials: tuple[tuple[str, Path, Path, tuple[Trial, ...]], ...]  # part, recording, its label file, and what is in it
    total: int
    name: str = "dvs128"
    variant: str | None = "trials"
    key: str = "dvs128-trials"
    shape: tuple[int, int, int] = SHAPE
    class_names: tuple[str, ...] = CLASS_NAMES
    origin: str = "https://research.ibm.com/dvsgesture"
    layout: Layout = MICROSECONDS
    notes: tuple[str, ...] = ()

    @property
    def official(self) -> dict[str, int]:
        """Samples per part of the whole variant."""
        return VARIANTS["trials"]

    def recordings(self) -> Iterator[Recording]:
        """Yield one recording per row of the label files: events with start <= t < end, as SpikingJelly cuts them."""
        for part, path, labels, rows in self.trials:
            t, x, y, p, invalid = read_aedat31(path)
            for row, trial in enumerate(rows):
                inside = (t >= trial.start) & (t < trial.end)  # not a search: some recordings have stamps out of order
                events = order_events(t[inside] - trial.start, x[inside], y[inside], p[inside], SHAPE)
                if invalid and row == 0:
                    events.dropped[MARKED_INVALID] = invalid
                notes = () if inside.any() else (_outside(labels, trial, t),)
                yield Recording.of(events, f"{path.stem}/{row}", part, trial.label - 1, subject_of(path.stem), notes)


def _outside(labels: Path, trial: Trial, t: NDArray[np.int64]) -> str:
    """Why a trial is empty."""
    text = f"{labels.name}: no event in the trial of line {trial.line} ({trial.start:,} to {trial.end:,} us)"
    if len(t) and (trial.start > t.max() or trial.end <= t.min()):
        return f"{text}, which lies outside the recording ({t.min():,} to {t.max():,} us): other units or origin?"
    return f"{text}: are its times in us?" if trial.end - trial.start < 1000 else text


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
        text = " or ".join(layouts[variant] for variant in wanted)
        raise DataError(missing_files("dvs128", text, root, fetchable="tonic" in wanted))
    return found[0]


def find_npy(root: Path) -> TonicVariant | None:
    """The pre-processed files, sorted by part, class and user; None if a part is missing."""
    folder = root / "DVSGesture"
    finder = Finder(folder)
    files: list[Path] = []
    for part in PARTS:
        folders = finder.folders(folder / part)
        users = [user for user in folders if user.name.startswith("user")]
        finder.passed_over += [other for other in folders if other not in users]
        found = [path for user in users for path in finder.files(user, ".npy")]
        numbered = [path for path in found if path.stem.isascii() and path.stem.isdigit()]
        if not numbered:
            return None
        finder.passed_over += [path for path in found if path not in numbered]
        files += sorted(numbered, key=lambda path: (int(path.stem), path.parent.name))
    return TonicVariant(folder, tuple(files), notes=finder.notes())


def find_trials(root: Path) -> TrialsVariant | None:
    """The original recordings named in the two lists; None if there are no lists. Raises: DataError naming a list."""
    for folder in (root / name for name in CURRENT_FOLDERS):
        listed = read_lists(folder)
        if listed is None:
            continue
        notes = list(listed.notes)
        trials = []
        for part, path, labels in listed.trials:
            rows, odd = read_labels(labels)
            trials.append((part, path, labels, tuple(rows)))
            notes += odd
        files = [folder / name for name in TRIAL_LISTS] + [path for trial in trials for path in trial[1:3]]
        total = sum(len(rows) for *_, rows in trials)
        return TrialsVariant(folder, tuple(sorted(set(files))), tuple(trials), total, notes=tuple(notes))
    return None
