import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest

from fedpresence.engine.effects import (
    Durable,
    ForgetObserverRow,
    ForgetRoom,
    SaveObserverRow,
    SaveRoom,
    SaveRoomMembers,
)
from fedpresence.engine.subscription import (
    EduKind,
    ObservedRow,
    ObservedStage,
    ObserverRow,
    ObserverStage,
    OwedEdu,
)
from fedpresence.errors import ConfigError, StoreError
from fedpresence.ids import RoomID, UserID
from fedpresence.storage.lock import DatabaseLock
from fedpresence.storage.migrations import STEPS as CURRENT_STEPS
from fedpresence.storage.migrations import is_ready, migrate, newest_schema
from fedpresence.storage.sqlite import SQLiteStore
from fedpresence.storage.tables import read_stored
from fedpresence.testing.builders import ALICE, BOB, NOW_MS
from tests.storage.threads import ThreadReactor
from tests.storage.worlds import reload

OLD_SCHEMA = "CREATE TABLE users (user_id TEXT);\nINSERT INTO users VALUES ('@alice:here.test');\n"
STEPS = (
    "ALTER TABLE users ADD COLUMN deactivated INTEGER DEFAULT 0;\n",
    "CREATE TABLE rooms (room_id TEXT);\nINSERT INTO rooms VALUES ('a; b');\n",
)
NEW_SCHEMA = (
    "CREATE TABLE users (user_id TEXT, deactivated INTEGER DEFAULT 0);\nCREATE TABLE rooms (room_id TEXT);\n"
)


def connect(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path, isolation_level=None)


def test_an_older_database_is_brought_up_step_by_step(path: Path) -> None:
    """An upgrade must keep what the version before has stored."""
    connection = connect(path)
    migrate(connection, OLD_SCHEMA, ())

    assert not is_ready(connection, STEPS)
    migrate(connection, NEW_SCHEMA, STEPS)

    assert connection.execute("PRAGMA user_version").fetchone() == (3,)
    assert connection.execute("SELECT * FROM users").fetchall() == [("@alice:here.test", 0)]
    assert connection.execute("SELECT * FROM rooms").fetchall() == [("a; b",)]
    connection.close()


def test_a_fresh_database_gets_the_newest_schema_at_once(path: Path) -> None:
    """Nobody should have to read all steps to know the tables."""
    connection = connect(path)

    migrate(connection, NEW_SCHEMA, STEPS)
    migrate(connection, NEW_SCHEMA, STEPS)

    assert is_ready(connection, STEPS)
    assert connection.execute("SELECT * FROM rooms").fetchall() == []
    connection.close()


SCHEMA_2 = Path(__file__).with_name("schema_2.sql").read_text(encoding="utf-8")
(CONFIRMED_MS,) = [line for line in SCHEMA_2.splitlines() if "last invite of the observer" in line]
SCHEMA_1 = SCHEMA_2.replace(CONFIRMED_MS + "\n", "")
SCHEMA_3 = SCHEMA_2.replace("counts INTEGER NOT NULL\n", "counts INTEGER NOT NULL,\n    join_rule TEXT\n")
SCHEMA_4 = SCHEMA_3 + CURRENT_STEPS[2]
SCHEMA_5 = SCHEMA_4 + CURRENT_STEPS[3]


