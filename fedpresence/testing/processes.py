"""Real servers for a demonstration, a benchmark or a test: processes on loopback, with real TLS.

    with LocalFederation(folder, ["here.test", "there.test"]) as federation:
        alice = federation["here.test"].user("alice")
        alice.put_status("online")

Each server is a `fedpresence run` process with a configuration, a signing key, a certificate of a throwaway
CA and ports of its own; they find each other through `federation.resolve`. On Linux they end with whoever
started them, even where that one was killed. Everything is plain and synchronous, for scripts and tests that
have no reactor.
"""

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache
from itertools import cycle
from pathlib import Path
from types import TracebackType
from typing import Any

import yaml

from fedpresence.ids import ServerName, parse_server_name
from fedpresence.ops.keys import generate_key_file
from fedpresence.testing.certificates import ThrowawayCA
from fedpresence.testing.child import START_TIMEOUT_S, STOP_TIMEOUT_S, Child, environment
from fedpresence.testing.merging import merged
from fedpresence.testing.users import OpenStream, Server, User

_FIRST_PORT = 16_384
_GIVEN_PORTS = Path("/proc/sys/net/ipv4/ip_local_port_range")

__all__ = ("LocalFederation", "OpenStream", "ServerProcess", "User", "free_port")

DAEMON = ("-m", "fedpresence", "run")


class ServerProcess(Server):
    """One `fedpresence run` process and its folder."""

    def __init__(
        self,
        name: ServerName,
        folder: Path,
        ca: ThrowawayCA,
        ports: Mapping[str, int],
        config: Mapping[str, Any],
        *,
        wired: bool,
        program: Sequence[str] = DAEMON,
    ) -> None:
        self.name = name
        self.folder = folder
        self.wire_file = folder / "wire.jsonl"
        self.log_file = folder / "log.txt"
        self.config_file = folder / "config.yaml"
        self.admin_token = secrets.token_urlsafe()
        self._ports = ports
        self.ready_file = folder / "ready.json"
        self._program = ("-m", "fedpresence.testing.wired", str(self.wire_file)) if wired else tuple(program)
        self._child = Child(name, self.log_file, self.ready_file)
        folder.mkdir(parents=True, exist_ok=True)
        key_file, certificate_file = ca.issue(name)
        generate_key_file(folder / "signing.key")
        tls = (
            f"ssl:{ports['federation']}:privateKey={key_file}:certKey={certificate_file}:interface=127.0.0.1"
        )
        own: dict[str, Any] = {
            "server_name": name,
            "signing_key_path": "signing.key",
            "listeners": [
                {
                    "endpoint": f"tcp:{ports['client']}:interface=127.0.0.1",
                    "resources": ["client", "admin", "metrics"],
                },
                {"endpoint": tls, "resources": ["federation"]},
            ],
            "federation": {"ca_file": str(ca.ca_file)},
            "admin": {"token": self.admin_token},
            "log": {"level": "debug"},
        }
        self.config_file.write_text(yaml.safe_dump(merged(own, config)), encoding="utf-8")
        self.config_file.chmod(0o600)

    @property
    def client_url(self) -> str:
        """Where clients, the admin API and metrics are."""
        return f"http://127.0.0.1:{self._ports['client']}"

    @property
    def admin_url(self) -> str:
        """The same listener."""
        return self.client_url

    @property
    def federation_port(self) -> int:
        """Where other servers connect, with TLS."""
        return self._ports["federation"]

    @property
    def pid(self) -> int:
        """The process that runs now."""
        return self._child.pid

    def start(self) -> None:
        """Start the process and wait for its ready file."""
        self.begin()
        self.wait_until_ready()

    @property
    def is_running(self) -> bool:
        """Whether its process runs, paused or not."""
        return self._child.is_running

    def begin(self) -> None:
        """Start the process."""
        arguments = ["-c", str(self.config_file), "--ready-file", str(self.ready_file)]
        self._child.begin([*self._program, *arguments])

    def wait_until_ready(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Return once every listener answers; AssertionError with the log where it ends before that."""
        self._child.wait_until_ready(timeout_s)

    def wait_until_ended(self, timeout_s: float = STOP_TIMEOUT_S) -> int:
        """The exit code of a process that ends by itself; AssertionError with the log where it does not."""
        return self._child.end(None, timeout_s)

    def stop(self) -> int:
        """Stop it cleanly; its exit code."""
        return self._child.end(signal.SIGTERM)

    def kill(self) -> None:
        """Stop it as a crash would."""
        self._child.end(signal.SIGKILL)

    def send_signal(self, number: signal.Signals) -> None:
        """Any signal."""
        os.kill(self.pid, number)

    def user(self, localpart: str, device: str = "DEVICE") -> User:
        """A user with a fresh token, made by the command line."""
        user_id = f"@{localpart}:{self.name}"
        token = self.command("token", "add", user_id, "--device", device).strip()
        return User(self, user_id, token)

    def command(self, *words: str) -> str:
        """What a command of `fedpresence` prints, with this server's configuration; it must succeed."""
        done = self.attempt(*words)
        if done.returncode:
            raise AssertionError(f"fedpresence {' '.join(words)} ended with {done.returncode}: {done.stderr}")
        return done.stdout

    def attempt(self, *words: str) -> subprocess.CompletedProcess[str]:
        """How a command of `fedpresence` ends, with this server's configuration."""
        cut = 2 if words[0] in ("token", "user") else 1
        return subprocess.run(
            [sys.executable, "-m", "fedpresence", *words[:cut], "-c", str(self.config_file), *words[cut:]],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            env=environment(),
        )

    def configuration(self) -> dict[str, Any]:
        """What the configuration file says."""
        config: dict[str, Any] = yaml.safe_load(self.config_file.read_text(encoding="utf-8"))
        return config

    def configure(self, change: Mapping[str, Any]) -> None:
        """Merge `change` into the configuration file; a start or a reload takes it up."""
        changed = merged(self.configuration(), change)
        self.config_file.write_text(yaml.safe_dump(changed), encoding="utf-8")

    def transactions(self) -> list[dict[str, Any]]:
        """Every transaction this server tried so far; only where it is wired."""
        if not self.wire_file.exists():
            return []
        lines = self.wire_file.read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines if line.endswith("}")]

    def log(self, last: int = 5000) -> str:
        """The end of what its processes logged, at most `last` characters."""
        return self._child.log(last)


