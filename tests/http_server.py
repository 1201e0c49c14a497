"""A real web server on loopback with the good and bad habits of real ones; it keeps what it was asked.

An address is /HABIT/FILE?option=value, where FILE is one of `server.files`; see the methods named after the habits. `server.seen` holds
every request. robots.txt is `server.robots[NAME]`, NAME being the host name that the client used, as (status, text or where
it is); a name without one has no robots.txt.
"""

import re
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import formatdate
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

LAST_MODIFIED = formatdate(1_700_000_000, usegmt=True)
TYPES = {
    "wav": "audio/wav",
    "flac": "audio/flac",
    "mp3": "audio/mpeg",
    "ogg": "audio/ogg",
    "json": "application/json",
    "zip": "application/zip",
}


@dataclass(frozen=True, kw_only=True)
class Seen:
    """One request, as it came."""

    at: float
    path: str
    host: str
    headers: Mapping[str, str]


@dataclass(kw_only=True)
class WebServer:
    """The running server."""

    port: int = 0
    scheme: str = "http"
    files: dict[str, bytes] = field(default_factory=dict)
    robots: dict[str, tuple[int, str]] = field(default_factory=dict)
    pages: dict[str, str] = field(default_factory=dict)
    seen: list[Seen] = field(default_factory=list)
    times: Counter[str] = field(default_factory=Counter)
    sent: Counter[str] = field(default_factory=Counter)
    """Bytes of body by path."""
    open_now: int = 0
    most_open: int = 0
    closing: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        return f"{self.scheme}://{host}:{self.port}/{path}"

    def asked(self, habit: str) -> list[Seen]:
        """The requests whose path begins so."""
        return [seen for seen in self.seen if seen.path.startswith(f"/{habit}")]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Any

    def do_GET(self) -> None:
        web: WebServer = self.server.web
        parts = urlsplit(self.path)
        _, habit, *rest = parts.path.split("/")
        self.name = "/".join(rest)
        self.options = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        host = self.headers["Host"].partition(":")[0]
        with web.lock:
            headers = {name.lower(): value for name, value in self.headers.items()}
            web.seen.append(Seen(at=time.monotonic(), path=self.path, host=host, headers=headers))
            web.times[self.path] += 1
            self.count = web.times[self.path]
            web.open_now += 1
            web.most_open = max(web.most_open, web.open_now)
        try:
            if parts.path == "/robots.txt":
                status, text = web.robots.get(host, (404, "no such file"))
                self.reply(status, text.encode(), {"Content-Type": "text/plain", **({"Location": text} if 300 <= status < 400 else {})})
            else:
                getattr(self, f"be_{habit.replace('-', '_')}", self.be_missing)()
        except (BrokenPipeError, ConnectionResetError):
            pass  # the client had enough
        finally:
            with web.lock:
                web.open_now -= 1
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass

    # The habits.

    def be_file(self) -> None:
        """A well-behaved file: ETag, Last-Modified, Range, If-Range."""
        self.good(self.data)

    def be_cut(self) -> None:
        """Breaks off in the middle, ?times=1 times; ?becomes=FILE: is that file then.

        ?bare: gives no validator; ?weak: a weak ETag; ?plain: ignores Range; ?blind: ignores If-Range; ?shift: continues a byte early;
        ?dated: gives no ETag; ?modified=DATE and ?date=DATE: says so instead; ?span=TEXT: its Content-Range;
        ?portion=N: continues by at most so many bytes.
        """
        changed = self.server.web.files[self.options["becomes"]] if "becomes" in self.options and self.count > 1 else self.data
        if self.count > int(self.options.get("times", 1)):
            self.good(changed)
        else:
            self.good(changed, stop=len(changed) * self.count // 4)

    def be_stall(self) -> None:
        """Sends ?at=N bytes and then nothing, ?times=1 times."""
        if self.count > int(self.options.get("times", 1)):
            self.good(self.data)
        else:
            self.good(self.data, stop=int(self.options["at"]), stall=True)

    def be_drip(self) -> None:
        """A byte every twentieth of a second."""
        self.head(200, {"Content-Length": str(len(self.data))})
        for place in range(len(self.data)):
            self.body(self.data[place : place + 1])
            if self.server.web.closing.wait(0.05):
                return

    def be_dribble(self) -> None:
        """A byte of a header every twentieth of a second."""
        self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Long: ")
        while not self.server.web.closing.wait(0.05):
            self.body(b"x")

    def be_slow(self) -> None:
        """Waits for ?s seconds before it answers; ?open=N: at most, until so many requests have been open at once."""
        web, deadline = self.server.web, time.monotonic() + float(self.options["s"])
        while time.monotonic() < deadline and web.most_open < int(self.options.get("open", 10**9)):
            time.sleep(0.01)
        self.good(self.data)

    def be_overstated(self) -> None:
        """Promises more than it sends."""
        self.head(200, {"Content-Length": str(len(self.data) + 1_000), "ETag": '"over"'})
        self.body(self.data)

    def be_understated(self) -> None:
        """Sends more than it promised."""
        self.head(200, {"Content-Length": str(len(self.data) - 1_000)})
        self.body(self.data)

    def be_chunked(self) -> None:
        """Without a length; ?cut: breaks off."""
        self.head(200, {"Transfer-Encoding": "chunked"})
        data = self.data[: len(self.data) // 2] if "cut" in self.options else self.data
        for start in range(0, len(data), 10_000):
            piece = data[start : start + 10_000]
            self.body(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
        if "cut" not in self.options:
            self.body(b"0\r\n\r\n")

    def be_endless(self) -> None:
        """Without a length, closing the connection at the end of the file; ?bytes=N: of so many bytes."""
        self.head(200, {"Connection": "close"})
        for start in range(0, int(self.options.get("bytes", len(self.data))), 65_536):
            self.body(self.data[start : start + 65_536] or bytes(65_536))

    def be_huge(self) -> None:
        """Says that it is ?bytes=N long."""
        self.head(200, {"Content-Length": self.options["bytes"]})
        while True:
            self.body(bytes(65_536))

    def be_redirect(self) -> None:
        """To ?to=URL, ?status=302, with a cookie."""
        self.reply(int(self.options.get("status", 302)), b"", {"Location": self.options["to"], "Set-Cookie": "track=1; Path=/"})

    def be_loop(self) -> None:
        self.reply(302, b"", {"Location": self.path})

    def be_busy(self) -> None:
        """?status=429, ?after=N seconds or ?date=N seconds from now, ?times=1 times; then the file."""
        if self.count > int(self.options.get("times", 1)):
            self.good(self.data)
            return
        if "date" in self.options:
            after = formatdate(int(time.time()) + int(self.options["date"]), usegmt=True)
        else:
            after = self.options.get("after", "")
        self.reply(int(self.options.get("status", 429)), b"busy", {"Retry-After": after} if after else {})

    def be_status(self) -> None:
        """Always /status/N; ?coded=TEXT: said to be encoded so."""
        coded = {"Content-Encoding": self.options["coded"]} if "coded" in self.options else {}
        self.reply(int(self.name), b"<html>sorry</html>", {"Content-Type": "text/html", **coded})

    def be_typed(self) -> None:
        """The file under ?type; ?coded=TEXT: its Content-Encoding."""
        coded = {"Content-Encoding": self.options["coded"]} if "coded" in self.options else {}
        self.reply(200, self.data, {"Content-Type": self.options["type"], **coded})

    def be_page(self) -> None:
        """One of `server.pages`."""
        headers = {"Content-Type": "text/html; charset=utf-8", "Set-Cookie": "visitor=1; Path=/"}
        self.reply(200, self.server.web.pages[self.name].encode(), headers)

    def be_missing(self) -> None:
        self.reply(404, b"no such file", {"Content-Type": "text/plain"})

    # What they are made of.

    @property
    def data(self) -> bytes:
        return self.server.web.files[self.name]

    def good(self, data: bytes, *, stop: int | None = None, stall: bool = False) -> None:
        """The file, from where Range says, breaking off after `stop` bytes of the answer; see be_cut for the options."""
        weak = "W/" if "weak" in self.options else ""
        etag = f'{weak}"{sha256(data).hexdigest()[:16]}"'
        headers = {"Content-Type": TYPES.get(self.name.rpartition(".")[2], "application/octet-stream")}
        if "bare" not in self.options:
            headers |= {"ETag": etag, "Last-Modified": self.options.get("modified", LAST_MODIFIED), "Accept-Ranges": "bytes"}
        if "dated" in self.options:
            del headers["ETag"]
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        same = "blind" in self.options or self.headers.get("If-Range", etag) in (LAST_MODIFIED, *([] if weak else [etag]))
        start, stop_at, status = 0, len(data), 200
        if wanted and same and "plain" not in self.options:
            start, status = int(wanted[1]), 206
            if "shift" in self.options and self.count == 2:
                start -= 1
                del headers["ETag"]
            if start >= len(data):
                self.reply(416, b"", {"Content-Range": f"bytes */{len(data)}"})
                return
            stop_at = min(start + int(self.options.get("portion", len(data))), len(data))
            headers["Content-Range"] = self.options.get("span", f"bytes {start}-{stop_at - 1}/{len(data)}")
        self.head(status, {**headers, "Content-Length": str(stop_at - start)})
        self.body(data[start:stop_at][:stop])
        if stall:
            self.server.web.closing.wait(20)

    def reply(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        self.head(status, {**headers, "Content-Length": str(len(body))})
        self.body(body)

    def head(self, status: int, headers: Mapping[str, str]) -> None:
        if "date" in self.options and not self.path.startswith("/busy"):
            self.send_response_only(status)
            self.send_header("Date", self.options["date"])
        else:
            self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def body(self, data: bytes) -> None:
        self.wfile.write(data)
        self.wfile.flush()
        with self.server.web.lock:
            self.server.web.sent[urlsplit(self.path).path] += len(data)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    web: WebServer

    def handle_error(self, *_: object) -> None:
        pass  # a client that refuses our certificate


@contextmanager
def serve(tls: Any = None) -> Iterator[WebServer]:
    """A server on a free port of 127.0.0.1; `tls` is an ssl.SSLContext for https."""
    server = _Server(("127.0.0.1", 0), _Handler)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    server.web = WebServer(port=server.server_port, scheme="https" if tls else "http")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server.web
    finally:
        server.web.closing.set()
        server.shutdown()
        server.server_close()
        thread.join()
