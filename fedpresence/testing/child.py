"""A process of ours, started by a script or a test: its log, its ready file, its end.

Always true:
- a process that does not do what was waited for becomes an AssertionError with its log;
- it runs the code that we run, whatever modules lie about in the folder where it is started;
- on Linux it does not outlive us, however we end; a daemon has no code for that.
"""

import fcntl
import os
import signal
import site
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

import fedpresence

START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 15.0


class Child:
    """`python ARGUMENTS...`, started at most once at a time; `name` is who complaints are about."""

    def __init__(self, name: str, log_file: Path, ready_file: Path) -> None:
        self.name = name
        self.log_file = log_file
        self.ready_file = ready_file
        self._process: subprocess.Popen[bytes] | None = None
        self._tie: IO[bytes] | None = None  # to its standard input: it ends with us

    @property
    def pid(self) -> int:
        """The process that runs now."""
        assert self._process is not None, f"{self.name} does not run"
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether its process runs, paused or not."""
        return self._process is not None and self._process.poll() is None

    def begin(self, arguments: Sequence[str], *, ends_itself: bool = False) -> None:
        """Start the process. When we are gone it is killed, or stops where it `ends_itself` by its input."""
        self.ready_file.unlink(missing_ok=True)
        theirs, ours = os.pipe()
        tie = os.fdopen(ours, "wb")
        try:
            with self.log_file.open("ab") as log:
                process = subprocess.Popen(
                    [sys.executable, *arguments], stdout=log, stderr=log, stdin=theirs, env=environment()
                )
            if not ends_itself:
                _kill_at_end_of(theirs, process.pid)
        finally:
            os.close(theirs)
        self._process, self._tie = process, tie

    def wait_until_ready(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Return once the ready file is there; AssertionError with the log where it ends before that."""
        assert self._process is not None, f"{self.name} was not started"
        deadline = time.monotonic() + timeout_s
        while not self.ready_file.exists():
            ended = self._process.poll() is not None
            if ended or time.monotonic() > deadline:
                words = f"ended with {self._process.returncode}" if ended else "is not ready"
                raise AssertionError(f"{self.name} {words}:\n{self.log()}")
            time.sleep(0.01)  # a file cannot be awaited without a library for it

    def end(self, number: signal.Signals | None, timeout_s: float = STOP_TIMEOUT_S) -> int:
        """Its exit code once it has ended, by this signal or by itself; 0 where none ran."""
        process, self._process = self._process, None
        tie, self._tie = self._tie, None
        if process is None or tie is None:
            return 0
        with tie, process:
            return self._ended(process, number, timeout_s)

    def _ended(
        self, process: "subprocess.Popen[bytes]", number: signal.Signals | None, timeout_s: float
    ) -> int:
        if number is not None:
            process.send_signal(number)
        try:
            return process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise AssertionError(f"{self.name} did not stop:\n{self.log()}") from None

    def log(self, last: int = 5000) -> str:
        """The end of what its processes logged, at most `last` characters."""
        if not self.log_file.exists():
            return ""
        return self.log_file.read_text(encoding="utf-8", errors="replace")[-last:]


def _kill_at_end_of(pipe: int, pid: int) -> None:
    """Have the kernel kill a process, paused or not, when nobody can write any more into what it may read.

    PR_SET_PDEATHSIG would do so when the thread that started it ends.
    """
    if sys.platform == "linux":
        with suppress(OSError):  # a kernel that has no such thing
            fcntl.fcntl(pipe, fcntl.F_SETSIG, signal.SIGKILL)
            fcntl.fcntl(pipe, fcntl.F_SETOWN, pid)
            fcntl.fcntl(pipe, fcntl.F_SETFL, fcntl.fcntl(pipe, fcntl.F_GETFL) | os.O_ASYNC)


def environment() -> dict[str, str]:
    """The environment without settings of another daemon, in which Python finds what we are.

    Without PYTHONSAFEPATH it would look into the current folder first: a bot's own `secrets.py` is no module
    of ours.
    """
    ours = {name: value for name, value in os.environ.items() if not name.startswith("FEDPRESENCE_")}
    root = str(Path(fedpresence.__file__).parents[1])
    if root not in (*site.getsitepackages(), site.getusersitepackages()):  # a clone
        ours["PYTHONPATH"] = os.pathsep.join(filter(None, (root, ours.get("PYTHONPATH"))))
    return ours | {"PYTHONSAFEPATH": "1"}
