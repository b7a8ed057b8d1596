"""Values and SQL rows: how the tables of schema.sql are written and read.

Always true: reading undoes writing. Equal user IDs read together are one object in memory, because
each stands in many rows (a million rows name some ten thousand users); rows of pairs have numbers instead.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

from fedpresence.engine.effects import SaveAnswer, SaveInbox
from fedpresence.engine.events import ListEduReceived
from fedpresence.engine.pairs import Columns, Pairs
from fedpresence.engine.presence import PresenceRecord, PresenceState
from fedpresence.engine.rooms import StoredRoom
from fedpresence.engine.subscription import (
    EduKind,
    ObservedRow,
    ObservedStage,
    ObserverRow,
    ObserverStage,
    OwedEdu,
)
from fedpresence.ids import DeviceID, RoomID, ServerName, UserID
from fedpresence.storage.changes import Changes, Pair
from fedpresence.storage.store import Stored

# Every table's key comes first in its rows. `?` is the only way a value gets into a statement.
_ID = "(SELECT id FROM names WHERE user_id = ?)"
_SAVE_OBSERVER_ROW = f"INSERT OR REPLACE INTO observer_rows VALUES ({_ID},{_ID},?,?,?,?,?,?,?,?)"
_SAVE_OBSERVED_ROW = f"INSERT OR REPLACE INTO observed_rows VALUES ({_ID},{_ID},?,?,?,?,?,?,?,?,?,?)"
_SAVE_PRESENCE = "INSERT OR REPLACE INTO presence VALUES (?,?,?,?,?,?)"
_SAVE_ANSWER = "INSERT OR REPLACE INTO answers VALUES (?,?,?,?)"
_SAVE_USER = (
    "INSERT INTO users (user_id, deactivated) VALUES (?,?) "
    "ON CONFLICT (user_id) DO UPDATE SET deactivated = excluded.deactivated"
)
_SAVE_ORIGIN = (
    "INSERT INTO origins VALUES (?,?) "
    "ON CONFLICT (origin) DO UPDATE SET newest_ts = max(newest_ts, excluded.newest_ts)"
)
_SAVE_ROOM = (
    "INSERT INTO rooms VALUES (?,?,?,?) ON CONFLICT (room_id) DO UPDATE SET counts = excluded.counts, "
    "join_rule = excluded.join_rule, from_homeserver = excluded.from_homeserver"
)
# What nearly all rows are: read by fewer columns and without an object for each, in half the time.
_IS_GRANTED = "stage = 'granted' AND owed IS NULL AND NOT (muted OR blocked OR by_room OR denials)"
_GRANTED = (
    "SELECT observed, observer, generation, created_ms, changed_ms, confirmed_ms "
    f"FROM observed_rows WHERE {_IS_GRANTED} ORDER BY observed, observer"
)
_OTHER_OBSERVED_ROWS = f"SELECT * FROM observed_rows WHERE NOT ({_IS_GRANTED})"
_IS_ACCEPTED = "stage = 'accepted' AND owed IS NULL AND check_ms = 0"
_ACCEPTED = (
    "SELECT observer, observed, generation, created_ms, changed_ms, invite_ms, confirmed_ms "
    f"FROM observer_rows WHERE {_IS_ACCEPTED} ORDER BY observer, observed"
)
_OTHER_OBSERVER_ROWS = f"SELECT * FROM observer_rows WHERE NOT ({_IS_ACCEPTED})"

CHUNK = 1000  # rows read at a time: what exists twice, as a row and as a value, stays small
COLUMNS_CHUNK = 100  # the same where rows are columns: these stay in the processor's cache
_UNPOLL, _FINAL_PUSH = 1, 2  # flags of an owed EDU

_OBSERVER_STAGES = {stage.value: stage for stage in ObserverStage}
_OBSERVED_STAGES = {stage.value: stage for stage in ObservedStage}
_STATES = {state.value: state for state in PresenceState}
_KINDS = {kind.value: kind for kind in EduKind}


class Cursor(Protocol):
    """What we use of a DB-API cursor."""

    def execute(self, sql: str, parameters: Sequence[object] = ..., /) -> Any:
        """Run one statement."""

    def executemany(self, sql: str, rows: Iterable[Sequence[object]], /) -> Any:
        """Run one statement for every row."""

    def fetchone(self) -> Any:
        """The next row, or None."""

    def fetchall(self) -> list[Any]:
        """The rows that are left."""

    def fetchmany(self, size: int, /) -> list[Any]:
        """The next rows; none at the end."""


# --- writing ---------------------------------------------------------------------------------


def write_changes(cursor: Cursor, changes: Changes) -> None:
    """A turn's changes, inside the transaction that is open."""
    if changes.observer_rows or changes.observed_rows:
        _write_pairs(cursor, changes)
    if changes.answers:
        answers, gone_answers = _split(changes.answers)
        cursor.executemany("DELETE FROM answers WHERE origin = ? AND txn_id = ?", gone_answers)
        cursor.executemany(_SAVE_ANSWER, ((a.origin, a.txn_id, a.at_ms, a.origin_server_ts) for a in answers))
        cursor.executemany(_SAVE_ORIGIN, changes.newest_origin_ts.items())
    if changes.inbox:
        entries, gone_entries = _split(changes.inbox)
        cursor.executemany("DELETE FROM inbox WHERE entry_id = ?", ((entry_id,) for entry_id in gone_entries))
        cursor.executemany(
            "INSERT OR REPLACE INTO inbox VALUES (?,?)", ((e.entry_id, _encode_inbox(e)) for e in entries)
        )
    if changes.users:
        cursor.executemany(_SAVE_USER, changes.users.items())
        for table in ("tokens", "presence"):
            cursor.executemany(f"DELETE FROM {table} WHERE user_id = ?", ((u,) for u in changes.lost_tokens))
    if changes.hidden:
        # `IS`, because a device may be NULL, which no unique index would hold together.
        cursor.executemany("DELETE FROM hidden_devices WHERE user_id = ? AND device_id IS ?", changes.hidden)
        cursor.executemany(
            "INSERT INTO hidden_devices VALUES (?,?)",
            (key for key, hidden in changes.hidden.items() if hidden),
        )
    write_presence(cursor, changes.presence.values())  # after the users, who may lose theirs
    _write_rooms(cursor, changes)


