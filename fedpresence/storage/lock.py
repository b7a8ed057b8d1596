"""One daemon per database (Z-22).

Always true: the lock goes with the process, however it ends; the file beside the database stays, for
removing it would let two processes hold locks on two files of one name. Its first line is the process ID of
the holder, its second a word of the holder's to other commands; both go with a holder who ends in order.
"""

import fcntl
import os
from contextlib import suppress
from pathlib import Path

from fedpresence.errors import ConfigError, StoreError

MAX_BYTES = 1_000  # of the file: a process ID and a URL


class DatabaseLock:
    """An exclusive lock on `<database>.lock`."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor: int | None = descriptor

    @classmethod
    def take(cls, database: Path) -> "DatabaseLock":
        """The lock; ConfigError naming `database.url` where another process has it, or it cannot be made.

        StoreError where the disk is full.
        """
        path = _beside(database)
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise ConfigError.of(
                "database.url",
                f"cannot make {path}: {error.strerror}.",
                "The folder must exist, and it and this file be writable for the user that runs fedpresence.",
            ) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder, _ = _lines(os.pread(descriptor, MAX_BYTES, 0))
            os.close(descriptor)
            raise ConfigError.of(
                "database.url",
                f"{database} is in use by another fedpresence{f' (process {holder})' if holder else ''}.",
                "Stop that one first, or give this one a database of its own.",
            ) from error
        try:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode("ascii"), 0)
        except OSError as error:
            os.close(descriptor)
            raise StoreError(f"{path}: {error.strerror}") from error
        return cls(descriptor)

    def release(self) -> None:
        """Let the next process have it; again: nothing."""
        if self._descriptor is not None:
            with suppress(OSError):  # of a disk that fails: that we end is said by more than this
                os.ftruncate(self._descriptor, 0)
            os.close(self._descriptor)
            self._descriptor = None


def leave_word(database: Path, word: str) -> None:
    """Put `word` beside our process ID, if that can be done; for this process while it holds the lock."""
    with suppress(OSError):
        descriptor = os.open(_beside(database), os.O_WRONLY | os.O_TRUNC | os.O_NOFOLLOW)
        try:
            os.write(descriptor, os.fsencode(f"{os.getpid()}\n{word}\n"))  # a path may stand in it
        finally:
            os.close(descriptor)


def word_of_holder(database: Path) -> str | None:
    """What the process that holds the lock said of itself; None where none does, or it said nothing.

    The lock is not tried for that: a daemon that starts in the same moment would find it taken.
    """
    try:
        holder, word = _lines(_beside(database).read_bytes()[:MAX_BYTES])
        os.kill(int(holder), 0)
    except (OSError, ValueError, OverflowError):
        return None
    return word or None


def _beside(database: Path) -> Path:
    return database.with_name(database.name + ".lock")


def _lines(data: bytes) -> tuple[str, str]:
    """The process ID and the word; empty where they are not there."""
    holder, _, word = os.fsdecode(data).partition("\n")
    return holder.strip(), word.strip()
