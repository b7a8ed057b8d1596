"""What a process has done, counted where time is too noisy: instructions, or calls of functions.

Instructions are counted by the processor (perf_event_open(2)); a virtual machine seldom lets them be counted.
Calls are counted by cProfile in a daemon that was started for that. Both are nearly the same in every run, on
a busy machine too; neither is time: a call may be short or long.
"""

import ctypes
import os
import platform
import signal
import struct
import time
from pathlib import Path
from typing import Protocol

from benchmarks.report import CheckFailedError

INSTRUCTIONS = (0, 1)  # PERF_TYPE_HARDWARE, PERF_COUNT_HW_INSTRUCTIONS
TASK_CLOCK = (1, 1)  # PERF_TYPE_SOFTWARE, PERF_COUNT_SW_TASK_CLOCK: nanoseconds, anywhere
ANSWER_WITHIN_S = 30.0

_SYSCALLS = {"x86_64": 298, "aarch64": 241}
_ATTR_BYTES = 64  # PERF_ATTR_SIZE_VER0
_INHERIT, _EXCLUDE_KERNEL, _EXCLUDE_HV = 1 << 1, 1 << 5, 1 << 6


class Counter(Protocol):
    """Something that only grows while a process works."""

    unit: str

    def read(self) -> int:
        """So far."""


class PerfCounter:
    """An event of all threads of a process, counted by the system; OSError where it cannot be."""

    def __init__(self, pid: int, event: tuple[int, int] = INSTRUCTIONS, unit: str = "instructions") -> None:
        self.unit = unit
        self._files: list[int] = []
        kind, number = event
        flags = _INHERIT | _EXCLUDE_KERNEL | _EXCLUDE_HV
        attr = struct.pack("=IIQQQQQ", kind, _ATTR_BYTES, number, 0, 0, 0, flags).ljust(_ATTR_BYTES, b"\0")
        try:
            for thread in Path(f"/proc/{pid}/task").iterdir():
                self._files.append(_perf_event_open(attr, int(thread.name)))
        except OSError:
            self.close()
            raise

    def read(self) -> int:
        """So far, with the threads that began since."""
        return sum(int(struct.unpack("=Q", os.read(file, 8))[0]) for file in self._files)

    def close(self) -> None:
        """Count no more."""
        for file in self._files:
            os.close(file)
        self._files.clear()


class CallCounter:
    """Calls of functions in the main thread of a daemon that runs as `benchmarks.profiled`."""

    unit = "calls"

    def __init__(self, folder: Path, pid: int) -> None:
        self._file = folder / f"{pid}.calls"
        self._pid = pid
        self._asked = 0

    def read(self) -> int:
        """So far; it answers when it has a moment."""
        self._asked += 1
        os.kill(self._pid, signal.SIGUSR1)
        deadline_s = time.monotonic() + ANSWER_WITHIN_S
        while time.monotonic() < deadline_s:
            words = self._file.read_text("ascii").split() if self._file.exists() else []
            if words and int(words[1]) == self._asked:
                return int(words[0])
            time.sleep(0.002)  # a file cannot be awaited without a library for it
        raise CheckFailedError("the profiled daemon did not say how much it has done")


def can_count_instructions() -> bool:
    """Whether this machine lets them be counted."""
    try:
        PerfCounter(os.getpid()).close()
    except OSError:
        return False
    return True


def _perf_event_open(attr: bytes, thread: int) -> int:
    syscall = _SYSCALLS.get(platform.machine())
    if syscall is None:
        raise OSError("instructions cannot be counted on this kind of machine")
    library = ctypes.CDLL(None, use_errno=True)
    every_cpu, no_group, close_on_exec = -1, -1, 8
    file: int = library.syscall(
        ctypes.c_long(syscall),
        ctypes.c_char_p(attr),
        ctypes.c_int(thread),
        ctypes.c_int(every_cpu),
        ctypes.c_int(no_group),
        ctypes.c_ulong(close_on_exec),
    )
    if file < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return file
