"""A rig as a process of its own, and all that can be asked of it, synchronously.

    with Rig(("here.test", "there.test"), ("alice@here.test", "bob@there.test")) as rig:
        alice, bob = rig.user("alice@here.test"), rig.user("bob@there.test")
        alice.change_list(invite=[bob.user_id])
        rig.settle()
        bob.change_list(accept=[alice.user_id])
        bob.stream(open=True)
        rig.advance(minutes=5)

Always true:
- what the rig refuses is a DeliveryFailed with the reason it gave; a rig that cannot start, or does not
  stop, is an AssertionError with its log;
- nothing waits for the rig's time: with the virtual clock, time passes in `advance` alone, and in a clean
  stop (`stop`, `set_clock`, `rotate_key`) as long as that takes.

Source: contract.md, "Test rig".
"""

import json
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

import yaml

from fedpresence.errors import DeliveryFailed
from fedpresence.ids import ServerName
from fedpresence.testing.child import Child
from fedpresence.testing.homeserver.answers import FakeAnswer, encode_answer
from fedpresence.testing.http import Answer, request
from fedpresence.testing.users import Server, User

PATIENCE_S = 60.0  # a rig that is asked for something small answers in milliseconds
ADVANCE_PATIENCE_S = 7200.0  # months of many users' timers; a rig that hangs is killed by whoever waits
STOP_PATIENCE_S = 60.0


class RigServer(Server):
    """One of the rig's servers. Its addresses stay the same whatever is done to it."""

    def __init__(self, rig: "Rig", name: ServerName, told: Mapping[str, Any]) -> None:
        self.name = name
        self._rig = rig
        self._take(told)

    @property
    def client_url(self) -> str:
        """Where clients knock."""
        return self._client_url

    @property
    def admin_url(self) -> str:
        """Where the admin API is."""
        return self._admin_url

    def user(self, localpart: str) -> "RigUser":
        """Its user of that name, `alice`; KeyError where there is none."""
        return self._rig.users[f"@{localpart}:{self.name}"]

    @property
    def is_running(self) -> bool:
        """Whether it runs now."""
        running: bool = self._rig.control("GET", self._path)["running"]
        return running

    def start(self) -> None:
        """Start it again on the same data; nothing where it runs."""
        self._do("start")

    def stop(self) -> None:
        """Stop it cleanly; nothing where it does not run. The clock turns by what its last words take."""
        self._do("stop")

    def kill(self) -> None:
        """Stop it as a crash would."""
        self._do("kill")

    def backup(self) -> None:
        """Keep a copy of its data, in place of the last one."""
        self._do("backup")

    def restore(self) -> None:
        """Go back to the copy; DeliveryFailed where there is none."""
        self._do("restore")

    def wipe(self) -> None:
        """Lose its data; its users' tokens stay good."""
        self._do("wipe")

    def set_clock(self, offset_ms: int) -> None:
        """Put its clock that far ahead of the rig's, or behind."""
        self._do("clock", {"offset_ms": offset_ms})

    def rotate_key(self) -> None:
        """Sign with a new key; the old one is published as old."""
        self._do("rotate-key")

    @property
    def _path(self) -> str:
        return f"/servers/{_segment(self.name)}"

    def _do(self, what: str, body: object = None) -> None:
        self._take(self._rig.control("POST", f"{self._path}/{what}", {} if body is None else body))

    def _take(self, told: Mapping[str, Any]) -> None:
        self._client_url: str = told["client_url"]
        self._admin_url: str = told["admin_url"]
        self.federation_url: str = told["federation_url"]
        self.admin_token: str = told["admin_token"]
        self.signing_key_path = Path(told["signing_key_path"])
        self.key_id: str = told["key_id"]
        self.verify_key: str = told["verify_key"]


