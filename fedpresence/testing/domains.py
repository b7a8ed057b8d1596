"""A domain as an operator has it: a Synapse, fedpresence beside it, one server name, one key.

fedpresence has the public port of the domain and passes on what is not its own; the Synapse listens on
loopback alone. The clients of these stories are told our address, or the Synapse's.
"""

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedpresence.ids import ServerName, parse_server_name
from fedpresence.ops.keys import generate_key_file
from fedpresence.testing.certificates import ThrowawayCA
from fedpresence.testing.http import Answer
from fedpresence.testing.processes import ServerProcess, free_port
from fedpresence.testing.synapse import Synapse, Tls, quoted
from fedpresence.testing.users import Server, User

QUICK = {
    "presence": {"last_active_granularity": "2s", "idle_timeout": "6s", "sync_online_timeout": "3s"},
    "federation": {"batch_window": "200ms", "blocked_networks": []},
}
SEEN_S = 20.0


class Domain:
    """One server name. `beside` False: the Synapse is alone and carries presence itself.

    `behind_proxy`: the public port is left to a proxy, and fedpresence has one port for all that it serves.
    """

    def __init__(
        self,
        python: Path,
        folder: Path,
        ca: ThrowawayCA,
        *,
        beside: bool = True,
        behind_proxy: bool = False,
        config: Mapping[str, Any] = QUICK,
        synapse_config: Mapping[str, Any] | None = None,
    ) -> None:
        self.port = public = free_port()
        self.name: ServerName = parse_server_name(f"127.0.0.1:{public}")
        self.address: str | None = None  # of the proxy, for clients
        folder.mkdir(parents=True)
        self.daemon: ServerProcess | None = None
        synapse_port = free_port()
        registrations: list[Path] = []
        tls: Tls | None = None
        config_of_synapse: dict[str, Any] = dict(synapse_config or {})
        if beside:
            ports = {"federation": public, "client": free_port()}
            appservice = f"tcp:{free_port()}:interface=127.0.0.1"
            self.daemon = ServerProcess(self.name, folder / "fedpresence", ca, ports, config, wired=False)
            key_file = self.daemon.folder / "signing.key"
            registration = self.daemon.folder / "registration.yaml"
            self.daemon.configure(
                {
                    "auth": {"mode": "homeserver"},
                    "homeserver": {"url": f"http://127.0.0.1:{synapse_port}"},
                    "appservice": {"registration": str(registration)},
                    "listeners": [
                        *([one_port(ports["client"])] if behind_proxy else self._own_listeners()),
                        {"endpoint": appservice, "resources": ["appservice"]},
                    ],
                }
            )
            self.daemon.command("generate-registration")
            registrations.append(registration)
        else:
            private_key, certificate = ca.issue(self.name)
            key_file = folder / "signing.key"
            generate_key_file(key_file)
            tls = Tls(public, private_key, certificate)
            config_of_synapse = {"presence": {"enabled": True}} | config_of_synapse
        self.synapse = Synapse(
            python,
            folder / "synapse",
            self.name,
            synapse_port,
            signing_key_path=key_file,
            ca_file=ca.ca_file,
            tls=tls,
            registrations=registrations,
            config=config_of_synapse,
        )

    def _own_listeners(self) -> list[Any]:
        assert self.daemon is not None
        listeners: list[Any] = self.daemon.configuration()["listeners"]
        return listeners

    def begin(self) -> None:
        """Start everything."""
        self.synapse.begin()

    def wait_until_ready(self) -> None:
        """Return once all of it answers."""
        self.synapse.wait_until_ready()
        if self.daemon is not None:
            self.daemon.start()

    def stop(self) -> None:
        """The daemon first, for it has last words."""
        if self.daemon is not None:
            assert self.daemon.stop() == 0, self.daemon.log()
        self.synapse.stop()

    def kill(self) -> None:
        """Whatever still runs."""
        if self.daemon is not None:
            self.daemon.kill()
        self.synapse.kill()

    def user(self, localpart: str) -> "Person":
        """A user registered with the Synapse, whose client is told our address."""
        token = self.synapse.register(localpart)
        return Person(self, f"@{localpart}:{self.name}", token)

    def log(self) -> str:
        """What its processes said last."""
        ours = self.daemon.log() if self.daemon is not None else ""
        return f"--- fedpresence of {self.name}\n{ours}\n--- Synapse of {self.name}\n{self.synapse.log()}"


