"""`python -m benchmarks SCENARIO [options]`: measure, print a table, write JSON.

`all` runs every scenario but `beside`, which needs a Synapse; `compare REV REV SCENARIO` runs one for two
revisions in turn; `profile SCENARIO` shows where the time goes; `page DIR` writes the figures of
`all --json DIR` into docs/performance.md.
"""

import argparse
import json
import sys
from pathlib import Path

from benchmarks import comparing, everything, page, profiling
from benchmarks.report import CheckFailedError, as_json, as_table
from benchmarks.scenarios import ALL, run_scenario


def main(words: list[str] | None = None) -> int:
    """The exit code: 0 measured, 1 where an answer was wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parsers = parser.add_subparsers(dest="command", required=True)
    for name, scenario in ALL.items():
        one = parsers.add_parser(name, help=_first_line(scenario.__doc__))
        one.add_argument("--json", type=Path, metavar="FILE", help="write the numbers there too")
        one.add_argument("--smoke", action="store_true", help="tiny: only whether the answers are right")
        scenario.add_options(one)
    everything.add_options(parsers.add_parser("all", help=_first_line(everything.__doc__)))
    comparing.add_options(parsers.add_parser("compare", help=_first_line(comparing.__doc__)))
    profiling.add_options(parsers.add_parser("profile", help=_first_line(profiling.__doc__)))
    page.add_options(parsers.add_parser("page", help=_first_line(page.__doc__)))
    arguments, others = parser.parse_known_args(words)
    if others and arguments.command not in ("compare", "profile"):
        parser.error(f"unrecognized arguments: {' '.join(others)}")
    try:
        match arguments.command:
            case "all":
                return everything.run(arguments)
            case "page":
                return page.run(arguments)
            case "compare":
                return comparing.run(arguments, others)
            case "profile":
                return profiling.run(arguments, others)
        report = run_scenario(arguments.command, arguments)
    except (CheckFailedError, AssertionError, OSError) as error:
        print(f"{arguments.command} failed: {error}", file=sys.stderr)
        for note in getattr(error, "__notes__", ()):
            print(note, file=sys.stderr)
        return 1
    print(as_table(report))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(as_json(report), indent=2) + "\n", encoding="utf-8")
    return 0


def _first_line(text: str | None) -> str:
    return (text or "").splitlines()[0]


if __name__ == "__main__":
    sys.exit(main())
