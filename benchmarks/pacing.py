"""Requests that leave on schedule, whether or not the earlier ones were answered.

A client that waits for answers before it asks again slows down with the server, and hides how long real users
wait: they do not know of each other. So latency is counted from the moment at which a request was due.

Always true: every request leaves, in order, none before it is due; those of one connection are answered in
order (HTTP/1.1 pipelining).
"""

import selectors
import socket
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from urllib.parse import urlsplit

from benchmarks.clients import whole_answer

TIMEOUT_S = 60.0  # after the last was due

Scheduled = tuple[int, int, bytes]
"""When it is due (CLOCK_MONOTONIC, ns), on which connection, and the request."""


@dataclass(slots=True)
class Paced:
    """What became of the requests."""

    statuses: Counter[str] = field(default_factory=Counter)
    answered_s: list[float] = field(default_factory=list)  # since each was due
    late_s: list[float] = field(default_factory=list)  # how late each left: the client's own fault


class Pacer:
    """Some connections to one server, which stay open between schedules."""

    def __init__(self, url: str, connections: int) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None, url
        self._selector = selectors.DefaultSelector()
        self._connections = [
            _Connection(parts.hostname, parts.port or 80, self._selector) for _ in range(connections)
        ]

    def __enter__(self) -> "Pacer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._selector.close()
        for connection in self._connections:
            connection.socket.close()

    def run(self, schedule: Sequence[Scheduled]) -> Paced:
        """All of them, until each is answered; TimeoutError where that takes too long."""
        paced = Paced()
        position = 0
        deadline_ns = schedule[-1][0] + int(TIMEOUT_S * 1e9)
        while len(paced.answered_s) < len(schedule):
            now = time.monotonic_ns()
            while position < len(schedule) and schedule[position][0] <= now:
                due_ns, connection, request = schedule[position]
                self._connections[connection % len(self._connections)].send(due_ns, request)
                paced.late_s.append((now - due_ns) / 1e9)
                position += 1
            next_ns = schedule[position][0] if position < len(schedule) else deadline_ns
            pause_s = (next_ns - time.monotonic_ns()) / 1e9  # selectors round it up to milliseconds
            for key, _ in self._selector.select(max(0.0, pause_s)):
                key.data.receive(paced)
            if now > deadline_ns:
                unanswered = len(schedule) - len(paced.answered_s)
                raise TimeoutError(f"{unanswered} requests were not answered in {TIMEOUT_S:.0f} s")
        return paced


class _Connection:
    """One connection and the moments of what is not answered on it."""

    def __init__(self, host: str, port: int, selector: selectors.BaseSelector) -> None:
        self.socket = socket.create_connection((host, port), TIMEOUT_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._due: deque[int] = deque()
        self._data = b""
        selector.register(self.socket, selectors.EVENT_READ, self)

    def send(self, due_ns: int, request: bytes) -> None:
        """Small requests, few at a time: they fit in the system's buffer."""
        self._due.append(due_ns)
        self.socket.sendall(request)

    def receive(self, paced: Paced) -> None:
        """Read what is there, and note each answer that is whole."""
        data = self.socket.recv(65_536)
        if not data:
            raise ConnectionError("the server closed a connection that should be kept")
        self._data += data
        now = time.monotonic_ns()
        while (answer := whole_answer(self._data)) is not None:
            status, _, self._data = answer
            paced.statuses[status] += 1
            paced.answered_s.append((now - self._due.popleft()) / 1e9)