def write_presence(cursor: Cursor, records: Iterable[PresenceRecord]) -> None:
    """Presence of these users, replacing what was there."""
    cursor.executemany(
        _SAVE_PRESENCE,
        (
            (r.user_id, r.state.value, r.last_active_ms, r.status_msg, r.currently_active, r.heard_ms)
            for r in records
        ),
    )


def forget_names(cursor: Cursor, user_ids: Iterable[UserID]) -> None:
    """Users whom no row of a pair names any more."""
    cursor.executemany("DELETE FROM names WHERE user_id = ?", ((user_id,) for user_id in user_ids))


def forget_origins(cursor: Cursor, max_origins: int) -> None:
    """All but so many: those whose newest transaction is newest stay."""
    cursor.execute(
        "DELETE FROM origins WHERE origin IN "
        "(SELECT origin FROM origins ORDER BY newest_ts DESC LIMIT -1 OFFSET ?)",
        (max_origins,),
    )


def _write_pairs(cursor: Cursor, changes: Changes) -> None:
    """Names before the rows that refer to them."""
    mine, mine_gone = _split(changes.observer_rows)
    theirs, theirs_gone = _split(changes.observed_rows)
    saved: list[ObserverRow | ObservedRow] = [*mine, *theirs]
    names = dict.fromkeys(name for row in saved for name in (row.observer, row.observed))
    cursor.executemany("INSERT OR IGNORE INTO names (user_id) VALUES (?)", ((name,) for name in names))
    cursor.executemany(f"DELETE FROM observer_rows WHERE observer = {_ID} AND observed = {_ID}", mine_gone)
    cursor.executemany(_SAVE_OBSERVER_ROW, map(_encode_observer_row, mine))
    cursor.executemany(f"DELETE FROM observed_rows WHERE observer = {_ID} AND observed = {_ID}", theirs_gone)
    cursor.executemany(_SAVE_OBSERVED_ROW, map(_encode_observed_row, theirs))


