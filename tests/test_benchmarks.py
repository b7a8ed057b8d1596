import json
import os
import re
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from benchmarks.__main__ import main
from benchmarks.clients import MOMENT, whole_answer
from benchmarks.comparing import best
from benchmarks.counting import TASK_CLOCK, PerfCounter
from benchmarks.destinations import Arrivals
from benchmarks.joining import signed_join
from benchmarks.page import PAGE, best_of, rewritten
from benchmarks.peers import Peer
from benchmarks.population import populate
from benchmarks.receivers import most_within
from benchmarks.scenarios import SCENARIOS
from fedpresence.engine.effects import Durable, SaveObservedRow, SaveObserverRow
from fedpresence.ids import ServerName, UserID
from fedpresence.storage.changes import Changes
from fedpresence.storage.migrations import migrate, newest_schema
from fedpresence.storage.tables import read_stored, write_changes
from fedpresence.testing.synapse import NoSynapse, installed_synapse


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


@pytest.mark.parametrize(
    ("scenario", "number"),
    [
        ("herds", "most transactions in a second"),
        ("outage", "connections tried, each destination"),
        ("recovery", "worst"),
        ("neighbours", "change until the others hear of it p99"),
    ],
)
def test_the_benchmarks_in_virtual_time_check_what_is_promised(
    scenario: str, number: str, tmp_path: Path
) -> None:
    """Nobody expires, nothing owed is lost, recovery is in time, nobody delays another; or it ends with 1."""
    file = tmp_path / "report.json"

    code = main([scenario, "--smoke", "--json", str(file)])

    assert code == 0
    cases: dict[str, Any] = json.loads(file.read_text("utf-8"))["cases"]
    assert any(case.get(number, {}).get("value", 0) > 0 for case in cases.values())


def test_the_most_in_any_second_is_found_wherever_the_second_begins() -> None:
    """Counted by whole seconds of the clock, a herd that straddles two would look half as large."""
    assert most_within([0, 900, 950, 1000, 1050, 1899, 2000], 1000) == 5
    assert most_within([]) == 0


def test_a_paced_load_arrives_everywhere_signed_and_in_time(tmp_path: Path) -> None:
    """The figures beside other homeservers come from here: each update must really have been sent."""
    file = tmp_path / "load.json"

    code = main(["load", "--smoke", "--json", str(file)])

    assert code == 0
    cases = json.loads(file.read_text("utf-8"))["cases"]
    slow = cases["20/s by 10 users to 3 destinations"]
    assert slow["updates"]["value"] == 10
    assert 0 < slow["PUT until that or newer is there p99"]["value"] < 10_000


def test_an_update_that_was_overtaken_counts_until_a_newer_one_is_there() -> None:
    """Else a server that lets most updates wait and sends the last would look fastest of all."""
    arrivals = Arrivals()
    arrivals.add(
        "there.test", {"user_id": "@a:here.test", "status_msg": f"{MOMENT}3000000000"}, 4_000_000_000
    )
    arrivals.add("there.test", {"user_id": "@a:here.test", "status_msg": "before"}, 4_500_000_000)
    arrivals.add(
        "there.test", {"user_id": "@a:here.test", "status_msg": f"{MOMENT}5000000000"}, 5_500_000_000
    )

    found = arrivals.latencies({"@a:here.test": [1_000_000_000, 3_000_000_000, 5_000_000_000]})

    assert found == {"pushes": [1.0, 0.5], "updates": [3.0, 1.0, 0.5]}


def test_counts_say_what_each_piece_of_work_takes(tmp_path: Path) -> None:
    """Bounds far above what is: they catch a loop over everything, not a function more."""
    file = tmp_path / "counts.json"

    code = main(["counts", "--smoke", "--by", "calls", "--json", str(file)])

    assert code == 0
    cases = json.loads(file.read_text("utf-8"))["cases"]
    assert 0 < cases["sending"]["a PUT that nobody observes"]["value"] < 3_000
    assert 0 < cases["receiving"]["a transaction with one push"]["value"] < 5_000
    assert 0 < cases["receiving"]["each push more"]["value"] < 400


