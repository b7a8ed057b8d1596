"""A database file made ready: the schema of this version, reached step by step.

Always true:
- each step is one transaction with its version number: a crash between two leaves a known version;
- a database newer than the program, or another program's, is left alone.

To change the schema: change schema.sql, append to `STEPS` the SQL that turns the version before into
it, and test that both ways lead to the same tables.
"""

import sqlite3
from collections.abc import Iterator, Sequence
from importlib.resources import files

from fedpresence.errors import ConfigError

APPLICATION_ID = 0x66507273  # "fPrs": tells our file from another program's; `file` shows it too
STEPS: tuple[str, ...] = (  # STEPS[0] turns version 1 into 2, and so on
    "ALTER TABLE observed_rows ADD COLUMN confirmed_ms INTEGER NOT NULL DEFAULT 0;",
    "ALTER TABLE rooms ADD COLUMN join_rule TEXT;",
    """
    CREATE TABLE scan (
        kind TEXT NOT NULL,
        name TEXT NOT NULL,
        members INTEGER NOT NULL,
        PRIMARY KEY (kind, name)
    ) WITHOUT ROWID;
    """,
    # Who told of a room was not kept: where a homeserver was ever asked, it is taken for the one (Z-11).
    """
    ALTER TABLE rooms ADD COLUMN from_homeserver INTEGER NOT NULL DEFAULT 0;
    UPDATE rooms SET from_homeserver = 1 WHERE EXISTS (SELECT 1 FROM scan);
    """,
    # Names in the order of the rows, and rows in the order in which they lie: nothing is sorted, and each
    # table is filled from one end to the other.
    """
    CREATE TABLE names (
        id INTEGER PRIMARY KEY,
        user_id TEXT NOT NULL UNIQUE
    );
    INSERT OR IGNORE INTO names (user_id) SELECT DISTINCT observer FROM observer_rows ORDER BY 1;
    INSERT OR IGNORE INTO names (user_id) SELECT DISTINCT observed FROM observed_rows ORDER BY 1;
    INSERT OR IGNORE INTO names (user_id) SELECT observed FROM observer_rows;
    INSERT OR IGNORE INTO names (user_id) SELECT observer FROM observed_rows;

    ALTER TABLE observer_rows RENAME TO observer_rows_5;
    CREATE TABLE observer_rows (
        observer INTEGER NOT NULL,
        observed INTEGER NOT NULL,
        stage TEXT NOT NULL,
        created_ms INTEGER NOT NULL,
        changed_ms INTEGER NOT NULL,
        invite_ms INTEGER NOT NULL,
        confirmed_ms INTEGER NOT NULL,
        check_ms INTEGER NOT NULL,
        generation INTEGER NOT NULL,
        owed TEXT,
        PRIMARY KEY (observer, observed)
    ) WITHOUT ROWID;
    INSERT INTO observer_rows
        SELECT mine.id, other.id,
            stage, created_ms, changed_ms, invite_ms, confirmed_ms, check_ms, generation, owed
        FROM observer_rows_5
        CROSS JOIN names AS mine ON mine.user_id = observer
        CROSS JOIN names AS other ON other.user_id = observed;
    DROP TABLE observer_rows_5;

    ALTER TABLE observed_rows RENAME TO observed_rows_5;
    CREATE TABLE observed_rows (
        observed INTEGER NOT NULL,
        observer INTEGER NOT NULL,
        stage TEXT NOT NULL,
        created_ms INTEGER NOT NULL,
        changed_ms INTEGER NOT NULL,
        muted INTEGER NOT NULL,
        blocked INTEGER NOT NULL,
        by_room INTEGER NOT NULL,
        denials INTEGER NOT NULL,
        generation INTEGER NOT NULL,
        owed TEXT,
        confirmed_ms INTEGER NOT NULL DEFAULT 0,
        PRIMARY KEY (observed, observer)
    ) WITHOUT ROWID;
    INSERT INTO observed_rows
        SELECT mine.id, other.id, stage, created_ms, changed_ms,
            muted, blocked, by_room, denials, generation, owed, confirmed_ms
        FROM observed_rows_5
        CROSS JOIN names AS mine ON mine.user_id = observed
        CROSS JOIN names AS other ON other.user_id = observer;
    DROP TABLE observed_rows_5;
    """,
)


def newest_schema() -> str:
    """The SQL of schema.sql."""
    return files("fedpresence.storage").joinpath("schema.sql").read_text(encoding="utf-8")


def stored_version(connection: sqlite3.Connection) -> int:
    """The schema version of a database; 0 for an empty one. ConfigError where it is not ours."""
    version = int(connection.execute("PRAGMA user_version").fetchone()[0])
    owner = int(connection.execute("PRAGMA application_id").fetchone()[0])
    tables = int(connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0])
    if (version or tables) and owner != APPLICATION_ID:
        raise ConfigError.of(
            "database.url",
            "this is another program's database.",
            "Name a file of fedpresence's own, or one that does not exist yet.",
        )
    return version


def is_ready(connection: sqlite3.Connection, steps: Sequence[str] = STEPS) -> bool:
    """Whether the schema is this version's; ConfigError where it is a newer one."""
    version = stored_version(connection)
    newest = len(steps) + 1
    if version > newest:
        raise ConfigError.of(
            "database.url",
            f"the database has schema {version}, made by a newer fedpresence; this one knows {newest}.",
            "Run the newer version, or restore the backup made before the upgrade.",
        )
    return version == newest


def migrate(connection: sqlite3.Connection, schema: str, steps: Sequence[str] = STEPS) -> None:
    """Bring a database, in autocommit mode, to `schema`; one that is there already is left as it is."""
    while not is_ready(connection, steps):
        connection.execute("BEGIN IMMEDIATE")
        try:
            version = stored_version(connection)  # another process may have been faster
            if version == 0:
                _run(connection, schema, len(steps) + 1)
            elif version <= len(steps):
                _run(connection, steps[version - 1], version + 1)
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise


def _run(connection: sqlite3.Connection, script: str, version: int) -> None:
    for statement in _statements(script):
        connection.execute(statement)
    connection.execute(f"PRAGMA user_version = {version}")
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")


def _statements(script: str) -> Iterator[str]:
    """The statements of a script: `executescript` would commit before it begins."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
    assert not statement.strip(), "a script ends with a semicolon"
