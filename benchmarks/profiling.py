"""Where the time goes: a scenario whose servers, or which itself, run under a profiler.

cProfile is always there; it makes small functions look dearer than they are. py-spy, where it is installed
(`--py-spy`), looks at the stack from outside and slows nothing down; it writes collapsed stacks.
"""

import argparse
import cProfile
import pstats
import shutil
import sys
from collections import Counter
from pathlib import Path

from benchmarks.launch import running
from benchmarks.report import as_table
from benchmarks.scenarios import SCENARIOS, run_scenario, scenario_options

IN_THIS_PROCESS = ("engine", "idle", "herds", "outage", "recovery", "neighbours")
KEYS = {"own": pstats.SortKey.TIME, "cumulative": pstats.SortKey.CUMULATIVE}


def add_options(parser: argparse.ArgumentParser) -> None:
    """What can be varied; the scenario has options of its own."""
    parser.add_argument("scenario", choices=[name for name in SCENARIOS if name != "counts"])
    parser.add_argument("--out", type=Path, default=Path("profile"), metavar="DIR", help="where files go")
    parser.add_argument("--top", type=int, default=40, help="functions that are shown")
    parser.add_argument(
        "--sort", choices=list(KEYS), default="own", help="by their own time, or with callees'"
    )
    parser.add_argument("--py-spy", action="store_true", help="by py-spy, which must be installed")


def run(arguments: argparse.Namespace, words: list[str]) -> int:
    """The exit code; `words` are the scenario's options."""
    folder: Path = arguments.out
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    name = arguments.scenario
    options = scenario_options(name, words)
    if name in IN_THIS_PROCESS:
        profile = cProfile.Profile()
        report = profile.runcall(run_scenario, name, options)
        profile.dump_stats(folder / f"{name}.pstats")
    else:
        module = "benchmarks.spied" if arguments.py_spy else "benchmarks.profiled"
        with running(("-m", module, str(folder.resolve()))):
            report = run_scenario(name, options)
    print(as_table(report), "", "(under a profiler: the shape counts, not the numbers)", "", sep="\n")
    for file in sorted(folder.glob("*.pstats")):
        print(file)
        pstats.Stats(str(file), stream=sys.stdout).sort_stats(KEYS[arguments.sort]).print_stats(arguments.top)
    for file in sorted(folder.glob("*.collapsed")):
        print(file)
        _print_collapsed(file, arguments.top)
    return 0


def _print_collapsed(file: Path, top: int) -> None:
    """The functions that were found on top of the stack most often, and anywhere in it."""
    own: Counter[str] = Counter()
    anywhere: Counter[str] = Counter()
    for line in file.read_text("utf-8").splitlines():
        stack, _, times = line.rpartition(" ")
        frames = stack.split(";")
        own[frames[-1]] += int(times)
        anywhere.update(dict.fromkeys(frames, int(times)))
    whole = max(1, own.total())
    print(f"{'own':>8} {'with':>8}")
    for frame, samples in own.most_common(top):
        print(f"{100 * samples / whole:7.1f}% {100 * anywhere[frame] / whole:7.1f}%  {frame}")
