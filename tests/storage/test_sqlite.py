import os
import resource
import signal
import sqlite3
import stat
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from fedpresence.engine.effects import Durable, SaveAnswer, SaveInbox, SaveObserverRow, SaveUser
from fedpresence.engine.events import ListEduReceived
from fedpresence.engine.subscription import EduKind, ObserverRow, ObserverStage
from fedpresence.errors import ConfigError, StoreError
from fedpresence.ids import ServerName, UserID
from fedpresence.storage.lock import DatabaseLock
from fedpresence.storage.migrations import APPLICATION_ID
from fedpresence.storage.sqlite import SQLiteStore
from fedpresence.storage.store import TokenOwner
from fedpresence.storage.tables import Cursor
from fedpresence.testing.builders import ALICE, NOW_MS, THERE
from tests.storage.threads import ThreadReactor
from tests.storage.worlds import reload

PROJECT = Path(__file__).parents[2]


def a_row(number: int) -> SaveObserverRow:
    observed = UserID(f"@user{number}:there.test")
    return SaveObserverRow(ObserverRow(ALICE, observed, ObserverStage.PENDING, NOW_MS, NOW_MS))


# --- the disk says no -----------------------------------------------------------------------------


def test_a_full_disk_is_a_store_error_and_the_turn_leaves_nothing(path: Path, reactor: ThreadReactor) -> None:
    """The daemon stops on it; the restart must find the turn before, whole."""
    sizes = iter((10_000, 1))  # pages: SQLite takes 1 to mean "no larger than it is"

    def grow_no_more(cursor: Cursor) -> None:
        cursor.execute(f"PRAGMA max_page_count = {next(sizes, 1)}")

    store = SQLiteStore.open(path, reactor, before_commit=grow_no_more)
    reactor.wait(store.commit([a_row(1)], NOW_MS))
    reactor.wait(store.commit([a_row(2)], NOW_MS))

    with pytest.raises(StoreError, match="full"):
        reactor.wait(store.commit([a_row(n) for n in range(3, 5000)], NOW_MS))
    with pytest.raises(StoreError):
        reactor.wait(store.save_keys(THERE, bytes(1_000_000), NOW_MS))

    reactor.wait(store.close())
    assert [row.observed for row in reload(path, reactor).pairs.observer_rows()] == [
        "@user1:there.test",
        "@user2:there.test",
    ]


@pytest.mark.parametrize("error", [sqlite3.OperationalError("disk I/O error"), OSError(28, "no space")])
def test_an_error_at_the_last_moment_takes_the_whole_turn_back(
    path: Path, reactor: ThreadReactor, error: Exception
) -> None:
    """All of a turn or none: half a turn would be a grant whose answer is forgotten."""
    broken = False

    def fail_when_broken(_: Cursor) -> None:
        if broken:
            raise error

    store = SQLiteStore.open(path, reactor, before_commit=fail_when_broken)
    broken = True
    with pytest.raises(StoreError) as raised:
        reactor.wait(store.commit([a_row(1), SaveAnswer(THERE, "t1", NOW_MS, NOW_MS)], NOW_MS))
    broken = False
    reactor.wait(store.commit([a_row(2)], NOW_MS))

    found = reactor.wait(store.load())
    reactor.wait(store.close())
    assert raised.value.__cause__ is error
    assert [row.observed for row in found.pairs.observer_rows()] == ["@user2:there.test"]
    assert (list(found.answers), found.newest_origin_ts) == ([], {})


def test_a_database_that_another_program_holds_is_a_store_error(path: Path, reactor: ThreadReactor) -> None:
    """Waiting for ever for somebody's lock would be a daemon that says nothing and does nothing."""

    def impatient(cursor: Cursor) -> None:
        cursor.execute("PRAGMA busy_timeout = 1")

    store = SQLiteStore.open(path, reactor, before_commit=impatient)
    reactor.wait(store.commit([a_row(1)], NOW_MS))
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")

    with pytest.raises(StoreError, match="locked"):
        reactor.wait(store.commit([a_row(2)], NOW_MS))

    other.close()
    reactor.wait(store.commit([a_row(3)], NOW_MS))
    reactor.wait(store.close())