class RigUser(User):
    """One user of the rig, on the device that the rig made a token for."""

    def __init__(self, rig: "Rig", server: Server, user_id: str, told: Mapping[str, Any]) -> None:
        super().__init__(server, user_id, told["access_token"])
        self.device_id: str = told["device_id"]
        self._rig = rig

    def stream(
        self, open: bool = True, *, device_id: str | None = None, set_presence: str | None = None
    ) -> None:
        """A device of theirs has an event stream open from now on, or no more, without any client."""
        body: dict[str, object] = {"open": open}
        if device_id is not None:
            body["device_id"] = device_id
        if set_presence is not None:
            body["set_presence"] = set_presence
        self._rig.control("PUT", f"/users/{_segment(self.user_id)}/stream", body)

    def is_active(self) -> None:
        """A pro-active event of theirs, as if seen elsewhere."""
        self.server.is_active(self.user_id)

    def sync_until(self, wanted: Callable[[Any], bool], timeout_s: float = 10.0, **kwargs: Any) -> Any:
        """A `/sync` answer that holds what is wanted; AssertionError where none does.

        With the virtual clock everything due has happened once the rig is settled, so nothing is waited
        for beyond that.
        """
        __tracebackhide__ = True  # pytest then shows the line of the test
        if self._rig.clock == "real":
            return super().sync_until(wanted, timeout_s, **kwargs)
        self._rig.settle()
        answer = self.sync(timeout_ms=0, **kwargs)
        if not wanted(answer):
            raise AssertionError(f"{self.user_id} sees nothing of it; the answer is: {answer}")
        return answer


class RigHomeserver:
    """A scripted homeserver in the rig: a peer that answers and sends what it is told to."""

    def __init__(self, rig: "Rig", told: Mapping[str, Any]) -> None:
        self._rig = rig
        self.name = ServerName(told["server_name"])
        self.federation_url: str = told["federation_url"]
        self._take(told)

    def answer(
        self,
        next: Iterable[FakeAnswer | Mapping[str, Any]] = (),
        always: FakeAnswer | Mapping[str, Any] | None = None,
        *,
        path: str | None = None,
    ) -> None:
        """To requests whose URI begins with `path` (transactions): these answers one by one, then `always`.

        It takes the place of what was told for that path before; without arguments it is honest again.
        """
        script: dict[str, object] = {"next": [_encoded(answer) for answer in next]}
        if always is not None:
            script["always"] = _encoded(always)
        if path is not None:
            script["path"] = path
        self._rig.control("PUT", f"{self._path}/answers", script)

    def received(self) -> list[dict[str, Any]]:
        """Every request that came, in order, and whether its signature is right."""
        received: list[dict[str, Any]] = self._rig.control("GET", f"{self._path}/received")["received"]
        return received

    def forget_received(self) -> None:
        """Begin a new list of what comes."""
        self._rig.control("DELETE", f"{self._path}/received")

    def edus(self) -> list[dict[str, Any]]:
        """The EDUs of the verified transactions that came, in order."""
        transactions = [each for each in self.received() if each["txn_id"] is not None and each["verified"]]
        return [edu for each in transactions for edu in each["content"]["edus"]]

    def send(
        self,
        to: str,
        edus: Sequence[object] | None = None,
        *,
        content: object = None,
        txn_id: str | None = None,
        forge: str | None = None,
        claim: str | None = None,
    ) -> dict[str, Any]:
        """Send one transaction, these EDUs or `content` as its whole body; `{"status", "body"}`.

        `forge` makes it wrong in one way: signature, key_id, origin (`claim` says whose), destination, body
        or missing. `status` is None where no answer came, with the virtual clock also where it needs time.
        """
        given = {"txn_id": txn_id, "forge": forge, "claim": claim}
        order: dict[str, Any] = {"to": to} | {key: value for key, value in given.items() if value is not None}
        if edus is not None:
            order["edus"] = list(edus)
        else:
            order["content"] = content
        answered: dict[str, Any] = self._rig.control("POST", f"{self._path}/send", order)
        return answered

    def rotate_key(self) -> None:
        """Sign with a new key; the old one is published as old."""
        self._take(self._rig.control("POST", f"{self._path}/rotate-key", {}))

    @property
    def _path(self) -> str:
        return f"/homeservers/{_segment(self.name)}"

    def _take(self, told: Mapping[str, Any]) -> None:
        self.key_id: str = told["key_id"]
        self.verify_key: str = told["verify_key"]


