"""An HTTP server on 127.0.0.1 that misbehaves in the ways that real ones do."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Site:
    """What the server serves and how; `requests` lists (path, Range header) of everything that was asked for."""

    files: dict[str, bytes] = field(default_factory=dict)
    requests: list[tuple[str, str | None]] = field(default_factory=list)
    cut_after: int | None = None  # bytes of a body after which the connection is closed
    cuts: int = 10**9  # how often
    ranges: bool = True
    wrong_range: bool = False
    status: dict[str, int] = field(default_factory=dict)  # path -> answer with this status and an empty body
    redirects: dict[str, str] = field(default_factory=dict)
    announce_length: bool = True
    delay_s: float = 0.0  # between the chunks of a body
    chunk: int = 1 << 16
    silence_s: float = 0.0  # before the answer begins
    fail_first: int = 0  # so many requests are answered with 503
    address: str = ""

    def url(self, path: str) -> str:
        return f"{self.address}/{path}"


@contextmanager
def serve(site: Site) -> Iterator[Site]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.0"

        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            answer(self, site)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    site.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield site
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def answer(handler: BaseHTTPRequestHandler, site: Site) -> None:
    path, asked = handler.path.lstrip("/"), handler.headers.get("Range")
    site.requests.append((path, asked))
    time.sleep(site.silence_s)
    if site.fail_first > 0:
        site.fail_first -= 1
        return send_empty(handler, 503)
    if path in site.redirects:
        handler.send_response(302)
        handler.send_header("Location", site.redirects[path])
        handler.end_headers()
        return None
    if path in site.status or path not in site.files:
        return send_empty(handler, site.status.get(path, 404))
    body, begin = site.files[path], 0
    if asked and site.ranges:
        begin = int(asked.removeprefix("bytes=").removesuffix("-"))
        if begin >= len(body):
            return send_empty(handler, 416)
        named = begin + 1 if site.wrong_range else begin
        handler.send_response(206)
        handler.send_header("Content-Range", f"bytes {named}-{len(body) - 1}/{len(body)}")
    else:
        handler.send_response(200)
    rest = body[begin:]
    if site.announce_length:
        handler.send_header("Content-Length", str(len(rest)))
    handler.end_headers()
    if site.cut_after is not None and site.cuts > 0 and len(rest) > site.cut_after:
        site.cuts -= 1
        rest = rest[: site.cut_after]
    for position in range(0, len(rest), site.chunk):
        try:
            handler.wfile.write(rest[position : position + site.chunk])
        except OSError:
            return None  # the client has had enough
        time.sleep(site.delay_s)
    return None


def send_empty(handler: BaseHTTPRequestHandler, status: int) -> None:
    handler.send_response(status)
    handler.send_header("Content-Length", "0")
    handler.end_headers()
