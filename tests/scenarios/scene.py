"""One real daemon, its users in the middle of their lives, and the servers that attack it.

Always true: `state()` is everything that an attack could want to change: every row of both halves of every
subscription, tombstones and notes of drops too, users, rooms, and what the admin API and the users
themselves are told. What the daemon must remember of any request (transaction IDs, keys) is not in it.
"""

import sqlite3
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fedpresence.ids import ServerName
from fedpresence.testing.certificates import ThrowawayCA
from fedpresence.testing.processes import ServerProcess, free_port
from tests.scenarios.peer import Answer, Peer, Reply, Wire

HERE = "here.test"
INVITE, ACCEPT, DENY = "m.presence_invite", "m.presence_accept", "m.presence_deny"
DROP = "org.fedpresence.presence_drop"
LIST_EDUS = (INVITE, ACCEPT, DENY, DROP)

ALICE, BOB, QUIET = "@alice:here.test", "@bob:here.test", "@quiet:here.test"
CAROL, DAN, ERIN, JUDY = "@carol:there.test", "@dan:there.test", "@erin:there.test", "@judy:there.test"
FRANK, GRACE, HEIDI = "@frank:there.test", "@grace:there.test", "@heidi:there.test"
OSCAR = "@oscar:elsewhere.test"
MALLORY, IVAN = "@mallory:evil.test", "@ivan:evil.test"