def one_port(port: int) -> dict[str, Any]:
    """A listener for everything that a proxy passes on, and for the operator."""
    resources = ["client", "federation", "sync_tap", "admin", "metrics"]
    return {"endpoint": f"tcp:{port}:interface=127.0.0.1", "resources": resources}


class Person(User):
    """A user of a domain, and what a client of theirs asks for."""

    def __init__(self, domain: Domain, user_id: str, token: str) -> None:
        super().__init__(_Door(domain), user_id, token)
        self.domain = domain

    def ask(self, method: str, path: str, body: object = None, timeout_s: float = 60.0) -> Answer:
        """`path` below `/_matrix/client/v3`; AssertionError unless it is answered with 200."""
        answer = self.call(method, f"/_matrix/client/v3{path}", body, timeout_s)
        assert answer.status == 200, (method, path, answer)
        return answer

    def create_room(self, **more: object) -> str:
        """A public room."""
        body = {"preset": "public_chat"} | more
        room_id: str = self.ask("POST", "/createRoom", body).body["room_id"]
        return room_id

    def join(self, room_id: str, via: ServerName) -> None:
        """Over federation if need be."""
        self.ask("POST", f"/join/{quoted(room_id)}?server_name={quoted(via)}&via={quoted(via)}", {})

    def leave(self, room_id: str) -> None:
        """Leave a room."""
        self.ask("POST", f"/rooms/{quoted(room_id)}/leave", {})

    def say(self, room_id: str, text: str) -> str:
        """A message; its event ID."""
        path = f"/rooms/{quoted(room_id)}/send/m.room.message/{secrets.token_hex(8)}"
        event_id: str = self.ask("PUT", path, {"msgtype": "m.text", "body": text}).body["event_id"]
        return event_id

    def send_to_device(self, user_id: str, content: Mapping[str, object]) -> None:
        """A to-device message to all devices of a user."""
        path = f"/sendToDevice/org.example.note/{secrets.token_hex(8)}"
        self.ask("PUT", path, {"messages": {user_id: {"*": content}}})

    def reads(self, text: str, timeout_s: float = SEEN_S) -> None:
        """Syncs until a message with this text comes."""

        def is_there(answer: Any) -> bool:
            joined = answer.get("rooms", {}).get("join", {})
            events = [event for room in joined.values() for event in room["timeline"]["events"]]
            return any(event["content"].get("body") == text for event in events)

        self.sync_until(is_there, timeout_s)

    def receives(self, wanted: Mapping[str, object], timeout_s: float = SEEN_S) -> None:
        """Syncs until a to-device message with this content comes."""

        def is_there(answer: Any) -> bool:
            events = answer.get("to_device", {}).get("events", ())
            return any(event["content"] == wanted for event in events)

        self.sync_until(is_there, timeout_s)


class _Door(Server):
    """Where a domain's clients knock."""

    def __init__(self, domain: Domain) -> None:
        self.name = domain.name
        self.admin_token = domain.daemon.admin_token if domain.daemon is not None else ""
        self._domain = domain

    @property
    def admin_url(self) -> str:
        """fedpresence; a Synapse alone has no such API."""
        return self.client_url

    @property
    def client_url(self) -> str:
        """fedpresence, or the Synapse where it is alone."""
        daemon = self._domain.daemon
        if self._domain.address is not None:
            return self._domain.address
        return daemon.client_url if daemon is not None else self._domain.synapse.url
