"""Fetch one file by http(s): resumed where it stopped, timed out, checked by MD5, renamed when complete."""

from __future__ import annotations

import errno
import hashlib
import http.client
import logging
import os
import shutil
import ssl
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from snnexp.errors import DataError

logger = logging.getLogger(__name__)

CHUNK = 1 << 18
TIMEOUT_S = 30.0  # without a single byte, for connecting and for each read
MIN_RATE = 1000  # bytes per second, averaged over STALL_S: below it, another address may be better
STALL_S = 60.0
ATTEMPTS = 4  # in a row without a new byte, per address
PAUSE_S = 1.0  # before the second attempt; doubles with each further one
SPARE_BYTES = 50 << 20  # free space to leave on the disk

Report = Callable[[int, int | None], None]  # bytes so far, bytes in all if known


class FetchError(Exception):
    """An address did not give the file; the text says why. `final`: trying it again is pointless."""

    def __init__(self, reason: str, final: bool = False) -> None:
        super().__init__(reason)
        self.final = final


def fetch(urls: tuple[str, ...], target: Path, md5: str, size: int | None = None) -> None:
    """Fetch `target` from the first of `urls` that gives bytes with this MD5.

    Bytes go to `<target>.part`, which a later call (or the next address) continues by a range request; the file gets
    its name only after its MD5 has been checked.

    Raises: DataError with the reason for each address, or if the disk is full or the folder not writable.
    """
    part = target.with_name(target.name + ".part")
    reasons = []
    with _progress(target.name) as report:
        for url in urls:
            try:
                _fetch_from(url, part, md5, size, report)
            except FetchError as error:
                logger.warning("%s: %s", url, error)
                reasons.append(f"  {url}: {error}")
            except OSError as error:
                raise DataError(write_error(error, target.parent)) from error
            else:
                part.replace(target)
                return
    raise DataError(f"{target.name} could not be fetched:\n" + "\n".join(reasons))


def file_md5(path: Path) -> str:
    """MD5 of a file, 32 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def check_free_space(directory: Path, needed: int) -> None:
    """Raise DataError if `needed` bytes and a little more are not free on the disk of `directory`."""
    free = shutil.disk_usage(directory).free
    if free < needed + SPARE_BYTES:
        raise DataError(
            f"The disk of {directory} is too full: {(needed + SPARE_BYTES) / 1e9:.2f} GB are needed,"
            f" {free / 1e9:.2f} GB are free. Make room, or set dataset.root (SNNEXP_DATA) to a folder on another disk."
        )


def write_error(error: OSError, directory: Path) -> str:
    """The message for a disk that is full or a folder that cannot be written to."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"The disk of {directory} is full. Make room and start again (what is there already is kept), or set"
            " dataset.root (SNNEXP_DATA) to a folder on another disk."
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return (
            f"{directory} cannot be written to. Set dataset.root (SNNEXP_DATA) to a folder of your own, or have the"
            " files put there."
        )
    return f"{directory}: {error.strerror or error}."


def _fetch_from(url: str, part: Path, md5: str, size: int | None, report: Report) -> None:
    """Complete `part` from one address and check it; `part` is kept for the next attempt unless its bytes are wrong."""
    failures, began_at, since = 0, _length(part), time.monotonic()
    while True:
        before = _length(part)
        try:
            _continue(url, part, size, report)
            break
        except FetchError as error:
            failures = 1 if _length(part) > before else failures + 1
            if error.final or failures >= ATTEMPTS:
                raise
            # A server that breaks off after a few bytes each time makes progress, too, but never ends.
            _check_rate(_length(part) - began_at, time.monotonic() - since)
            logger.info("%s: %s; trying again", url, error)
            time.sleep(PAUSE_S * 2 ** (failures - 1))
    digest = file_md5(part)
    if digest == md5:
        return
    length = _length(part)
    part.unlink()
    if began_at:  # the bytes of an earlier start may be the wrong ones
        logger.warning("%s: the file continued from an earlier start is damaged; fetching it from its beginning", url)
        _fetch_from(url, part, md5, size, report)
        return
    raise FetchError(f"the server sent another file ({length:,} bytes, MD5 {digest} instead of {md5})", final=True)


