"""`python -m benchmarks.destinations`: the servers that fedpresence sends to, and what they make of it.

It checks each signature, that no user is pushed whom a destination has no right to, and which state of
each user came last. It is a child process (`children.py`): the specification is
`{"ports", "certificate", "private_key", "verify_keys": {key_id: Base64}, "rights": {destination: [user]}}`.
"""

import asyncio
import json
import time
from typing import Any

from signedjson.key import decode_verify_key_bytes
from unpaddedbase64 import decode_base64

from benchmarks.children import Answer, serve_parent
from benchmarks.clients import MOMENT
from benchmarks.joining import join_room
from benchmarks.peers import Message, Peer, listen, verify


class Arrivals:
    """When each push came whose status message is the moment at which it was due to be sent."""

    def __init__(self) -> None:
        self._of: dict[tuple[str, str], list[tuple[int, int]]] = {}  # (destination, user): (due, arrived)

    def clear(self) -> None:
        """Forget them."""
        self._of.clear()

    def add(self, destination: str, push: dict[str, Any], arrived_ns: int) -> None:
        """A push came; one without a moment does not count."""
        moment = moment_of(push.get("status_msg"))
        if moment is None:
            return
        arrivals = self._of.setdefault((destination, push["user_id"]), [])
        if not arrivals or arrivals[-1][0] != moment:  # it is told again where something else changes
            arrivals.append((moment, arrived_ns))

    def latencies(self, due: dict[str, list[int]]) -> dict[str, list[float]]:
        """In seconds: of each push that came, and of each update until it or a newer one had come.

        `due` are the moments of each user's updates in order. An update that was overtaken while it waited
        has no push of its own; the second list counts it all the same.
        """
        pushes: list[float] = []
        updates: list[float] = []
        for (_, user), arrivals in self._of.items():
            waiting = iter(due.get(user, ()))
            moment = next(waiting, None)
            for told, arrived in arrivals:
                pushes.append(_seconds(arrived - told))
                while moment is not None and moment <= told:
                    updates.append(_seconds(arrived - moment))
                    moment = next(waiting, None)
        return {"pushes": pushes, "updates": updates}


class Destinations:
    """What all destinations were told.

    A transaction is answered at once and read when there is time, after `release` while they are on
    `hold`: reading competes with nothing that is measured, and the moment of arrival is the true one.
    """

    def __init__(self, specification: Any) -> None:
        self._keys = {
            key_id: decode_verify_key_bytes(key_id, decode_base64(key))
            for key_id, key in specification["verify_keys"].items()
        }
        self._rights = {name: frozenset(users) for name, users in specification["rights"].items()}
        self._last: dict[tuple[str, str], dict[str, Any]] = {}  # (destination, user) to the last push
        self._missing: set[tuple[str, str]] = set()
        self._wanted: dict[str, dict[str, Any]] = {}
        self._complete = asyncio.Event()
        self._unread: asyncio.Queue[tuple[int, Message]] = asyncio.Queue()
        self._may_read = asyncio.Event()
        self._may_read.set()
        self.peers = {name: Peer(name) for name in self._rights}
        self.arrivals = Arrivals()
        self.transactions = 0
        self.pushes = 0
        self.bytes = 0
        self.refused = 0
        self.complaint = ""  # the first
        self.violations = 0

    def receive(self, message: Message) -> object:
        """Take a transaction; answer whatever else a homeserver asks."""
        if "/key/" in message.first_line:
            return self.peers[message.headers["host"]].key_object()
        if not message.first_line.startswith("PUT /_matrix/federation/v1/send/"):
            return {}
        self._unread.put_nowait((time.monotonic_ns(), message))
        return {"pdus": {}}

    def hold(self) -> None:
        """Only take, until `release`; what arrived before is forgotten as an arrival."""
        self._may_read.clear()
        self.arrivals.clear()

    def release(self) -> None:
        """Read what was taken, and from now on what comes."""
        self._may_read.set()

    async def read_forever(self) -> None:
        """Read one after the other; others have their turn in between."""
        while True:
            await self._may_read.wait()
            arrived_ns, message = await self._unread.get()
            try:
                self._read(arrived_ns, message)
            except Exception as error:  # whatever it is that is wrong with it
                self.refused += 1
                self.complaint = self.complaint or repr(error)
            self._unread.task_done()
            await asyncio.sleep(0)

    async def counts(self) -> dict[str, int]:
        """Of everything that arrived."""
        await self._unread.join()
        return {
            "transactions": self.transactions,
            "pushes": self.pushes,
            "bytes": self.bytes,
            "refused": self.refused,
            "violations": self.violations,
        }

    def _read(self, arrived_ns: int, message: Message) -> None:
        content = json.loads(message.body)
        verify(message, content, self._keys)
        destination = message.headers["host"]
        self.transactions += 1
        self.bytes += message.size
        for edu in content.get("edus", ()):  # a transaction may hold events alone
            for push in edu["content"].get("push", ()) if edu["edu_type"] == "m.presence" else ():
                self._push(destination, push)
                self.arrivals.add(destination, push, arrived_ns)

    async def wait_for(self, wanted: dict[str, dict[str, Any]], within_s: float) -> int:
        """How many destinations were not told in time that each of these users is like this."""
        self._wanted = wanted
        self._missing = {
            (destination, user)
            for destination, users in self._rights.items()
            for user in users & wanted.keys()
            if not _is_like(self._last.get((destination, user)), wanted[user])
        }
        self._complete.clear()
        if self._missing:
            try:
                await asyncio.wait_for(self._complete.wait(), within_s)
            except TimeoutError:
                return len(self._missing)
        return 0

    def _push(self, destination: str, push: dict[str, Any]) -> None:
        user = push["user_id"]
        self.pushes += 1
        if user not in self._rights.get(destination, ()):
            self.violations += 1
        self._last[destination, user] = push
        if (destination, user) in self._missing and _is_like(push, self._wanted[user]):
            self._missing.discard((destination, user))
            if not self._missing:
                self._complete.set()


def moment_of(status_msg: object) -> int | None:
    """The moment (CLOCK_MONOTONIC, ns) that a status message carries; None where it carries none."""
    if isinstance(status_msg, str) and status_msg.startswith(MOMENT):
        return int(status_msg.removeprefix(MOMENT))
    return None


def _seconds(ns: int) -> float:
    return round(ns / 1e9, 5)


def _is_like(push: dict[str, Any] | None, wanted: dict[str, Any]) -> bool:
    return push is not None and all(push.get(key) == value for key, value in wanted.items())


async def _make(specification: Any) -> Answer:
    destinations = Destinations(specification)
    for port in specification["ports"]:
        await listen(port, specification["certificate"], specification["private_key"], destinations.receive)

    reading = asyncio.create_task(destinations.read_forever())

    async def answer(command: str, arguments: dict[str, Any]) -> dict[str, Any]:
        assert not reading.done()
        match command:
            case "wait_for":
                return {"missing": await destinations.wait_for(**arguments)}
            case "complaint":
                return {"words": destinations.complaint}
            case "hold":
                destinations.hold()
            case "release":
                destinations.release()
            case "join":
                await join_room(list(destinations.peers.values()), **arguments)
            case "latencies":
                return destinations.arrivals.latencies(**arguments)
        return dict(await destinations.counts()) if command == "counts" else {}

    return answer


if __name__ == "__main__":
    asyncio.run(serve_parent(_make))
