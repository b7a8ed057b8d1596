"""All scenarios by name, in the order in which they are told of."""

import argparse
from types import ModuleType

from benchmarks import (
    counts,
    engine,
    herds,
    idle,
    latency,
    load,
    memory,
    neighbours,
    outage,
    receive,
    recovery,
    send,
)
from benchmarks.report import Report

SCENARIOS: dict[str, ModuleType] = {
    "latency": latency,
    "load": load,
    "send": send,
    "receive": receive,
    "memory": memory,
    "engine": engine,
    "counts": counts,
    "idle": idle,
    "herds": herds,
    "outage": outage,
    "recovery": recovery,
    "neighbours": neighbours,
}


def run_scenario(name: str, arguments: argparse.Namespace) -> Report:
    """Measure."""
    report: Report = SCENARIOS[name].run(arguments)
    return report


def scenario_options(name: str, words: list[str]) -> argparse.Namespace:
    """The options of a scenario, read from the command line or as they are by default."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks {name}")
    parser.add_argument("--smoke", action="store_true")
    SCENARIOS[name].add_options(parser)
    return parser.parse_args(words)
