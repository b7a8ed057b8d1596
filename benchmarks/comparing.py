"""One scenario for two revisions, in turn, several times: the numbers of both and their ratio.

    python -m benchmarks compare main WORK counts --runs 3

A revision is anything that git knows; WORK is what stands in the folder now. Both run today's benchmarks (and
today's `fedpresence.testing`, which starts the servers), so that only the daemon differs; with `--own` each
runs those of its revision, for revisions that are too far apart. Of several runs the best counts: what
disturbs a run only ever makes it slower.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from benchmarks.report import CheckFailedError, machine, number
from benchmarks.scenarios import SCENARIOS

WORK = "WORK"
OURS = ("benchmarks", "fedpresence/testing")  # what measures
LONGEST_S = 3600.0

Numbers = dict[str, dict[str, tuple[float, str]]]
"""Case to measure to value and unit."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """What can be varied; the scenario has options of its own."""
    parser.add_argument("before", metavar="REV", help=f"a revision, or {WORK}: the working tree")
    parser.add_argument("after", metavar="REV", help="another")
    parser.add_argument("scenario", choices=list(SCENARIOS))
    parser.add_argument("--runs", type=int, default=3, help="of each revision")
    parser.add_argument("--own", action="store_true", help="each revision with its own benchmarks")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers there too")


def run(arguments: argparse.Namespace, words: list[str]) -> int:
    """The exit code; `words` are the scenario's options."""
    revisions = (arguments.before, arguments.after)
    runs: tuple[list[Numbers], list[Numbers]] = ([], [])
    with tempfile.TemporaryDirectory() as folder:
        trees = [Path(folder) / str(number) for number in range(len(revisions))]
        for revision, tree in zip(revisions, trees, strict=True):
            _check_out(revision, tree, own=arguments.own)
        for _ in range(arguments.runs):
            for tree, found in zip(trees, runs, strict=True):
                found.append(_measure(tree, arguments.scenario, words))
    before, after = (best(found) for found in runs)
    print(_table(arguments, before, after))
    if arguments.json is not None:
        value = {
            "scenario": arguments.scenario,
            "machine": machine(),
            "runs": arguments.runs,
            "revisions": {revisions[0]: before, revisions[1]: after},
        }
        arguments.json.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    return 0


def best(runs: Sequence[Numbers]) -> Numbers:
    """Of each number the best: the largest rate, the least that was spent, the median of mere counts."""
    found: Numbers = {}
    for case, measures in runs[0].items():
        found[case] = {}
        for name, (_, unit) in measures.items():
            values = [one[case][name][0] for one in runs if name in one.get(case, {})]
            match unit:
                case "/s":
                    value = max(values)
                case "":
                    value = statistics.median(values)
                case _:
                    value = min(values)
            found[case][name] = (value, unit)
    return found


def _table(arguments: argparse.Namespace, before: Numbers, after: Numbers) -> str:
    columns = (arguments.before[:12], arguments.after[:12])
    lines = [f"{arguments.scenario}: best of {arguments.runs}, {columns[1]} as a share of {columns[0]}"]
    width = max(len(name) for measures in before.values() for name in measures)
    for case, measures in before.items():
        lines += ["", f"{case:<{width + 2}}  {columns[0]:>12}  {columns[1]:>12}"]
        for name, (old, unit) in measures.items():
            new = after.get(case, {}).get(name, (float("nan"), unit))[0]
            ratio = f"{new / old:8.2f}" if old else " " * 8
            lines.append(f"  {name:<{width}}  {number(old):>12}  {number(new):>12} {ratio}  {unit}")
    missing = after.keys() - before.keys()
    if missing:
        lines += ["", f"only after: {', '.join(sorted(missing))}"]
    return "\n".join(lines)


def _check_out(revision: str, tree: Path, *, own: bool) -> None:
    """The files of a revision, with what measures."""
    repository = Path(__file__).parent.parent
    tree.mkdir()
    ignore = shutil.ignore_patterns("__pycache__")
    if revision == WORK:
        for name in ("fedpresence", "benchmarks"):
            shutil.copytree(repository / name, tree / name, ignore=ignore)
        return
    if revision.startswith("-"):
        raise CheckFailedError(f"{revision} is no revision")
    command = ["git", "-C", str(repository), "archive", "--format=tar", revision]
    try:
        archive = subprocess.run(command, capture_output=True, check=False)
    except OSError as error:
        raise CheckFailedError(f"revision {revision}: {error}") from error
    if archive.returncode:
        complaint = archive.stderr.decode("utf-8", "replace").strip()
        raise CheckFailedError(f"revision {revision}: {complaint}")
    with tarfile.open(fileobj=BytesIO(archive.stdout)) as files:
        files.extractall(tree, filter="data")
    for name in () if own else OURS:
        shutil.rmtree(tree / name, ignore_errors=True)
        shutil.copytree(repository / name, tree / name, ignore=ignore)


def _measure(tree: Path, scenario: str, words: Sequence[str]) -> Numbers:
    """One run with the files of `tree` and no others."""
    file = tree / "report.json"
    file.unlink(missing_ok=True)
    command = [sys.executable, "-m", "benchmarks", scenario, "--json", str(file), *words]
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    done = subprocess.run(
        command, cwd=tree, env=environment, capture_output=True, text=True, check=False, timeout=LONGEST_S
    )
    if done.returncode:
        raise CheckFailedError(f"{' '.join(command[1:])} ended with {done.returncode}:\n{done.stderr}")
    return numbers(json.loads(file.read_text("utf-8")))


def numbers(report: Mapping[str, Any]) -> Numbers:
    """Those of a report in JSON."""
    return {
        case: {name: (measure["value"], measure["unit"]) for name, measure in measures.items()}
        for case, measures in report["cases"].items()
    }
