"""Fetching one file from a server that cuts, lies, dawdles or is not there. Loopback only."""

from __future__ import annotations

import errno
import hashlib
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from local_server import Site, serve

from snnexp.data.fetching import fetch as fetching
from snnexp.data.fetching.fetch import FetchError, _NoDowngrade, fetch
from snnexp.errors import DataError

BODY = bytes(range(256)) * 4000  # 1,024,000 bytes
MD5 = hashlib.md5(BODY).hexdigest()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "PAUSE_S", 0.01)
    monkeypatch.setattr(fetching, "TIMEOUT_S", 60.0)  # never reached, however busy the machine is
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def site() -> Iterator[Site]:
    with serve(Site(files={"a.bin": BODY})) as running:
        yield running


def get(site: Site, folder: Path, *paths: str, md5: str = MD5, size: int | None = None) -> Path:
    target = folder / "a.bin"
    fetch(tuple(site.url(path) for path in paths or ("a.bin",)), target, md5, size)
    return target


def failure(site: Site, folder: Path, *paths: str, **keys: object) -> str:
    with pytest.raises(DataError) as caught:
        get(site, folder, *paths, **keys)  # type: ignore[arg-type]
    assert not (folder / "a.bin").exists()
    return str(caught.value)


def test_a_file_comes_whole_and_leaves_nothing_else(site: Site, tmp_path: Path) -> None:
    assert get(site, tmp_path, size=len(BODY)).read_bytes() == BODY
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]
    assert site.requests == [("a.bin", None)]


def test_cut_connections_are_resumed_where_they_broke(site: Site, tmp_path: Path) -> None:
    site.cut_after = 300_000
    assert get(site, tmp_path).read_bytes() == BODY
    assert [asked for _, asked in site.requests] == [None, "bytes=300000-", "bytes=600000-", "bytes=900000-"]


def test_cut_connections_without_ranges_start_again(site: Site, tmp_path: Path) -> None:
    site.cut_after, site.cuts, site.ranges = 300_000, 2, False
    assert get(site, tmp_path).read_bytes() == BODY
    assert len(site.requests) == 3


def test_a_server_that_always_cuts_at_once_is_given_up(site: Site, tmp_path: Path) -> None:
    site.cut_after = 0
    assert "cut after 0 of 1,024,000 bytes" in failure(site, tmp_path)
    assert len(site.requests) == fetching.ATTEMPTS


def test_a_later_start_continues_the_part_file(site: Site, tmp_path: Path) -> None:
    (tmp_path / "a.bin.part").write_bytes(BODY[:1000])
    assert get(site, tmp_path).read_bytes() == BODY
    assert site.requests == [("a.bin", "bytes=1000-")]


def test_a_part_file_with_wrong_bytes_is_thrown_away(site: Site, tmp_path: Path) -> None:
    (tmp_path / "a.bin.part").write_bytes(b"x" * 1000)
    assert get(site, tmp_path).read_bytes() == BODY
    assert [asked for _, asked in site.requests] == ["bytes=1000-", None]


@pytest.mark.parametrize("length", [len(BODY), len(BODY) + 5])
@pytest.mark.parametrize("size", [None, len(BODY)])
def test_a_part_file_that_is_long_enough_but_wrong(site: Site, tmp_path: Path, length: int, size: int | None) -> None:
    (tmp_path / "a.bin.part").write_bytes(b"x" * length)
    assert get(site, tmp_path, size=size).read_bytes() == BODY


def test_a_complete_part_file_needs_no_request(site: Site, tmp_path: Path) -> None:
    (tmp_path / "a.bin.part").write_bytes(BODY)
    assert get(site, tmp_path, size=len(BODY)).read_bytes() == BODY
    assert site.requests == []


def test_empty_202_goes_to_the_next_address(site: Site, tmp_path: Path) -> None:
    site.status["figshare"] = 202
    assert get(site, tmp_path, "figshare", "a.bin").read_bytes() == BODY
    assert [path for path, _ in site.requests] == ["figshare", "a.bin"]


def test_every_address_and_its_reason_is_in_the_message(site: Site, tmp_path: Path) -> None:
    site.status.update({"figshare": 202, "gone": 404, "empty": 200})
    site.files["empty"] = b""
    text = failure(site, tmp_path, "figshare", "gone", "empty")
    assert re.search(r"/figshare: the server answered 202 instead of the file", text)
    assert re.search(r"/gone: the server answered 404", text)
    assert re.search(r"/empty: the server sent an empty file", text)
    assert len(site.requests) == 3  # none of these is worth a second try


