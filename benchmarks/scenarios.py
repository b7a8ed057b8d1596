"""The scenarios by name, in the order in which they are told of.

`all` leaves out those that need a Synapse.
"""

import argparse
from types import ModuleType

from benchmarks import (
    beside,
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

NEED_SYNAPSE: dict[str, ModuleType] = {"beside": beside}
ALL = SCENARIOS | NEED_SYNAPSE


def run_scenario(name: str, arguments: argparse.Namespace) -> Report:
    """Measure."""
    report: Report = ALL[name].run(arguments)
    return report


def scenario_options(name: str, words: list[str]) -> argparse.Namespace:
    """The options of a scenario, read from the command line or as they are by default."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks {name}")
    parser.add_argument("--smoke", action="store_true")
    ALL[name].add_options(parser)
    return parser.parse_args(words)
