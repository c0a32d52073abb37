"""`ensure`: what is there is taken, what is missing is fetched once, and the message says what to do by hand."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from local_server import Site, serve

from snnexp.config import DatasetConf, EventDatasetConf, ImageDatasetConf
from snnexp.data.facts import FACTS
from snnexp.data.fetching import downloads, sources
from snnexp.data.fetching import fetch as fetching
from snnexp.data.fetching.downloads import OWN, ensure, prepare
from snnexp.data.fetching.sources import SOURCES, Archive, Source
from snnexp.errors import DataError


def zip_bytes(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as packed:
        for name, content in files.items():
            packed.writestr(name, content)
    return buffer.getvalue()


TRAIN = zip_bytes({"Train/0/1.bin": b"train"})
TEST = zip_bytes({"Test/0/1.bin": b"test"})


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """A server that takes the place of N-MNIST's own."""
    monkeypatch.setattr(fetching, "PAUSE_S", 0.01)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serve(Site(files={"train.zip": TRAIN, "test.zip": TEST})) as running:
        monkeypatch.setitem(SOURCES, "nmnist", nmnist(running))
        yield running


def nmnist(site: Site) -> Source:
    archives = tuple(
        Archive(f"{part}.zip", hashlib.md5(body).hexdigest(), (site.url(f"{part}.zip"),), (f"{part.title()}/*/*.bin",))
        for part, body in (("train", TRAIN), ("test", TEST))
    )
    return Source("NMNIST", archives, "https://example.org/nmnist")


def conf(root: Path, **keys: Any) -> EventDatasetConf:
    return EventDatasetConf(name="nmnist", root=str(root), **keys)


def files(root: Path) -> list[str]:
    found = (str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())
    return sorted(name for name in found if not name.endswith(".lock"))


def test_missing_files_are_fetched_and_unpacked_once(site: Site, tmp_path: Path) -> None:
    done = ensure(conf(tmp_path))
    assert [line.split(" into ")[0] for line in done] == [
        "dataset=nmnist: fetched and unpacked train.zip",
        "dataset=nmnist: fetched and unpacked test.zip",
    ]
    assert files(tmp_path / "NMNIST") == ["Test/0/1.bin", "Train/0/1.bin", "test.zip", "train.zip"]
    assert ensure(conf(tmp_path)) == []
    assert "there already" in prepare(conf(tmp_path))
    assert len(site.requests) == 2


def test_archives_can_be_deleted_afterwards(site: Site, tmp_path: Path) -> None:
    ensure(conf(tmp_path, keep_archives=False))
    assert files(tmp_path) == ["NMNIST/Test/0/1.bin", "NMNIST/Train/0/1.bin"]


@pytest.mark.parametrize("folder", ["NMNIST", "."])
def test_the_users_own_archives_are_taken_and_kept(folder: str, site: Site, tmp_path: Path) -> None:
    (tmp_path / folder).mkdir(exist_ok=True)
    (tmp_path / folder / "train.zip").write_bytes(TRAIN)
    (tmp_path / folder / "test.zip").write_bytes(TEST)
    done = ensure(conf(tmp_path, download=False, keep_archives=False))
    assert len(done) == 2 and "fetched" not in "".join(done)
    assert files(tmp_path / "NMNIST")[:2] == ["Test/0/1.bin", "Train/0/1.bin"]
    assert (tmp_path / folder / "train.zip").exists()
    assert site.requests == []


def test_the_users_own_folder_is_taken_as_it_is(site: Site, tmp_path: Path) -> None:
    for part in ("Train", "Test"):
        (tmp_path / "NMNIST" / part / "7").mkdir(parents=True)
        (tmp_path / "NMNIST" / part / "7" / "9.bin").write_bytes(b"")
    assert ensure(conf(tmp_path)) == []
    assert site.requests == [] and len(files(tmp_path)) == 2


def test_only_the_missing_part_is_fetched(site: Site, tmp_path: Path) -> None:
    (tmp_path / "NMNIST" / "Train" / "7").mkdir(parents=True)
    (tmp_path / "NMNIST" / "Train" / "7" / "9.bin").write_bytes(b"")
    ensure(conf(tmp_path))
    assert [path for path, _ in site.requests] == ["test.zip"]
    assert (tmp_path / "NMNIST" / "Train" / "7" / "9.bin").exists()


@pytest.mark.parametrize("damage", ["truncated", "flipped"])
def test_a_damaged_archive_of_the_user_is_named_and_kept(damage: str, site: Site, tmp_path: Path) -> None:
    (tmp_path / "NMNIST").mkdir()
    body = TRAIN[:-20] if damage == "truncated" else TRAIN[:40] + bytes([TRAIN[40] ^ 1]) + TRAIN[41:]
    path = tmp_path / "NMNIST" / "train.zip"
    path.write_bytes(body)
    with pytest.raises(DataError, match=r"train\.zip is damaged or another file: its MD5 is .* Remove it"):
        ensure(conf(tmp_path))
    assert path.read_bytes() == body and site.requests == []


