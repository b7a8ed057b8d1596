"""Two Synapses with fedpresence beside each, and two that carry presence themselves, in one run.

Both have the same users, in one room that spans the two domains, each with a client in its endless `/sync`;
users here change their status at a steady rate. Meanwhile one of them writes to one over there, in turn a
message to the room and a to-device message: how long until the other's waiting `/sync` has it. The worlds
take turns, so that a machine with other work is unfair to both.

Processor time is that of all threads of a process. SQLite, loopback, TLS between the domains.
"""

import argparse
import json
import secrets
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from benchmarks.children import Child
from benchmarks.clients import Client, request_bytes
from benchmarks.meter import Meter, memory_mib
from benchmarks.report import Case, Measure, Report, check, latencies
from fedpresence.testing.certificates import ThrowawayCA
from fedpresence.testing.domains import Domain, Person
from fedpresence.testing.synapse import NoSynapse, install_synapse, installed_synapse

OURS, ALONE = "Synapse and fedpresence", "Synapse alone"
CONFIG = {"federation": {"blocked_networks": []}, "log": {"level": "info"}}
SYNAPSE_CONFIG = {"bcrypt_rounds": 4}
PAUSE_S = 0.25  # between one message and the next
ARRIVES_WITHIN_S = 30.0
POLL_MS = 30_000


def add_options(parser: argparse.ArgumentParser) -> None:
    """What can be varied."""
    parser.add_argument("--users", type=int, default=50, help="here, of whom all see each other")
    parser.add_argument("--rates", type=_rates, default=(0, 5, 20), metavar="N,N", help="changes of status/s")
    parser.add_argument("--seconds", type=float, default=10, help="of each turn")
    parser.add_argument("--turns", type=int, default=2, help="of each world at each rate")
    parser.add_argument(
        "--synapse-folder",
        type=Path,
        default=Path(tempfile.gettempdir()) / "fedpresence-benchmarks-synapse",
        metavar="DIR",
        help="the environment it is installed into, once, unless SYNAPSE_PYTHON names an interpreter",
    )


def run(arguments: argparse.Namespace) -> Report:
    """Measure."""
    users, rates, seconds, turns = arguments.users, arguments.rates, arguments.seconds, arguments.turns
    if arguments.smoke:
        users, rates, seconds, turns = 3, (5,), 2.0, 1
    with tempfile.TemporaryDirectory() as folder:
        python = _python(arguments.synapse_folder)
        ca = ThrowawayCA(Path(folder) / "ca")
        with (
            _world(python, Path(folder) / "ours", ca, users, beside=True) as ours,
            _world(python, Path(folder) / "alone", ca, users, beside=False) as alone,
        ):
            cases = []
            for rate in rates:
                for turn in range(turns):
                    for world in (ours, alone) if turn % 2 == 0 else (alone, ours):
                        world.take_turn(rate, seconds)
                cases += [ours.case(rate), alone.case(rate)]
    return Report("beside", {"users": users, "seconds": seconds, "turns": turns}, tuple(cases))


@dataclass
class Figures:
    """Of all turns of one world at one rate."""

    wall_s: float = 0.0
    cpu_s: dict[str, float] = field(default_factory=dict)
    polls: int = 0
    message_s: list[float] = field(default_factory=list)
    to_device_s: list[float] = field(default_factory=list)


class World:
    """Two domains, their users, and those two who write and read."""

    def __init__(
        self, name: str, here: Domain, there: Domain, writer: "Device", reader: "Device", crowd: Child
    ):
        self._name = name
        self._writer = writer
        self._reader = reader
        self._crowd = crowd
        self._pids = {"Synapse here": here.synapse.pid, "Synapse there": there.synapse.pid}
        if here.daemon is not None and there.daemon is not None:
            self._pids |= {"fedpresence here": here.daemon.pid, "fedpresence there": there.daemon.pid}
        self._figures: dict[float, Figures] = {}

    def take_turn(self, rate: float, seconds: float) -> None:
        """Carry a load for a while."""
        figures = self._figures.setdefault(rate, Figures())
        polls = self._crowd.ask("polls")["polls"]
        meters = {name: Meter(pid) for name, pid in self._pids.items()}
        loaded: list[dict[str, Any]] = []
        loading = threading.Thread(
            target=lambda: loaded.append(self._crowd.ask("load", rate=rate, seconds=seconds)), daemon=True
        )
        loading.start()
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            figures.message_s.append(self._reader.hears_from(self._writer, "message"))
            time.sleep(PAUSE_S)  # the pause is the load, not a wait for something
            figures.to_device_s.append(self._reader.hears_from(self._writer, "to_device"))
            time.sleep(PAUSE_S)
        loading.join()
        check(bool(loaded) and set(loaded[0]) <= {"200"}, f"answered {loaded}")
        for name, meter in meters.items():
            spent = meter.spent()
            figures.cpu_s[name] = figures.cpu_s.get(name, 0.0) + spent.cpu_s
        figures.wall_s += spent.wall_s
        figures.polls += self._crowd.ask("polls")["polls"] - polls

    def case(self, rate: float) -> Case:
        """What was found at a rate."""
        figures = self._figures[rate]
        here = sum(cpu_s for name, cpu_s in figures.cpu_s.items() if name.endswith(" here"))
        shares = [
            Measure(f"CPU, {name}", 100 * cpu_s / figures.wall_s, "%")
            for name, cpu_s in sorted(figures.cpu_s.items())
        ]
        return Case(
            f"{self._name}, {rate:g}/s",
            (
                Measure("CPU here, together", 100 * here / figures.wall_s, "%"),
                *shares,
                *latencies("message until in the other's sync", figures.message_s)[:2],
                *latencies("to-device until in the other's sync", figures.to_device_s)[:2],
                Measure("messages", len(figures.message_s) + len(figures.to_device_s), ""),
                Measure("syncs answered here", figures.polls / figures.wall_s, "/s"),
                *(
                    Measure(f"memory, {name}", memory_mib(pid), "MiB")
                    for name, pid in sorted(self._pids.items())
                ),
            ),
        )