def _continue(url: str, part: Path, size: int | None, report: Report) -> None:
    """One request: append to `part` what is still missing. Raises: FetchError if it did not come in full."""
    have = _length(part)
    if size is not None and have >= size:
        return  # complete, or too long: the MD5 decides
    headers = {"User-Agent": "snnexp", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    try:
        with _opener(url).open(urllib.request.Request(url, headers=headers), timeout=TIMEOUT_S) as response:
            if response.status == 206 and have:
                _check_range(response, have)
            elif response.status == 200:
                have = 0  # no ranges here: from the beginning
            else:
                raise FetchError(f"the server answered {response.status} instead of the file", final=True)
            length = _content_length(response)
            if length == 0:
                raise FetchError("the server sent an empty file", final=True)
            total = size if length is None else have + length
            if size is not None and total != size:
                raise FetchError(f"the server's file has {total:,} bytes instead of {size:,}", final=True)
            if total is not None:
                check_free_space(part.parent, total - have)
            _copy(response, part, have, total, report)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and have:  # we have all there is, or another file's beginning: the MD5 decides
            return
        temporary = error.code in (408, 425, 429) or error.code >= 500
        raise FetchError(f"the server answered {error.code} {error.reason}", final=not temporary) from error
    except urllib.error.URLError as error:
        raise FetchError(f"no connection ({error.reason})", final=_hopeless(error.reason)) from error
    except (TimeoutError, ConnectionError, ssl.SSLError, http.client.HTTPException) as error:
        raise FetchError(f"the connection broke ({str(error) or type(error).__name__})") from error


def _copy(response: http.client.HTTPResponse, part: Path, have: int, total: int | None, report: Report) -> None:
    with part.open("ab" if have else "wb") as file:
        since, mark = time.monotonic(), have
        report(have, total)
        while chunk := response.read1(CHUNK):
            file.write(chunk)
            have += len(chunk)
            report(have, total)
            if total is not None and have > total:
                raise FetchError("the server sent more than it announced", final=True)
            if time.monotonic() - since >= STALL_S:
                _check_rate(have - mark, time.monotonic() - since)
                since, mark = time.monotonic(), have
        _flush(file)
    if total is not None and have < total:
        raise FetchError(f"the connection was cut after {have:,} of {total:,} bytes")
    if have == 0:
        raise FetchError("the server sent an empty file", final=True)


def _check_rate(gained: int, elapsed: float) -> None:
    if elapsed >= STALL_S and gained < MIN_RATE * elapsed:
        raise FetchError(f"too slow ({max(gained, 0) / elapsed:.0f} bytes per second)", final=True)


def _flush(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


def _check_range(response: http.client.HTTPResponse, have: int) -> None:
    got = response.headers.get("Content-Range", "")
    if not got.startswith(f"bytes {have}-"):
        raise FetchError(f"the server sent another part of the file than asked for ({got or 'not named'})", final=True)


def _content_length(response: http.client.HTTPResponse) -> int | None:
    text = response.headers.get("Content-Length")
    return int(text) if text and text.isdigit() else None


def _length(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _hopeless(reason: object) -> bool:
    """Whether a failed connection will fail again at once: no such host, nobody listening, a bad certificate."""
    return not isinstance(reason, TimeoutError) and not isinstance(reason, ConnectionResetError)


class _NoDowngrade(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but never from https to http: what comes then could be anybody's."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        if req.type == "https" and urllib.parse.urlsplit(newurl).scheme != "https":
            raise FetchError(f"redirected without encryption to {newurl}", final=True)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener(url: str) -> urllib.request.OpenerDirector:
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise FetchError("not an http(s) address", final=True)
    return urllib.request.build_opener(_NoDowngrade)


@contextmanager
def _progress(name: str) -> Iterator[Report]:
    """A progress bar on a terminal, else one line in the log."""
    if not sys.stderr.isatty():
        logger.info("fetching %s", name)
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(name, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