def test_without_network_the_message_has_address_md5_and_folder(site: Site, tmp_path: Path) -> None:
    with serve(Site()) as closed:
        pass
    SOURCES["nmnist"] = nmnist(closed)
    with pytest.raises(DataError) as caught:
        ensure(conf(tmp_path))
    text = str(caught.value)
    for wanted in (
        f"files are missing in {tmp_path / 'NMNIST'}",
        "no connection",
        f"train.zip  MD5 {hashlib.md5(TRAIN).hexdigest()}",
        f"test.zip  MD5 {hashlib.md5(TEST).hexdigest()}",
        closed.url("train.zip"),
        "or set dataset.root (SNNEXP_DATA) to a folder that holds NMNIST",
    ):
        assert wanted in text


def test_download_false_never_asks_a_server(site: Site, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"dataset\.download=false"):
        ensure(conf(tmp_path, download=False))
    assert site.requests == [] and list(tmp_path.iterdir()) == []


def test_a_cut_connection_is_resumed_by_the_next_start(site: Site, tmp_path: Path) -> None:
    site.cut_after = 50
    site.ranges = False
    with pytest.raises(DataError, match=r"cut after 50 of"):
        ensure(conf(tmp_path))
    site.cut_after, site.ranges = None, True
    ensure(conf(tmp_path))
    assert site.requests[-2] == ("train.zip", "bytes=50-")


def test_a_half_moved_unpacking_counts_as_missing(site: Site, tmp_path: Path) -> None:
    ensure(conf(tmp_path))
    source = SOURCES["nmnist"]
    sources.unpacking_mark(tmp_path / "NMNIST", source.archives[0]).touch()
    (tmp_path / "NMNIST" / "Train" / "0" / "1.bin").write_bytes(b"")
    assert [archive.name for archive in source.missing(tmp_path)] == ["train.zip"]
    ensure(conf(tmp_path))
    assert (tmp_path / "NMNIST" / "Train" / "0" / "1.bin").read_bytes() == b"train"


