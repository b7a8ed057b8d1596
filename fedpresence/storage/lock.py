"""One daemon per database (Z-22).

Always true: the lock goes with the process, however it ends; the file beside the database stays, for
removing it would let two processes hold locks on two files of one name.
"""

import fcntl
import os
from pathlib import Path

from fedpresence.errors import ConfigError, StoreError


class DatabaseLock:
    """An exclusive lock on `<database>.lock`, which holds our process ID for the operator to read."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor: int | None = descriptor

    @classmethod
    def take(cls, database: Path) -> "DatabaseLock":
        """The lock; ConfigError naming `database.url` where another process has it, or it cannot be made.

        StoreError where the disk is full.
        """
        path = database.with_name(database.name + ".lock")
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
            holder = os.pread(descriptor, 20, 0).decode("ascii", "replace").strip()
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
            os.close(self._descriptor)
            self._descriptor = None
