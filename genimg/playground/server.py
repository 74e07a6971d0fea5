"""The web server of the playground, for this machine only.

It listens on the loopback interface. A page of another site could still send requests to it, directly or under a host name that
resolves to this machine (DNS rebinding). Requests with another ``Host`` or with a foreign ``Origin`` are therefore refused.
"""

from __future__ import annotations

import errno
import json
import re
import sys
import traceback
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote

from genimg.errors import ConfigError, UserError, first_line, is_bug
from genimg.playground.model import MOST_BYTES_OF_UPLOAD
from genimg.playground.playground import Playground, page_of
from genimg.playground.turns import ReplacedError
from genimg.utils.json_text import parse_json
from genimg.utils.terminal import visible

ADDRESS = "127.0.0.1"
USUAL_PORT = 8765
"""Port that is used if no other is requested and it is free."""

_HOST = re.compile(r"(127\.0\.0\.1|localhost)(:\d{1,5})?")  # any port, because an SSH tunnel may use another one
_FILES = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/style.css": ("style.css", "text/css; charset=utf-8"),
    "/script.js": ("script.js", "text/javascript; charset=utf-8"),
}
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; connect-src 'self'; "
    "form-action 'none'; base-uri 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
_MOST_BYTES_OF_JSON = 2**16
_JSON = "application/json"


class _RefusedError(Exception):
    """A request that is refused with an HTTP status.

    Attributes:
        status: The status.
    """

    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


class PlaygroundServer(ThreadingHTTPServer):
    """A web server for one playground.

    Args:
        playground: The playground.
        port: Port; None for ``USUAL_PORT``, or any free port if that is taken.

    Raises:
        ConfigError: If the port is taken or not permitted.
    """

    daemon_threads = True

    def __init__(self, playground: Playground, port: int | None = None) -> None:
        self.playground = playground
        try:
            super().__init__((ADDRESS, USUAL_PORT if port is None else port), _Handler)
        except OSError as error:
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                raise
            if port is not None:
                what = "is used by another program" if error.errno == errno.EADDRINUSE else "is not permitted"
                raise ConfigError(f"port={port} {what}: choose another one, or omit it") from error
            super().__init__((ADDRESS, 0), _Handler)

    @property
    def url(self) -> str:
        """Address of the page."""
        return f"http://{ADDRESS}:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    server: PlaygroundServer
    server_version, sys_version = "genimg", ""
    timeout = 60  # seconds without a byte from the client

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_POST(self) -> None:
        self._answer(self._post)

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing: the page polls the progress several times a second."""

    def _get(self) -> tuple[str, bytes]:
        path, _, query = self.path.partition("?")
        if path in _FILES:
            name, kind = _FILES[path]
            return kind, (Path(__file__).parent / "page" / name).read_bytes()
        if path == "/model.json":
            return _as_json(self.server.playground.describe())
        if path == "/progress":
            try:
                page = parse_qs(query, max_num_fields=2).get("page", [""])[0]
            except ValueError as error:
                raise _RefusedError(HTTPStatus.BAD_REQUEST, "the query must be page=ID") from error
            return _as_json(self.server.playground.turns.state(page))
        raise _RefusedError(HTTPStatus.NOT_FOUND, "there is nothing at this address")

    def _post(self) -> tuple[str, bytes]:
        path, _, query = self.path.partition("?")
        playground = self.server.playground
        if path == "/picture":
            content = self._body("application/octet-stream", MOST_BYTES_OF_UPLOAD)
            return _as_json(playground.uploads.add(unquote(query.removeprefix("name=")), content))
        if path not in ("/make", "/stop"):
            raise _RefusedError(HTTPStatus.NOT_FOUND, "there is nothing at this address")
        try:
            request = parse_json(self._body(_JSON, _MOST_BYTES_OF_JSON))
        except ValueError as error:
            raise _RefusedError(HTTPStatus.BAD_REQUEST, f"the body is not JSON: {error}") from error
        page = page_of(request)
        if path == "/make":
            return _as_json(playground.make(request))
        playground.turns.stop(page)
        return _as_json({})

    def _answer(self, make: Callable[[], tuple[str, bytes]]) -> None:
        """Send what ``make`` returns, or its error."""
        try:
            self._require_own_page()
            status, (kind, body) = HTTPStatus.OK, make()
        except _RefusedError as error:
            status, (kind, body) = error.status, _as_json({"error": str(error)})
        except ReplacedError:
            status, (kind, body) = HTTPStatus.OK, _as_json({"is_replaced": True})
        except (ConnectionError, TimeoutError):  # the client has gone
            return
        except Exception as error:
            if is_bug(error):
                print(visible("".join(traceback.format_exception(error))), file=sys.stderr, flush=True)
                message = "this is a bug in genimg, or in a package in allow=: the terminal shows a traceback; please report it"
                status, (kind, body) = HTTPStatus.INTERNAL_SERVER_ERROR, _as_json({"error": message})
            else:
                text = str(error) if isinstance(error, UserError) else first_line(error)
                key = error.key if isinstance(error, UserError) else ""
                message = self.server.playground.uploads.named(text)
                status, (kind, body) = HTTPStatus.BAD_REQUEST, _as_json({"error": message, "key": key})
        try:
            self._send(status, kind, body)
        except (ConnectionError, TimeoutError):
            return

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer a request that the base class refuses, such as an unknown method."""
        self._send(HTTPStatus(code), *_as_json({"error": message or HTTPStatus(code).phrase}))

    def _send(self, status: HTTPStatus, kind: str, body: bytes) -> None:
        self.send_response(status)
        for name, value in (_HEADERS | {"Content-Type": kind, "Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def _require_own_page(self) -> None:
        """Refuse requests of other sites, and those under a host name other than this machine's.

        Raises:
            _RefusedError: For such a request.
        """
        hosts, origin = self.headers.get_all("Host", []), self.headers.get("Origin")
        if len(hosts) != 1 or not _HOST.fullmatch(hosts[0]):
            raise _RefusedError(HTTPStatus.FORBIDDEN, f"open http://{ADDRESS}:{self.server.server_port}")
        if origin is not None and origin != f"http://{hosts[0]}":
            raise _RefusedError(HTTPStatus.FORBIDDEN, "requests of other sites are refused")
        if self.headers.get("Sec-Fetch-Site") == "cross-site" and self.path.partition("?")[0] != "/":
            raise _RefusedError(HTTPStatus.FORBIDDEN, "requests of other sites are refused")

    def _body(self, kind: str, most: int) -> bytes:
        """Return the body of a request.

        Args:
            kind: Required media type.
            most: Largest allowed size in bytes.

        Raises:
            _RefusedError: If it has another type, no size, or is too large.
        """
        if self.headers.get_content_type() != kind:
            raise _RefusedError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"the body must be {kind}")
        length = self.headers.get("Content-Length", "")
        if not re.fullmatch(r"\d{1,12}", length):
            raise _RefusedError(HTTPStatus.LENGTH_REQUIRED, "the request needs a Content-Length")
        if int(length) > most:
            raise _RefusedError(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the body has {int(length):,} bytes, but may have {most:,}"
            )
        content = self.rfile.read(int(length))
        if len(content) != int(length):
            raise ConnectionError("the body is shorter than its Content-Length")
        return content


def _as_json(value: Any) -> tuple[str, bytes]:
    """Return the media type and the body of an answer. Values that are not primitives are shown as text."""
    return f"{_JSON}; charset=utf-8", json.dumps(value, default=str).encode("ascii")