def test_an_archive_without_the_wanted_files_is_an_error(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = zip_bytes({"Elsewhere/1.bin": b""})
    site.files["odd.zip"] = body
    odd = Archive("odd.zip", hashlib.md5(body).hexdigest(), (site.url("odd.zip"),), ("Train/*/*.bin",))
    monkeypatch.setitem(SOURCES, "nmnist", Source("NMNIST", (odd,), "https://example.org"))
    with pytest.raises(DataError, match=r"odd\.zip was unpacked into .* but Train/\*/\*\.bin is not there"):
        ensure(conf(tmp_path))


def test_a_root_that_cannot_be_written(site: Site, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DataError, match=r"file: is not a folder, but one is wanted"):
        ensure(conf(tmp_path / "file"))


def test_a_read_only_root(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, *args: object, **keys: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(DataError, match=r"cannot be written to\. Set dataset\.root"):
        ensure(conf(tmp_path))


def test_waiting_for_another_process_is_said(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(downloads, "LOCK_TIMEOUT_S", 0.1)
    (tmp_path / "NMNIST").mkdir()
    with (
        FileLock(tmp_path / "NMNIST" / ".nmnist.lock"),
        pytest.raises(DataError, match="another process has been busy"),
    ):
        ensure(conf(tmp_path))
    assert "waiting for another process" in caplog.text and site.requests == []


JOB = (
    "import sys; from snnexp.config import EventDatasetConf; from snnexp.data.fetching.downloads import ensure;"
    "from snnexp.data.fetching.sources import SOURCES, Archive, Source; SOURCES['nmnist'] = {source!r};"
    "print('start', flush=True); ensure(EventDatasetConf(name='nmnist', root=sys.argv[1]))"
)


def start(site: Site, root: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-W", "error", "-c", JOB.format(source=SOURCES["nmnist"]), str(root)]
    environment = {**os.environ, "no_proxy": "127.0.0.1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def test_several_processes_fetch_once(site: Site, tmp_path: Path) -> None:
    site.delay_s, site.chunk = 0.05, 40
    jobs = [start(site, tmp_path) for _ in range(3)]
    for job in jobs:
        job.communicate()
    assert [job.returncode for job in jobs] == [0, 0, 0]
    assert sorted(path for path, _ in site.requests) == ["test.zip", "train.zip"]
    assert files(tmp_path / "NMNIST") == ["Test/0/1.bin", "Train/0/1.bin", "test.zip", "train.zip"]


def test_killed_at_any_moment_the_next_start_finishes(site: Site, tmp_path: Path) -> None:
    """Killed while fetching, checking, writing and moving: never a half set that counts as whole."""
    content = {f"Train/{number % 10}/{number}.bin": number.to_bytes(2, "big") * 50 for number in range(3000)}
    site.files["train.zip"] = body = zip_bytes(content)
    site.delay_s, site.chunk = 0.005, len(body) // 20
    train = Archive("train.zip", hashlib.md5(body).hexdigest(), (site.url("train.zip"),), ("Train/*/*.bin",))
    SOURCES["nmnist"] = Source("NMNIST", (train, SOURCES["nmnist"].archives[1]), "https://example.org")
    for delay_s in (0.02, 0.1, 0.2, 0.3, 0.4, 0.5):
        job = start(site, tmp_path)
        assert job.stdout is not None and job.stdout.readline() == "start\n"
        time.sleep(delay_s)
        job.kill()
        job.communicate()
        if not SOURCES["nmnist"].missing(tmp_path):
            break
        if "Train/*/*.bin" not in [a.products[0] for a in SOURCES["nmnist"].missing(tmp_path)]:
            assert len(list((tmp_path / "NMNIST" / "Train").rglob("*.bin"))) == 3000
    ensure(conf(tmp_path))
    found = {str(path.relative_to(tmp_path / "NMNIST")): path.read_bytes() for path in tmp_path.rglob("Train/*/*.bin")}
    assert found == content
    assert not list((tmp_path / "NMNIST").glob(".unpacking-*"))


# --- the table ---


@pytest.mark.parametrize("name", FACTS)
def test_every_data_set_has_a_source_or_is_generated(name: str) -> None:
    assert (name in SOURCES) == (name not in ("digits", "randman", "motion", *OWN))
    if name not in SOURCES:
        assert ensure(DatasetConf(name=name, root="/nonexistent")) == []
        assert OWN.get(name, "nothing to fetch") in prepare(DatasetConf(name=name, root="/nonexistent"))
        return
    for archive in SOURCES[name].archives:
        assert len(archive.md5) == 32 and int(archive.md5, 16)
        assert archive.urls and archive.products
        assert archive.urls[0].startswith("https://")


def test_md5_and_addresses_agree_with_tonic() -> None:
    from tonic.datasets import CIFAR10DVS, NMNIST, SHD, SSC, DVSGesture

    ours = {name: {a.name: a for a in source.archives} for name, source in SOURCES.items()}
    assert ours["nmnist"]["train.zip"].md5 == NMNIST.train_md5 and ours["nmnist"]["test.zip"].md5 == NMNIST.test_md5
    assert ours["nmnist"]["train.zip"].urls[0] == NMNIST.train_url
    assert ours["nmnist"]["test.zip"].urls[0] == NMNIST.test_url
    for part, file in (("train", "ibmGestureTrain.tar.gz"), ("test", "ibmGestureTest.tar.gz")):
        assert ours["dvs128"][file].md5 == getattr(DVSGesture, f"{part}_md5")
        assert ours["dvs128"][file].urls[-1] == getattr(DVSGesture, f"{part}_url")
    assert ours["cifar10dvs"]["CIFAR10DVS.zip"].md5 == CIFAR10DVS.file_md5
    assert ours["cifar10dvs"]["CIFAR10DVS.zip"].urls[-1] == CIFAR10DVS.url
    for part in ("train", "test"):
        assert ours["shd"][f"shd_{part}.h5.zip"].md5 == getattr(SHD, f"{part}_md5")
        assert ours["shd"][f"shd_{part}.h5.zip"].urls[0] == SHD.base_url + getattr(SHD, f"{part}_zip")
    for part in ("train", "valid", "test"):
        assert ours["ssc"][f"ssc_{part}.h5.zip"].md5 == getattr(SSC, f"{part}_md5")


def test_other_accepted_copies_need_no_download(tmp_path: Path) -> None:
    (tmp_path / "DvsGesture").mkdir()
    (tmp_path / "DvsGesture" / "trials_to_train.txt").write_text("")
    assert ensure(EventDatasetConf(name="dvs128", root=str(tmp_path))) == []
    assert ensure(EventDatasetConf(name="dvs128", root=str(tmp_path / "none"), variant="trials")) == []


def test_a_tar_archive_in_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CIFAR-10 unpacks into the root itself; the tar is made here."""
    with tarfile.open(tmp_path / "cifar-10-binary.tar.gz", "w:gz") as packed:
        member = tarfile.TarInfo("cifar-10-batches-bin/test_batch.bin")
        member.size = 3
        packed.addfile(member, io.BytesIO(b"abc"))
    real = SOURCES["cifar10"].archives[0]
    md5 = hashlib.md5((tmp_path / real.name).read_bytes()).hexdigest()
    monkeypatch.setitem(SOURCES, "cifar10", Source("", (Archive(real.name, md5, real.urls, real.products),), "page"))
    ensure(ImageDatasetConf(name="cifar10", root=str(tmp_path), download=False))
    assert (tmp_path / "cifar-10-batches-bin" / "test_batch.bin").read_bytes() == b"abc"