def _write_rooms(cursor: Cursor, changes: Changes) -> None:
    """Rooms before their members. A room that goes takes its members along, be it back in the same turn."""
    cursor.executemany("DELETE FROM rooms WHERE room_id = ?", ((room_id,) for room_id in changes.emptied))
    cursor.executemany(
        _SAVE_ROOM,
        (
            (r.room_id, r.counts, r.join_rule, r.from_homeserver)
            for r in changes.rooms.values()
            if r is not None
        ),
    )
    for room_id, members in changes.members.items():
        cursor.executemany(
            "DELETE FROM room_members WHERE room_id = ? AND user_id = ?",
            ((room_id, user_id) for user_id, joined in members.items() if not joined),
        )
        cursor.executemany(
            "INSERT OR IGNORE INTO room_members VALUES (?,?)",
            ((room_id, user_id) for user_id, joined in members.items() if joined),
        )


K = TypeVar("K")
V = TypeVar("V")


def _split(table: dict[K, V | None]) -> tuple[list[V], list[K]]:
    """The rows that are saved, and the keys of those that go."""
    saved = [row for row in table.values() if row is not None]
    return saved, [key for key, row in table.items() if row is None]


def _encode_observer_row(row: ObserverRow) -> tuple[object, ...]:
    return (
        row.observer,
        row.observed,
        row.stage.value,
        row.created_ms,
        row.changed_ms,
        row.invite_ms,
        row.confirmed_ms,
        row.check_ms,
        row.generation,
        _encode_owed(row.owed, (row.observer, row.observed)) if row.owed else None,
    )


def _encode_observed_row(row: ObservedRow) -> tuple[object, ...]:
    return (
        row.observed,
        row.observer,
        row.stage.value,
        row.created_ms,
        row.changed_ms,
        row.muted,
        row.blocked,
        row.by_room,
        row.denials,
        row.generation,
        _encode_owed(row.owed, (row.observer, row.observed)) if row.owed else None,
        row.confirmed_ms,
    )


def _encode_owed(owed: tuple[OwedEdu, ...], pair: Pair) -> str:
    assert all((edu.observer, edu.observed) == pair for edu in owed), "a row owes EDUs of its own pair"
    return _compact(
        [
            [e.kind.value, e.generation, e.since_ms, _UNPOLL * e.unpoll + _FINAL_PUSH * e.final_push]
            for e in owed
        ]
    )


def _encode_inbox(entry: SaveInbox) -> str:
    return _compact([[edu.kind.value, edu.origin, edu.observer, edu.observed] for edu in entry.edus])


def _compact(value: object) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


# --- reading ---------------------------------------------------------------------------------


def read_stored(cursor: Cursor) -> Stored:
    """Everything, inside the transaction that is open.

    KeyError, TypeError or ValueError where a row is none that we write: SQLite sees no flipped bit in it.
    """
    reader = _Reader(cursor)
    pairs = reader.pairs()  # first, because all other users are few beside these
    members: dict[RoomID, list[UserID]] = {}
    for room_id, user_id in reader.rows("SELECT room_id, user_id FROM room_members"):
        members.setdefault(room_id, []).append(reader.one(user_id))
    return Stored(
        users=[
            (reader.one(user_id), bool(deactivated))
            for user_id, deactivated in reader.rows("SELECT user_id, deactivated FROM users ORDER BY id")
        ],
        hidden=[
            (reader.one(user_id), device_id and DeviceID(device_id))
            for user_id, device_id in reader.rows("SELECT user_id, device_id FROM hidden_devices")
        ],
        pairs=pairs,
        rooms=[
            StoredRoom(room_id, join_rule, bool(counts), members.get(room_id, ()), bool(from_homeserver))
            for room_id, counts, join_rule, from_homeserver in reader.rows("SELECT * FROM rooms")
        ],
        answers=[
            SaveAnswer(reader.one(origin), txn_id, at_ms, origin_server_ts)
            for origin, txn_id, at_ms, origin_server_ts in reader.rows("SELECT * FROM answers ORDER BY at_ms")
        ],
        inbox=[reader.inbox(*row) for row in reader.rows("SELECT * FROM inbox ORDER BY entry_id")],
        presence=[reader.presence(*row) for row in reader.rows("SELECT * FROM presence")],
        newest_origin_ts=dict(reader.rows("SELECT origin, newest_ts FROM origins ORDER BY newest_ts")),
        saved_at_ms=next(reader.rows("SELECT saved_at_ms FROM meta"))[0],
    )