def test_the_system_counts_for_a_process_what_it_lets_be_counted() -> None:
    """Instructions are counted by the same call; a virtual machine may only have this event."""
    try:
        counter = PerfCounter(os.getpid(), TASK_CLOCK, "ns")
    except OSError as error:
        pytest.skip(f"this machine counts nothing: {error}")

    began = counter.read()
    sum(range(100_000))

    assert counter.read() > began
    counter.close()


def test_all_goes_on_after_a_scenario_that_fails_and_says_so(tmp_path: Path) -> None:
    """An hour of measuring is not lost to one wrong answer."""
    code = main(["all", "--smoke", "--only", "idle,engine", "--json", str(tmp_path / "reports")])

    assert code == 0
    assert {file.name for file in (tmp_path / "reports").iterdir()} == {"idle.json", "engine.json"}


def test_a_profile_is_of_the_scenario(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What runs in this process is profiled here."""
    code = main(["profile", "engine", "--smoke", "--out", str(tmp_path / "profile"), "--sort", "cumulative"])

    assert code == 0
    assert (tmp_path / "profile" / "engine.pstats").exists()
    assert "fan_out" in capsys.readouterr().out


def test_two_revisions_are_compared_by_the_best_of_each() -> None:
    """What disturbs a run makes it slower: the largest rate and the least cost are nearest to the truth."""
    runs = [
        {"case": {"PUTs": (10.0, "/s"), "CPU": (5.0, "ms"), "transactions": (1.0, "")}},
        {"case": {"PUTs": (12.0, "/s"), "CPU": (7.0, "ms"), "transactions": (3.0, "")}},
    ]

    assert best(runs) == {"case": {"PUTs": (12.0, "/s"), "CPU": (5.0, "ms"), "transactions": (2.0, "")}}


def test_the_working_tree_is_compared_from_a_copy(capsys: pytest.CaptureFixture[str]) -> None:
    """Each side runs its own files, whatever is installed."""
    code = main(["compare", "WORK", "WORK", "engine", "--runs", "1", "--smoke"])

    assert code == 0
    assert "activity while currently active" in capsys.readouterr().out


def test_an_unknown_revision_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    """With git's own complaint, even where there is no repository: an unpacked archive runs too."""
    code = main(["compare", "no-such-revision", "WORK", "engine", "--smoke"])

    assert code == 1
    assert "compare failed: revision no-such-revision: " in capsys.readouterr().err


def test_a_missing_git_is_said(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that runs the benchmarks need not have it."""
    monkeypatch.setenv("PATH", "")

    code = main(["compare", "HEAD", "WORK", "engine", "--smoke"])

    assert code == 1
    assert "compare failed: revision HEAD: " in capsys.readouterr().err


def test_an_answer_is_whole_when_its_length_or_its_last_chunk_has_come() -> None:
    """Homeservers answer either way, and several answers may come at once."""
    plain = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
    chunked = b"HTTP/1.1 403 No\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n1\r\n}\r\n0\r\n\r\n"

    assert whole_answer(plain + chunked) == ("200", b"{}", chunked)
    assert whole_answer(chunked + plain) == ("403", b"{}", plain)
    assert all(whole_answer(answer[:n]) is None for answer in (plain, chunked) for n in range(len(answer)))


def test_the_page_takes_the_figures_of_a_run_and_keeps_its_words() -> None:
    """Numbers that are copied by hand are those of another machine, sooner or later."""
    machine = {"cpu": "A core", "cores": 2, "python": "3.11.7", "twisted": "26.10.0"}
    measures = {"CPU per update and destination": {"value": 135.0, "unit": "µs"}}
    load = {
        "scenario": "load",
        "machine": machine,
        "cases": {"20/s by 50 users to 10 destinations": measures},
    }
    page = (
        "Words.\n<!-- figures: synapse -->\nold\n<!-- end -->\n<!-- figures: send -->\nkept\n<!-- end -->\n"
    )

    written = rewritten(page, {"load": load})

    assert written.startswith("Words.\n")
    assert "| 20/s by 50 users to 10 destinations | 1.35 | 0.135 | 10.0 |" in written
    assert "old" not in written
    assert "kept" in written


def test_of_several_runs_the_page_has_the_best() -> None:
    """A machine that others use too is slow for some minutes, and never too fast."""
    runs = [
        {"scenario": "load", "cases": {"20/s": {"CPU": {"value": cpu, "unit": "µs"}}}} for cpu in (9.0, 7.0)
    ]

    assert best_of(runs)["cases"] == {"20/s": {"CPU": {"value": 7.0, "unit": "µs"}}}
    assert best_of(runs)["runs"] == 2


def test_every_block_of_the_page_is_some_scenarios() -> None:
    """A block that nothing writes would keep old numbers for ever."""
    names = re.findall(r"<!-- figures: (\w+) -->", PAGE.read_text("utf-8"))

    assert names
    assert set(names) <= {*SCENARIOS, "synapse"}


def test_a_join_is_signed_over_its_redacted_form() -> None:
    """A homeserver drops what is not; the hash covers what redaction takes away."""
    peer = Peer("there.test")
    event = {
        "type": "m.room.member",
        "room_id": "!room:here.test",
        "sender": "@observer:there.test",
        "state_key": "@observer:there.test",
        "content": {"membership": "join", "displayname": "Observer"},
        "origin": "there.test",
        "unsigned": {"age": 1},
    }

    signed = signed_join(peer, event)

    redacted = {key: value for key, value in signed.items() if key != "signatures"}
    redacted["content"] = {"membership": "join"}
    assert signed["signatures"] == peer.sign(redacted)["signatures"]
    assert "unsigned" not in signed


def test_a_synapse_with_us_and_one_without_carry_the_same_load(tmp_path: Path) -> None:
    """Messages and to-device messages arrive under it, or the run ends with 1."""
    try:
        installed_synapse()
    except NoSynapse as error:
        pytest.skip(f"no Synapse to measure beside: {error}")
    file = tmp_path / "beside.json"

    code = main(["beside", "--smoke", "--json", str(file)])

    assert code == 0
    assert len(json.loads(file.read_text("utf-8"))["cases"]) == 2


def test_a_population_is_what_the_engine_would_have_stored(tmp_path: Path) -> None:
    """It is written by statements of its own: rows that a server never writes would measure nothing."""
    alice, bob, carol = UserID("@alice:here.test"), UserID("@bob:here.test"), UserID("@carol:there.test")
    wanted = [(alice, bob), (bob, carol), (carol, alice)]

    populate(tmp_path / "made.db", ServerName("here.test"), users=[alice, bob], pairs=wanted)
    made = sqlite3.connect(tmp_path / "made.db")
    pairs = read_stored(made.cursor()).pairs

    mine, theirs = list(pairs.observer_rows()), list(pairs.observed_rows())
    assert [(row.observer, row.observed) for row in mine] == [(alice, bob), (bob, carol)]
    assert [(row.observer, row.observed) for row in theirs] == [(carol, alice), (alice, bob)]
    assert not pairs.restless
    again = sqlite3.connect(tmp_path / "again.db", isolation_level=None)
    migrate(again, newest_schema())
    saved: list[Durable] = [*map(SaveObserverRow, mine), *map(SaveObservedRow, theirs)]
    write_changes(again.cursor(), Changes.of(saved))
    for table in ("observer_rows", "observed_rows"):
        rows = (
            "SELECT a.user_id, b.user_id, stage, created_ms, changed_ms, confirmed_ms, generation, owed "
            f"FROM {table} JOIN names AS a ON a.id = observer JOIN names AS b ON b.id = observed "
            "ORDER BY 1, 2"
        )
        assert made.execute(rows).fetchall() == again.execute(rows).fetchall()
