"""The store that runs: SQLite through Twisted's own database support.

Always true:
- one thread and one connection, so everything happens in the order in which it was asked for;
- a write is one `BEGIN IMMEDIATE` transaction, and its Deferred fires after a COMMIT that was synced;
- whatever SQLite or the disk complains of is a StoreError; what the operator can mend at the start is
  a ConfigError naming `database.url`.

`synchronous=FULL`, because in WAL mode a power cut would take back an answer otherwise. WAL, because
the command line writes tokens beside the running daemon.

Source: decision 22; Z-22.
"""

import os
import sqlite3
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from twisted.enterprise import adbapi
from twisted.internet.defer import Deferred, fail, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from fedpresence.engine.answers import MAX_ORIGINS
from fedpresence.engine.effects import Durable
from fedpresence.engine.presence import PresenceRecord
from fedpresence.errors import ConfigError, StoreError
from fedpresence.ids import DeviceID, ServerName, UserID
from fedpresence.storage.changes import Changes
from fedpresence.storage.lock import DatabaseLock
from fedpresence.storage.migrations import is_ready, migrate, newest_schema, stored_version
from fedpresence.storage.store import MAX_SERVER_KEYS, ScanKind, ScanRow, Stored, TokenOwner, token_hash
from fedpresence.storage.tables import (
    Cursor,
    forget_names,
    forget_origins,
    read_stored,
    write_changes,
    write_presence,
)
from fedpresence.storage.written import Written

_log = Logger()
T = TypeVar("T")

BUSY_TIMEOUT_S = 10.0  # another process's token takes milliseconds; a stopped one must not hang us for ever
MIGRATION_CACHE_KIB = 262_144  # the names of two million users, so that each is looked up in memory
_MENDABLE = frozenset(  # primary result codes that mean a wrong path, owner or file, not a failing disk
    (
        sqlite3.SQLITE_AUTH,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_NOTADB,
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_READONLY,
    )
)

# Twisted has no type hints here; as Any, strict checking lets us call it.
_connection_pool: Any = adbapi.ConnectionPool