class _Reader:
    """Rows to values, with one object for each identifier however many rows have it."""

    def __init__(self, cursor: Cursor) -> None:
        self._cursor = cursor
        self._users: list[UserID] = []  # of `names`
        self._places: dict[int, int] = {}  # by id: where in them
        self._seen: dict[Any, Any] = {}

    def rows(self, sql: str) -> Iterator[Any]:
        self._cursor.execute(sql)
        while chunk := self._cursor.fetchmany(CHUNK):
            yield from chunk

    def one(self, value: Any) -> Any:
        """The object first seen for this value. Rows hold only what a parser has passed."""
        return self._seen.setdefault(value, value)

    def pairs(self) -> Pairs:
        """Both tables of rows. What nearly all rows are is read by columns: none becomes an object."""
        for user_number, user_id in self.rows("SELECT id, user_id FROM names ORDER BY id"):
            self._places[user_number] = len(self._users)
            self._users.append(user_id)
        self._seen.update(zip(self._users, self._users, strict=True))
        pairs = Pairs(users=self._users)
        pairs.load_granted(self._columns(_GRANTED))
        pairs.load_accepted(self._columns(_ACCEPTED))
        pairs.load(observed_rows=map(self._observed_row, self.rows(_OTHER_OBSERVED_ROWS)))
        pairs.load(map(self._observer_row, self.rows(_OTHER_OBSERVER_ROWS)))
        return pairs

    def _columns(self, sql: str) -> Iterator[Columns]:
        """Two users first, by their places in `names`; then numbers."""
        self._cursor.execute(sql)
        while chunk := self._cursor.fetchmany(COLUMNS_CHUNK):
            owners, others, *numbers = zip(*chunk, strict=True)
            yield self._all(owners), self._all(others), *numbers

    def _all(self, column: Sequence[int]) -> list[int]:
        try:
            return list(map(self._places.__getitem__, column))
        except KeyError as missing:
            raise _nameless(missing) from missing

    def _user(self, user_number: int) -> UserID:
        try:
            return self._users[self._places[user_number]]
        except KeyError as missing:
            raise _nameless(missing) from missing

    def _observer_row(self, row: Sequence[Any]) -> ObserverRow:
        mine, other, stage, created, changed, invite, confirmed, check, generation, owed = row
        observer, observed = self._user(mine), self._user(other)
        owes = _decode_owed(owed, observer, observed)
        return ObserverRow(
            observer,
            observed,
            _OBSERVER_STAGES[stage],
            created,
            changed,
            invite,
            confirmed,
            check,
            generation,
            owes,
        )

    def _observed_row(self, row: Sequence[Any]) -> ObservedRow:
        mine, other, stage, created, changed, *flags, denials, generation, owed, confirmed = row
        muted, blocked, by_room = map(bool, flags)
        observed, observer = self._user(mine), self._user(other)
        return ObservedRow(
            observer,
            observed,
            _OBSERVED_STAGES[stage],
            created,
            changed,
            muted=muted,
            blocked=blocked,
            by_room=by_room,
            denials=denials,
            generation=generation,
            owed=_decode_owed(owed, observer, observed),
            confirmed_ms=confirmed,
        )

    def inbox(self, entry_id: int, edus: str) -> SaveInbox:
        return SaveInbox(
            entry_id,
            tuple(
                ListEduReceived(_KINDS[kind], ServerName(origin), self.one(observer), self.one(observed))
                for kind, origin, observer, observed in json.loads(edus)
            ),
        )

    def presence(
        self,
        user_id: str,
        state: str,
        last_active_ms: int,
        status_msg: str | None,
        currently_active: int,
        heard_ms: int,
    ) -> PresenceRecord:
        return PresenceRecord(
            self.one(user_id), _STATES[state], last_active_ms, status_msg, bool(currently_active), heard_ms
        )


def _nameless(missing: KeyError) -> ValueError:
    return ValueError(f"a pair has user {missing}, whose name is not there")


def _decode_owed(text: str | None, observer: UserID, observed: UserID) -> tuple[OwedEdu, ...]:
    if text is None:
        return ()
    return tuple(
        OwedEdu(
            _KINDS[kind],
            observer,
            observed,
            generation,
            since_ms,
            unpoll=bool(flags & _UNPOLL),
            final_push=bool(flags & _FINAL_PUSH),
        )
        for kind, generation, since_ms, flags in json.loads(text)
    )
