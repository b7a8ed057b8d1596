import sqlite3
from functools import partial
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from fedpresence import daemon
from fedpresence.clock import MonotonicClock
from fedpresence.config import load_config
from fedpresence.daemon import FLUSH_S, Daemon
from fedpresence.engine.settings import ServerLists
from fedpresence.errors import StoreError
from fedpresence.ids import ServerName, UserID
from fedpresence.ops.keys import generate_key_file, load_signing_keys
from fedpresence.outbound.sender import MAX_USERS
from fedpresence.process import _Process
from fedpresence.storage.sqlite import SQLiteStore
from tests.asynchronous import as_deferred, result_of
from tests.in_reactor import in_reactor
from tests.outbound.sending import ALICE, CAROL, Outcome, Rig, refusal


class Store:
    """A database whose rows take their time."""

    def __init__(self) -> None:
        self.closed = False
        self.loading: Deferred[object] = Deferred()

    def load(self) -> Deferred[object]:
        return self.loading

    def close(self) -> Deferred[None]:
        self.closed = True
        return succeed(None)


def test_a_stop_while_the_rows_are_read_is_a_clean_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A service manager that changes its mind must not read of a failed database, nor of an exit code 1."""
    store = Store()

    async def load(self: Daemon, store: Any) -> object:
        return await store.load()

    monkeypatch.setattr(daemon, "Identity", lambda *_: None)
    monkeypatch.setattr(daemon, "load_signing_keys", lambda _: ())
    monkeypatch.setattr(daemon, "SQLiteStore", SimpleNamespace(open=lambda *_: store))
    monkeypatch.setattr(Daemon, "_load", load)
    config: Any = SimpleNamespace(
        server_name="here.test",
        signing_key_path=Path(),
        old_signing_keys={},
        appservice_registration=None,
        database_path=Path(),
    )
    fatal: list[Failure] = []
    here = Daemon(config, None, Clock(), Random(1), fatal.append, force=True)

    starting = as_deferred(here.start())
    stopped = here.stop()
    assert not stopped.called and not store.closed

    store.loading.callback(None)
    result_of(starting)
    result_of(stopped)
    assert store.closed and fatal == [] and here.listening == ()


def _flushing(rig: Rig) -> Deferred[None]:
    """A daemon that stops, with the rig's outbound."""
    config: Any = SimpleNamespace(server_name="here.test")
    here = Daemon(config, None, rig.clock, Random(1), lambda _: None, force=True)
    parts: Any = SimpleNamespace(outbound=rig.outbound)
    return as_deferred(here._flush(parts))


@pytest.mark.parametrize(
    ("meets", "waits_s"),
    [
        ("is in its window", 0.2),
        ("answers slowly", 2.0),
        ("asked us to come in three seconds", 3.0),
        ("asked us to come in a minute", 0.0),
        ("is denied", 0.0),
        ("fails", 0.0),
        ("is away, and a try hangs", 0.0),
        ("never answers", FLUSH_S),
    ],
)
def test_a_clean_stop_waits_only_for_what_can_still_leave(meets: str, waits_s: float) -> None:
    """Somebody waits for the restart, and who is not spoken to hears no last words however long it takes."""
    rig = Rig().start()
    slow: Deferred[int] = Deferred()
    answers: dict[str, list[Outcome]] = {
        "answers slowly": [slow],
        "asked us to come in three seconds": [refusal(429, retry_after_ms=3_000)],
        "asked us to come in a minute": [refusal(429, retry_after_ms=60_000)],
        "fails": [refusal(503)],
        "is away, and a try hangs": [refusal(503)],
        "never answers": [Deferred()],
    }
    rig.server.outcomes = answers.get(meets, [])
    rig.push()
    rig.wait(0.01)
    if meets == "is denied":
        rig.outbound.reload(ServerLists(allow=()))
    if meets == "is away, and a try hangs":
        rig.server.reachable = Deferred()
        rig.wait(2)
        assert rig.outbound.in_flight() == 1
    rig.push(CAROL)
    rig.clock.callLater(2, slow.callback, 200)
    began_s = rig.clock.seconds()

    flushed = _flushing(rig)
    while not flushed.called:
        rig.wait(0.05)

    assert rig.clock.seconds() - began_s == pytest.approx(waits_s, abs=0.15)


@pytest.mark.parametrize("window_ms", [3_000, 5_000, 5_600])
def test_last_words_do_not_wait_for_a_window_that_outlasts_the_stop(window_ms: int) -> None:
    """Beside a homeserver it is five seconds, or an eighth more: who had just heard of us heard no more."""
    rig = Rig(batch_window_ms=window_ms).start()
    rig.push()
    rig.wait(0.1)
    rig.push(CAROL)

    flushed = _flushing(rig)
    rig.wait(0.1)

    assert flushed.called
    assert rig.server.pushed() == [[ALICE], [CAROL]]


