"""A client of the playground's server that sends what a page would."""

from __future__ import annotations

import base64
import http.client
import json
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Page:
    """A client.

    Attributes:
        port: Port of the server.
    """

    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def request(
        self, method: str, path: str, body: bytes | str | None = None, headers: Mapping[str, str] = {}
    ) -> tuple[int, Any, Mapping[str, str]]:
        """Return the status, the body (parsed if it is JSON) and the headers of an answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request(method, path, body, dict(headers))
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        is_json = answer.headers.get_content_type() == "application/json"
        return answer.status, json.loads(content) if is_json else content, answer.headers

    def post(self, path: str, value: Any) -> tuple[int, Any]:
        """Send JSON, and return the status and the parsed body."""
        return self.request("POST", path, json.dumps(value), {"Content-Type": "application/json"})[:2]

    def make(self, task: str, **values: Any) -> Any:
        """Return the result of a request that succeeds."""
        status, result = self.post("/make", {"page": "a", "task": task, "values": values})
        assert status == 200, result
        return result

    def refused(self, task: str, **values: Any) -> tuple[str, str]:
        """Return the key and the message of a request that is refused because of a value."""
        status, result = self.post("/make", {"page": "a", "task": task, "values": values})
        assert status == 400, result
        return result["key"], result["error"]

    def upload(self, name: str, content: bytes) -> str:
        """Upload a picture, and return its identifier."""
        status, result, _ = self.request("POST", f"/picture?name={name}", content, {"Content-Type": "application/octet-stream"})
        assert status == 200, result
        return str(result["id"])

    def raw(self, request: bytes) -> bytes:
        """Return the answer to bytes."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=30) as connection:
            connection.sendall(request)
            parts = []
            while part := connection.recv(65536):
                parts.append(part)
        return b"".join(parts)


def files_of(result: Mapping[str, Any]) -> dict[str, bytes]:
    """Return the content of the files that the command of a result writes, by name."""
    return {each["name"]: base64.b64decode(each["png"]) for each in result["pictures"] if not each["is_input"]}
