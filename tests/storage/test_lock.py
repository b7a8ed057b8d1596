import os
import subprocess
import sys
from pathlib import Path

import pytest

from fedpresence.errors import ConfigError
from fedpresence.storage.lock import DatabaseLock, leave_word, word_of_holder

URL = "http://127.0.0.1:8009"


def a_process_that_has_ended() -> int:
    """The ID of nobody."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    return process.pid


@pytest.mark.parametrize("word", [URL, "unix:/home/jürgen/admin.sock", "unix:/home/j\udcfcrgen/admin.sock"])
def test_the_holder_says_where_it_is_while_it_holds_the_lock(tmp_path: Path, word: str) -> None:
    """The command line sends the admin token there; a path may hold any letter, and any byte."""
    database = tmp_path / "fedpresence.db"
    lock = DatabaseLock.take(database)
    before = word_of_holder(database)

    leave_word(database, word)

    assert (before, word_of_holder(database)) == (None, word)
    lock.release()
    assert word_of_holder(database) is None


def test_a_holder_who_crashed_says_nothing_any_more(tmp_path: Path) -> None:
    """Its port may be somebody else's by now, who would be told the token."""
    database = tmp_path / "fedpresence.db"
    beside = tmp_path / "fedpresence.db.lock"

    beside.write_text(f"{a_process_that_has_ended()}\n{URL}\n")

    assert word_of_holder(database) is None


@pytest.mark.parametrize("content", ["", "nonsense", "\n" + URL, "9" * 400])
def test_a_file_that_says_nothing_is_no_error(tmp_path: Path, content: str) -> None:
    """A command without an answer says so in its own words."""
    (tmp_path / "fedpresence.db.lock").write_text(content)

    assert word_of_holder(tmp_path / "fedpresence.db") is None
    assert word_of_holder(tmp_path / "other.db") is None


def test_who_finds_the_lock_taken_is_told_by_whom_alone(tmp_path: Path) -> None:
    """The word behind the process ID is not part of it."""
    database = tmp_path / "fedpresence.db"
    lock = DatabaseLock.take(database)
    leave_word(database, URL)

    with pytest.raises(ConfigError) as refused:
        DatabaseLock.take(database)

    lock.release()
    assert f"(process {os.getpid()})" in str(refused.value)