def test_last_words_of_thousands_leave_too() -> None:
    """They are several transactions, and each would begin a window that outlasts the stop."""
    rig = Rig(batch_window_ms=5_500).start()
    rig.push()
    rig.wait(0.1)
    for number in range(MAX_USERS + 500):
        rig.push(UserID(f"@{number}:here.test"))

    flushed = _flushing(rig)
    rig.wait(0.3)

    assert flushed.called
    assert [len(users) for users in rig.server.pushed()] == [1, MAX_USERS, 500]


def test_a_reload_during_the_start_changes_what_a_reload_may(tmp_path: Path) -> None:
    """The key was read already: it needs a restart, and is spoken of at every reload until then."""
    listeners = "[{endpoint: 'tcp:0:interface=127.0.0.1', resources: [client]}]"
    text = f"server_name: here.test\nlisteners: {listeners}\n"
    configs = []
    for key in ("one.key", "two.key"):
        generate_key_file(tmp_path / key)
        path = tmp_path / "config.yaml"
        path.write_text(f"{text}signing_key_path: {key}\nfederation: {{deny: [{key}.test]}}\n")
        configs.append(load_config(path, {}, check_signing_key=load_signing_keys))

    async def story(reactor: Any) -> None:
        here = Daemon(configs[0], reactor, MonotonicClock(reactor), Random(1), lambda _: None, force=True)
        starting = as_deferred(here.start())
        assert here.parts is None
        first = here.reload(configs[1])
        await starting

        try:
            assert here.parts is not None
            assert here.reload(configs[1]) == first == ["signing_key_path"]
            assert not here.parts.outbound._servers.permit(ServerName("two.key.test"))
        finally:
            await here.stop()

    in_reactor(story)


def test_what_a_stop_cannot_write_is_a_failure(tmp_path: Path) -> None:
    """With a full disk whoever ran it read of a clean stop, and users were not as they had been."""
    generate_key_file(tmp_path / "key")
    path = tmp_path / "config.yaml"
    place = "{endpoint: 'tcp:0:interface=127.0.0.1', resources: [client]}"
    path.write_text(f"server_name: here.test\nsigning_key_path: key\nlisteners: [{place}]\n")
    config = load_config(path, {}, check_signing_key=load_signing_keys)
    fatal: list[Failure] = []
    full = False

    def commit(_: object) -> None:
        if full:
            raise sqlite3.OperationalError("database or disk is full")

    async def story(reactor: Any) -> None:
        nonlocal full
        here = Daemon(
            config,
            reactor,
            MonotonicClock(reactor),
            Random(1),
            fatal.append,
            force=True,
            open_store=partial(SQLiteStore.open, before_commit=commit),
        )
        await here.start()
        full = True
        await here.stop()

    in_reactor(story)

    (failure,) = fatal
    assert failure.check(StoreError)
    assert "disk is full" in str(failure.value)


def test_a_reload_says_which_keys_wait_for_a_restart(tmp_path: Path) -> None:
    """A section alone would leave open whether the server that was denied beside them is out now."""
    generate_key_file(tmp_path / "one.key")
    (tmp_path / "admin.token").write_text("0123456789abcdef")
    (tmp_path / "admin.token").chmod(0o600)
    path = tmp_path / "config.yaml"
    listeners = "[{endpoint: 'tcp:0', resources: [client]}]"
    before = f"server_name: here.test\nsigning_key_path: one.key\nlisteners: {listeners}\n"
    after = """
presence: {idle_timeout: 7m}
federation: {deny: [there.test], batch_window: 1s}
lists: {max_entries: 5, invite_policy: accept}
rooms: {max_members: 5}
limits: {connections: 5}
log: {level: debug}
database: {url: "sqlite:///other.db"}
admin: {token_path: admin.token}
"""
    configs = []
    for text in (before, before + after):
        path.write_text(text)
        configs.append(load_config(path, {}))
    clock = Clock()
    here = Daemon(configs[0], clock, MonotonicClock(clock), Random(1), lambda _: None, force=True)

    waiting = here.reload(configs[1])

    assert sorted(waiting) == [
        *("admin.token", "database.url", "federation.batch_window"),
        *("lists.invite_policy", "presence.idle_timeout"),
    ]


def test_what_fails_while_the_process_ends_does_not_end_it_again() -> None:
    """Twisted's reactor raises where it is stopped twice: the last line would be about that."""

    def stop() -> None:
        raise AssertionError("stopped twice")

    process = _Process.__new__(_Process)
    process._ready_file, process._stopping = None, False
    process._reactor = SimpleNamespace(running=True, stop=stop)
    process._daemon = SimpleNamespace(stop=lambda: succeed(None))  # type: ignore[assignment]  # its only use

    result_of(process.stop())
    process._fatal(Failure(OSError("the disk")))

    assert process.exit_code == 1
