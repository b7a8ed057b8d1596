"""How long news takes: from Bob's `PUT .../status` there to Alice's waiting `/sync` here.

Two real servers; everything lies between: HTTP, commit-free decision, signature, TLS, verification, commit,
long poll. One case where the batch window has passed, as for a person who changes their status; one where
each update follows the last at once, so that it waits for the window (decision 12).
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

from benchmarks.clients import Client, put_status, request_bytes
from benchmarks.launch import local_federation
from benchmarks.meter import Meter, peak_memory_mib
from benchmarks.report import Case, Measure, Report, check, latencies
from fedpresence.ids import UserID
from fedpresence.testing.users import User

HERE, THERE = "here.test", "there.test"
QUIET_FOR_S = 0.03  # beyond the window: timers are not exact
SYNC_TIMEOUT_MS = 30_000


def add_options(parser: argparse.ArgumentParser) -> None:
    """What can be varied."""
    parser.add_argument("--updates", type=int, default=1000, help="of each case")
    parser.add_argument("--batch-window-ms", type=int, default=200, help="federation.batch_window")


def run(arguments: argparse.Namespace) -> Report:
    """Measure."""
    updates = 8 if arguments.smoke else arguments.updates
    window_ms = arguments.batch_window_ms
    config = {"federation": {"batch_window": f"{window_ms}ms"}, "log": {"level": "info"}}
    with tempfile.TemporaryDirectory() as folder:
        federation = local_federation(Path(folder), [HERE, THERE], config)
        with federation:
            alice, bob = federation[HERE].user("alice"), federation[THERE].user("bob")
            alice.sync()
            alice.change_list(invite=[bob.user_id])
            bob.sync_until(lambda answer: bool(answer["to_device"]["events"]))
            bob.change_list(accept=[alice.user_id])
            alice.sync_until(lambda answer: bool(answer["to_device"]["events"]))
            pace_s = window_ms / 1000 + QUIET_FOR_S
            pids = federation[THERE].pid, federation[HERE].pid
            quiet = f"quiet: each {pace_s * 1000:.0f} ms after the last"
            cases = [
                _measure(quiet, alice, bob, pids, updates, pace_s),
                _measure("back to back: each at once after the last", alice, bob, pids, updates, 0.0),
            ]
    return Report("latency", {"updates": updates, "batch_window_ms": window_ms}, tuple(cases))


def _measure(name: str, alice: User, bob: User, pids: tuple[int, int], updates: int, pause_s: float) -> Case:
    seconds: list[float] = []
    with Client(alice.server.client_url) as here, Client(bob.server.client_url) as there:
        bob_id = UserID(bob.user_id)
        there.ask(put_status(bob_id, bob.token, f"{name} begins"))
        _wait_for(here, alice, bob_id, f"{name} begins")
        meters = [Meter(pid) for pid in pids]
        for number in range(updates):
            time.sleep(pause_s)  # the pause is what is measured, not a wait for something
            status_msg = f"{name} {number}"
            here.send(_sync(alice))
            began = time.perf_counter()
            there.send(put_status(bob_id, bob.token, status_msg))
            _wait_for(here, alice, bob_id, status_msg, asked=True)
            seconds.append(time.perf_counter() - began)
            there.answer()
    sent, received = (meter.spent() for meter in meters)
    return Case(
        name,
        (
            *latencies("PUT there to /sync here", seconds),
            Measure("CPU per update, sending server", 1000 * sent.cpu_s / updates, "ms"),
            Measure("CPU per update, receiving server", 1000 * received.cpu_s / updates, "ms"),
            Measure("peak memory, sending server", peak_memory_mib(pids[0]), "MiB"),
            Measure("peak memory, receiving server", peak_memory_mib(pids[1]), "MiB"),
        ),
    )


def _wait_for(client: Client, alice: User, bob: UserID, status_msg: str, *, asked: bool = False) -> None:
    """Read long polls until one shows Bob with this message."""
    deadline_s = time.monotonic() + SYNC_TIMEOUT_MS / 1000
    while time.monotonic() < deadline_s:
        if not asked:
            client.send(_sync(alice))
        asked = False
        answer = json.loads(client.answer())
        alice.since = answer["next_batch"]
        for event in answer["presence"]["events"]:
            if event["sender"] == bob and event["content"].get("status_msg") == status_msg:
                return
    check(False, f"the update {status_msg!r} never came")


def _sync(alice: User) -> bytes:
    path = f"/_matrix/client/v3/sync?timeout={SYNC_TIMEOUT_MS}&since={alice.since}"
    return request_bytes("GET", path, alice.token)
