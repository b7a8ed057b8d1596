"""`python -m benchmarks.profiled FOLDER -c FILE --ready-file PATH`: the daemon under cProfile.

In FOLDER it leaves `PID.pstats` at its end, and on each SIGUSR1 `PID.calls`: how many calls of Python and
built-in functions its main thread has made since it began to serve, and how often it was asked.
"""

import cProfile
import os
import signal
import sys
from pathlib import Path

import fedpresence.process  # noqa: F401  # imported before profiling begins: imports are not what is asked
from fedpresence.ops.cli import main


def _calls(profile: cProfile.Profile) -> int:
    return sum(entry.callcount for entry in profile.getstats())


def run(folder: Path, words: list[str]) -> int:
    """The daemon's exit code."""
    profile = cProfile.Profile()
    own = folder / str(os.getpid())
    asked = 0

    def tell(number: int, frame: object) -> None:
        nonlocal asked
        profile.disable()  # to tell is no work of the daemon
        asked += 1
        text = f"{_calls(profile)} {asked}"
        unfinished = own.with_suffix(".new")
        unfinished.write_text(text, encoding="ascii")
        unfinished.rename(own.with_suffix(".calls"))
        profile.enable()

    signal.signal(signal.SIGUSR1, tell)
    try:
        return profile.runcall(main, ["run", *words])
    finally:
        profile.dump_stats(own.with_suffix(".pstats"))


if __name__ == "__main__":
    sys.exit(run(Path(sys.argv[1]), sys.argv[2:]))
