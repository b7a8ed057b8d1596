"""Real servers for a demonstration, a benchmark or a test: processes on loopback, with real TLS.

    with LocalFederation(folder, ["here.test", "there.test"]) as federation:
        alice = federation["here.test"].user("alice")
        alice.put_status("online")

Each server is a `fedpresence run` process with a configuration, a signing key, a certificate of a throwaway
CA and ports of its own; they find each other through `federation.resolve`. Everything is plain and
synchronous, for scripts and tests that have no reactor.
"""

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import yaml

from fedpresence.ids import ServerName, parse_server_name
from fedpresence.ops.keys import generate_key_file
from fedpresence.testing.certificates import ThrowawayCA
from fedpresence.testing.http import Answer, request

START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 15.0


class User:
    """One user's device at one server: what a client would ask for."""

    def __init__(self, server: "ServerProcess", user_id: str, token: str) -> None:
        self.server = server
        self.user_id = user_id
        self.token = token
        self.since: str | None = None

    def call(self, method: str, path: str, body: object = None, timeout_s: float = 60.0) -> Answer:
        """One request with the user's token."""
        return request(method, self.server.client_url + path, body, token=self.token, timeout_s=timeout_s)

    def change_list(self, **change: Sequence[str]) -> Answer:
        """`POST .../presence/list`: invite=[...], accept=[...], deny, revoke, drop."""
        return self.call("POST", f"/_matrix/client/v3/presence/list/{self.user_id}", change)

    def put_status(self, presence: str, status_msg: str | None = None) -> Answer:
        """`PUT .../presence/{userId}/status`."""
        body = {"presence": presence} | ({"status_msg": status_msg} if status_msg else {})
        return self.call("PUT", f"/_matrix/client/v3/presence/{self.user_id}/status", body)

    def status_of(self, user_id: str) -> Answer:
        """`GET .../presence/{userId}/status`."""
        return self.call("GET", f"/_matrix/client/v3/presence/{user_id}/status")

    def subscriptions(self) -> Any:
        """The caller's list, invites and observers."""
        return self.call("GET", f"/_fedpresence/client/v1/subscriptions/{self.user_id}").body

    def sync(self, timeout_ms: int = 0, set_presence: str | None = None) -> Any:
        """One `/sync`, from where the last one ended."""
        query = f"?timeout={timeout_ms}"
        if self.since is not None:
            query += f"&since={self.since}"
        if set_presence is not None:
            query += f"&set_presence={set_presence}"
        answer = self.call("GET", f"/_matrix/client/v3/sync{query}", timeout_s=timeout_ms / 1000 + 30)
        if answer.status == 200:
            self.since = answer.body["next_batch"]
        return answer.body

    def sync_until(self, wanted: Callable[[Any], bool], timeout_s: float = 10.0, **kwargs: Any) -> Any:
        """Long polls until one answer holds what is wanted; AssertionError where none did in time."""
        deadline = time.monotonic() + timeout_s
        last: Any = None
        while (left_s := deadline - time.monotonic()) > 0:
            last = self.sync(timeout_ms=max(1, int(left_s * 1000)), **kwargs)
            if wanted(last):
                return last
        raise AssertionError(f"{self.user_id} saw nothing of it in {timeout_s} s; last: {last}")

    def presence_of(self, user_id: str, timeout_s: float = 10.0, **wanted: object) -> dict[str, Any]:
        """Long polls until `user_id` is shown with this content; answers the whole content."""

        def found(answer: Any) -> dict[str, Any] | None:
            for event in answer.get("presence", {}).get("events", ()):
                content: dict[str, Any] = event["content"]
                if event["sender"] == user_id and all(content.get(k) == v for k, v in wanted.items()):
                    return content
            return None

        content = found(self.sync_until(lambda answer: found(answer) is not None, timeout_s))
        if content is None:
            raise AssertionError("unreachable: sync_until answered what was found")
        return content


class OpenStream:
    """Holds a user's `/sync` open, one long poll after the other, until closed."""

    def __init__(self, user: User) -> None:
        self._user = User(user.server, user.user_id, user.token)
        self._closed = threading.Event()
        self._first = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        if not self._first.wait(10):
            raise AssertionError(f"{user.user_id} could not open a stream")

    def close(self) -> None:
        """Open no further poll; the one that is open ends within a second."""
        self._closed.set()
        self._thread.join(5)

    def _run(self) -> None:
        while not self._closed.is_set():
            try:
                self._user.sync(timeout_ms=1000 if self._user.since else 0)
            except OSError:
                return
            self._first.set()