LOOK_ALIKES = ("THERE.TEST", "there.test.", "there.test:8448")  # other servers, however much alike
WRONG_TYPES: tuple[object, ...] = (None, True, 0, 1.5, -1, "", "x", [], ["x"], {}, {"x": 1})
MAX_BODY = 2_097_152  # limits.transaction_body here: small, so that too much is quickly sent
CONFIG = {
    # Nothing may change by time alone while the attacks run.
    "presence": {
        "sync_online_timeout": "1h",
        "last_active_granularity": "1h",
        "idle_timeout": "2h",
        "remote_timeout": "3h",
        "refresh_interval": "2h",
    },
    "limits": {
        "transaction_body": MAX_BODY,
        "bodies_in_flight": 4 * MAX_BODY,
        "origin_bytes": {"per_second": 1_048_576, "burst": 2 * MAX_BODY},
    },
}
SETTLE_S = 10.0


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: what is sent, what every single one of them is answered, and by which rule.

    `play` sends `times` requests. Several `answers`: each of them comes, and no other.
    """

    sent: str
    answers: tuple[str, ...]
    rule: str
    play: "Callable[[Scene], Iterable[Answer]]"
    times: int = 1


class Scene:
    """The daemon `here.test` and its peers; everything that is slow is begun at once, and read later."""

    def __init__(
        self,
        folder: Path,
        slow_rows: Iterable[Row],
        key_servers: Mapping[str, Callable[[Peer], Reply | None]],
    ) -> None:
        self._ca = ThrowawayCA(folder)
        self.peers: dict[str, Peer] = {}
        for name in (
            "there.test",
            "evil.test",
            "elsewhere.test",
            "denied.test",
            "flood.test",
            "bytes.test",
            "loud.test",
        ):
            self._add(name)
        for name, keys in key_servers.items():
            self._add(name, keys)
        self._add("plain.test", tls=False)
        self._add("wrongcert.test", certificate_for="there.test")
        resolve = {name: f"127.0.0.1:{peer.port}" for name, peer in self.peers.items()}
        for look_alike in LOOK_ALIKES:
            resolve[look_alike] = resolve["there.test"]
        self._add("refused.test")
        resolve["refused.test"] = f"127.0.0.1:{free_port()}"
        federation = {"resolve": resolve, "deny": ["denied.test"]}
        ports = {"client": free_port(), "federation": free_port()}
        self.server = ServerProcess(
            ServerName(HERE), folder / HERE, self._ca, ports, CONFIG | {"federation": federation}, wired=False
        )
        self._slow_rows = tuple(slow_rows)
        self._pool = ThreadPoolExecutor(max_workers=len(self._slow_rows) + 1)
        self._slow: dict[str, Future[list[Answer]]] = {}
        self.kept: dict[str, bytes] = {}

    def __enter__(self) -> "Scene":
        try:
            self.server.start()
            self.alice, self.bob = self.server.user("alice"), self.server.user("bob")
            self.server.user("quiet")
            self._live()
            for row in self._slow_rows:
                self._slow[row.sent] = self._pool.submit(self._play, row)
        except BaseException as error:
            error.add_note(self.server.log())
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for peer in self.peers.values():
            peer.close()
        self._pool.shutdown()
        self.server.stop()

    def _add(
        self,
        name: str,
        keys: Callable[[Peer], Reply | None] | None = None,
        *,
        tls: bool = True,
        certificate_for: str | None = None,
    ) -> None:
        certificate = self._ca.issue(ServerName(certificate_for or name))
        self.peers[name] = Peer(name, certificate, keys, tls=tls)

    def __getitem__(self, name: str) -> Peer:
        return self.peers[name]

    # --- sending ------------------------------------------------------------------------------------

    def wire(self) -> Wire:
        """A TLS connection to the daemon's federation listener."""
        return Wire(self.server.federation_port, HERE, self._ca.ca_file)

    def ask(self, data: bytes) -> Answer:
        """One request on a connection of its own."""
        with self.wire() as wire:
            return wire.answer(data)

    def send(self, origin: str, *edus: object, **changes: Any) -> Answer:
        """One honest transaction of `origin` with these EDUs."""
        peer = self[origin]
        return self.ask(peer.request(HERE, peer.transaction(*edus), **changes))

    def keep(self, name: str, origin: str, *edus: object) -> None:
        """Send, and remember the bytes for a replay."""
        peer = self[origin]
        self.kept[name] = peer.request(HERE, peer.transaction(*edus), txn_id=f"{name}-1")
        assert str(self.ask(self.kept[name])) == "200"
        self.settle()

    def answers(self, row: Row) -> list[Answer]:
        """Play a row; one that is slow was begun at the start."""
        return self._slow[row.sent].result(60) if row.sent in self._slow else self._play(row)

    def _play(self, row: Row) -> list[Answer]:
        return list(row.play(self))

    def is_waiting(self, row: Row) -> bool:
        """Whether a slow row has no answer yet."""
        return not self._slow[row.sent].done()

    # --- the daemon's state ---------------------------------------------------------------------------

    def settle(self) -> None:
        """Return once everything that was taken is decided (Z-7: list EDUs are, after the answer)."""
        self._until("the inbox is empty", "SELECT count(*) FROM inbox")

    def state(self) -> dict[str, Any]:
        """Everything that no attack may change."""
        self.settle()
        status = self.server.admin("GET", "/status").body
        state: dict[str, Any] = {name: status[name] for name in ("users", "subscriptions", "rooms")}
        for user_id in (ALICE, BOB, QUIET, CAROL, OSCAR, DAN, FRANK, MALLORY):
            state[user_id] = self.server.admin("GET", f"/users/{quote(user_id)}").body
        for user in (self.alice, self.bob):
            state[f"told {user.user_id}"] = user.subscriptions()
        for table in ("users", "observer_rows", "observed_rows", "room_members", "hidden_devices"):
            state[table] = self.query(f"SELECT * FROM {table} ORDER BY 1, 2")
        return state

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        """What stands in the daemon's database."""
        connection = sqlite3.connect(f"file:{self.server.folder / 'fedpresence.db'}?mode=ro", uri=True)
        try:
            return connection.execute(sql).fetchall()
        finally:
            connection.close()

    def _until(self, wanted: str, sql: str, is_so: Callable[[Any], bool] = lambda found: found == 0) -> None:
        deadline = time.monotonic() + SETTLE_S
        while not is_so(self.query(sql)[0][0]):
            assert time.monotonic() < deadline, f"not so in {SETTLE_S} s: {wanted}\n{self.server.log()}"
            time.sleep(0.005)  # another process's database cannot be awaited

    # --- what was before the attacks ------------------------------------------------------------------

    def _live(self) -> None:
        """Pairs in every stage, on both sides; a grant and a pending entry that a replay could end."""
        alice, bob = self.alice, self.bob
        assert alice.put_status("online", "reading").status == 200
        assert bob.put_status("online", "cooking").status == 200
        members = {"members": [BOB, OSCAR]}
        assert (
            self.server.admin("PUT", f"/rooms/{quote('!kitchen:here.test')}/members", members).status == 200
        )
        assert alice.change_list(invite=[CAROL, DAN, ERIN, JUDY, IVAN]).status == 200
        assert bob.change_list(deny=[MALLORY]).status == 200
        self._until_nothing_is_owed()
        self.keep("accept", "there.test", list_edu(ACCEPT, ALICE, JUDY))
        carol = {"user_id": CAROL, "presence": "online", "last_active_ago": 5000, "status_msg": "Fika"}
        self.keep("carol", "there.test", list_edu(ACCEPT, ALICE, CAROL), push(carol))
        self.keep("deny", "there.test", list_edu(DENY, ALICE, ERIN))
        self.keep("invite", "there.test", list_edu(INVITE, FRANK, BOB))
        self.keep("drop", "there.test", list_edu(DROP, FRANK, BOB))
        again = [list_edu(INVITE, observer, BOB) for observer in (FRANK, GRACE, HEIDI)]
        self.keep("again", "there.test", *again)
        self.keep("oscar", "elsewhere.test", push({"user_id": OSCAR, "presence": "online"}))
        assert bob.change_list(accept=[FRANK], deny=[HEIDI]).status == 200
        assert alice.change_list(drop=[JUDY, IVAN]).status == 200
        self._until_nothing_is_owed()
        assert alice.change_list(invite=[JUDY]).status == 200
        self._until_nothing_is_owed()
        for user in (alice, bob):
            user.sync()

    def _until_nothing_is_owed(self) -> None:
        for table in ("observer_rows", "observed_rows"):
            self._until("nothing is owed", f"SELECT count(*) FROM {table} WHERE owed IS NOT NULL")


def list_edu(kind: str, observer: object, observed: object) -> dict[str, object]:
    """One of the EDUs that make and end subscriptions."""
    return {"edu_type": kind, "content": {"observer_user": observer, "observed_user": observed}}


HARM = list_edu(DROP, FRANK, BOB)  # would end a grant of bob's, if it were believed


def push(*items: object) -> dict[str, object]:
    """An `m.presence`."""
    return {"edu_type": "m.presence", "content": {"push": [*items]}}


def online(user_id: str, **more: object) -> dict[str, object]:
    """A push item."""
    return {"user_id": user_id, "presence": "online", "last_active_ago": 1000} | more
