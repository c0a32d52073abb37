"""What may lie where a recording is expected: companion files are passed over, all else is named with a way out."""

from __future__ import annotations

import ast
import errno
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_files import write_cifar10dvs, write_dvs_npy, write_dvs_trials, write_heidelberg, write_nmnist
from test_image_sets import write_cifar10, write_mnist

from snnexp.config import DatasetConf, EventDatasetConf, ImageDatasetConf
from snnexp.data import files, open_data
from snnexp.data.base import DataInfo
from snnexp.data.files import Finder, matches, read_lines
from snnexp.errors import DataError

CPU = torch.device("cpu")
FILES_OF_CIFAR = {"data_batch_1.bin": 40, "test_batch.bin": 20}
SETS: dict[str, tuple[Callable[[Path], object], str, str]] = {  # writer, data set, one of its files
    "nmnist": (write_nmnist, "nmnist", "NMNIST/Train/3/00004.bin"),
    "npy": (write_dvs_npy, "dvs128", "DVSGesture/ibmGestureTrain/user01_led/3.npy"),
    "trials": (write_dvs_trials, "dvs128", "DvsGesture/user01_led.aedat"),
    "labels": (write_dvs_trials, "dvs128", "DvsGesture/user01_led_labels.csv"),
    "list": (write_dvs_trials, "dvs128", "DvsGesture/trials_to_train.txt"),
    "shd": (lambda root: write_heidelberg(root, "shd"), "shd", "SHD/shd_train.h5"),
    "aedat": (lambda root: write_cifar10dvs(root, "aedat", 3), "cifar10dvs", "CIFAR10DVS/cat/cifar10_cat_1.aedat"),
    "mnist": (lambda root: write_mnist(root, packed=False), "mnist", "mnist/train-images-idx3-ubyte"),
    "cifar10": (lambda root: write_cifar10(root, FILES_OF_CIFAR), "cifar10", "cifar-10-batches-bin/data_batch_1.bin"),
}


def conf(kind: str, root: Path) -> DatasetConf:
    name = SETS[kind][1]
    image = name in ("mnist", "cifar10")
    share = 0.25 if kind not in ("trials", "labels", "list") else 0.0
    return (ImageDatasetConf if image else EventDatasetConf)(
        name=name, root=str(root), download=False, val_fraction=share
    )


def info(kind: str, root: Path) -> DataInfo:
    return open_data(conf(kind, root), CPU).info


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Path], Path]:
    """Copies a set that was written once; returns the file that is to be harmed."""
    base = tmp_path_factory.mktemp("sets")

    def copy(kind: str, root: Path) -> Path:
        if not (base / kind).exists():
            (base / kind).mkdir()
            SETS[kind][0](base / kind)
        shutil.copytree(base / kind, root, dirs_exist_ok=True)
        return root / SETS[kind][2]

    return copy


def put(what: str, path: Path) -> None:
    """Something else in a file's place."""
    path.unlink()
    if what == "dangling":
        path.symlink_to(path.with_name("gone"))
    elif what == "loop":
        path.symlink_to(path)
    elif what == "folder":
        path.mkdir()
    elif what == "fifo":
        os.mkfifo(path)
    else:
        here = os.getcwd()
        os.chdir(path.parent)  # a socket's path is short
        try:
            with socket.socket(socket.AF_UNIX) as made:
                made.bind(path.name)
        finally:
            os.chdir(here)


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("dangling", "is a link to .*gone, where nothing is.*remove the link"),
        ("loop", "is a link that leads back to itself"),
        ("folder", "is a folder, but a file is wanted there. Move it away"),
        ("fifo", r"is a pipe \(FIFO\), but"),
        ("socket", "is a socket, but"),
    ],
)
@pytest.mark.parametrize("kind", list(SETS))
def test_what_is_no_file_is_named(
    written: Callable[[str, Path], Path], tmp_path: Path, kind: str, what: str, says: str
) -> None:
    path = written(kind, tmp_path)
    put(what, path)
    with pytest.raises(DataError, match=f"{path.name}: {says}"):
        info(kind, tmp_path)


