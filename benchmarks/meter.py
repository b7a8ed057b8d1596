"""What a process spends, as Linux counts it: all its threads, user and system time together.

Source: proc(5), `/proc/pid/stat` and `/proc/pid/status`.
"""

import os
import time
from dataclasses import dataclass
from pathlib import Path

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_UTIME = 11  # fields of /proc/pid/stat behind the command name, which may hold blanks
_STIME = 12


@dataclass(frozen=True, slots=True)
class Spent:
    """Between two moments: time on the clock, and on the processor."""

    wall_s: float
    cpu_s: float

    @property
    def share(self) -> float:
        """How busy one core was with it, in percent."""
        return 100 * self.cpu_s / self.wall_s


class Meter:
    """Counts from the moment it is made."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._cpu_s = cpu_s(pid)
        self._wall_s = time.perf_counter()

    def spent(self) -> Spent:
        """So far."""
        return Spent(time.perf_counter() - self._wall_s, cpu_s(self._pid) - self._cpu_s)


def cpu_s(pid: int) -> float:
    """Processor time of a process since its start, in steps of a clock tick (10 ms)."""
    stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    fields = stat.rpartition(")")[2].split()
    return (int(fields[_UTIME]) + int(fields[_STIME])) / _TICKS_PER_S


def memory_mib(pid: int) -> float:
    """What a process holds in memory now."""
    return _status_kib(pid, "VmRSS") / 1024


def peak_memory_mib(pid: int) -> float:
    """The most that it ever held."""
    return _status_kib(pid, "VmHWM") / 1024


def _status_kib(pid: int, key: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
        name, _, value = line.partition(":")
        if name == key:
            return int(value.split()[0])
    raise ValueError(f"/proc/{pid}/status has no {key}")
