import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedpresence.clock import MonotonicClock
from fedpresence.ids import ServerName, parse_server_name
from fedpresence.testing.certificates import ThrowawayCA
from fedpresence.testing.homeserver import FakeHomeserver
from fedpresence.testing.homeserver.orders import Answered
from fedpresence.testing.processes import ServerProcess, User, free_port
from tests.homeserver.played import PlayedHomeserver, an_answer
from tests.in_reactor import in_reactor

HERE, THERE = parse_server_name("here.test"), parse_server_name("there.test")
CAROL = "@carol:there.test"
PDU = {"type": "m.room.encrypted", "content": {"ciphertext": "\u00e5", "n": 1}}
TO_DEVICE = {
    "edu_type": "m.direct_to_device",
    "content": {"message_id": "1", "messages": {}, "sender": CAROL, "type": "m.room_key"},
}
DEVICES = {
    "edu_type": "m.device_list_update",
    "content": {"device_id": "D", "stream_id": 5, "user_id": CAROL},
}
OK = b'{"pdus":{"$event":{}}}'


class Scene:
    """A daemon with TLS before a played homeserver, and another server that sends to it."""

    def __init__(
        self, server: ServerProcess, there: FakeHomeserver, behind: PlayedHomeserver, alice: User
    ) -> None:
        self.server, self.there, self.behind, self.alice = server, there, behind, alice

    def send(self, status_msg: str, *edus: object, pdus: tuple[object, ...] = ()) -> Answered:
        """A transaction with Carol's news and more in it."""
        push = self.there.push(CAROL, status_msg=status_msg)
        content = self.there.transaction([push, *edus], pdus=list(pdus))
        return in_reactor(lambda _: self.there.send(HERE, content=content))

    def carol(self) -> object:
        """Her status as Alice sees it."""
        answer = self.alice.status_of(CAROL)
        body: Any = answer.body
        return body.get("status_msg")

    def until_carol_says(self, status_msg: str) -> None:
        """Wait for it."""
        end_s = time.monotonic() + 10
        while self.carol() != status_msg:
            assert time.monotonic() < end_s, f"{self.carol()} is not {status_msg}"
            time.sleep(0.02)

    def seen(self) -> list[Any]:
        """Every transaction at the homeserver, parsed."""
        return [json.loads(seen.body) for seen in self.behind.seen if seen.head.startswith(b"PUT ")]


@contextmanager
def a_scene(folder: Path) -> Iterator[Scene]:
    """Everybody, started; and stopped."""
    ca = ThrowawayCA(folder / "ca")
    ports = {"federation": free_port(), "client": free_port()}
    found: list[Any] = []

    async def begin(reactor: Any) -> None:
        behind = PlayedHomeserver(reactor)
        behind.answers = lambda seen: an_answer(OK)
        await behind.start()
        there = FakeHomeserver(
            THERE,
            reactor,
            MonotonicClock(reactor),
            ca.issue(THERE),
            ca_file=ca.ca_file,
            address_of=_at(ports["federation"]),
        )
        await there.start()
        found.extend([behind, there])

    async def end(_: Any) -> None:
        await there.stop()
        await behind.stop()

    in_reactor(begin)
    behind, there = found
    config = {
        "federation": {"resolve": {THERE: f"127.0.0.1:{there.port}"}},
        "homeserver": {"url": behind.url},
    }
    server = ServerProcess(HERE, folder / "here", ca, ports, config, wired=False)
    try:
        server.start()
        alice = server.user("alice")
        room = "/rooms/!room%3Ahere.test/members"
        assert server.admin("PUT", room, {"members": [alice.user_id, CAROL]}).status == 200
        yield Scene(server, there, behind, alice)
        assert server.stop() == 0, server.log()
        assert "Traceback" not in server.log(1_000_000)
    finally:
        server.kill()
        in_reactor(end)


def _at(port: int) -> Callable[[ServerName], tuple[str, int]]:
    return lambda _: ("127.0.0.1", port)


def test_a_server_talks_to_both_through_one_door(tmp_path: Path) -> None:
    """Mixed transactions, presence alone, a homeserver that is killed, one that refuses: nothing is lost."""
    with a_scene(tmp_path) as scene:
        # A key for a room, a device list, a message and presence, all in one.
        answered = scene.send("mixed", TO_DEVICE, DEVICES, pdus=(PDU,))
        assert (answered.status, answered.body) == (200, json.loads(OK))
        (seen,) = scene.seen()
        assert seen["pdus"] == [PDU]
        assert seen["edus"][1:] == [TO_DEVICE, DEVICES]
        scene.until_carol_says("mixed")

        # Presence alone is our work.
        answered = scene.send("alone")
        assert (answered.status, answered.body) == (200, {"pdus": {}})
        assert len(scene.seen()) == 1
        scene.until_carol_says("alone")

        # The homeserver is killed: the other server keeps what it has, and nothing of it counts yet.
        in_reactor(lambda _: scene.behind.stop())
        answered = scene.send("while it was away", TO_DEVICE)
        assert answered.status == 502
        assert scene.carol() == "alone"
        in_reactor(lambda _: scene.behind.start())
        assert scene.send("back again", TO_DEVICE).status == 200
        scene.until_carol_says("back again")

        # The operator's server ACL, which the homeserver alone knows.
        scene.behind.answers = lambda _: an_answer(b'{"errcode":"M_FORBIDDEN"}', b"403 Forbidden")
        assert scene.send("from a banned server", TO_DEVICE).status == 403
        assert scene.send("from a banned server").status == 403
        assert scene.carol() == "back again"

        # Whatever else a server asks.
        scene.behind.answers = lambda seen: an_answer(b'{"line":"%b"}' % seen.line)
        uri = "/_matrix/federation/v1/query/profile?user_id=%40alice%3Ahere.test"
        answered = in_reactor(lambda _: scene.there.request(HERE, "GET", uri))
        assert answered.body == {"line": f"GET {uri} HTTP/1.1"}
