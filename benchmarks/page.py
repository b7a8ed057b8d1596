"""The figures of `docs/performance.md`, written into it from the JSON of a run, or the best of several.

    python -m benchmarks all --json DIR && python -m benchmarks page DIR [DIR ...]

A block between `<!-- figures: NAME -->` and `<!-- end -->` is replaced where there is a file for it in DIR;
what stands around it is written by people and stays.
"""

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.comparing import best, numbers
from benchmarks.report import CheckFailedError, number

PAGE = Path(__file__).parent.parent / "docs" / "performance.md"
_BLOCK = re.compile(r"(<!-- figures: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)

# What stands in the columns of each table; a scenario that is not here has all its measures below each other.
COLUMNS: Mapping[str, tuple[str, ...]] = {
    "load": (
        "CPU per update and destination",
        "CPU share",
        "PUT until that or newer is there p50",
        "PUT until that or newer is there p99",
        "transactions",
        "pushes per transaction",
        "bytes per push",
        "peak memory",
    ),
    "send": (
        "PUTs",
        "CPU per PUT",
        "transactions",
        "pushes",
        "pushes per transaction",
        "CPU per transaction",
        "CPU per push",
    ),
    "receive": ("transactions", "pushes", "CPU per transaction", "CPU per push", "answered within p99"),
    "latency": (
        "PUT there to /sync here p50",
        "PUT there to /sync here p99",
        "CPU per update, sending server",
        "CPU per update, receiving server",
    ),
    "memory": ("start until the ready file", "memory", "peak memory", "a user", "a subscription"),
    "idle": (
        "CPU share of a core",
        "worst virtual second",
        "mean virtual second",
        "transactions",
        "most transactions in a second",
        "memory held",
    ),
}

# CPU of a whole Synapse 1.163.2 (SQLite, two cores) under the same loads, per update and destination.
SYNAPSE_MS = {
    "5/s by 50 users to 10 destinations": 3.5,
    "20/s by 50 users to 10 destinations": 1.35,
    "100/s by 50 users to 10 destinations": 0.72,
    "200/s by 50 users to 10 destinations": 0.52,
    "5/s by 200 users to 50 destinations": 0.64,
    "20/s by 200 users to 50 destinations": 0.27,
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """What can be varied."""
    parser.add_argument(
        "reports", type=Path, nargs="+", metavar="DIR", help="where `all --json DIR` wrote; each a run"
    )
    parser.add_argument("--page", type=Path, default=PAGE, metavar="FILE")


def run(arguments: argparse.Namespace) -> int:
    """The exit code."""
    runs: dict[str, list[dict[str, Any]]] = {}
    for folder in arguments.reports:
        for file in sorted(folder.glob("*.json")):
            runs.setdefault(file.stem, []).append(json.loads(file.read_text("utf-8")))
    if not runs:
        raise CheckFailedError(f"{', '.join(map(str, arguments.reports))}: no reports")
    text = arguments.page.read_text("utf-8")
    reports = {name: best_of(reports) for name, reports in runs.items()}
    arguments.page.write_text(rewritten(text, reports), encoding="utf-8")
    return 0


def best_of(reports: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The first report, of each of its numbers the best: what disturbs a run only ever makes it slower."""
    cases = {
        case: {name: {"value": value, "unit": unit} for name, (value, unit) in measures.items()}
        for case, measures in best([numbers(report) for report in reports]).items()
    }
    return {**reports[0], "cases": cases, "runs": len(reports)}


def rewritten(text: str, reports: Mapping[str, Any]) -> str:
    """The page with each block replaced for which there is a report."""

    def replace(match: re.Match[str]) -> str:
        begin, name, end = match.groups()
        report = reports.get("load" if name == "synapse" else name)
        if report is None:
            return match.group(0)
        return (
            begin + "\n".join(_beside_synapse(report) if name == "synapse" else _table(report)) + "\n" + end
        )

    return _BLOCK.sub(replace, text)


def _table(report: Mapping[str, Any]) -> list[str]:
    cases: Mapping[str, Mapping[str, Any]] = report["cases"]
    columns = COLUMNS.get(report["scenario"])
    if columns is None:
        rows = [
            (case, name, measure) for case, measures in cases.items() for name, measure in measures.items()
        ]
        lines = [f"| {case} | {name} | {_cell(measure)} |" for case, name, measure in rows]
        return [_machine(report), "", "| | | |", "| --- | --- | ---: |", *lines]
    head = f"| | {' | '.join(columns)} |"
    rule = "| --- |" + " ---: |" * len(columns)
    lines, others = [], []
    for case, measures in cases.items():
        if any(column in measures for column in columns):
            lines.append(f"| {case} | {' | '.join(_cell(measures.get(column)) for column in columns)} |")
        else:
            words = ", ".join(f"{name} {_cell(measure)}" for name, measure in measures.items())
            others += ["", f"{case.capitalize()}: {words}."]
    return [_machine(report), "", head, rule, *lines, *others]


def _beside_synapse(report: Mapping[str, Any]) -> list[str]:
    """Each load beside Synapse's: of the same run where there was one, else as it was measured once."""
    lines = [
        "| load | Synapse, ms | fedpresence, ms | ratio |",
        "| --- | ---: | ---: | ---: |",
    ]
    cases = report["cases"]
    for case, once_ms in SYNAPSE_MS.items():
        if case in cases:
            ours_ms = _cpu_ms(cases[case])
            theirs_ms = _cpu_ms(cases[f"Synapse, {case}"]) if f"Synapse, {case}" in cases else once_ms
            lines.append(f"| {case} | {theirs_ms:.3g} | {ours_ms:.3g} | {theirs_ms / ours_ms:.1f} |")
    return lines


def _cpu_ms(measures: Mapping[str, Any]) -> float:
    value: float = measures["CPU per update and destination"]["value"]
    return value / 1000


def _machine(report: Mapping[str, Any]) -> str:
    machine = report["machine"]
    versions = f"Python {machine['python']}, Twisted {machine['twisted']}"
    runs = report.get("runs", 1)
    return f"{machine['cpu']}, {machine['cores']} cores, {versions}." + (
        f" Best of {runs} runs." if runs > 1 else ""
    )


def _cell(measure: Mapping[str, Any] | None) -> str:
    return "" if measure is None else f"{number(measure['value'])} {measure['unit']}".rstrip()