class Device:
    """A person's client, on connections that it keeps."""

    def __init__(self, person: Person, room_id: str) -> None:
        self._person = person
        self._room = quote(room_id, safe="")
        self._writing = Client(person.server.client_url)
        self._syncing = Client(person.server.client_url)
        self._since = ""
        self._is_asked = False
        self._sync()

    def close(self) -> None:
        """Hang up."""
        for client in (self._writing, self._syncing):
            client.__exit__(None, None, None)

    def hears_from(self, writer: "Device", kind: str) -> float:
        """Seconds from the writer's request until a sync of ours, which waits already, has it."""
        token = secrets.token_hex(8)
        if not self._is_asked:
            self._ask(POLL_MS)
        began = time.monotonic()
        writer.write(kind, token, self._person.user_id)
        while token not in self._sync():
            check(time.monotonic() < began + ARRIVES_WITHIN_S, f"a {kind} was lost")
            self._ask(POLL_MS)
        heard = time.monotonic() - began
        self._ask(POLL_MS)
        return heard

    def write(self, kind: str, token: str, to: str) -> None:
        """Say the token to the room, or to one user's devices."""
        if kind == "message":
            path = f"/rooms/{self._room}/send/m.room.message/{token}"
            body: Mapping[str, Any] = {"msgtype": "m.text", "body": token}
        else:
            path, body = (
                f"/sendToDevice/org.example.note/{token}",
                {"messages": {to: {"*": {"token": token}}}},
            )
        request = request_bytes("PUT", f"/_matrix/client/v3{path}", self._person.token, body)
        self._writing.ask(request)

    def _ask(self, timeout_ms: int) -> None:
        path = f"/_matrix/client/v3/sync?timeout={timeout_ms}{self._since}&set_presence=online"
        self._syncing.send(request_bytes("GET", path, self._person.token))
        self._is_asked = True

    def _sync(self) -> str:
        if not self._is_asked:
            self._ask(0)
        body = self._syncing.answer().decode("utf-8")
        self._is_asked = False
        self._since = f"&since={json.loads(body)['next_batch']}"
        return body


@contextmanager
def _world(python: Path, folder: Path, ca: ThrowawayCA, users: int, *, beside: bool) -> Iterator[World]:
    folder.mkdir()
    more: Any = {"beside": beside, "config": CONFIG, "synapse_config": SYNAPSE_CONFIG}
    domains = [Domain(python, folder / name, ca, **more) for name in ("here", "there")]
    try:
        for domain in domains:
            domain.begin()
        for domain in domains:
            domain.wait_until_ready()
        here, there = domains
        writer, reader = here.user("writer"), there.user("reader")
        room_id = writer.create_room()
        reader.join(room_id, here.name)
        crowd = [here.user(f"user{number}") for number in range(users)]
        for person in crowd:
            person.join(room_id, here.name)
        specification = {
            "url": writer.server.client_url,
            "tokens": {person.user_id: person.token for person in crowd},
        }
        with Child("benchmarks.crowd", specification) as child:
            devices = Device(writer, room_id), Device(reader, room_id)
            devices[1].hears_from(devices[0], "message")  # the domains have found each other
            yield World(OURS if beside else ALONE, here, there, *devices, child)
            for device in devices:
                device.close()
    except BaseException as error:
        for domain in domains:
            error.add_note(domain.log())
        raise
    finally:
        for domain in domains:
            domain.kill()


def _python(folder: Path) -> Path:
    try:
        return installed_synapse()
    except NoSynapse:
        return install_synapse(folder)


def _rates(text: str) -> Sequence[float]:
    return tuple(float(word) for word in text.split(","))