@pytest.mark.parametrize(
    ("version", "schema"), [(1, SCHEMA_1), (2, SCHEMA_2), (3, SCHEMA_3), (4, SCHEMA_4), (5, SCHEMA_5)]
)
def test_the_schema_of_each_version_leads_to_this_one(path: Path, version: int, schema: str) -> None:
    """Whoever upgrades has the same tables as whoever begins."""
    old, fresh = connect(path), connect(path.with_name("fresh.db"))
    migrate(old, schema, CURRENT_STEPS[: version - 1])

    migrate(old, newest_schema())
    migrate(fresh, newest_schema())

    everything = "SELECT type, name FROM sqlite_master ORDER BY type, name"
    assert old.execute(everything).fetchall() == fresh.execute(everything).fetchall()
    tables = [name for (name,) in fresh.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    for table in tables:
        columns = f"PRAGMA table_info({table})"
        assert old.execute(columns).fetchall() == fresh.execute(columns).fetchall()
    old.close()
    fresh.close()


def test_rooms_of_version_2_keep_their_members(path: Path, reactor: ThreadReactor) -> None:
    """A room that was lost in an upgrade would be a right lost; one whose place was lost, one found."""
    room, crowd = RoomID("!room:here.test"), RoomID("!crowd:here.test")
    connection = connect(path)
    migrate(connection, SCHEMA_2, CURRENT_STEPS[:1])
    connection.executemany("INSERT INTO rooms VALUES (?,?)", [(room, 1), (crowd, 0)])
    connection.executemany(
        "INSERT INTO room_members VALUES (?,?)", [(room, ALICE), (room, BOB), (crowd, ALICE)]
    )
    connection.close()

    store = SQLiteStore.open(path, reactor)
    found = {r.room_id: (r.join_rule, r.counts, set(r.members)) for r in reactor.wait(store.load()).rooms}
    assert found == {room: (None, True, {ALICE, BOB}), crowd: (None, False, {ALICE})}

    changes: list[Durable] = [SaveRoom(room, "invite", True), SaveRoomMembers(room, (), (BOB,))]
    reactor.wait(store.commit([*changes, ForgetRoom(crowd)], NOW_MS))
    found = {r.room_id: (r.join_rule, r.counts, set(r.members)) for r in reactor.wait(store.load()).rooms}
    assert found == {room: ("invite", True, {ALICE})}
    reactor.wait(store.close())


@pytest.mark.parametrize("is_beside", [False, True])
def test_rooms_of_version_4_are_the_homeservers_where_one_was_asked(path: Path, is_beside: bool) -> None:
    """Z-11: in doubt is the safe side; where no homeserver is, nobody would ever end the doubt."""
    connection = connect(path)
    migrate(connection, SCHEMA_4, CURRENT_STEPS[:3])
    connection.execute("INSERT INTO rooms VALUES ('!room:here.test', 1, 'invite')")
    if is_beside:
        connection.execute("INSERT INTO scan VALUES ('begun', '', 0)")

    migrate(connection, newest_schema())

    assert [room.from_homeserver for room in read_stored(connection.cursor()).rooms] == [is_beside]
    connection.close()


def test_pairs_of_version_5_keep_both_halves(path: Path, reactor: ThreadReactor) -> None:
    """A grant that an upgrade lost would be asked for again, one that it gave to another user be a leak."""
    carol, a, z = (UserID(name) for name in ("@carol:here.test", "@a:there.test", "@z:there.test"))
    connection = connect(path)
    migrate(connection, SCHEMA_5, CURRENT_STEPS[:4])
    owed = '[["m.presence_accept",3,7,0]]'
    mine = [
        (ALICE, BOB, "accepted", 1, 2, 3, 4, 0, 5, None),
        (ALICE, carol, "pending", 1, 1, 1, 0, 0, 1, None),
        (carol, ALICE, "accepted", 6, 7, 8, 9, 10, 11, None),
    ]
    theirs = [
        (ALICE, carol, "granted", 1, 2, 0, 0, 0, 0, 3, owed, 4),
        (ALICE, a, "granted", 1, 2, 0, 0, 0, 0, 0, None, 5),
        (carol, z, "denied", 1, 2, 1, 1, 1, 2, 4, None, 6),
    ]
    connection.executemany("INSERT INTO observer_rows VALUES (?,?,?,?,?,?,?,?,?,?)", mine)
    connection.executemany("INSERT INTO observed_rows VALUES (?,?,?,?,?,?,?,?,?,?,?,?)", theirs)
    connection.close()

    pairs = reload(path, reactor).pairs

    assert set(pairs.observer_rows()) == {
        ObserverRow(ALICE, BOB, ObserverStage.ACCEPTED, 1, 2, 3, 4, 0, 5),
        ObserverRow(ALICE, carol, ObserverStage.PENDING, 1, 1, 1, generation=1),
        ObserverRow(carol, ALICE, ObserverStage.ACCEPTED, 6, 7, 8, 9, 10, 11),
    }
    edu = OwedEdu(EduKind.ACCEPT, carol, ALICE, 3, 7)
    granted, denied = ObservedStage.GRANTED, ObservedStage.DENIED
    assert set(pairs.observed_rows()) == {
        ObservedRow(carol, ALICE, granted, 1, 2, generation=3, owed=(edu,), confirmed_ms=4),
        ObservedRow(a, ALICE, granted, 1, 2, confirmed_ms=5),
        ObservedRow(z, carol, denied, 1, 2, True, True, True, 2, 4, confirmed_ms=6),
    }


def test_names_of_no_pair_go_at_the_next_start(path: Path, reactor: ThreadReactor) -> None:
    """Strangers who ask and are forgotten may be invented, and as many as somebody likes (decision 19)."""
    rows = [
        ObserverRow(ALICE, UserID(f"@user{n}:there.test"), ObserverStage.PENDING, NOW_MS, NOW_MS)
        for n in range(3)
    ]
    store = SQLiteStore.open(path, reactor)
    reactor.wait(store.commit([SaveObserverRow(row) for row in rows], NOW_MS))
    reactor.wait(store.commit([ForgetObserverRow(ALICE, row.observed) for row in rows[:2]], NOW_MS))
    reactor.wait(store.close())

    store = SQLiteStore.open(path, reactor)
    assert list(reactor.wait(store.load()).pairs.observer_rows()) == rows[2:]
    again = replace(rows[0], created_ms=NOW_MS + 1)
    reactor.wait(store.commit([SaveObserverRow(again)], NOW_MS))
    reactor.wait(store.close())

    names = connect(path).execute("SELECT user_id FROM names ORDER BY user_id").fetchall()
    assert names == [(ALICE,), (rows[0].observed,), (rows[2].observed,)]
    assert set(reload(path, reactor).pairs.observer_rows()) == {again, rows[2]}


@pytest.mark.parametrize("stage", ["accepted", "pending"])
def test_a_pair_whose_user_has_no_name_is_a_store_error(
    path: Path, reactor: ThreadReactor, stage: str
) -> None:
    """A damaged database is said to be one; a right must never go to whoever stands next to it."""
    store = SQLiteStore.open(path, reactor)
    row = ObserverRow(ALICE, BOB, ObserverStage(stage), NOW_MS, NOW_MS)
    reactor.wait(store.commit([SaveObserverRow(row)], NOW_MS))
    reactor.wait(store.close())
    connection = connect(path)
    connection.execute("DELETE FROM names WHERE user_id = ?", (BOB,))
    connection.close()

    store = SQLiteStore.open(path, reactor)
    with pytest.raises(StoreError, match="damaged"):
        reactor.wait(store.load())
    reactor.wait(store.close())


def test_a_step_that_fails_leaves_the_version_before(path: Path) -> None:
    """A full disk during an upgrade must not leave a database that no version knows."""
    connection = connect(path)
    migrate(connection, OLD_SCHEMA, ())

    with pytest.raises(sqlite3.OperationalError):
        migrate(connection, NEW_SCHEMA, (STEPS[0], "CREATE TABLE rooms (a);\nCREATE TABLE users (b);\n"))

    assert connection.execute("PRAGMA user_version").fetchone() == (2,)
    assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [("users",)]
    migrate(connection, NEW_SCHEMA, STEPS)
    connection.close()


def test_an_older_database_in_use_is_not_migrated_beneath_its_daemon(
    path: Path, reactor: ThreadReactor
) -> None:
    """A token command of the new version, while the old daemon still runs, must wait for its restart."""
    connection = connect(path)
    lock = DatabaseLock.take(path)

    with pytest.raises(ConfigError, match="in use"):
        SQLiteStore.open(path, reactor, exclusive=False)

    assert connection.execute("PRAGMA user_version").fetchone() == (0,)
    lock.release()
    connection.close()
    reactor.wait(SQLiteStore.open(path, reactor, exclusive=False).close())


def test_the_schema_that_ships_is_whole(path: Path) -> None:
    """A statement cut off at the end would be found by the first user instead."""
    connection = connect(path)

    migrate(connection, newest_schema())

    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    connection.close()
    assert tables >= {"meta", "users", "observer_rows", "observed_rows", "tokens", "server_keys"}
