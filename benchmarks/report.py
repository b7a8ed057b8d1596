"""What was measured, as a table for people and as JSON for comparing.

Always true: every number has a unit; nothing names the machine or its owner, only what it is made of.
"""

import os
import platform
import ssl
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from fedpresence import __version__


class CheckFailedError(Exception):
    """The server was fast, maybe, but its answers were wrong."""


@dataclass(frozen=True, slots=True)
class Measure:
    """One number."""

    name: str
    value: float
    unit: str


@dataclass(frozen=True, slots=True)
class Case:
    """Numbers that were taken together, in the order in which they are shown."""

    name: str
    measures: tuple[Measure, ...]


@dataclass(frozen=True, slots=True)
class Report:
    """One run of a scenario."""

    scenario: str
    parameters: Mapping[str, object]
    cases: tuple[Case, ...]


def check(holds: bool, words: str) -> None:
    """CheckFailedError with `words` where something does not hold: a wrong answer has no speed."""
    if not holds:
        raise CheckFailedError(words)


def latencies(name: str, seconds: Sequence[float]) -> tuple[Measure, ...]:
    """Median, 99th percentile and maximum, in milliseconds."""
    milliseconds = [1000 * s for s in seconds]
    cuts = statistics.quantiles(milliseconds, n=100, method="inclusive")
    return (
        Measure(f"{name} p50", cuts[49], "ms"),
        Measure(f"{name} p99", cuts[98], "ms"),
        Measure(f"{name} max", max(milliseconds), "ms"),
    )


def machine() -> dict[str, object]:
    """What the numbers depend on beside the program."""
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "openssl": ssl.OPENSSL_VERSION,
        "twisted": version("Twisted"),
        "fedpresence": __version__,
    }


def as_json(report: Report) -> dict[str, object]:
    """The report as a JSON value."""
    return {
        "scenario": report.scenario,
        "machine": machine(),
        "parameters": dict(report.parameters),
        "cases": {
            case.name: {m.name: {"value": m.value, "unit": m.unit} for m in case.measures}
            for case in report.cases
        },
    }


def as_table(report: Report) -> str:
    """The report as text."""
    facts = machine()
    lines = [
        f"{report.scenario}: " + ", ".join(f"{name} {value}" for name, value in report.parameters.items()),
        f"{facts['cpu']}, {facts['cores']} cores (load {facts['load']}), Python {facts['python']}, "
        f"Twisted {facts['twisted']}",
    ]
    width = max(len(measure.name) for case in report.cases for measure in case.measures)
    for case in report.cases:
        lines += ["", case.name]
        lines += [f"  {m.name:<{width}}  {number(m.value):>12} {m.unit}" for m in case.measures]
    return "\n".join(lines)


def number(value: float) -> str:
    """As text: three digits that count, or all that stand before the point."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:,.3g}"


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()
