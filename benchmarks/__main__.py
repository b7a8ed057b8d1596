"""`python -m benchmarks SCENARIO [options]`: measure, print a table, write JSON."""

import argparse
import json
import sys
from pathlib import Path

from benchmarks import engine, herds, latency, load, memory, neighbours, outage, receive, recovery, send
from benchmarks.report import CheckFailedError, as_json, as_table

SCENARIOS = {
    "latency": latency,
    "load": load,
    "send": send,
    "receive": receive,
    "memory": memory,
    "engine": engine,
    "herds": herds,
    "outage": outage,
    "recovery": recovery,
    "neighbours": neighbours,
}


def main(words: list[str] | None = None) -> int:
    """The exit code: 0 measured, 1 where an answer was wrong."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parsers = parser.add_subparsers(dest="scenario", required=True)
    for name, scenario in SCENARIOS.items():
        one = parsers.add_parser(name, help=(scenario.__doc__ or "").splitlines()[0])
        one.add_argument("--json", type=Path, metavar="FILE", help="write the numbers there too")
        one.add_argument("--smoke", action="store_true", help="tiny: only whether the answers are right")
        scenario.add_options(one)
    arguments = parser.parse_args(words)
    try:
        report = SCENARIOS[arguments.scenario].run(arguments)
    except (CheckFailedError, AssertionError, OSError) as error:
        print(f"{arguments.scenario} failed: {error}", file=sys.stderr)
        for note in getattr(error, "__notes__", ()):
            print(note, file=sys.stderr)
        return 1
    print(as_table(report))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(as_json(report), indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
