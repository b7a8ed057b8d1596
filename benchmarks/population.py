"""Users and subscriptions by the hundred thousand, written straight into a server's database.

Always true: what is written is what the engine's own effects would have written; only the asking and
answering is left out.
"""

import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TypeVar

from fedpresence.engine.effects import SaveUser
from fedpresence.engine.presence import PresenceRecord
from fedpresence.engine.settings import DAY_MS, HOUR_MS
from fedpresence.engine.subscription import ObservedStage, ObserverStage
from fedpresence.ids import ServerName, UserID
from fedpresence.storage.changes import Changes
from fedpresence.storage.migrations import migrate, newest_schema
from fedpresence.storage.store import token_hash
from fedpresence.storage.tables import write_changes, write_presence

CHUNK = 10_000  # rows that exist as Python values at a time
DEVICE = "DEVICE"

_MOMENTS = f"""
    SELECT *,
        :now_ms - {DAY_MS} - number * 7919 % {300 * DAY_MS} AS since_ms,
        1 + number % {HOUR_MS} AS waited_ms,
        :now_ms - number * 104729 % {6 * DAY_MS} AS confirmed_ms  -- within the week: no check is overdue
    FROM pairs
"""
_NAMES = "INSERT INTO names (user_id) SELECT observer FROM pairs UNION SELECT observed FROM pairs ORDER BY 1"
_OBSERVER_ROWS = f"""
    INSERT INTO observer_rows
        (observer, observed, stage, created_ms, changed_ms, invite_ms, confirmed_ms, check_ms, generation)
    SELECT mine.id, other.id, '{ObserverStage.ACCEPTED.value}',
        since_ms, since_ms + waited_ms, since_ms, confirmed_ms, 0, 0
    FROM ({_MOMENTS}) CROSS JOIN names AS mine ON mine.user_id = observer
        CROSS JOIN names AS other ON other.user_id = observed
    WHERE substr(observer, instr(observer, ':') + 1) = :server_name
    ORDER BY mine.id, other.id
"""
_OBSERVED_ROWS = f"""
    INSERT INTO observed_rows
        (observed, observer, stage, created_ms, changed_ms,
         muted, blocked, by_room, denials, generation, confirmed_ms)
    SELECT mine.id, other.id, '{ObservedStage.GRANTED.value}',
        since_ms, since_ms + waited_ms, 0, 0, 0, 0, 0, confirmed_ms
    FROM ({_MOMENTS}) CROSS JOIN names AS mine ON mine.user_id = observed
        CROSS JOIN names AS other ON other.user_id = observer
    WHERE substr(observed, instr(observed, ':') + 1) = :server_name
    ORDER BY mine.id, other.id
"""

T = TypeVar("T")
Pair = tuple[UserID, UserID]  # observer, observed


def token_of(user_id: UserID) -> str:
    """The access token of a user: no secret, these servers live for a minute."""
    return f"token-of-{user_id}"


def populate(
    database: Path,
    server_name: ServerName,
    *,
    users: Iterable[UserID] = (),
    with_tokens: Iterable[UserID] = (),
    pairs: Iterable[Pair] = (),
    presence: Iterable[PresenceRecord] = (),
) -> None:
    """Make `server_name`'s database: users, a token for some, accepted subscriptions, stored presence.

    Of a pair each half is written that belongs to this server.
    """
    now_ms = int(time.time() * 1000)
    connection = sqlite3.connect(database, isolation_level=None)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = OFF")  # for this connection: nothing here is missed if lost
        migrate(connection, newest_schema())
        cursor = connection.cursor()
        cursor.execute("BEGIN")
        _write(cursor, (SaveUser(user_id, deactivated=False) for user_id in users))
        cursor.executemany(
            "INSERT INTO tokens VALUES (?,?,?,?)",
            ((token_hash(token_of(user_id)), user_id, DEVICE, now_ms) for user_id in with_tokens),
        )
        _write_pairs(cursor, server_name, pairs, now_ms)
        for records in _chunks(presence):
            write_presence(cursor, records)
        cursor.execute("COMMIT")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    finally:
        connection.close()


def _write(cursor: sqlite3.Cursor, effects: Iterable[SaveUser]) -> None:
    for chunk in _chunks(effects):
        write_changes(cursor, Changes.of(chunk))


def _write_pairs(cursor: sqlite3.Cursor, server_name: ServerName, pairs: Iterable[Pair], now_ms: int) -> None:
    """Each pair at its own moments, as in life: equal ones might be one object in memory.

    Ten million pairs are no values of Python's: SQLite numbers them, counts their moments and puts each
    half into the order of its table, which is then filled from one end to the other.
    """
    cursor.execute("CREATE TEMP TABLE pairs (number INTEGER PRIMARY KEY, observer TEXT, observed TEXT)")
    cursor.executemany("INSERT INTO pairs (observer, observed) VALUES (?,?)", pairs)
    cursor.execute(_NAMES)
    for statement in (_OBSERVER_ROWS, _OBSERVED_ROWS):
        cursor.execute(statement, {"server_name": server_name, "now_ms": now_ms})
    cursor.execute("DROP TABLE pairs")


def _chunks(values: Iterable[T]) -> Iterator[Sequence[T]]:
    iterator = iter(values)
    while chunk := list(islice(iterator, CHUNK)):
        yield chunk