class Rig:
    """Several servers in one process, with a clock that can be turned and links that can be broken.

    A context manager; without it, `start` and `close`. `servers` and `users` are named as on the command
    line (`alice@here.test` or `@alice:here.test`). `config` is merged into every server's. `folder` keeps
    the servers' data; None: it is removed at the end.
    """

    def __init__(
        self,
        servers: Sequence[str] = ("here.test", "there.test"),
        users: Sequence[str] = ("alice@here.test", "bob@there.test"),
        *,
        clock: str = "virtual",
        config: Mapping[str, Any] | None = None,
        seed: int | None = None,
        folder: str | Path | None = None,
        addressable: bool = False,
    ) -> None:
        self.clock = clock
        self._asked = (tuple(servers), tuple(users), dict(config or {}), seed, folder, addressable)
        self._own: Path | None = None
        self._child: Child | None = None
        self._homeservers: dict[str, RigHomeserver] = {}

    def start(self) -> "Rig":
        """Start the process; returns once every server answers."""
        assert self._child is None, "the rig was started already"
        own = self._own = Path(tempfile.mkdtemp(prefix="fedpresence-rig-"))
        ready_file = own / "ready.json"
        self._child = Child("the rig", own / "log.txt", ready_file)
        try:
            self._child.begin(self._arguments(own, ready_file), ends_itself=True)
            self._child.wait_until_ready(PATIENCE_S)
            ready: dict[str, Any] = json.loads(ready_file.read_text(encoding="utf-8"))
        except BaseException:
            self.kill()
            raise
        self.control_url: str = ready["control_url"]
        self.ca_file = Path(ready["ca_file"])
        self.seed: int = ready["seed"]
        self.servers = {
            ServerName(name): RigServer(self, ServerName(name), told)
            for name, told in ready["servers"].items()
        }
        self._called = {told["alias"]: ServerName(name) for name, told in ready["servers"].items()}
        self.users = {
            user_id: RigUser(self, self[user_id.partition(":")[2]], user_id, told)
            for user_id, told in ready["users"].items()
        }
        return self

    def close(self) -> None:
        """Stop everything; AssertionError with the log where it does not end well."""
        child, self._child = self._child, None
        if child is None:
            return
        try:
            code = child.end(signal.SIGTERM, STOP_PATIENCE_S)
            assert code == 0, f"the rig ended with {code}:\n{child.log()}"
        finally:
            self._remove()

    def kill(self) -> None:
        """Stop everything at once, without a word; for a test that failed."""
        child, self._child = self._child, None
        if child is not None:
            child.end(signal.SIGKILL)
        self._remove()

    @property
    def is_running(self) -> bool:
        """Whether its process runs, and has been ready."""
        return self._child is not None and self._child.is_running and hasattr(self, "control_url")

    def __enter__(self) -> "Rig":
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
            return
        for title, text in (("wire", self._wire_or_reason()), ("log", self.log())):
            if text.strip():
                error.add_note(f"--- {title} of the rig ---\n{text}")
        self.kill()

    if not TYPE_CHECKING:  # which knows what there is

        def __getattr__(self, name: str) -> object:
            """What is asked for and not there: most of a rig is known only once it runs."""
            unknown = f"a Rig has no {name}"
            if name in ("control_url", "ca_file", "seed", "servers", "users", "_called"):
                unknown = f"{name}: the rig was not started; use it in a with statement, or start() it"
            raise AttributeError(unknown)

    # --- who is in it ----------------------------------------------------------------------------

    def __getitem__(self, name: str) -> RigServer:
        """The server of that name, or that was ordered under it; KeyError where there is none."""
        return self.servers[self._called.get(name, ServerName(name))]

    def user(self, name: str) -> RigUser:
        """`alice@here.test` or `@alice:here.test`; KeyError where there is no such user."""
        localpart, _, server = name.removeprefix("@").partition(":" if name.startswith("@") else "@")
        return self.users[f"@{localpart}:{self._called.get(server, server)}"]

    def homeserver(self, name: str) -> RigHomeserver:
        """The scripted homeserver of that name, made where there is none yet."""
        if name not in self._homeservers:
            told = self.control("POST", "/homeservers", {"server_name": name})
            self._homeservers[name] = RigHomeserver(self, told)
        return self._homeservers[name]

    def external(self, server_name: str, address: str, ca_file: str | Path | None = None) -> None:
        """Let the servers reach one that is not the rig's, at `host:port`; needs the real clock."""
        body = {"server_name": server_name, "address": address}
        if ca_file is not None:
            body["ca_file"] = str(Path(ca_file).absolute())
        self.control("POST", "/external", body)

    # --- time ------------------------------------------------------------------------------------

    @property
    def now_ms(self) -> int:
        """The rig's time, Unix ms."""
        now_ms: int = self.control("GET", "/status")["now_ms"]
        return now_ms

    def advance(
        self, ms: int = 0, *, seconds: float = 0, minutes: float = 0, hours: float = 0, days: float = 0
    ) -> int:
        """Turn the virtual clock on; everything due meanwhile has happened. The new time."""
        total_ms = ms + round(1000 * (seconds + 60 * (minutes + 60 * (hours + 24 * days))))
        now_ms: int = self.control("POST", "/advance", {"ms": total_ms}, ADVANCE_PATIENCE_S)["now_ms"]
        return now_ms

    def settle(self) -> int:
        """Wait until no transaction is in flight or due now; how many hang all the same."""
        in_flight: int = self.control("POST", "/settle", {})["in_flight"]
        return in_flight

    # --- the wire --------------------------------------------------------------------------------

    def link(self, origin: str, destination: str, **faults: object) -> None:
        """What the path from one server to another does from now on: `down=True`, `latency_ms=300`, ..."""
        self.control("PUT", f"/links/{_segment(origin)}/{_segment(destination)}", faults)

    def heal(self, origin: str, destination: str) -> None:
        """The path from one server to another works again."""
        self.link(origin, destination)

    def transactions(self, origin: str | None = None, destination: str | None = None) -> list[dict[str, Any]]:
        """Every transaction seen so far, in order; of some servers alone, where they are named."""
        seen: list[dict[str, Any]]
        seen = self.control("GET", f"/transactions{_query(origin, destination)}")["transactions"]
        return seen

    def wire_text(self, origin: str | None = None, destination: str | None = None) -> str:
        """The same for people, a line each."""
        text = self._ask("GET", f"/wire{_query(origin, destination)}", None, PATIENCE_S).body
        assert isinstance(text, str)
        return text

    # --- what runs -------------------------------------------------------------------------------

    @property
    def pid(self) -> int:
        """The process that everything runs in."""
        assert self._child is not None, "the rig does not run"
        return self._child.pid

    def control(self, method: str, path: str, body: object = None, timeout_s: float = PATIENCE_S) -> Any:
        """One request of the control API; what it answers, or DeliveryFailed with the reason."""
        return self._ask(method, path, body, timeout_s).body

    def log(self, last: int = 5000) -> str:
        """The end of what the rig logged, at most `last` characters."""
        return "" if self._child is None else self._child.log(last)

    def _ask(self, method: str, path: str, body: object, timeout_s: float) -> Answer:
        answer = request(method, self.control_url + path, body, timeout_s=timeout_s)
        if answer.status != 200:
            told = answer.body if isinstance(answer.body, dict) else {}
            reason = told.get("error", f"status {answer.status}")
            raise DeliveryFailed("the rig", reason, status=answer.status, errcode=told.get("errcode"))
        return answer

    def _arguments(self, own: Path, ready_file: Path) -> list[str]:
        """The command line; its `--config` is written. An error where what was asked for is no YAML."""
        servers, users, config, seed, folder, addressable = self._asked
        arguments = ["-m", "fedpresence", "rig", "--servers", ",".join(servers), "--clock", self.clock]
        # A folder of ours even where none was asked for: a rig that is killed cannot remove its own.
        arguments += ["--ready-file", str(ready_file), "--dir", str(folder or own / "data")]
        if users:
            arguments += ["--users", ",".join(users)]
        if config:
            config_file = own / "config.yaml"
            config_file.write_text(yaml.safe_dump(config), encoding="utf-8")
            arguments += ["--config", str(config_file)]
        if seed is not None:
            arguments += ["--seed", str(seed)]
        if addressable:
            arguments.append("--addressable")
        return [*arguments, "--stop-at-eof", "--remove-at-eof", str(own)]  # where we are killed

    def _wire_or_reason(self) -> str:
        try:
            return self.wire_text()
        except (OSError, DeliveryFailed) as error:
            return f"the rig does not answer: {error}"

    def _remove(self) -> None:
        if self._own is not None:
            shutil.rmtree(self._own, ignore_errors=True)
            self._own = None


def _encoded(answer: FakeAnswer | Mapping[str, Any]) -> dict[str, object]:
    return encode_answer(answer) if isinstance(answer, FakeAnswer) else dict(answer)


def _segment(name: str) -> str:
    return quote(name, safe="@:")


def _query(origin: str | None, destination: str | None) -> str:
    named = {key: name for key, name in (("from", origin), ("to", destination)) if name is not None}
    return f"?{urlencode(named)}" if named else ""
