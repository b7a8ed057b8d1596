"""Whether anybody may have written to the database since it was last asked: a look at its log's file.

To ask SQLite takes a thread; some times a second, that would be most of what an idle daemon spends.

Always true: a commit before the question is never missed. Every commit is written to the write-ahead log
first, and a change so fresh that another could hide in the same moment of the file system counts as two.
"""

import time
from pathlib import Path

FRESH_NS = 2_000_000_000  # the coarsest file times in use are whole seconds


class Written:
    """One asker's view of the log beside the database at `path`."""

    def __init__(self, path: Path) -> None:
        self._log = path.with_name(f"{path.name}-wal")
        self._seen: tuple[int, int, int] | None = None

    def since_last_asked(self) -> bool:
        """Whether there may have been a write; True the first time."""
        try:
            found = self._log.stat()
        except OSError:  # it will be made with the first write
            self._seen = None
            return True
        before, self._seen = self._seen, (found.st_ino, found.st_size, found.st_mtime_ns)
        is_fresh = time.time_ns() - found.st_mtime_ns < FRESH_NS  # also where the clock was set back
        return is_fresh or self._seen != before
