"""Unpacking: what is unsafe or damaged is refused and leaves nothing; what was cut off is done again."""

from __future__ import annotations

import io
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from snnexp.data.fetching import fetch as fetching
from snnexp.data.fetching import unpacking
from snnexp.data.fetching.unpacking import unpack
from snnexp.errors import DataError


def zip_of(path: Path, files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as packed:
        for name, content in files.items():
            packed.writestr(name, content)
    return path


def tar_of(path: Path, files: dict[str, bytes], *others: tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w:gz") as packed:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            packed.addfile(member, io.BytesIO(content))
        for member in others:
            packed.addfile(member)
    return path


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def target(tmp_path: Path) -> Path:
    folder = tmp_path / "set"
    folder.mkdir()
    return folder


def refused(archive: Path, target: Path) -> str:
    with pytest.raises(DataError) as caught:
        unpack(archive, target, target / ".mark")
    assert list(target.iterdir()) == [], "something was left behind"
    assert sorted(path.name for path in target.parent.iterdir()) == sorted({archive.name, target.name})
    return str(caught.value)


FILES = {"Train/0/1.bin": b"abc", "Train/1/2.bin": b"", "README": b"hello"}


@pytest.mark.parametrize(("make", "name"), [(zip_of, "a.zip"), (tar_of, "a.tar.gz")])
def test_files_come_out_as_they_went_in(make: Callable[..., Path], name: str, tmp_path: Path, target: Path) -> None:
    unpack(make(tmp_path / name, FILES), target, target / ".mark")
    assert tree(target) == FILES


def test_zips_in_a_zip_are_unpacked(tmp_path: Path, target: Path) -> None:
    inner = zip_of(tmp_path / "inner.zip", {"bird/1.aedat4": b"x"}).read_bytes()
    (tmp_path / "inner.zip").unlink()
    unpack(zip_of(tmp_path / "a.zip", {"bird.zip": inner}), target, target / ".mark")
    assert tree(target) == {"bird/1.aedat4": b"x"}


@pytest.mark.parametrize("name", ["/etc/x", "../x", "a/../../x", "a/..", "..\\x", "C:/x"])
@pytest.mark.parametrize(("make", "archive"), [(zip_of, "a.zip"), (tar_of, "a.tar.gz")])
def test_paths_outside_are_refused(
    make: Callable[..., Path], archive: str, name: str, tmp_path: Path, target: Path
) -> None:
    assert "a path outside its folder" in refused(make(tmp_path / archive, {"ok": b"1", name: b"2"}), target)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_in_a_tar_are_refused(kind: bytes, tmp_path: Path, target: Path) -> None:
    member = tarfile.TarInfo("link")
    member.type, member.linkname = kind, "/etc"
    assert "a link or device" in refused(tar_of(tmp_path / "a.tar.gz", {}, member), target)


def test_links_in_a_zip_are_refused(tmp_path: Path, target: Path) -> None:
    entry = zipfile.ZipInfo("link")
    entry.create_system, entry.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as packed:
        packed.writestr(entry, "/etc")
    assert "a link or device" in refused(tmp_path / "a.zip", target)


def test_bombs_are_refused(tmp_path: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpacking, "CHUNK", 1000)
    monkeypatch.setattr(unpacking, "MAX_RATIO", 20)
    for make, name in ((zip_of, "a.zip"), (tar_of, "b.tar.gz")):
        archive = make(tmp_path / name, {"zeros": bytes(1_000_000)})
        assert "unpacks to" in refused(archive, target)
        archive.unlink()


def test_too_many_files_are_refused(tmp_path: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpacking, "MAX_FILES", 3)
    for make, name in ((zip_of, "a.zip"), (tar_of, "b.tar.gz")):
        archive = make(tmp_path / name, {str(number): b"" for number in range(4)})
        assert "more than 3 files" in refused(archive, target)
        archive.unlink()


def test_a_zip_that_lies_about_its_sizes_is_refused(tmp_path: Path, target: Path) -> None:
    archive = zip_of(tmp_path / "a.zip", {"a": b"x" * 1000}, zipfile.ZIP_STORED)
    raw = archive.read_bytes()
    archive.write_bytes(raw.replace((1000).to_bytes(4, "little"), (10).to_bytes(4, "little")))
    refused(archive, target)


def test_the_same_path_twice_is_refused(tmp_path: Path, target: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as packed, pytest.warns(UserWarning, match="Duplicate"):
        packed.writestr("a", "1")
        packed.writestr("a", "2")
    assert "the same path twice" in refused(tmp_path / "a.zip", target)


def test_other_files_are_refused(tmp_path: Path, target: Path) -> None:
    (tmp_path / "a.zip").write_bytes(b"<html>Please log in</html>")
    assert "neither a zip nor a tar" in refused(tmp_path / "a.zip", target)


@pytest.mark.parametrize(("make", "name"), [(zip_of, "a.zip"), (tar_of, "a.tar.gz")])
def test_truncated_archives_are_refused(make: Callable[..., Path], name: str, tmp_path: Path, target: Path) -> None:
    archive = make(tmp_path / name, {f"Train/{number}.bin": bytes([number]) * 5000 for number in range(50)})
    whole = archive.read_bytes()
    for length in (0, 10, len(whole) // 2, len(whole) - 30):
        archive.write_bytes(whole[:length])
        refused(archive, target)


@given(position=st.integers(0, 10**6), bit=st.integers(0, 7), packed=st.booleans())
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_flipped_bit_is_an_error_or_harmless(
    position: int, bit: int, packed: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("flip")
    (target := folder / "set").mkdir()
    content = {"a/1.bin": bytes(range(256)), "a/2.bin": b"hello" * 50}
    archive = (zip_of if packed else tar_of)(folder / "archive", content)
    raw = bytearray(archive.read_bytes())
    raw[position % len(raw)] ^= 1 << bit
    archive.write_bytes(raw)
    try:
        unpack(archive, target, target / ".mark")
    except DataError:
        assert list(target.iterdir()) == []
    else:  # names, times and comments have no checksum; contents have
        assert set(tree(target).values()) <= {*content.values(), b""}


def test_an_unpacking_that_was_killed_is_done_again(tmp_path: Path, target: Path) -> None:
    archive = zip_of(tmp_path / "a.zip", FILES)
    (target / ".unpacking-a.zip-x1" / "Train").mkdir(parents=True)  # killed while writing
    (target / ".mark").touch()  # killed while moving: Train is there, README not yet
    (target / "Train").mkdir()
    (target / "Train" / "old.bin").write_bytes(b"half")
    unpack(archive, target, target / ".mark")
    assert tree(target) == FILES


def test_what_is_there_already_is_never_replaced(tmp_path: Path, target: Path) -> None:
    archive = zip_of(tmp_path / "a.zip", FILES)
    (target / "Train").mkdir()
    (target / "Train" / "mine.txt").write_bytes(b"mine")
    with pytest.raises(DataError, match="Train is there already"):
        unpack(archive, target, target / ".mark")
    assert tree(target) == {"Train/mine.txt": b"mine"}


def test_a_licence_in_both_archives_does_not_hurt(tmp_path: Path, target: Path) -> None:
    (target / "README").write_bytes(b"from train.zip")
    (target / "Train").mkdir()  # empty: ours to fill
    unpack(zip_of(tmp_path / "a.zip", {**FILES, "__MACOSX/x": b""}), target, target / ".mark", ("Train/*/*.bin",))
    assert tree(target) == {**FILES, "README": b"from train.zip"}


def test_a_full_disk_leaves_nothing(tmp_path: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = zip_of(tmp_path / "a.zip", FILES)
    monkeypatch.setattr(fetching.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1})())
    assert "too full" in refused(archive, target)