def test_a_mistake_of_ours_is_not_called_the_disks(path: Path, reactor: ThreadReactor) -> None:
    """A StoreError means "look at the disk"; a defect must keep its own name and traceback."""

    def defect(_: Cursor) -> None:
        raise ZeroDivisionError

    store = SQLiteStore.open(path, reactor, before_commit=defect)

    with pytest.raises(ZeroDivisionError):
        reactor.wait(store.commit([a_row(1)], NOW_MS))
    reactor.wait(store.close())


KILLED = """
    import sys
    from pathlib import Path
    from tests.storage.test_sqlite import NOW_MS, SQLiteStore, ThreadReactor, a_row

    reactor = ThreadReactor()
    store = SQLiteStore.open(Path(sys.argv[1]), reactor)
    number = 0
    while True:
        reactor.wait(store.commit([a_row(2 * number), a_row(2 * number + 1)], NOW_MS))
        print(number, flush=True)
        number += 1
"""


def test_after_a_kill_everything_that_was_answered_is_there(path: Path, reactor: ThreadReactor) -> None:
    """A 200 was given on the strength of the commit; no crash may take it back."""
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(KILLED), str(path)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
        text=True,
    )
    assert child.stdout is not None
    answered = [int(child.stdout.readline()) for _ in range(100)]
    child.send_signal(signal.SIGKILL)
    answered += map(int, child.stdout.read().split())
    child.wait()

    found = {row.observed for row in reload(path, reactor).pairs.observer_rows()}

    assert len(answered) >= 100
    assert found >= {f"@user{n}:there.test" for k in answered for n in (2 * k, 2 * k + 1)}
    assert len(found) % 2 == 0, "half a turn was kept"


def test_a_commit_is_synced_and_beside_a_wal(path: Path, reactor: ThreadReactor) -> None:
    """With less than FULL a power cut takes back answers; without a WAL the command line must wait."""
    seen: list[tuple[str, object]] = []

    def look(cursor: Cursor) -> None:
        for pragma in ("synchronous", "journal_mode", "foreign_keys"):
            cursor.execute(f"PRAGMA {pragma}")
            seen.append((pragma, cursor.fetchone()[0]))

    store = SQLiteStore.open(path, reactor, before_commit=look)
    reactor.wait(store.commit([a_row(1)], NOW_MS))
    reactor.wait(store.close())

    assert seen == [("synchronous", 2), ("journal_mode", "wal"), ("foreign_keys", 1)]


# --- the file -------------------------------------------------------------------------------------


def test_the_files_are_for_our_eyes_only(path: Path, reactor: ThreadReactor) -> None:
    """Who watches whom is nobody else's business on a shared machine."""
    store = SQLiteStore.open(path, reactor)
    reactor.wait(store.commit([a_row(1)], NOW_MS))

    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
    reactor.wait(store.close())

    assert set(modes) >= {"fedpresence.db", "fedpresence.db-wal", "fedpresence.db.lock"}
    assert set(modes.values()) == {0o600}


def test_no_token_stands_in_the_files(path: Path, reactor: ThreadReactor) -> None:
    """A stolen backup must not let anybody in."""
    store = SQLiteStore.open(path, reactor)
    reactor.wait(store.add_token("very-secret-token", TokenOwner(ALICE, None), NOW_MS))

    contents = b"".join(file.read_bytes() for file in path.parent.iterdir())
    reactor.wait(store.close())

    assert b"alice" in contents
    assert b"very-secret-token" not in contents


def test_a_close_leaves_one_file_to_copy(path: Path, reactor: ThreadReactor) -> None:
    """A backup of a stopped daemon is a copy of its database; a WAL left behind would be forgotten."""
    store = SQLiteStore.open(path, reactor)
    pending = store.commit([a_row(1)], NOW_MS)

    reactor.wait(store.close())

    reactor.wait(pending)
    assert sorted(file.name for file in path.parent.iterdir()) == ["fedpresence.db", "fedpresence.db.lock"]
    assert len(list(reload(path, reactor).pairs.observer_rows())) == 1


