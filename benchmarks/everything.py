"""Every scenario, one after the other: a table and JSON of each."""

import argparse
import json
import sys
import time
from pathlib import Path

from benchmarks.report import as_json, as_table
from benchmarks.scenarios import SCENARIOS, run_scenario, scenario_options


def add_options(parser: argparse.ArgumentParser) -> None:
    """What can be varied."""
    parser.add_argument("--json", type=Path, metavar="DIR", help="write SCENARIO.json of each there")
    parser.add_argument("--smoke", action="store_true", help="tiny: only whether the answers are right")
    parser.add_argument("--only", type=_names, default=tuple(SCENARIOS), metavar="NAME,NAME")


def run(arguments: argparse.Namespace) -> int:
    """The exit code: 1 where an answer of any was wrong; the others are measured all the same."""
    folder: Path | None = arguments.json
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    failed = []
    for name in arguments.only:
        began = time.monotonic()
        try:
            report = run_scenario(name, scenario_options(name, ["--smoke"] if arguments.smoke else []))
        except Exception as error:  # whatever is wrong with one scenario, the others are still to be measured
            failed.append(name)
            print(f"{name} failed: {error!r}", "", sep="\n", file=sys.stderr)
            continue
        print(as_table(report), f"({time.monotonic() - began:.0f} s)", "", sep="\n", flush=True)
        if folder is not None:
            text = json.dumps(as_json(report), indent=2) + "\n"
            (folder / f"{name}.json").write_text(text, encoding="utf-8")
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def _names(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    unknown = [name for name in names if name not in SCENARIOS]
    if unknown:
        raise argparse.ArgumentTypeError(f"no scenario is called {', '.join(unknown)}")
    return names