class ServerProcess:
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
    ) -> None:
        self.name = name
        self.folder = folder
        self.wire_file = folder / "wire.jsonl"
        self.log_file = folder / "log.txt"
        self.config_file = folder / "config.yaml"
        self.admin_token = secrets.token_urlsafe()
        self._ports = ports
        self.ready_file = folder / "ready.json"
        self._wired = wired
        self._process: subprocess.Popen[bytes] | None = None
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
        self.config_file.write_text(yaml.safe_dump(_merged(own, config)), encoding="utf-8")
        self.config_file.chmod(0o600)

    @property
    def client_url(self) -> str:
        """Where clients, the admin API and metrics are."""
        return f"http://127.0.0.1:{self._ports['client']}"

    @property
    def federation_port(self) -> int:
        """Where other servers connect, with TLS."""
        return self._ports["federation"]

    @property
    def pid(self) -> int:
        """The process that runs now."""
        assert self._process is not None, f"{self.name} does not run"
        return self._process.pid

    def start(self) -> None:
        """Start the process and wait for its ready file."""
        self.begin()
        self.wait_until_ready()

    @property
    def is_running(self) -> bool:
        """Whether its process runs, paused or not."""
        return self._process is not None and self._process.poll() is None

    def begin(self) -> None:
        """Start the process."""
        self.ready_file.unlink(missing_ok=True)
        if self._wired:
            command = ["-m", "fedpresence.testing.wired", str(self.wire_file)]
        else:
            command = ["-m", "fedpresence", "run"]
        arguments = ["-c", str(self.config_file), "--ready-file", str(self.ready_file)]
        with self.log_file.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, *command, *arguments],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                env=_environment(),
            )

    def wait_until_ready(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Return once every listener answers; AssertionError with the log where it ends before that."""
        assert self._process is not None, f"{self.name} was not started"
        deadline = time.monotonic() + timeout_s
        while not self.ready_file.exists():
            ended = self._process.poll() is not None
            if ended or time.monotonic() > deadline:
                words = f"ended with {self._process.returncode}" if ended else "is not ready"
                raise AssertionError(f"{self.name} {words}:\n{self.log()}")
            time.sleep(0.01)  # a file cannot be awaited without a library for it

    def wait_until_ended(self, timeout_s: float = STOP_TIMEOUT_S) -> int:
        """The exit code of a process that ends by itself; AssertionError with the log where it does not."""
        return self._end(None, timeout_s)

    def stop(self) -> int:
        """Stop it cleanly; its exit code."""
        return self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Stop it as a crash would."""
        self._end(signal.SIGKILL)

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
            env=_environment(),
        )

    def configure(self, change: Mapping[str, Any]) -> None:
        """Merge `change` into the configuration file; a start or a reload takes it up."""
        config = yaml.safe_load(self.config_file.read_text(encoding="utf-8"))
        self.config_file.write_text(yaml.safe_dump(_merged(config, change)), encoding="utf-8")

    def admin(self, method: str, path: str, body: object = None) -> Answer:
        """One request to the admin API, with its token."""
        url = f"{self.client_url}/_fedpresence/admin/v1{path}"
        return request(method, url, body, token=self.admin_token)

    def is_active(self, user_id: str) -> None:
        """A pro-active event of a user, as if seen elsewhere."""
        answer = self.admin("POST", "/activity", {"events": [{"user_id": user_id}]})
        assert answer.status == 200, answer

    def transactions(self) -> list[dict[str, Any]]:
        """Every transaction this server tried so far; only where it is wired."""
        if not self.wire_file.exists():
            return []
        lines = self.wire_file.read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines if line.endswith("}")]

    def log(self, last: int = 5000) -> str:
        """The end of what its processes logged, at most `last` characters."""
        return self.log_file.read_text(encoding="utf-8", errors="replace")[-last:]

    def _end(self, number: signal.Signals | None, timeout_s: float = STOP_TIMEOUT_S) -> int:
        process, self._process = self._process, None
        if process is None:
            return 0
        if number is not None:
            process.send_signal(number)
        try:
            return process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise AssertionError(f"{self.name} did not stop:\n{self.log()}") from None


class LocalFederation:
    """Several servers that reach each other; a context manager that stops them all.

    `config` is merged into every server's configuration, `per_server` into one's. `wired` servers write
    down every transaction they send.
    """

    def __init__(
        self,
        folder: Path,
        names: Sequence[str],
        config: Mapping[str, Any] | None = None,
        per_server: Mapping[str, Mapping[str, Any]] | None = None,
        *,
        wired: bool = True,
    ) -> None:
        self.ca = ThrowawayCA(folder)
        ports = {name: {"client": free_port(), "federation": free_port()} for name in names}
        resolve = {name: f"127.0.0.1:{ports[name]['federation']}" for name in names}
        self._servers: dict[str, ServerProcess] = {}
        for name in names:
            own = _merged({"federation": {"resolve": resolve}}, config or {})
            own = _merged(own, (per_server or {}).get(name, {}))
            self._servers[name] = ServerProcess(
                parse_server_name(name), folder / name, self.ca, ports[name], own, wired=wired
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
    """A port of the loopback interface that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _merged(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(one)
    for key, value in other.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merged(merged[key], value) if both else value
    return merged


def _environment() -> dict[str, str]:
    """The environment without settings of another daemon."""
    return {name: value for name, value in os.environ.items() if not name.startswith("FEDPRESENCE_")}
