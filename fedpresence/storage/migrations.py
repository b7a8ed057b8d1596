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
