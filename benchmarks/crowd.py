"""`python -m benchmarks.crowd`: users of one homeserver, each with a client in its endless `/sync`.

A child process (`children.py`): the specification is `{"url", "tokens": {user: token}}`.
`load` has them change their status at a steady rate, users in turn, whether or not the answers before have
come; `polls` tells how many syncs were answered so far.
"""

import asyncio
import re
import time
from collections import Counter
from itertools import cycle
from typing import Any
from urllib.parse import urlsplit

from benchmarks.children import Answer, serve_parent
from benchmarks.clients import put_status, request_bytes
from benchmarks.peers import Message, read_message
from fedpresence.ids import UserID

POLL_MS = 30_000
_TOKEN = re.compile(rb'"next_batch": ?"([^"]+)"')


class Crowd:
    """The users, of whom each has a connection for its sync and one for its status."""

    def __init__(self, specification: Any) -> None:
        parts = urlsplit(specification["url"])
        self._place = parts.hostname, parts.port
        self._tokens: dict[UserID, str] = specification["tokens"]
        self.polls = 0
        self.polling: list[asyncio.Task[None]] = []

    async def begin(self) -> None:
        """Return once everybody has had a first sync."""
        begun = asyncio.Semaphore(0)
        for token in self._tokens.values():
            self.polling.append(asyncio.create_task(self._poll(token, begun)))
        for _ in self._tokens:
            await begun.acquire()

    async def load(self, rate: float, seconds: float) -> dict[str, int]:
        """So many changes of status; how they were answered."""
        statuses: Counter[str] = Counter()
        lines = {user: _Line(*await asyncio.open_connection(*self._place)) for user in self._tokens}
        users = cycle(self._tokens)
        began = time.monotonic()
        asked = []
        for number in range(round(rate * seconds)):
            await asyncio.sleep(max(0.0, began + number / rate - time.monotonic()))
            user = next(users)
            request = put_status(user, self._tokens[user], f"status {number} at {began}")
            asked.append(asyncio.create_task(lines[user].ask(request)))
        for answer in asked:
            statuses[(await answer).first_line.split(" ")[1]] += 1
        for line in lines.values():
            line.close()
        return dict(statuses)

    async def _poll(self, token: str, begun: asyncio.Semaphore) -> None:
        line = _Line(*await asyncio.open_connection(*self._place, limit=2**24))
        since = ""
        while True:
            path = f"/_matrix/client/v3/sync?timeout={POLL_MS if since else 0}{since}&set_presence=online"
            answer = await line.ask(request_bytes("GET", path, token))
            found = _TOKEN.search(answer.body)
            assert " 200 " in answer.first_line and found is not None, answer
            if not since:
                begun.release()
            since = f"&since={found[1].decode('ascii')}"
            self.polls += 1


class _Line:
    """A connection, one request at a time."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._turn = asyncio.Lock()

    async def ask(self, request: bytes) -> Message:
        """The answer."""
        async with self._turn:
            self._writer.write(request)
            return await read_message(self._reader)

    def close(self) -> None:
        """Hang up."""
        self._writer.close()


async def _make(specification: Any) -> Answer:
    crowd = Crowd(specification)
    await crowd.begin()

    async def answer(command: str, arguments: dict[str, Any]) -> dict[str, Any]:
        for task in crowd.polling:
            if task.done():
                task.result()
        if command == "load":
            return dict(await crowd.load(**arguments))
        return {"polls": crowd.polls}

    return answer


if __name__ == "__main__":
    asyncio.run(serve_parent(_make))
