import json

import pytest

from fedpresence.engine.subscription import EduKind
from fedpresence.ids import ServerName
from fedpresence.testing.rig.wirelog import WireLog, describe, encode

HERE, THERE, FAR = ServerName("here.test"), ServerName("there.test"), ServerName("far.test")
ALICE, BOB = "@alice:here.test", "@bob:there.test"


def _edu(edu_type: str, **content: object) -> dict[str, object]:
    return {"edu_type": edu_type, "content": content}


def test_entries_stand_in_the_order_of_sending() -> None:
    """An answer that comes late must not move its transaction behind those that came later."""
    wire = WireLog()
    first = wire.record(HERE, THERE, "1", b"{}", 1000)
    second = wire.record(THERE, HERE, "2", b"{}", 2000)

    wire.answered(second, 200, 2001)
    wire.answered(first, 503, 3000)

    entries = [(each.txn_id, each.status, each.answered_ms) for each in wire.transactions()]
    assert entries == [("1", 503, 3000), ("2", 200, 2001)]


def test_one_direction_can_be_asked_for() -> None:
    """Most tests look at what one server sent to another."""
    wire = WireLog()
    for origin, destination in [(HERE, THERE), (THERE, HERE), (HERE, FAR)]:
        wire.record(origin, destination, f"{origin} to {destination}", b"{}", 0)

    assert [each.destination for each in wire.transactions(HERE)] == [THERE, FAR]
    assert [each.origin for each in wire.transactions(destination=HERE)] == [THERE]
    assert len(wire.transactions(HERE, FAR)) == 1
    assert wire.transactions(FAR) == []


def test_an_entry_is_shown_as_the_contract_says() -> None:
    """Tests in other languages read this."""
    wire = WireLog()
    wire.answered(wire.record(HERE, THERE, "1", b'{"edus": []}', 5), 200, 7)
    wire.record(HERE, THERE, "1", b"no json \xff", 6, duplicate=True)

    answered, duplicate = (encode(each) for each in wire.transactions())

    assert answered == {
        "from": HERE,
        "to": THERE,
        "txn_id": "1",
        "sent_ms": 5,
        "answered_ms": 7,
        "status": 200,
        "body": {"edus": []},
    }
    assert duplicate["duplicate"] is True
    assert duplicate["status"] is None
    assert duplicate["body"] == "no json �"
    json.dumps(duplicate)


def test_the_oldest_entries_go_first_and_are_counted() -> None:
    """A rig that runs for days must not fill the memory."""
    wire = WireLog(max_entries=2)
    numbers = [wire.record(HERE, THERE, str(number), b"{}", number) for number in range(3)]

    wire.answered(numbers[0], 200, 5)
    wire.note(numbers[0], "gone")

    assert [each.txn_id for each in wire.transactions()] == ["1", "2"]
    assert (len(wire), wire.dropped) == (2, 1)
    assert wire.text().startswith("(1 earlier left out)\n")


def test_large_bodies_count_by_their_bytes() -> None:
    """A hundred thousand bodies of megabytes are more than anybody has."""
    wire = WireLog(max_bytes=100)

    for number in range(5):
        wire.record(HERE, THERE, str(number), b"x" * 40, number)

    assert [each.txn_id for each in wire.transactions()] == ["3", "4"]


def test_a_line_says_who_told_whom_what_and_what_became_of_it() -> None:
    """Whoever reads it has a failing test, and no time."""
    wire = WireLog()
    push = {"user_id": BOB, "presence": "online", "last_active_ago": 0, "currently_active": True}
    body = {"edus": [_edu("m.presence", push=[push])]}
    wire.answered(wire.record(THERE, HERE, "7", json.dumps(body).encode(), 1000), 200, 1250)
    lost = wire.record(HERE, THERE, "8", b'{"edus": []}', 3500)
    wire.note(lost, "delayed by 5 ms")
    wire.note(lost, "request lost")
    wire.record(HERE, THERE, "8", b"{}", 3600, duplicate=True)

    assert wire.text().splitlines() == [
        "      +0.000 s  there.test → here.test  7  200 after 250 ms: "
        "push @bob:there.test online (0 ms ago, active)",
        "      +2.500 s  here.test → there.test  8  no answer [delayed by 5 ms, request lost]: nothing",
        "      +2.600 s  here.test → there.test  8  once more: nothing",
    ]


def test_only_the_newest_lines_are_shown_where_asked_so() -> None:
    """A failing test's output must be readable."""
    wire = WireLog()
    for number in range(5):
        wire.record(HERE, THERE, str(number), b"{}", number)

    lines = wire.text(last=2).splitlines()

    assert lines[0] == "(3 earlier left out)"
    assert len(lines) == 3


def test_an_empty_log_is_empty_text() -> None:
    """Nothing sent is worth seeing, too."""
    wire = WireLog()
    assert wire.text() == ""

    wire.record(HERE, THERE, "1", b"{}", 0)
    wire.clear()

    assert wire.text() == ""


@pytest.mark.parametrize(
    ("edu", "said"),
    [
        (
            _edu("m.presence_invite", observer_user=ALICE, observed_user=BOB),
            "invite @alice:here.test → @bob:there.test",
        ),
        (
            _edu("m.presence_accept", observer_user=ALICE, observed_user=BOB),
            "accept @bob:there.test → @alice:here.test",
        ),
        (
            _edu("m.presence_deny", observer_user=ALICE, observed_user=BOB),
            "deny @bob:there.test → @alice:here.test",
        ),
        (
            _edu(EduKind.DROP.value, observer_user=ALICE, observed_user=BOB),
            "drop @alice:here.test → @bob:there.test",
        ),
        (_edu("m.presence_invite"), "invite ? → ?"),
        (_edu("m.presence", push=[], poll=[ALICE, BOB]), "poll @alice:here.test, @bob:there.test"),
        (_edu("m.presence", unpoll=[BOB]), "unpoll @bob:there.test"),
        (_edu("m.presence", poll=[BOB] * 10), "poll " + ", ".join([BOB] * 8) + " and 2 more"),
        (
            _edu("m.presence", push=[{"user_id": BOB, "presence": "offline", "status_msg": 'a "b"'}]),
            'push @bob:there.test offline ("a \\"b\\"")',
        ),
        (_edu("m.presence", push=[]), "an empty m.presence"),
        (_edu("m.typing"), "m.typing"),
    ],
)
def test_every_edu_in_words(edu: object, said: str) -> None:
    """The direction matters most: who asked, and who answered."""
    assert describe({"edus": [edu]}) == said


def test_many_pushes_are_cut_short() -> None:
    """A transaction may hold five thousand."""
    pushes = [{"user_id": BOB, "presence": "online"}] * 50

    said = describe({"edus": [_edu("m.presence", push=pushes)], "pdus": [{}, {}]})

    assert said.count("push @bob") == 8
    assert said.endswith("; 42 more pushes; 2 PDUs")


@pytest.mark.parametrize(
    "body",
    [
        None,
        [],
        {},
        {"edus": 1},
        {"edus": [1, {}, {"edu_type": 1}, {"edu_type": "m.presence", "content": 1}]},
        {"edus": [_edu("m.presence", push=1, poll=1, unpoll={})]},
        {"edus": [_edu("m.presence", push=[1, {}, {"user_id": {}, "status_msg": 5}], poll=[1])]},
        {"edus": [_edu("m.presence_invite", observer_user={}, observed_user=[])]},
    ],
)
def test_whatever_was_sent_can_be_described(body: object) -> None:
    """A hostile test's log must not fail itself."""
    assert describe(body)
