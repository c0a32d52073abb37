"""Samples in a folder per class: which parts, classes and files a user's folder holds. Events and pictures alike.

DIR/train/<class>/<file>, DIR/val/<class>/<file>, DIR/test/<class>/<file>      or      DIR/<class>/<file>
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from snnexp.data.files import Finder, check_folder, some
from snnexp.errors import ConfigError, DataError
from snnexp.schema.dataset import FolderDatasetConf, FolderImagesConf

PART_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}

OwnConf = FolderDatasetConf | FolderImagesConf
VAL_SHARE, TEST_SHARE = FolderDatasetConf.val_fraction, FolderDatasetConf.test_fraction
ORDER = ("train", "val", "test", "all")


@dataclass(frozen=True)
class ClassFolders:
    """What was found. `files`: part ("all" if the folder has no parts), class number and path, in this order."""

    base: Path
    class_names: tuple[str, ...]
    files: tuple[tuple[str, int, Path], ...]
    notes: tuple[str, ...]

    @property
    def parts(self) -> set[str]:
        """The parts that there are."""
        return {part for part, _, _ in self.files}

    def name_of(self, path: Path) -> str:
        """A sample's identity, which does not depend on where the folder lies."""
        return path.relative_to(self.base).as_posix()


def find_classes(name: str, conf: OwnConf, suffixes: tuple[str, ...]) -> ClassFolders:
    """List the classes and files of `dataset.path` in a fixed order: 2 before 10, whatever the disk says.

    Raises: ConfigError if no folder is given, or the share of a part that it has; DataError naming the folder and what
    is wrong with it.
    """
    where = conf.path
    if where is None:
        raise ConfigError(f"dataset={name} needs the folder of your data: dataset.path=DIR, with a folder per class.")
    base = Path(os.path.abspath(Path(where).expanduser()))  # links in it stay as they are
    check_folder(base)
    if not base.is_dir():
        raise DataError(f"dataset.path={where}: there is no such folder.")
    finder = Finder(base)
    finder.files(base, "\0")  # what lies beside the class folders (a README, a list) is noted as passed over
    folders = finder.folders(base)
    parts = _parts(base, folders)
    found = {part: finder.folders(folder) for part, folder in parts.items()} if parts else {"all": folders}
    finder.passed_over += [folder for folder in folders if parts and folder not in parts.values()]
    for part, key, default in (("val", "val_fraction", VAL_SHARE), ("test", "test_fraction", TEST_SHARE)):
        if part in found and getattr(conf, key) != default:
            raise ConfigError(f"dataset.{key}={getattr(conf, key):g}: {parts[part]}/ is the {part} part. Leave it out.")
    listed = {part: _files(finder, classes, suffixes) for part, classes in found.items()}
    names = _class_names(base, found)
    number = {name: i for i, name in enumerate(names)}
    files = [(part, number[path.parent.name], path) for part in ORDER for path in listed.get(part, ())]
    files.sort(key=lambda entry: (ORDER.index(entry[0]), entry[1], natural(entry[2].name)))
    if len(names) < 2:
        raise DataError(
            f"{base}: has {len(names) or 'no'} class folder{'s' * (len(names) != 1)}"
            f"{f' ({names[0]})' if names else ''}, but at least two are needed: one folder per class"
            f"{' in train/, val/ and test/, or' if not parts else ','} with files ending in {', '.join(suffixes)}."
        )
    return ClassFolders(base, names, tuple(files), (*_missing_classes(parts, listed, names), *finder.notes()))


def natural(name: str) -> tuple[tuple[int, int | str], ...]:
    """A key that sorts numbers by value."""
    return tuple((0, int(w)) if w.isdecimal() else (1, w) for w in re.split(r"(\d+)", name) if w)


def _parts(base: Path, folders: list[Path]) -> dict[str, Path]:
    """Part -> its folder; empty if the folder is not divided."""
    found: dict[str, Path] = {}
    for folder in folders:
        part = next((part for part, words in PART_NAMES.items() if folder.name.lower() in words), None)
        if part is None:
            continue
        if part in found:
            raise DataError(f"{base}: {found[part].name}/ and {folder.name}/ are both the {part} part. Rename one.")
        found[part] = folder
    others = [folder.name for folder in folders if folder not in found.values()]
    if found and "train" not in found:
        raise DataError(
            f"{base}: has {some([f.name + '/' for f in found.values()])} but no train/. Add it, or rename the folder if"
            " it is a class."
        )
    if found and others:
        raise DataError(
            f"{base}: has {found['train'].name}/ and, beside it, {some(others)}. Move the classes into train/ and"
            " test/, or rename what is a class."
        )
    return found


def _files(finder: Finder, classes: list[Path], suffixes: tuple[str, ...]) -> list[Path]:
    listed = []
    for folder in classes:
        files = finder.files(folder, *suffixes)
        deeper = finder.folders(folder)
        if deeper:
            raise DataError(
                f"{deeper[0]}: is a folder within the class folder {folder.name}/, where files are wanted"
                f" ({', '.join(suffixes)}). Move its files up, or move it away."
            )
        if not files:
            raise DataError(
                f"{folder}: has no file that ends in {', '.join(suffixes)}. Put the files of this class there, or move"
                " the folder away."
            )
        listed += files
    return listed


def _class_names(base: Path, found: dict[str, list[Path]]) -> tuple[str, ...]:
    names = sorted({folder.name for folders in found.values() for folder in folders}, key=natural)
    spelt: dict[str, str] = {}
    for name in names:
        other = spelt.setdefault(name.casefold(), name)
        if other != name:
            raise DataError(f"{base}: the class folders {other}/ and {name}/ differ in case only. Make them one.")
    for part, folders in found.items():
        known = {folder.name for folder in found.get("train", folders)}
        if strange := [folder for folder in folders if folder.name not in known]:
            raise DataError(
                f"{strange[0]}: is a class of {part} that train/ does not have. Rename it, or move it away."
            )
    return tuple(names)


def _missing_classes(parts: dict[str, Path], listed: dict[str, list[Path]], names: tuple[str, ...]) -> list[str]:
    notes = []
    for part in parts:
        if part != "train" and (absent := [n for n in names if n not in {path.parent.name for path in listed[part]}]):
            notes.append(f"{part}: no recording of {some(absent)}")
    return notes
