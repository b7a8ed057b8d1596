import os
import time
from pathlib import Path

import pytest

from fedpresence.storage.written import FRESH_NS, Written


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """The log of a database that nobody has written to for an hour."""
    file = tmp_path / "fedpresence.db-wal"
    write(file, b"one commit")
    return file


def write(file: Path, content: bytes, ago_ns: int = 3_600 * 10**9) -> None:
    file.write_bytes(content)
    moment_ns = time.time_ns() - ago_ns
    os.utime(file, ns=(moment_ns, moment_ns))


def database(log: Path) -> Path:
    return log.with_name("fedpresence.db")


def test_where_nobody_writes_the_database_is_asked_once(log: Path) -> None:
    """An idle daemon is idle: it looks at a file's times, and no thread wakes."""
    written = Written(database(log))

    answers = [written.since_last_asked() for _ in range(3)]

    assert answers == [True, False, False]


def test_a_commit_is_never_missed(log: Path) -> None:
    """A revoked token must stop working."""
    written = Written(database(log))
    written.since_last_asked()

    write(log, b"another commit", ago_ns=3_000 * 10**9)

    assert written.since_last_asked()
    assert not written.since_last_asked()


def test_a_commit_in_the_same_moment_is_not_missed(log: Path) -> None:
    """Two commits within one tick of the file system leave the same time, and maybe the same size."""
    written = Written(database(log))
    write(log, b"one commit", ago_ns=FRESH_NS // 2)

    assert written.since_last_asked()
    assert written.since_last_asked()


def test_a_clock_that_was_set_back_hides_nothing(log: Path) -> None:
    """Then the file is from the future, and says nothing of what came after."""
    written = Written(database(log))
    write(log, b"one commit", ago_ns=-3_600 * 10**9)

    assert written.since_last_asked()
    assert written.since_last_asked()


def test_without_a_log_the_database_is_asked(tmp_path: Path) -> None:
    """It is made with the first write."""
    written = Written(tmp_path / "fedpresence.db")

    assert written.since_last_asked()
    assert written.since_last_asked()
