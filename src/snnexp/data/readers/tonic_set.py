"""`dataset=tonic dataset.class=NAME`: any classification set of tonic's, read by tonic's own loader.

tonic looks for `<root>/<class>/...`. What it would refuse for want of a number of files, or of the archive that they
came from, is taken as a part of the set, and said so. Nothing is fetched where `dataset.download=false`.
"""

from __future__ import annotations

import hashlib
import inspect
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from snnexp.data.class_folders import natural
from snnexp.data.files import check_folder, check_name, damaged, is_companion
from snnexp.data.readers.columns import sensor_size
from snnexp.data.readers.folder import Divide
from snnexp.data.readers.recordings import MICROSECONDS, Layout, Recording, order_events
from snnexp.data.splits import stratified_split
from snnexp.errors import ConfigError, DataError, SnnexpError, unknown_choice
from snnexp.schema.dataset import TonicDatasetConf

KEY = "dataset.class"
NO_CLASSES = {  # what their samples are labelled with instead
    "DAVISDATA": "poses",
    "DSEC": "optical flow and depth",
    "EBSSA": "tracks of satellites",
    "MVSEC": "poses and depth",
    "NERDD": "boxes round drones",
    "ThreeET_Eyetracking": "gaze",
    "TUMVIE": "poses",
    "VPR": "places by GPS",
}
PARTS = {"train": ((True, "train"), (False, "test")), "split": (("train", "train"), ("valid", "val"), ("test", "test"))}
ARCHIVES = (".zip", ".gz", ".tgz", ".bz2", ".xz", ".tar", ".rar", ".7z")

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class TonicReader:
    """The parts of one class, opened by tonic."""

    cls: str
    parts: tuple[tuple[str, Any], ...]  # part and tonic's data set
    shape: Shape
    class_names: tuple[str, ...]
    folder: Path
    files: tuple[Path, ...]
    how: str  # everything beside the files that the recordings depend on
    divide: Divide | None
    partial: bool  # fewer files than tonic wants
    notes: tuple[str, ...]
    name: str = "tonic"
    official: dict[str, int] | None = None
    layout: Layout = MICROSECONDS

    @property
    def variant(self) -> str:
        """The class, which is what the record should show."""
        return self.cls

    @property
    def key(self) -> str:
        """Folder in the store."""
        return f"tonic-{self.cls}-{hashlib.sha256(self.how.encode()).hexdigest()[:10]}"

    @property
    def origin(self) -> str:
        """Where the data comes from."""
        address = getattr(self.parts[0][1], "url", None) or getattr(self.parts[0][1], "base_url", None)
        return str(address or f"tonic.datasets.{self.cls}")

    @property
    def total(self) -> int:
        """Number of recordings."""
        return sum(len(data) for _, data in self.parts)

    @property
    def understood(self) -> tuple[str, ...]:
        """What the record says about the loader."""
        import tonic

        _, height, width = self.shape
        return (f"read by tonic {tonic.__version__}: tonic.datasets.{self.cls}, sensor {width}x{height}",)

    def recordings(self) -> Iterator[Recording]:
        """Yield the samples by part, class and name, their times counted from the first event if it is a camera's.

        Raises: DataError naming the file that tonic cannot read, or a label that is no class.
        """
        numbers = {name: i for i, name in enumerate(self.class_names)}
        for part, data in self.parts:
            names = [_name_of(data, i, self.folder, part) for i in range(len(data))]
            for i in sorted(range(len(data)), key=lambda i: natural(names[i])):
                try:
                    events, target = data[i]
                except SnnexpError:
                    raise
                except Exception as error:
                    raise DataError(_unreadable(error, self.folder, self.cls, names[i])) from None
                yield self._recording(part, names[i], events, _label(target, numbers, self.cls), _subject(data, i))

    def _recording(self, part: str, name: str, events: NDArray[Any], label: int, subject: int) -> Recording:
        fields = set(events.dtype.names or ())
        if not {"t", "x"} <= fields:
            raise DataError(f"dataset.class={self.cls}: {name} holds {events.dtype}, not events with t and x.")
        channels, height, _ = self.shape
        none = np.zeros(len(events), np.int64)
        t = events["t"].astype(np.int64)
        if height > 1 and len(t):
            t = t - t.min()
        y = events["y"].astype(np.int64) if "y" in fields else none
        p = events["p"].astype(np.int64) if "p" in fields and channels > 1 else none
        found = order_events(t, events["x"].astype(np.int64), y, p, self.shape)
        return Recording.of(found, name, part, label, subject)


