import json
from pathlib import Path

from benchmarks.__main__ import main


def test_the_latency_benchmark_measures_two_real_servers(tmp_path: Path) -> None:
    """A benchmark nobody runs rots; this one also shows that news arrives within its batch window."""
    file = tmp_path / "latency.json"

    code = main(["latency", "--smoke", "--json", str(file)])

    assert code == 0
    cases = json.loads(file.read_text("utf-8"))["cases"]
    assert len(cases) == 2
    for measures in cases.values():
        assert 0 < measures["PUT there to /sync here p50"]["value"] < 10_000


def test_the_engine_benchmark_checks_what_it_measures(tmp_path: Path) -> None:
    """Numbers of an engine that tells too much or too little are worth nothing."""
    file = tmp_path / "engine.json"

    code = main(["engine", "--smoke", "--json", str(file)])

    assert code == 0
    assert len(json.loads(file.read_text("utf-8"))["cases"]) == 3
