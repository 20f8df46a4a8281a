"""Serve a report on this machine while its runs are being trained or measured."""

from __future__ import annotations

import ipaddress
import json
import threading
import time
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from samovar.report.page import render
from samovar.report.read import RunData, read_runs
from samovar.report.run_names import named
from samovar.report.text import count
from samovar.words import duration

HOST, PORT = "127.0.0.1", 8040

_AT_WORK_S = 60
"""A run whose last record is older is not called running."""


class Live:
    """The page of run folders as they are now; read again only when a folder has changed."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self._folders = list(folders)
        self._lock = threading.Lock()
        self._version: tuple[Any, ...] = ()
        self._runs: list[RunData] = []
        self._pages: dict[bool, str] = {}

    def page(self, *, whole: bool) -> str:
        """Return the page; without its scripts if not `whole`.

        Raises:
            ValueError: a folder can no longer be read."""
        with self._lock:
            self._update()
            if whole not in self._pages:
                self._pages[whole] = render(self._runs, live=self._stamp(), scripted=whole)
            return self._pages[whole]

    def state(self) -> dict[str, Any]:
        """Return the version of the page and a line on each run.

        Raises:
            ValueError: a folder can no longer be read."""
        with self._lock:
            self._update()
            return {"version": self._stamp(), "lines": [_progress(run) for run in self._runs]}

    def _update(self) -> None:
        version = tuple(map(_changed, self._folders))
        if version != self._version:
            self._runs = named(read_runs(self._folders))
            self._version, self._pages = version, {}

    def _stamp(self) -> str:
        return f"{hash(self._version) & 0xFFFFFFFFFFFF:x}"


def _changed(folder: Path) -> tuple[int, ...]:
    """Return numbers that change whenever something is recorded in a folder."""
    paths = (folder / "records.jsonl", folder / "checkpoints" / "best.json")
    found = [path.stat() for path in paths if path.is_file()]
    return tuple(number for stat in found for number in (stat.st_mtime_ns, stat.st_size))


def _progress(run: RunData) -> str:
    """Return how far a run has come, and whether it still writes."""
    path = run.path / "records.jsonl"
    if not run.records or not path.is_file():
        return f"{run.label}: no records yet"
    age = max(time.time() - path.stat().st_mtime, 0.0)
    said = [f"{run.label}: " + ("running" if age < _AT_WORK_S else "not running")]
    if run.last_step is not None:
        said.append(f"step {run.last_step:.0f}")
    accuracy = run.latest("val/accuracy")
    if accuracy is not None:
        said.append(f"held-out accuracy {100 * accuracy.value:.1f} %")
    newest = _newest(run)
    if newest:
        said.append(f"last recorded: {newest}")
    return ", ".join([*said, f"{duration(age)} ago"])


def _newest(run: RunData) -> str:
    """Return the measurement of the last record, `training` for one of training."""
    # Names are in the order of their first record: a measurement that was begun last is last.
    name = next(reversed(run.records))
    if name.startswith(("train/", "val/", "watch/")):
        return "training"
    return str(run.records[name][-1].settings.get("measurement", name))


def server(folders: Sequence[Path], host: str = HOST, port: int = PORT) -> ThreadingHTTPServer:
    """Return a server of the page, not yet started; `server_port` is its port.

    Only programs of this machine reach it unless `host` is not loopback.

    Args:
        folders: run folders.
        host: address to listen on.
        port: 0 takes a free one.

    Raises:
        ValueError: a folder is not a run, or the address cannot be used."""
    live = Live(folders)
    live.state()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            # A web site whose name was pointed at this machine must not read the page.
            if _is_loopback(host) and not _is_local(self.headers.get("Host", "")):
                return self.send_error(403, "this report is served on this machine alone")
            try:
                if self.path in ("/", "/fresh"):
                    self._send("text/html", live.page(whole=self.path == "/"))
                elif self.path == "/state":
                    self._send("application/json", json.dumps(live.state()))
                else:
                    self.send_error(404)
            except ValueError as error:
                self.send_error(503, "the runs cannot be read", str(error))
            return None

        def _send(self, kind: str, text: str) -> None:
            body = text.encode()
            self.send_response(200)
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", "no-store")
            self.send_header("X-Content-Type-Options", "nosniff")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Print nothing: a page that asks every two seconds would fill the terminal."""

    try:
        return ThreadingHTTPServer((host, port), Handler)
    except (OSError, OverflowError) as error:
        raise ValueError(
            f"cannot serve on {host} port {port}: {error}; give --port another number, 0 for any"
        ) from error


def serve(folders: Sequence[Path], host: str = HOST, port: int = PORT) -> None:
    """Serve the page until Ctrl-C.

    Raises:
        ValueError: as `server`."""
    with server(folders, host, port) as running:
        shown = f"[{host}]" if ":" in host else host
        print(
            f"report: http://{shown}:{running.server_port} ({count(len(folders), 'run')}; "
            "Ctrl-C ends)",
            flush=True,
        )
        try:
            running.serve_forever()
        except KeyboardInterrupt:
            print("report: ended")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _is_local(header: str) -> bool:
    """Return whether the Host header of a request names this machine."""
    name = header.rpartition(":")[0] if header.rpartition(":")[2].isdecimal() else header
    return _is_loopback(name.strip("[]"))
