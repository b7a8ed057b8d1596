"""`python -m benchmarks.spied FOLDER -c FILE --ready-file PATH`: the daemon, watched by py-spy.

In FOLDER it leaves `PID.collapsed`, a line for each stack that was seen and how often.
"""

import ctypes
import os
import signal
import subprocess
import sys
from pathlib import Path

import fedpresence.process  # noqa: F401  # imported before anybody looks: imports are not what is asked
from fedpresence.ops.cli import main

RATE = 250  # looks a second
LONGEST_S = 3600
_PR_SET_PTRACER, _ANYBODY = 0x59616D61, ctypes.c_ulong(-1)  # prctl(2): a child may look at its parent


def run(folder: Path, words: list[str]) -> int:
    """The daemon's exit code."""
    ctypes.CDLL(None).prctl(_PR_SET_PTRACER, _ANYBODY, 0, 0, 0)
    own = os.getpid()
    command = ["py-spy", "record", "--pid", str(own), "--rate", str(RATE), "--duration", str(LONGEST_S)]
    spy = subprocess.Popen([*command, "--format", "raw", "--output", str(folder / f"{own}.collapsed")])
    try:
        return main(["run", *words])
    finally:
        spy.send_signal(signal.SIGINT)
        spy.wait(30)


if __name__ == "__main__":
    sys.exit(run(Path(sys.argv[1]), sys.argv[2:]))