class LocalFederation:
    """Several servers that reach each other; a context manager that stops them all.

    `config` is merged into every server's configuration, `per_server` into one's. `wired` servers write
    down every transaction they send; others run `python PROGRAM... -c FILE --ready-file PATH`.
    """

    def __init__(
        self,
        folder: Path,
        names: Sequence[str],
        config: Mapping[str, Any] | None = None,
        per_server: Mapping[str, Mapping[str, Any]] | None = None,
        *,
        wired: bool = True,
        program: Sequence[str] = DAEMON,
    ) -> None:
        self.ca = ThrowawayCA(folder)
        ports = {name: {"client": free_port(), "federation": free_port()} for name in names}
        resolve = {name: f"127.0.0.1:{ports[name]['federation']}" for name in names}
        self._servers: dict[str, ServerProcess] = {}
        for name in names:
            own = merged({"federation": {"resolve": resolve}}, config or {})
            own = merged(own, (per_server or {}).get(name, {}))
            self._servers[name] = ServerProcess(
                parse_server_name(name),
                folder / name,
                self.ca,
                ports[name],
                own,
                wired=wired,
                program=program,
            )

    def __getitem__(self, name: str) -> ServerProcess:
        return self._servers[name]

    def __iter__(self) -> Iterator[ServerProcess]:
        return iter(self._servers.values())

    def __enter__(self) -> "LocalFederation":
        try:
            for server in self:
                server.begin()
            for server in self:
                server.wait_until_ready()
        except BaseException:
            self._kill_all()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._kill_all()
            for server in self:
                error.add_note(f"--- log of {server.name} ---\n{server.log()}")
            return
        for server in self:
            server.stop()

    def _kill_all(self) -> None:
        for server in self:
            server.kill()


def free_port() -> int:
    """A port of the loopback interface that is free now, and that the system gives to nobody by itself.

    One of those that it gives would be gone as soon as some connection needs one.
    """
    while True:
        port = next(_untried())
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


@cache
def _untried() -> Iterator[int]:
    """One after the other, so that nobody has one twice; each process begins elsewhere, whatever its seed."""
    ports = range(_FIRST_PORT, _first_given())
    first = secrets.randbelow(len(ports))
    return cycle((*ports[first:], *ports[:first]))


def _first_given() -> int:
    """Where the ports begin that connections are given: Linux says so, elsewhere they begin higher."""
    try:
        return max(_FIRST_PORT + 1_000, int(_GIVEN_PORTS.read_text("ascii").split()[0]))
    except OSError:
        return 32_768
