"""Clients that keep their connections and cost little themselves: bytes out, bytes in.

Python's `http.client` costs about as much per request as the server under test; on a machine with two
cores that would be half of what is measured.
"""

import json
import re
import socket
from collections.abc import Sequence
from types import TracebackType
from urllib.parse import urlsplit

from benchmarks.report import CheckFailedError
from fedpresence.ids import UserID

TIMEOUT_S = 60.0
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)")
MOMENT = "due "  # begins a status message that carries the moment at which it was due to be sent


def request_bytes(method: str, path: str, token: str, body: object = None) -> bytes:
    """An HTTP/1.1 request with a bearer token."""
    content = b"" if body is None else json.dumps(body).encode("utf-8")
    head = (
        f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    return head.encode("ascii") + content


def put_status(user_id: UserID, token: str, status_msg: str) -> bytes:
    """`PUT .../presence/{userId}/status`: online, with a message."""
    path = f"/_matrix/client/v3/presence/{user_id}/status"
    return request_bytes("PUT", path, token, {"presence": "online", "status_msg": status_msg})


def whole_answer(data: bytes) -> tuple[str, bytes, bytes] | None:
    """The first answer's status and body, and what follows it; None while it is not all there."""
    end = data.find(b"\r\n\r\n")
    if end < 0:
        return None
    head, rest = data[:end].lower(), data[end + 4 :]
    status = head[9:12].decode("ascii")
    length = _LENGTH.search(head)
    if length is None:
        chunks = _chunks(rest) if b"\r\ntransfer-encoding: chunked" in head else (b"", rest)
        return None if chunks is None else (status, *chunks)
    size = int(length[1])
    return (status, rest[:size], rest[size:]) if len(rest) >= size else None


def _chunks(data: bytes) -> tuple[bytes, bytes] | None:
    """A chunked body and what follows it; None while it is not all there."""
    body = b""
    while True:
        line, mark, rest = data.partition(b"\r\n")
        if not mark:
            return None
        size = int(line, 16)
        if len(rest) < size + 2:
            return None
        body, data = body + rest[:size], rest[size + 2 :]
        if not size:
            return body, data


class Client:
    """One connection, one request at a time."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None, url
        self._socket = socket.create_connection((parts.hostname, parts.port or 80), TIMEOUT_S)
        self._data = b""  # received, but not yet asked for
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def send(self, request: bytes) -> None:
        """Ask; `answer` must be called before the next."""
        self._socket.sendall(request)

    def answer(self) -> bytes:
        """The body of the 200; CheckFailedError where it is another status."""
        while (answer := whole_answer(self._data)) is None:
            self._data += self._receive()
        status, body, self._data = answer
        if status != "200":
            raise CheckFailedError(f"{status}: {body.decode('utf-8', 'replace')}")
        return body

    def ask(self, request: bytes) -> bytes:
        """Ask and wait for the answer."""
        self.send(request)
        return self.answer()

    def _receive(self) -> bytes:
        data = self._socket.recv(65_536)
        if not data:
            raise ConnectionError("the server closed a connection that should be kept")
        return data


class Crowd:
    """Many clients: `size` requests are on their way at a time, from this one thread."""

    def __init__(self, url: str, size: int) -> None:
        self._clients = [Client(url) for _ in range(size)]

    def __enter__(self) -> "Crowd":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for client in self._clients:
            client.__exit__(kind, error, trace)

    def ask_all(self, requests: Sequence[bytes]) -> None:
        """Every request, answered with 200."""
        size = len(self._clients)
        for position in range(size):  # each client's first
            if position < len(requests):
                self._clients[position].send(requests[position])
        for position in range(len(requests)):
            client = self._clients[position % size]
            client.answer()
            if position + size < len(requests):
                client.send(requests[position + size])