def test_wrong_bytes_are_never_kept(site: Site, tmp_path: Path) -> None:
    site.files["a.bin"] = b"not what was asked for" * 100
    assert f"another file (2,200 bytes, MD5 {hashlib.md5(site.files['a.bin']).hexdigest()}" in failure(site, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_one_flipped_bit_is_noticed_and_the_next_address_taken(site: Site, tmp_path: Path) -> None:
    flipped = bytearray(BODY)
    flipped[500_000] ^= 1
    site.files["flipped"] = bytes(flipped)
    assert get(site, tmp_path, "flipped", "a.bin", size=len(BODY)).read_bytes() == BODY


def test_wrong_length_is_refused_before_the_transfer(site: Site, tmp_path: Path) -> None:
    assert "has 1,024,000 bytes instead of 999" in failure(site, tmp_path, size=999)


def test_wrong_range_is_refused(site: Site, tmp_path: Path) -> None:
    (tmp_path / "a.bin.part").write_bytes(BODY[:1000])
    site.wrong_range = True
    assert "another part of the file than asked for (bytes 1001-" in failure(site, tmp_path)


def test_temporary_failures_are_tried_again(site: Site, tmp_path: Path) -> None:
    site.fail_first = 2
    assert get(site, tmp_path).read_bytes() == BODY
    assert len(site.requests) == 3


def test_slow_bytes_are_accepted(site: Site, tmp_path: Path) -> None:
    site.delay_s, site.chunk = 0.01, 50_000
    assert get(site, tmp_path).read_bytes() == BODY


def test_a_trickle_is_given_up_for_the_next_address(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "STALL_S", 0.2)
    site.delay_s, site.chunk = 0.05, 10
    assert "too slow" in failure(site, tmp_path)


def test_silence_is_a_timeout(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "TIMEOUT_S", 0.1)
    monkeypatch.setattr(fetching, "ATTEMPTS", 2)
    site.silence_s = 60
    assert "timed out" in failure(site, tmp_path)


def test_a_server_that_stalls_after_a_few_bytes_each_time(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "TIMEOUT_S", 0.4)
    monkeypatch.setattr(fetching, "STALL_S", 0.7)
    site.delay_s, site.chunk = 60, 10
    assert "too slow" in failure(site, tmp_path)
    assert len(site.requests) < 20


def test_without_a_length_the_md5_decides(site: Site, tmp_path: Path) -> None:
    site.announce_length = False
    assert get(site, tmp_path).read_bytes() == BODY


def test_redirects_are_followed(site: Site, tmp_path: Path) -> None:
    site.redirects["old"] = site.url("a.bin")
    assert get(site, tmp_path, "old").read_bytes() == BODY


def test_never_from_https_to_http() -> None:
    request = fetching.urllib.request.Request("https://example.org/a.bin")
    with pytest.raises(FetchError, match="redirected without encryption to http:"):
        _NoDowngrade().redirect_request(request, None, 302, "", {}, "http://example.org/a.bin")  # type: ignore[arg-type]


def test_nobody_listens(tmp_path: Path) -> None:
    with serve(Site()) as closed:
        pass
    assert "no connection" in failure(closed, tmp_path)


def test_other_schemes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not an http"):
        fetch(("file:///etc/hostname",), tmp_path / "a.bin", MD5)


def test_full_disk_is_noticed_before_the_transfer(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: free._replace(free=fetching.SPARE_BYTES + len(BODY) - 1))
    assert "too full" in failure(site, tmp_path)
    assert not (tmp_path / "a.bin.part").exists()


def test_disk_that_fills_up_keeps_what_came(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(fetching, "_flush", full)
        assert "is full. Make room and start again" in failure(site, tmp_path)
    assert get(site, tmp_path).read_bytes() == BODY


def test_progress_bar_on_a_terminal(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    shown: list[tuple[int, int | None]] = []
    from rich.progress import Progress

    update = Progress.update

    def spy(self: Progress, task: object, **keys: object) -> None:
        shown.append((keys["completed"], keys["total"]))  # type: ignore[arg-type]
        update(self, task, **keys)  # type: ignore[arg-type]

    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(Progress, "update", spy)
    get(site, tmp_path)
    assert shown[0] == (0, len(BODY)) and shown[-1] == (len(BODY), len(BODY))
