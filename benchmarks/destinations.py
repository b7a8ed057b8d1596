"""`python -m benchmarks.destinations`: the servers that fedpresence sends to, and what they make of it.

It checks each signature, that no user is pushed whom a destination has no right to, and which state of
each user came last. It is a child process (`children.py`): the specification is
`{"port", "certificate", "private_key", "verify_keys": {key_id: Base64}, "rights": {destination: [user]}}`.
"""

import asyncio
import json
from typing import Any

from signedjson.key import decode_verify_key_bytes
from unpaddedbase64 import decode_base64

from benchmarks.children import Answer, serve_parent
from benchmarks.peers import Message, listen, verify


class Destinations:
    """What all destinations were told."""

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
        self.transactions = 0
        self.pushes = 0
        self.refused = 0
        self.violations = 0

    def receive(self, message: Message) -> object:
        """Take a transaction."""
        try:
            content = json.loads(message.body)
            verify(message, content, self._keys)
        except Exception:
            self.refused += 1
            raise
        destination = message.headers["host"]
        self.transactions += 1
        for edu in content["edus"]:
            for push in edu["content"].get("push", ()) if edu["edu_type"] == "m.presence" else ():
                self._push(destination, push)
        return {"pdus": {}}

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


def _is_like(push: dict[str, Any] | None, wanted: dict[str, Any]) -> bool:
    return push is not None and all(push.get(key) == value for key, value in wanted.items())


async def _make(specification: Any) -> Answer:
    destinations = Destinations(specification)
    await listen(
        specification["port"],
        specification["certificate"],
        specification["private_key"],
        destinations.receive,
    )

    async def answer(command: str, arguments: dict[str, Any]) -> dict[str, Any]:
        if command == "wait_for":
            return {"missing": await destinations.wait_for(**arguments)}
        return {
            "transactions": destinations.transactions,
            "pushes": destinations.pushes,
            "refused": destinations.refused,
            "violations": destinations.violations,
        }

    return answer


if __name__ == "__main__":
    asyncio.run(serve_parent(_make))
