"""Processes that whoever started them has left behind: nobody is told when they end."""

import os
import time
from pathlib import Path

PATIENCE_S = 20.0


def wait_until_gone(pid: int) -> None:
    """Return once that process has ended; AssertionError where it does not."""
    deadline = time.monotonic() + PATIENCE_S
    while _is_running(pid):
        assert time.monotonic() < deadline, f"process {pid} goes on"
        time.sleep(0.05)  # somebody else's process cannot be awaited


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")  # an orphan may stay as a zombie where nobody waits for orphans
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] != "Z"