# --- opening ------------------------------------------------------------------------------------------------------


def tonic_class(conf: TonicDatasetConf) -> tuple[str, type]:
    """The class that dataset.class names. Raises: ConfigError with the nearest name."""
    from tonic import datasets

    name = getattr(conf, "class")
    usable = sorted(set(datasets.__all__) - set(NO_CLASSES))
    if name is None:
        raise ConfigError(
            f"dataset=tonic needs the class of a data set: {KEY}={usable[0]}, or {', '.join(usable[1:])}."
        )
    if name in NO_CLASSES:
        raise ConfigError(
            f"{KEY}={name}: its samples are labelled with {NO_CLASSES[name]}, not classes. Valid: {', '.join(usable)}."
        )
    if name not in usable:
        raise ConfigError(unknown_choice(KEY, name, usable))
    return name, getattr(datasets, name)


def shape_and_classes(conf: TonicDatasetConf) -> tuple[Shape, int]:
    """[C, H, W] and number of classes; from the class alone where it says both."""
    _, kind = tonic_class(conf)
    shape, classes = _shape(kind, conf), getattr(kind, "classes", None)
    if shape is not None and classes:
        return shape, len(classes)
    reader = open_reader(conf)
    return reader.shape, len(reader.class_names)


def open_reader(conf: TonicDatasetConf) -> TonicReader:
    """Let tonic find the files below `<root>/<class>`, of every part that it has.

    Raises: ConfigError for a class or an argument that does not exist; DataError if files are missing or damaged.
    """
    import tonic

    name, kind = tonic_class(conf)
    _shape(kind, conf)  # a wrong size is refused before anything is opened
    root = Path(os.path.abspath(Path(conf.path or conf.root).expanduser()))
    check_folder(root)
    parameters = inspect.signature(kind).parameters
    if wrong := [key for key in conf.kwargs if key not in parameters or key in ("self", "save_to", *PARTS)]:
        offered = [p for p in parameters if p not in ("self", "save_to", *PARTS) and "transform" not in p]
        raise ConfigError(
            f"dataset.kwargs.{wrong[0]}: tonic.datasets.{name} has no such argument to set. Valid:"
            f" {', '.join(offered) or 'none'}."
        )
    key = next((key for key in PARTS if key in parameters), None)
    wanted: tuple[tuple[Any, str], ...] = PARTS[key] if key else ((None, "all"),)
    checked = _checked(kind, conf)
    opened: list[tuple[str, Any]] = []
    for value, part in wanted:
        arguments = {**conf.kwargs, **({key: value} if key else {})}
        try:
            with _in_order():
                data = checked(str(root), **arguments)
        except SnnexpError:
            raise
        except (KeyboardInterrupt, MemoryError):
            raise
        except BaseException as error:  # one of tonic's classes ends the process where files are missing
            raise DataError(_unreadable(error, root / name, name)) from None
        opened.append((part, data))
    folder = Path(opened[0][1].location_on_system)
    partial = any(data.few for _, data in opened)
    shape = next((s for _, data in opened if (s := _shape(data, conf)) is not None), None)
    if shape is None:
        raise ConfigError(
            f"{KEY}={name}: its recordings differ in size. Set dataset.sensor_size to the largest, such as 240x180."
        )
    for part, data in opened:
        if len(data) == 0:
            raise DataError(f"{KEY}={name}: tonic finds no {part} recording below {folder}. Unpack the set there anew.")

    def divide(labels: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        return stratified_split(labels, conf.test_fraction, conf.split_seed, key="dataset.test_fraction")

    return TonicReader(
        cls=name,
        parts=tuple(opened),
        shape=shape,
        class_names=_class_names(name, opened),
        folder=folder,
        files=tuple(_files(folder)),
        how=repr([str(folder), sorted(conf.kwargs.items()), shape, tonic.__version__]),
        divide=divide if wanted[0][1] == "all" else None,
        partial=partial,
        notes=(f"fewer files below {folder} than tonic.datasets.{name} expects",) if partial else (),
    )


@contextmanager
def _in_order() -> Iterator[None]:
    """Let folders be listed by name: tonic takes them as the disk has them, and sample 5 would be another elsewhere."""
    walk, listdir = os.walk, os.listdir

    def sorted_walk(top: Any, *arguments: Any, **options: Any) -> Iterator[tuple[Any, list[Any], list[Any]]]:
        for where, folders, files in walk(top, *arguments, **options):
            folders.sort()
            yield where, folders, sorted(files)

    def sorted_names(*arguments: Any) -> list[Any]:
        return sorted(listdir(*arguments))

    os.walk, os.listdir = sorted_walk, sorted_names  # type: ignore[assignment]
    try:
        yield
    finally:
        os.walk, os.listdir = walk, listdir


def _checked(kind: type, conf: TonicDatasetConf) -> Any:
    """The class with our rules about what must be there; under its own name, which tonic makes the folder's."""

    class Checked(kind):  # type: ignore[misc]
        few = False

        def _is_file_present(self) -> bool:
            packed = str(self.filename).lower().endswith(ARCHIVES)
            return packed or bool(super()._is_file_present())  # an archive may go once it is unpacked

        def _folder_contains_at_least_n_files_of_type(self, n_files: int, file_type: str) -> bool:
            count = super()._folder_contains_at_least_n_files_of_type
            self.few = self.few or not count(n_files, file_type)
            return bool(count(1, file_type))

        def _check_exists(self) -> bool:
            if not super()._check_exists():
                _fetch(self, kind, conf)
                self.few = False
                if not super()._check_exists():
                    raise DataError(_missing(self, kind, "after fetching, files are still missing"))
            return True

    Checked.__name__ = Checked.__qualname__ = kind.__name__
    return Checked


def _fetch(data: Any, kind: type, conf: TonicDatasetConf) -> None:
    """Get the files: by our own downloader where tonic gives address and MD5, else by tonic's. Raises: DataError."""
    from tonic.dataset import Dataset

    if not conf.download:
        raise DataError(_missing(data, kind, "dataset.download=false"))
    url, md5 = getattr(data, "url", None), getattr(data, "file_md5", None)
    folder = Path(data.location_on_system)
    try:
        if url and md5 and kind.download is Dataset.download and str(data.filename).lower().endswith(ARCHIVES):  # type: ignore[attr-defined]
            from snnexp.data.fetching.fetch import fetch
            from snnexp.data.fetching.unpacking import unpack

            folder.mkdir(parents=True, exist_ok=True)
            archive = folder / data.filename
            if not archive.exists():
                fetch((url,), archive, md5)
            unpack(archive, folder, folder / f".{data.filename}.unpacked")
        elif hasattr(data, "_copy_and_extract_local_data"):
            data._copy_and_extract_local_data()
        else:
            data.download()
    except SnnexpError:
        raise
    except Exception as error:
        raise DataError(_missing(data, kind, f"{type(error).__name__}: {error}")) from None


def _missing(data: Any, kind: type, why: str) -> str:
    url = getattr(data, "url", None) or getattr(data, "base_url", None)
    md5 = getattr(data, "file_md5", None)
    where = f" from {url}" if url else ""
    return (
        f"{KEY}={kind.__name__}: files are missing below {data.location_on_system} ({why}). Put"
        f" {getattr(data, 'filename', None) or 'the set'}{where}{f' (MD5 {md5})' if md5 else ''} there, unpacked, or"
        " set dataset.root or dataset.path to the folder that holds it."
    )


# --- details ------------------------------------------------------------------------------------------------------


def _shape(owner: Any, conf: TonicDatasetConf) -> Shape | None:
    said, chosen = getattr(owner, "sensor_size", None), sensor_size(conf.sensor_size)
    if said is not None and chosen is not None and tuple(said[:2]) != chosen:
        raise ConfigError(f"dataset.sensor_size={conf.sensor_size}: tonic says {said[0]}x{said[1]}. Leave the key out.")
    if said is not None:
        return int(said[2]), int(said[1]), int(said[0])
    return (2, chosen[1], chosen[0]) if chosen is not None else None


def _class_names(name: str, opened: list[tuple[str, Any]]) -> tuple[str, ...]:
    first = opened[0][1]
    classes = getattr(first, "classes", None)
    if isinstance(classes, dict):  # name -> number
        return tuple(str(word) for word, _ in sorted(classes.items(), key=lambda item: int(item[1])))
    if classes is not None and len(classes):
        return tuple(_text(word) for word in classes)
    targets = {_text(target) for _, data in opened for target in data.targets}
    if targets:
        return tuple(sorted(targets, key=natural))
    if getattr(first, "single_digits", False):
        return tuple(word for word, _ in sorted(first.class_map.items(), key=lambda item: item[1]))
    hint = " Use dataset.kwargs={single_digits: true}." if hasattr(first, "single_digits") else ""
    raise ConfigError(f"{KEY}={name}: tonic does not say what its classes are.{hint}")


def _text(word: Any) -> str:
    return word.decode("utf-8", "replace") if isinstance(word, bytes) else str(word)


def _label(target: Any, numbers: dict[str, int], name: str) -> int:
    """The number of a class from a number or a name."""
    if (known := numbers.get(_text(target))) is not None:
        return known
    if isinstance(target, int | np.integer | np.ndarray) and 0 <= int(target) < len(numbers):
        return int(target)
    raise DataError(f"{KEY}={name}: a sample has the label {target!r}, which is none of its {len(numbers)} classes.")


def _subject(data: Any, i: int) -> int:
    """Who was recorded, where tonic says so."""
    for word in ("users", "speaker"):
        people = getattr(data, word, None)
        if people is not None and len(people) == len(data):
            return int(people[i])
    return -1


def _name_of(data: Any, i: int, folder: Path, part: str) -> str:
    """A sample's identity: its file, or its part and number."""
    entry = data.data[i] if isinstance(data.data, list) and i < len(data.data) else None
    if isinstance(entry, str | os.PathLike):
        path = Path(os.path.abspath(entry))
        if path.is_relative_to(folder):
            return path.relative_to(folder).as_posix()
    return f"{part}/{i}"


def _files(folder: Path) -> Iterator[Path]:
    """All files of the set, sorted, so that a changed one is noticed."""
    for where, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not is_companion(name))
        yield from (check_name(Path(where) / name) for name in sorted(files) if not is_companion(name))


