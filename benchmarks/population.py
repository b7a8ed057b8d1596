"""Users and subscriptions by the hundred thousand, written straight into a server's database.

Always true: what is written is what the engine's own effects would have written, through the same code;
only the asking and answering is left out.
"""

import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TypeVar

from fedpresence.engine.effects import Durable, SaveObservedRow, SaveObserverRow, SaveUser
from fedpresence.engine.presence import PresenceRecord
from fedpresence.engine.settings import DAY_MS, HOUR_MS
from fedpresence.engine.subscription import ObservedRow, ObservedStage, ObserverRow, ObserverStage
from fedpresence.ids import ServerName, UserID, server_of
from fedpresence.storage.changes import Changes
from fedpresence.storage.migrations import migrate, newest_schema
from fedpresence.storage.store import token_hash
from fedpresence.storage.tables import write_changes, write_presence

CHUNK = 10_000  # rows that exist as Python values at a time
CACHE_KIB = 1024 * 1024  # one of the tables is filled in no order
DEVICE = "DEVICE"

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
        connection.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
        connection.execute("PRAGMA synchronous = OFF")  # for this connection: nothing here is missed if lost
        migrate(connection, newest_schema())
        cursor = connection.cursor()
        cursor.execute("BEGIN")
        _write(cursor, (SaveUser(user_id, deactivated=False) for user_id in users))
        cursor.executemany(
            "INSERT INTO tokens VALUES (?,?,?,?)",
            ((token_hash(token_of(user_id)), user_id, DEVICE, now_ms) for user_id in with_tokens),
        )
        _write(cursor, _rows(server_name, pairs, now_ms))
        for records in _chunks(presence):
            write_presence(cursor, records)
        cursor.execute("COMMIT")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    finally:
        connection.close()


def _write(cursor: sqlite3.Cursor, effects: Iterable[Durable]) -> None:
    for chunk in _chunks(effects):
        write_changes(cursor, Changes.of(chunk))


def _rows(server_name: ServerName, pairs: Iterable[Pair], now_ms: int) -> Iterator[Durable]:
    """Each pair at its own moments, as in life: equal ones might be one object in memory."""
    for number, (observer, observed) in enumerate(pairs):
        since_ms = now_ms - DAY_MS - number * 7919 % (300 * DAY_MS)
        until_ms = since_ms + 1 + number % HOUR_MS
        confirmed_ms = now_ms - number * 104_729 % (6 * DAY_MS)  # within the week: no check is overdue
        if server_of(observer) == server_name:
            yield SaveObserverRow(
                ObserverRow(
                    observer,
                    observed,
                    ObserverStage.ACCEPTED,
                    since_ms,
                    until_ms,
                    since_ms,
                    confirmed_ms,
                )
            )
        if server_of(observed) == server_name:
            yield SaveObservedRow(
                ObservedRow(
                    observer,
                    observed,
                    ObservedStage.GRANTED,
                    since_ms,
                    until_ms,
                    confirmed_ms=confirmed_ms,
                )
            )


def _chunks(values: Iterable[T]) -> Iterator[Sequence[T]]:
    iterator = iter(values)
    while chunk := list(islice(iterator, CHUNK)):
        yield chunk