@pytest.mark.parametrize("kind", list(SETS))
def test_an_unreadable_file_is_named(
    written: Callable[[str, Path], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Tests may run as root, who may read everything: the refusal is made by hand."""
    path = written(kind, tmp_path)
    original = Path.open

    def refuse(self: Path, *arguments: object, **keys: object) -> object:
        if self == path:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))
        return original(self, *arguments, **keys)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(DataError, match=rf"{path.name}: cannot be read \(Permission denied\).*chmod u\+rX"):
        info(kind, tmp_path)


def test_a_folder_that_cannot_be_listed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_nmnist(tmp_path)
    original = os.scandir

    def refuse(path: object) -> object:
        if str(path).endswith("Train/7"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return original(path)  # type: ignore[call-overload]

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=r"Train/7: cannot be read"):
        info("nmnist", tmp_path)


@pytest.mark.parametrize("kind", ["nmnist", "npy", "trials", "shd", "aedat", "mnist", "cifar10"])
def test_companion_files_are_no_recordings(written: Callable[[str, Path], Path], tmp_path: Path, kind: str) -> None:
    before = info(kind, written(kind, tmp_path / "a") and tmp_path / "a")
    written(kind, tmp_path / "b")
    for path in [path for path in (tmp_path / "b").rglob("*") if path.is_file() and "event-store" not in path.parts]:
        (path.parent / f"._{path.name}").write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X        ".ljust(120, b"\0"))
        for name in (".DS_Store", "Thumbs.db", "desktop.ini"):
            (path.parent / name).write_bytes(b"x" * 25)
        hidden = path.parent / "__MACOSX"
        hidden.mkdir(exist_ok=True)
        (hidden / path.name).write_bytes(b"x" * 25)
    after = info(kind, tmp_path / "b")
    assert after.counts == before.counts and after.data_fingerprint == before.data_fingerprint
    assert not any("passed over" in note for note in after.notes)


def test_other_files_are_passed_over_with_a_note(tmp_path: Path) -> None:
    write_nmnist(tmp_path)
    (tmp_path / "NMNIST/Train/3/00004.bin.gz").write_bytes(b"x")
    (tmp_path / "NMNIST/Train/ten").mkdir()
    assert "2 files passed over: Train/3/00004.bin.gz, Train/ten" in info("nmnist", tmp_path).notes


def test_names_that_are_no_text_are_named(tmp_path: Path) -> None:
    write_nmnist(tmp_path)
    Path(os.fsdecode(bytes(tmp_path / "NMNIST/Train/3/") + b"/a\xff\n.bin")).write_bytes(b"12345")
    with pytest.raises(DataError, match=r"Train/3: the name 'a\\udcff\\n\.bin'.*Rename the file"):
        info("nmnist", tmp_path)


def test_only_companions_do_not_count_as_a_data_set(tmp_path: Path) -> None:
    folder = tmp_path / "Train/3"
    folder.mkdir(parents=True)
    (folder / "._1.bin").touch()
    assert not matches(tmp_path, "Train/*/*.bin") and Finder(tmp_path).files(folder, ".bin") == []
    (folder / "1.bin").symlink_to("gone")
    assert matches(tmp_path, "Train/*/*.bin")  # the reader will name it; fetching would not mend it


def test_a_dangling_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "NMNIST").symlink_to(tmp_path / "gone")
    with pytest.raises(DataError, match=r"NMNIST: is a link to .*gone, where nothing is"):
        info("nmnist", tmp_path)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"PK\3\4" + b"x" * 40, "is a zip archive.*Unpack it"),
        (b"\x1f\x8b\x08" + b"x" * 40, "damaged|is a gzip file.*Unpack it|cut off"),
        (b"<!DOCTYPE html><html>", "is a web page.*fetch the file again"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"\0" * 3002, "is filled with zeros|cut off|damaged"),
    ],
)
@pytest.mark.parametrize("kind", ["nmnist", "npy", "trials", "shd", "aedat", "mnist", "cifar10"])
def test_a_file_of_another_kind_is_called_what_it_is(
    written: Callable[[str, Path], Path], tmp_path: Path, kind: str, content: bytes, says: str
) -> None:
    """Whole files of another kind must not be taken for damaged ones that should be deleted."""
    path = written(kind, tmp_path)
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"{path.name}.*({says})") as error:
        info(kind, tmp_path)
    assert "delete" not in str(error.value)


def test_no_reader_lists_folders_on_its_own() -> None:
    """`files.py` is the one place; the store's builder and the unpacking look after their own temporary folders."""
    own = {"files.py", "packing.py", "unpacking.py"}
    listing = {"glob", "rglob", "iterdir", "listdir", "scandir", "walk"}
    package = Path(files.__file__).parent
    for path in package.glob("*.py"):
        if path.name in own:
            continue
        calls = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        used = {call.attr for call in calls if isinstance(call, ast.Attribute)} & listing
        assert not used, f"{path.name} calls {used}: use snnexp.data.files"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_text_in_any_encoding(tmp_path: Path, encoding: str, end: str) -> None:
    path = tmp_path / "list.txt"
    path.write_bytes(f"a.aedat{end}b.aedat{end}".encode(encoding))
    assert read_lines(path) == ["a.aedat", "b.aedat", ""]


def test_text_that_is_none_is_named(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_bytes("a.aedat\nBürger.aedat\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"list\.txt: line 2 is not UTF-8 text \(byte 0xfc\)"):
        read_lines(path)
    path.write_bytes(bytes(np.arange(64, dtype=np.uint8)))
    with pytest.raises(DataError, match=r"list\.txt: is not a text file"):
        read_lines(path)