class SQLiteStore:
    """The Store protocol over one database file. Made by `open`.

    `before_commit` is called, in the store's thread, at the end of each write transaction: where tests
    make the disk fail. Without `power_cuts` a commit outlives the process but not the machine, which is
    enough for a test.
    """

    def __init__(
        self,
        path: Path,
        reactor: object,
        lock: DatabaseLock | None = None,
        *,
        before_commit: Callable[[Cursor], None] | None = None,
        max_server_keys: int = MAX_SERVER_KEYS,
        max_origins: int = MAX_ORIGINS,
        power_cuts: bool = True,
    ) -> None:
        self._path = path
        self._lock = lock
        self._before_commit = before_commit
        self._max_server_keys = max_server_keys
        self._max_origins = max_origins
        self._power_cuts = power_cuts
        self._closed: Deferred[None] | None = None
        self._written = Written(path)
        self._file = _identity(path)
        self._pool = _connection_pool(
            "sqlite3",
            str(path),
            timeout=BUSY_TIMEOUT_S,
            isolation_level=None,  # we say BEGIN ourselves
            check_same_thread=False,  # the pool closes the connection from the reactor's thread
            cp_reactor=reactor,
            cp_min=1,
            cp_max=1,
            cp_openfun=self._connected,
        )
        # What follows belongs to the store's thread.
        self._newest_user = 0  # the highest users.id that was loaded or told
        self._own_users: set[UserID] = set()  # committed by us since: no news
        self._own_token = False  # an add_token of ours, which data_version does not show
        self._users_version: int | None = None  # PRAGMA data_version when we last looked
        self._tokens_version = 0

    @classmethod
    def open(
        cls,
        path: Path,
        reactor: object,
        exclusive: bool = True,
        *,
        before_commit: Callable[[Cursor], None] | None = None,
        max_server_keys: int = MAX_SERVER_KEYS,
        max_origins: int = MAX_ORIGINS,
        power_cuts: bool = True,
    ) -> "SQLiteStore":
        """The store in `path`, which is made where it does not exist, and brought to this version's schema.

        `reactor` has IReactorCore and IReactorFromThreads; nothing answers before it runs. With `exclusive`
        (the daemon) it takes the lock of Z-22; without (token commands) it works beside a daemon. Blocks
        for as long as a migration takes. ConfigError where the operator can help, else StoreError.
        """
        path = path.resolve()  # two names of one file are one lock
        lock = DatabaseLock.take(path) if exclusive else None
        try:
            _prepare(path, lock)
            return cls(
                path,
                reactor,
                lock,
                before_commit=before_commit,
                max_server_keys=max_server_keys,
                max_origins=max_origins,
                power_cuts=power_cuts,
            )
        except BaseException:
            if lock is not None:
                lock.release()
            raise

    # --- what the engine decided -----------------------------------------------------------

    def load(self) -> Deferred[Stored]:
        """See Store. The rows are lists, made in the store's thread."""
        return self._run(self._load)

    def _load(self, cursor: Cursor) -> Stored:
        self._users_version = _data_version(cursor)
        cursor.execute("SELECT count(*) FROM origins")
        if cursor.fetchone()[0] > self._max_origins:  # names are free, and no run forgets one on the disk
            cursor.execute("BEGIN IMMEDIATE")
            forget_origins(cursor, self._max_origins)
            cursor.execute("COMMIT")
        cursor.execute("BEGIN")
        try:
            stored = read_stored(cursor)
        except (KeyError, TypeError, ValueError) as error:
            raise _store_error(self._path, error) from error
        cursor.execute("SELECT coalesce(max(id), 0) FROM users")
        self._newest_user = cursor.fetchone()[0]
        self._own_users.clear()
        self._own_token = False
        if unnamed := stored.pairs.unpaired():
            cursor.execute("COMMIT")  # what was read may be older than what another process wrote meanwhile
            cursor.execute("BEGIN IMMEDIATE")
            forget_names(cursor, unnamed)
        return stored

    def commit(self, effects: Sequence[Durable], now_ms: int) -> Deferred[None]:
        """See Store."""
        changes = Changes.of(effects)

        def write(cursor: Cursor) -> None:
            write_changes(cursor, changes)
            self._own_users.update(changes.users)
            _save_moment(cursor, now_ms)

        return self._write(write)

    # --- presence --------------------------------------------------------------------------

    def save_presence(self, records: Sequence[PresenceRecord], now_ms: int) -> Deferred[None]:
        """See Store."""

        def write(cursor: Cursor) -> None:
            write_presence(cursor, records)
            _save_moment(cursor, now_ms)

        return self._write(write)

    def forget_presence(self, user_ids: Sequence[UserID]) -> Deferred[None]:
        """See Store."""
        rows = [(user_id,) for user_id in user_ids]

        def write(cursor: Cursor) -> None:
            cursor.executemany("DELETE FROM presence WHERE user_id = ?", rows)

        return self._write(write)

    # --- what the command line does beside us ----------------------------------------------

    def touched(self) -> bool:
        """See Store. StoreError where another file took its name: nobody would find what we write."""
        try:
            is_there = _identity(self._path) == self._file
        except FileNotFoundError:
            is_there = False
        except OSError:  # its folder is closed to us: what is open goes on
            is_there = True
        if not is_there:
            raise StoreError(
                f"{self._path}: the file was taken away or replaced while it was in use. "
                "A start uses the one that is there then"
            )
        return self._written.since_last_asked()

    def new_users(self) -> Deferred[list[UserID]]:
        """See Store."""
        return self._run(self._new_users)

    def _new_users(self, cursor: Cursor) -> list[UserID]:
        version = _data_version(cursor)
        if version == self._users_version and not self._own_token:
            return []
        cursor.execute(
            "SELECT id, user_id, deactivated FROM users WHERE id > ? ORDER BY id", (self._newest_user,)
        )
        rows = cursor.fetchall()
        new = [
            UserID(name) for _, name, deactivated in rows if not deactivated and name not in self._own_users
        ]
        self._users_version = version
        self._newest_user = rows[-1][0] if rows else self._newest_user
        self._own_users.clear()
        self._own_token = False
        return new

    def tokens_changed(self) -> Deferred[bool]:
        """See Store."""
        return self._run(self._tokens_changed)

    def _tokens_changed(self, cursor: Cursor) -> bool:
        version = _data_version(cursor)
        changed, self._tokens_version = version != self._tokens_version, version
        return changed

    # --- tokens ----------------------------------------------------------------------------

    def add_token(self, token: str, owner: TokenOwner, now_ms: int) -> Deferred[bool]:
        """See Store."""
        kept = token_hash(token)

        def write(cursor: Cursor) -> bool:
            cursor.execute("SELECT deactivated FROM users WHERE user_id = ?", (owner.user_id,))
            user = cursor.fetchone()
            if user is not None and user[0]:
                return False
            if user is None:
                cursor.execute("INSERT INTO users (user_id) VALUES (?)", (owner.user_id,))
                self._own_token = True
            cursor.execute(
                "INSERT OR REPLACE INTO tokens VALUES (?,?,?,?)",
                (kept, owner.user_id, owner.device_id, now_ms),
            )
            return True

        return self._write(write)

    def find_token(self, token: str) -> Deferred[TokenOwner | None]:
        """See Store."""
        kept = token_hash(token)

        def read(cursor: Cursor) -> TokenOwner | None:
            cursor.execute("SELECT user_id, device_id FROM tokens WHERE token_hash = ?", (kept,))
            row = cursor.fetchone()
            return row and TokenOwner(*row)

        return self._run(read)

    def list_tokens(self, user_id: UserID | None) -> Deferred[list[tuple[UserID, DeviceID | None, int]]]:
        """See Store."""

        def read(cursor: Cursor) -> list[tuple[UserID, DeviceID | None, int]]:
            cursor.execute(
                "SELECT user_id, device_id, created_ms FROM tokens WHERE ?1 IS NULL OR user_id = ?1 "
                "ORDER BY created_ms, user_id, device_id",
                (user_id,),
            )
            return cursor.fetchall()

        return self._run(read)

    def revoke_tokens(
        self, user_id: UserID, device_id: DeviceID | None, *, all_devices: bool
    ) -> Deferred[list[DeviceID | None]]:
        """See Store."""

        def write(cursor: Cursor) -> list[DeviceID | None]:
            wanted = (user_id, all_devices, device_id)
            where = "WHERE user_id = ? AND (? OR device_id IS ?)"
            cursor.execute(f"SELECT DISTINCT device_id FROM tokens {where} ORDER BY device_id", wanted)
            devices = [device for (device,) in cursor.fetchall()]
            cursor.execute(f"DELETE FROM tokens {where}", wanted)
            return devices

        return self._write(write)

    def hidden_without_token(self) -> Deferred[list[tuple[UserID, DeviceID | None]]]:
        """See Store."""

        def read(cursor: Cursor) -> list[tuple[UserID, DeviceID | None]]:
            cursor.execute(
                "SELECT user_id, device_id FROM hidden_devices AS hidden WHERE NOT EXISTS (SELECT 1 "
                "FROM tokens WHERE tokens.user_id = hidden.user_id AND tokens.device_id IS hidden.device_id)"
            )
            return cursor.fetchall()

        return self._run(read)

    # --- other servers' keys ---------------------------------------------------------------

    def load_keys(self) -> Deferred[list[tuple[ServerName, bytes, int]]]:
        """See Store."""

        def read(cursor: Cursor) -> list[tuple[ServerName, bytes, int]]:
            cursor.execute(
                "SELECT server_name, key_object, fetched_ms FROM server_keys "
                "ORDER BY fetched_ms DESC, server_name"
            )
            return cursor.fetchall()

        return self._run(read)

    def save_keys(self, server_name: ServerName, key_object: bytes, fetched_ms: int) -> Deferred[None]:
        """See Store."""

        def write(cursor: Cursor) -> None:
            cursor.execute(
                "INSERT OR REPLACE INTO server_keys VALUES (?,?,?)", (server_name, key_object, fetched_ms)
            )
            cursor.execute("SELECT count(*) FROM server_keys")
            surplus = cursor.fetchone()[0] - self._max_server_keys
            if surplus > 0:
                cursor.execute(
                    "DELETE FROM server_keys WHERE server_name IN "
                    "(SELECT server_name FROM server_keys ORDER BY fetched_ms LIMIT ?)",
                    (surplus,),
                )

        return self._write(write)

    # --- the homeserver beside us ----------------------------------------------------------

    def load_scan(self) -> Deferred[list[ScanRow]]:
        """See Store."""

        def read(cursor: Cursor) -> list[ScanRow]:
            cursor.execute("SELECT kind, name, members FROM scan")
            return [ScanRow(ScanKind(kind), name, members) for kind, name, members in cursor.fetchall()]

        return self._run(read)

    def save_scan(self, saved: Sequence[ScanRow], gone: Sequence[ScanRow]) -> Deferred[None]:
        """See Store."""

        def write(cursor: Cursor) -> None:
            cursor.executemany(
                "DELETE FROM scan WHERE kind = ? AND name = ?", ((row.kind.value, row.name) for row in gone)
            )
            cursor.executemany(
                "INSERT OR REPLACE INTO scan VALUES (?,?,?)",
                ((row.kind.value, row.name, row.members) for row in saved),
            )

        return self._write(write)

    # --- the end ---------------------------------------------------------------------------

    def close(self) -> Deferred[None]:
        """See Store. What was asked for before is done first; a failing checkpoint loses nothing."""
        if self._closed is None:
            self._closed = self._checkpoint().addBoth(self._release)
        done: Deferred[None] = Deferred()
        self._closed.chainDeferred(done)
        return done

    def _checkpoint(self) -> Deferred[None]:
        if not self._pool.running:  # the reactor never ran: nothing was asked for, and nothing would answer
            return succeed(None)

        def checkpoint(cursor: Cursor) -> None:
            cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)")

        answer = self._run(checkpoint)
        return answer.addErrback(lambda f: _log.warn("no checkpoint at the close: {reason}", reason=f.value))

    def _release(self, _: object) -> None:
        self._pool.close()
        if self._lock is not None:
            self._lock.release()

    # --- turning SQLite's answers into ours ------------------------------------------------

    def _write(self, work: Callable[[Cursor], T]) -> Deferred[T]:
        """`work` as one transaction, on disk when the Deferred fires."""

        def transaction(cursor: Cursor) -> T:
            cursor.execute("BEGIN IMMEDIATE")
            result = work(cursor)
            if self._before_commit is not None:
                self._before_commit(cursor)
            return result  # the pool commits, or rolls back what was raised

        return self._run(transaction)

    def _run(self, work: Callable[[Cursor], T]) -> Deferred[T]:
        if self._closed is not None:
            return fail(StoreError(f"{self._path}: the database is closed"))
        answer: Deferred[T] = self._pool.runInteraction(work)
        return answer.addErrback(self._as_store_error)

    def _connected(self, connection: sqlite3.Connection) -> None:
        """The pool's one connection is made, in the store's thread, when it is first used."""
        _set_up(connection)
        if not self._power_cuts:
            connection.execute("PRAGMA synchronous = OFF")
        self._tokens_version = _data_version(connection.cursor())

    def _as_store_error(self, failure: Failure) -> Failure:
        if isinstance(failure.value, sqlite3.Error | OSError | UnicodeDecodeError):
            raise _store_error(self._path, failure.value) from failure.value
        return failure


