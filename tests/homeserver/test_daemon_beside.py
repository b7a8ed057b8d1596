# mypy: allow-untyped-calls
"""A whole daemon beside a played homeserver, over real sockets."""

import json
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
from treq.client import HTTPClient
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure
from twisted.web.client import Agent, HTTPConnectionPool
from twisted.web.resource import Resource
from twisted.web.server import Request, Site

from fedpresence.clock import MonotonicClock, now_ms
from fedpresence.config import load_config
from fedpresence.daemon import Daemon
from fedpresence.errors import ConfigError
from fedpresence.homeserver.registration import generate_registration, load_registration, write_registration
from fedpresence.ids import RoomID, ServerName, UserID
from fedpresence.ops.keys import generate_key_file
from fedpresence.testing.certificates import ThrowawayCA
from tests.in_reactor import in_reactor

ALICE, BOB, BOT = UserID("@alice:here.test"), UserID("@bob:there.test"), UserID("@fedpresence:here.test")
ROOM = RoomID("!room:here.test")
CONFIG = """
server_name: here.test
signing_key_path: here.signing.key
listeners:
  - {{endpoint: "tcp:0:interface=127.0.0.1", resources: [appservice]}}
homeserver: {{url: "http://127.0.0.1:{port}"}}
appservice: {{registration: registration.yaml, scan_rate: 1000}}
"""


class Homeserver(Resource):
    """One room with Alice, Bob and our bot."""

    isLeaf = True

    def render(self, request: Request) -> bytes:
        request.setHeader("Content-Type", "application/json")
        path = request.path.decode()
        answers: dict[str, object] = {
            "joined_rooms": {"joined_rooms": [ROOM]},
            "joined_members": {"joined": {ALICE: {}, BOB: {}, BOT: {}}},
            "m.room.join_rules": {"join_rule": "invite"},
            "register": {"user_id": BOT},
        }
        answer = answers.get(path.rstrip("/").rpartition("/")[2])
        if answer is None:
            request.setResponseCode(404)
            answer = {"errcode": "M_UNRECOGNIZED"}
        return json.dumps(answer).encode()


@pytest.mark.parametrize("times", [1, 2])
def test_a_daemon_learns_its_rooms_and_hears_of_what_happens(tmp_path: Path, times: int) -> None:
    """From an empty database to a full one, and again on what the first run left."""
    generate_key_file(tmp_path / "here.signing.key")
    write_registration(
        tmp_path / "registration.yaml", generate_registration(ServerName("here.test"), "http://x")
    )
    token = load_registration(tmp_path / "registration.yaml").hs_token

    async def story(reactor: Any) -> None:
        homeserver = reactor.listenTCP(0, Site(Homeserver()), interface="127.0.0.1")
        path = tmp_path / "fedpresence.yaml"
        path.write_text(CONFIG.format(port=homeserver.getHost().port), encoding="utf-8")
        clock = MonotonicClock(reactor)
        pool: Any = HTTPConnectionPool(reactor, persistent=False)
        agent: Any = Agent
        client: Any = HTTPClient
        http = client(agent(reactor, pool=pool))

        async def once(number: int) -> None:
            fatal: list[Failure] = []
            daemon = Daemon(load_config(path, {}), reactor, clock, Random(1), fatal.append)
            await daemon.start()
            try:
                parts = daemon.parts
                assert parts is not None and parts.scan is not None
                for _ in range(500):
                    if parts.scan.progress().state == "following":
                        break
                    moment: Deferred[None] = Deferred()
                    reactor.callLater(0.01, moment.callback, None)
                    await moment
                assert parts.engine.known.rooms() == (ROOM,)
                event = {
                    "type": "m.room.message",
                    "room_id": ROOM,
                    "sender": ALICE,
                    "origin_server_ts": now_ms(clock),
                    "content": {},
                }
                response = await http.put(
                    f"http://127.0.0.1:{daemon.listening[0].port}/_matrix/app/v1/transactions/{number}",
                    headers={"Authorization": f"Bearer {token}"},
                    json={"events": [event]},
                )
                assert (response.code, await response.json()) == (200, {})
                detail = parts.engine.user_detail(ALICE, now_ms(clock))
                assert detail is not None and detail.view.currently_active
                assert fatal == []
            finally:
                await daemon.stop()

        try:
            for number in range(times):
                await once(number)
        finally:
            await homeserver.stopListening()

    in_reactor(story)


TLS_CONFIG = """
server_name: here.test
signing_key_path: here.signing.key
listeners:
  - {endpoint: "tcp:0:interface=127.0.0.1", resources: [client]}
homeserver: {url: "https://127.0.0.1:1"}
federation: {ca_file: "ca.pem"}
"""


def test_a_homeserver_is_not_believed_by_the_authorities_of_other_servers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a file that is no good OpenSSL trusts nobody and says nothing: every request would be a 502."""
    generate_key_file(tmp_path / "here.signing.key")
    path = tmp_path / "fedpresence.yaml"
    path.write_text(TLS_CONFIG, encoding="utf-8")
    named = tmp_path / "named.pem"
    named.write_bytes(ThrowawayCA(tmp_path).ca_file.read_bytes())
    config = load_config(path, {})
    changed = replace(config, log=replace(config.log, level="warn"))
    monkeypatch.setenv("SSL_CERT_FILE", str(named))

    async def story(reactor: Any) -> None:
        clock = MonotonicClock(reactor)
        first, second = [Daemon(config, reactor, clock, Random(1), lambda _: None) for _ in range(2)]
        await first.start()
        try:
            assert first.reload(config) == []
            named.unlink()
            with pytest.raises(ConfigError, match=r"SSL_CERT_FILE: .*named\.pem cannot be read"):
                first.reload(changed)
            assert first.config is config
        finally:
            await first.stop()
        with pytest.raises(ConfigError, match=r"SSL_CERT_FILE: .*named\.pem cannot be read"):
            second.reload(changed)
        with pytest.raises(ConfigError, match=r"SSL_CERT_FILE: .*named\.pem cannot be read"):
            await second.start()
        await second.stop()

    in_reactor(story)


def test_who_asks_no_homeserver_by_tls_needs_no_authorities_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An environment that names a file for other programs is no ground not to start."""
    generate_key_file(tmp_path / "here.signing.key")
    ThrowawayCA(tmp_path)
    path = tmp_path / "fedpresence.yaml"
    path.write_text(TLS_CONFIG.replace("https:", "http:"), encoding="utf-8")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none.pem"))

    async def story(reactor: Any) -> None:
        config = load_config(path, {})
        daemon = Daemon(config, reactor, MonotonicClock(reactor), Random(1), lambda _: None)
        await daemon.start()
        try:
            assert daemon.reload(config) == []
        finally:
            await daemon.stop()

    in_reactor(story)
