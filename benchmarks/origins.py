"""`python -m benchmarks.origins`: servers that send signed transactions, as fast as they are taken.

Each origin has one connection and one transaction in flight, as homeservers do; everything is signed
before the clock starts. It is a child process (`children.py`): the specification is
`{"port", "certificate", "private_key", "ca_file", "target": {"name", "port"}, "users": {origin: [user]}}`.
"""

import asyncio
import ssl
import time
from collections import Counter
from itertools import count, cycle, islice
from typing import Any

from benchmarks.children import Answer, serve_parent
from benchmarks.peers import Message, Peer, listen, read_message

PUSHES_PER_EDU = 50  # as fedpresence and Synapse send


class Origins:
    """All origins, their keys, and the transactions they have ready."""

    def __init__(self, specification: Any) -> None:
        self.peers = {name: Peer(name) for name in specification["users"]}
        self._users: dict[str, list[str]] = specification["users"]
        self._target: dict[str, Any] = specification["target"]
        self._context = ssl.create_default_context(cafile=specification["ca_file"])
        self._connections: dict[str, tuple[asyncio.StreamReader, asyncio.StreamWriter]] = {}
        self._ready: dict[str, list[bytes]] = {}
        self._numbers = count(1)
        self._next_users = {name: cycle(users) for name, users in self._users.items()}

    def answer_request(self, message: Message) -> object:
        """Our keys; and whatever is sent to us is taken without a look."""
        peer = self.peers[message.headers["host"]]
        return peer.key_object() if "/key/" in message.first_line else {"pdus": {}}

    def prepare(self, transactions: int, pushes: int, status_msg: str) -> None:
        """Sign so many transactions in all, of so many pushes each; users take turns."""
        self._ready = {name: [] for name in self.peers}
        for name in islice(cycle(self.peers), transactions):
            self._ready[name].append(self._transaction(name, pushes, status_msg))

    async def connect(self) -> None:
        """A connection for each origin, and one empty transaction, so that keys are known.

        Each origin has an address of its own: keys are fetched for an address twice a second at most.
        """
        for number, name in enumerate(self.peers):
            self._connections[name] = await asyncio.open_connection(
                "127.0.0.1",
                self._target["port"],
                ssl=self._context,
                server_hostname=self._target["name"],
                local_addr=(f"127.0.{1 + number // 250}.{1 + number % 250}", 0),
            )
            answer = await self._exchange(name, self._transaction(name, 0, ""))
            if _status(answer) != "200":
                raise ConnectionError(f"the first transaction of {name} met {answer}")

    async def send(self) -> dict[str, Any]:
        """Send all that is ready; how long it took, and how it was answered."""
        seconds: list[float] = []
        statuses: Counter[str] = Counter()
        began = time.perf_counter()
        await asyncio.gather(*(self._send_of(name, seconds, statuses) for name in self.peers))
        return {"wall_s": time.perf_counter() - began, "seconds": seconds, "statuses": statuses}

    async def _send_of(self, name: str, seconds: list[float], statuses: Counter[str]) -> None:
        for request in self._ready.pop(name, ()):
            began = time.perf_counter()
            answer = await self._exchange(name, request)
            seconds.append(time.perf_counter() - began)
            statuses[_status(answer)] += 1
            if answer.headers.get("connection", "").lower() == "close":
                return

    async def _exchange(self, name: str, request: bytes) -> Message:
        reader, writer = self._connections[name]
        writer.write(request)
        return await read_message(reader)

    def _transaction(self, name: str, pushes: int, status_msg: str) -> bytes:
        users = list(islice(self._next_users[name], pushes))
        edus = [
            {"edu_type": "m.presence", "content": {"push": [_push(user, status_msg) for user in part]}}
            for part in (users[i : i + PUSHES_PER_EDU] for i in range(0, pushes, PUSHES_PER_EDU))
        ]
        content = {"origin": name, "origin_server_ts": int(time.time() * 1000), "pdus": [], "edus": edus}
        uri = f"/_matrix/federation/v1/send/t{next(self._numbers)}"
        return self.peers[name].request("PUT", uri, self._target["name"], content)


def _status(answer: Message) -> str:
    return answer.first_line.split(" ")[1]


def _push(user: str, status_msg: str) -> dict[str, object]:
    return {
        "user_id": user,
        "presence": "online",
        "last_active_ago": 1000,
        "currently_active": True,
        "status_msg": status_msg,
    }


async def _make(specification: Any) -> Answer:
    origins = Origins(specification)
    await listen(
        specification["port"],
        specification["certificate"],
        specification["private_key"],
        origins.answer_request,
    )

    async def answer(command: str, arguments: dict[str, Any]) -> dict[str, Any]:
        if command == "connect":
            await origins.connect()
        elif command == "prepare":
            origins.prepare(**arguments)
        else:
            return await origins.send()
        return {}

    return answer


if __name__ == "__main__":
    asyncio.run(serve_parent(_make))