def _set_up(connection: sqlite3.Connection) -> None:
    for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
        connection.execute(f"PRAGMA {pragma}")


def _prepare(path: Path, lock: DatabaseLock | None) -> None:
    """Make the file, for our eyes only, and its tables."""
    try:
        _create(path)
        connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None)
        try:
            ready = is_ready(connection)
            _set_up(connection)
            if not ready:
                # A daemon of the version before may be at work in it; it would hold this lock.
                for_now = DatabaseLock.take(path) if lock is None else None
                try:
                    _migrate(connection, path)
                finally:
                    if for_now is not None:
                        for_now.release()
        finally:
            connection.close()
    except (sqlite3.Error, OSError, UnicodeDecodeError) as error:  # the last where a table's name is spoilt
        if isinstance(error, OSError) or _primary_code(error) in _MENDABLE:
            raise ConfigError.of(
                "database.url",
                f"cannot use {path}: {error}.",
                "It must be a fedpresence database, or a new name in a folder that exists; both must be "
                "writable for the user that runs fedpresence.",
            ) from error
        raise _store_error(path, error) from error


def _migrate(connection: sqlite3.Connection, path: Path) -> None:
    """Bring the schema to this version's; where there are rows, that may take minutes, and is told."""
    version = stored_version(connection)
    if version:
        _log.info(
            "{path} has schema {version} and is brought to this version's", path=str(path), version=version
        )
    began = time.monotonic()
    connection.execute(f"PRAGMA cache_size = -{MIGRATION_CACHE_KIB}")
    migrate(connection, newest_schema())
    if version:
        _log.info("{path}: done in {seconds} s", path=str(path), seconds=round(time.monotonic() - began, 1))


