import socket
from pathlib import Path

import pytest

from fedpresence.ids import ServerName
from fedpresence.testing.certificates import ThrowawayCA
from fedpresence.testing.processes import ServerProcess, free_port
from tests.scenarios.conftest import HERE, THERE
from tests.scenarios.peer import Peer, Wire
from tests.scenarios.story import eventually


def get(uri: str) -> bytes:
    return f"GET {uri} HTTP/1.1\r\nHost: {HERE}\r\n\r\n".encode()


def test_who_verifies_our_last_words_finds_our_keys_and_nothing_else(tmp_path: Path) -> None:
    """A server that has restarted knows no keys: without them it refuses what we said last."""
    ca = ThrowawayCA(tmp_path)
    there = Peer(THERE, ca.issue(ServerName(THERE)))
    config = {
        "federation": {"resolve": {THERE: f"127.0.0.1:{there.port}"}},
        "presence": {"offline_on_stop": True},
    }
    ports = {"client": free_port(), "federation": free_port()}
    here = ServerProcess(ServerName(HERE), tmp_path / HERE, ca, ports, config, wired=False)
    found: dict[str, object] = {}

    def ask(data: bytes) -> str:
        with Wire(here.federation_port, HERE, ca.ca_file) as wire:
            return str(wire.answer(data))

    def take_last_words() -> int:
        found["keys"] = ask(get("/_matrix/key/v2/server"))
        found["keys by query"] = ask(get(f"/_matrix/key/v2/query/{HERE}"))
        found["transaction"] = ask(there.request(HERE, there.transaction()))
        found["version"] = ask(get("/_matrix/federation/v1/version"))
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", ports["client"]))
        return 200 if found["keys"] == "200" else 401

    try:
        here.start()
        alice = here.user("alice")
        members = {"members": [alice.user_id, f"@bob:{THERE}"]}
        assert here.admin("PUT", "/rooms/!kitchen:here.test/members", members).status == 200
        alice.put_status("online")
        eventually(lambda: there.received, "they hear of her")
        said = len(there.received)
        there.take = take_last_words

        assert here.stop() == 0
    finally:
        here.kill()
        there.close()

    assert found == {
        "keys": "200",
        "keys by query": "200",
        "transaction": "503 M_UNKNOWN",
        "version": "503 M_UNKNOWN",
    }
    (push,) = there.received[said]["edus"][0]["content"]["push"]
    assert (push["user_id"], push["presence"], len(there.received)) == (alice.user_id, "offline", said + 1)