def test_a_store_whose_reactor_never_ran_closes_at_once(path: Path, reactor: ThreadReactor) -> None:
    """A start that fails half-way must still end, and release the lock."""

    class NotRunning(ThreadReactor):
        def callWhenRunning(self, callable: Callable[..., object], *args: object, **kwargs: object) -> None:
            """Never."""

    store = SQLiteStore.open(path, NotRunning())

    reactor.wait(store.close())

    assert list(reload(path, reactor).users) == []


@pytest.mark.parametrize("make", ["a folder", "text", "another program's", "no folder", "newer"])
def test_a_database_we_cannot_use_is_named_with_its_key(
    tmp_path: Path, reactor: ThreadReactor, make: str
) -> None:
    """The operator is told which key to mend, and no file that is not ours is touched."""
    path = tmp_path / "x.db"
    match make:
        case "a folder":
            path.mkdir()
        case "text":
            path.write_text("Dear diary, this is not a database.\n" * 100)
        case "another program's":
            other = sqlite3.connect(path)
            other.execute("CREATE TABLE events (event_id TEXT)")
            other.close()
        case "no folder":
            path = tmp_path / "missing" / "x.db"
        case "newer":
            newer = sqlite3.connect(path)
            newer.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            newer.execute("PRAGMA user_version = 1000")
            newer.close()
    before = path.read_bytes() if path.is_file() else None

    for exclusive in (True, False):
        with pytest.raises(ConfigError) as raised:
            SQLiteStore.open(path, reactor, exclusive)
        assert raised.value.problems[0].key == "database.url"

    assert (path.read_bytes() if path.is_file() else None) == before