def _identity(path: Path) -> tuple[int, int]:
    """The same as long as the file is; SQLite asks this too, but not where it writes a log."""
    found = path.stat()
    return found.st_dev, found.st_ino


def _create(path: Path) -> None:
    """An empty file of mode 600 where there is none; SQLite gives its WAL the same mode."""
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    except FileExistsError:
        return
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # or a power cut could take the file and every commit in it
    finally:
        os.close(folder)


def _primary_code(error: Exception) -> int:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def _store_error(path: Path, error: Exception) -> StoreError:
    name = getattr(error, "sqlite_errorname", type(error).__name__)
    fix = ""
    is_ours = not isinstance(error, sqlite3.Error | OSError)
    if is_ours or _primary_code(error) == sqlite3.SQLITE_CORRUPT:
        fix = f". Put a copy in its place, with no {path.name}-wal and {path.name}-shm beside it"
    return StoreError(f"{path}: {'the database is damaged: ' if is_ours else ''}{error} ({name}){fix}")


def _data_version(cursor: Cursor) -> int:
    """A number that changes when another connection has written."""
    cursor.execute("PRAGMA data_version")
    return int(cursor.fetchone()[0])


def _save_moment(cursor: Cursor, now_ms: int) -> None:
    cursor.execute("UPDATE meta SET saved_at_ms = ?", (now_ms,))