def _unreadable(error: BaseException, folder: Path, name: str, sample: str = "") -> str:
    """One message that names the file (or, where tonic reads all at once, the sample) which tonic failed at."""
    words = re.sub(r"\s+", " ", str(error)).strip() or type(error).__name__
    why = f"tonic.datasets.{name} cannot read it ({type(error).__name__}: {words[:200]})"
    culprit = _culprit(error.__traceback__)
    if culprit is not None:
        return damaged(culprit, why)
    return f"{folder}{f': sample {sample}' if sample else ''}: {why}. Unpack the set anew."


def _culprit(trace: TracebackType | None) -> Path | None:
    """The file that the innermost of the functions that failed had in hand; tonic's own messages do not name it."""
    found: Path | None = None
    while trace is not None:
        values = trace.tb_frame.f_locals
        names = [v for v in values.values() if isinstance(v, str | os.PathLike) and len(str(v)) < 4096]
        for where in (values.get("path"), values.get("dirpath")):
            if isinstance(where, str) and isinstance(values.get("file"), str):
                names.append(os.path.join(where, values["file"]))
        data, index = getattr(values.get("self"), "data", None), values.get("index")
        if isinstance(data, list) and isinstance(index, int) and index < len(data) and isinstance(data[index], str):
            names.append(data[index])
        files = [Path(v) for v in names if os.sep in str(v) and os.path.isfile(v) and not str(v).endswith(".py")]
        found = files[-1] if files else found
        trace = trace.tb_next
    return found