def test_a_spoilt_database_says_how_to_put_a_copy_in_its_place(path: Path, reactor: ThreadReactor) -> None:
    """Most often a copy was put beside the log of the one before; whoever is not told does it again."""
    store = SQLiteStore.open(path, reactor)
    reactor.wait(store.commit([a_row(1)], NOW_MS))
    reactor.wait(store.close())
    os.truncate(path, path.stat().st_size // 2)

    with pytest.raises(StoreError, match=f"with no {path.name}-wal and {path.name}-shm beside it"):
        reload(path, reactor)


@pytest.mark.parametrize(
    ("written", "spoilt"),
    [
        (b"pending", b"pelding"),
        (b'","@', b'",b@'),
    ],
)
def test_a_bit_that_flipped_on_the_disk_is_called_damage(
    path: Path, reactor: ThreadReactor, written: bytes, spoilt: bytes
) -> None:
    """SQLite sees only what spoils its own structure; the rest read as a bug of ours, without advice."""
    invite = ListEduReceived(EduKind.INVITE, THERE, UserID("@user1:there.test"), ALICE)
    store = SQLiteStore.open(path, reactor)
    reactor.wait(store.commit([a_row(1), SaveInbox(1, (invite,))], NOW_MS))
    reactor.wait(store.close())
    data = path.read_bytes()
    assert written in data

    path.write_bytes(data.replace(written, spoilt))

    with pytest.raises(StoreError, match=f"damaged.*with no {path.name}-wal"), ExitStack() as opened:
        store = SQLiteStore.open(path, reactor)
        opened.callback(lambda: reactor.wait(store.close()))
        reactor.wait(store.load())


@pytest.mark.parametrize("how", ["taken away", "replaced"])
def test_a_file_that_is_not_ours_any_more_is_noticed(path: Path, reactor: ThreadReactor, how: str) -> None:
    """A copy was put in place without a stop: what we answer for is in a file without a name."""
    store = SQLiteStore.open(path, reactor)
    reactor.wait(store.commit([a_row(1)], NOW_MS))
    assert store.touched()
    copy = path.with_name("copy.db")
    copy.write_bytes(path.read_bytes())

    if how == "replaced":
        copy.rename(path)
    else:
        path.unlink()

    try:
        with pytest.raises(StoreError, match="while it was in use"):
            store.touched()
    finally:
        reactor.wait(store.close())


# --- one daemon -----------------------------------------------------------------------------------


def test_a_second_daemon_on_one_database_is_refused(path: Path, reactor: ThreadReactor) -> None:
    """Two engines over one database would answer for each other (Z-22), by whatever name they call it."""
    store = SQLiteStore.open(path, reactor)
    alias = path.with_name("alias.db")
    alias.symlink_to(path)

    for name in (path, alias):
        with pytest.raises(ConfigError, match=f"in use by another fedpresence .process {os.getpid()}"):
            SQLiteStore.open(name, reactor)

    reactor.wait(store.close())
    reactor.wait(SQLiteStore.open(path, reactor).close())


def test_token_commands_work_beside_the_daemon(path: Path, reactor: ThreadReactor) -> None:
    """An operator must not have to stop the daemon to let somebody in."""
    daemon = SQLiteStore.open(path, reactor)
    reactor.wait(daemon.load())

    command = SQLiteStore.open(path, reactor, exclusive=False)
    reactor.wait(command.add_token("t1", TokenOwner(ALICE, None), NOW_MS))
    reactor.wait(command.close())

    assert reactor.wait(daemon.find_token("t1")) == TokenOwner(ALICE, None)
    assert reactor.wait(daemon.new_users()) == [ALICE]
    reactor.wait(daemon.close())


def test_the_lock_goes_with_a_failed_open(path: Path, reactor: ThreadReactor) -> None:
    """After mending the file the operator starts again; a lock left behind would be a riddle."""
    path.write_text("not a database\n" * 100)
    with pytest.raises(ConfigError):
        SQLiteStore.open(path, reactor)

    DatabaseLock.take(path).release()


def test_a_lock_that_does_not_fit_on_the_disk_is_a_store_error(path: Path) -> None:
    """Who reads "no space left on device" needs to know on which."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        with pytest.raises(StoreError, match=f"{path.name}.lock"):
            DatabaseLock.take(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    DatabaseLock.take(path).release()


def test_origins_beyond_those_remembered_go_at_the_next_start(path: Path, reactor: ThreadReactor) -> None:
    """Whoever owns a domain owns any number of server names: a start must not read them all for ever."""
    store = SQLiteStore.open(path, reactor)
    for n in (3, 1, 2):
        answer = SaveAnswer(ServerName(f"{n}.test"), "1", NOW_MS, NOW_MS + n)
        reactor.wait(store.commit([answer], NOW_MS))
    reactor.wait(store.close())

    store = SQLiteStore.open(path, reactor, max_origins=2)
    found = reactor.wait(store.load()).newest_origin_ts
    reactor.wait(store.close())

    assert found == {"2.test": NOW_MS + 2, "3.test": NOW_MS + 3}
    assert reload(path, reactor).newest_origin_ts == found


# --- speed ----------------------------------------------------------------------------------------


def test_a_thousand_effects_are_one_quick_commit(path: Path, reactor: ThreadReactor) -> None:
    """A turn of a thousand events must stay far below what a person would notice."""
    store = SQLiteStore.open(path, reactor)
    effects: list[Durable] = [*map(a_row, range(1000)), SaveUser(ALICE, False)]
    reactor.wait(store.commit([a_row(0)], NOW_MS))

    began = time.perf_counter()
    reactor.wait(store.commit(effects, NOW_MS))
    took_s = time.perf_counter() - began

    reactor.wait(store.close())
    assert took_s < 1.0, "some ten milliseconds on an idle machine"


def test_equal_user_ids_are_one_object_after_a_load(path: Path, reactor: ThreadReactor) -> None:
    """A million rows name some ten thousand users: a copy in each row would be most of the memory."""
    store = SQLiteStore.open(path, reactor)
    reactor.wait(store.commit([*map(a_row, range(2500)), SaveUser(ALICE, False)], NOW_MS))

    found = reactor.wait(store.load())
    reactor.wait(store.close())

    rows = list(found.pairs.observer_rows())
    assert len(rows) == 2500
    assert len({id(row.observer) for row in rows} | {id(user_id) for user_id, _ in found.users}) == 1
