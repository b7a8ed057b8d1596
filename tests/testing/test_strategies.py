import contextlib
import doctest
import importlib
import json
import subprocess
import sys
from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings

from fedpresence.engine.events import PushesReceived
from fedpresence.errors import BadRequest
from fedpresence.ids import ServerName, is_compliant, parse_server_name, parse_user_id, server_of
from fedpresence.testing import strategies
from fedpresence.testing.builders import ALICE, BOB, CAROL, DAVE, HERE, NOW_MS, THERE, an_engine
from fedpresence.wire.edus import decode_edus
from fedpresence.wire.json import decode_json, encode_canonical
from fedpresence.wire.transactions import decode_transaction

A, B = ServerName("a.test"), ServerName("b.test")
quickly = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@quickly
@given(strategies.server_names())
def test_server_names_parse(name: str) -> None:
    """What is called a server name must be one."""
    assert parse_server_name(name) == name


@quickly
@given(strategies.user_ids())
def test_user_ids_parse_and_may_be_shown(user_id: str) -> None:
    """They are users whom a receiver must honour."""
    assert is_compliant(parse_user_id(user_id))


@quickly
@given(strategies.broken_user_ids())
def test_broken_user_ids_are_no_users(value: object) -> None:
    """They are what a receiver must leave out."""
    with contextlib.suppress(BadRequest):
        assert not is_compliant(parse_user_id(value))


@quickly
@given(strategies.push_items(A))
def test_push_items_are_understood_in_full(item: dict[str, object]) -> None:
    """Nothing of a good item is cut off or replaced."""
    (edu,), skipped = decode_edus([{"edu_type": "m.presence", "content": {"push": [item]}}], A)

    assert isinstance(edu, PushesReceived)
    assert skipped == ()
    (push,) = edu.pushes
    assert (push.user_id, push.state.value) == (item["user_id"], item["presence"])
    assert push.last_active_ago == item["last_active_ago"]
    assert push.status_msg == item.get("status_msg")
    assert push.currently_active == item.get("currently_active", False)


@pytest.mark.parametrize("name", ["presence", "invite", "accept", "deny", "drop"])
def test_edus_of_each_type_are_honoured(name: str) -> None:
    """A receiver that skips one of these breaks a rule."""
    make = getattr(strategies, f"{name}_edus")

    @quickly
    @given(make(A, B))
    def holds(edu: dict[str, object]) -> None:
        received, skipped = decode_edus([edu], A)
        assert received
        assert skipped == ()
        encode_canonical(edu)

    holds()


@quickly
@given(strategies.broken_edus(A, B) | strategies.broken_presence_edus(A) | strategies.broken_list_edus(A, B))
def test_broken_edus_are_left_out(edu: object) -> None:
    """Each breaks a rule, and really does."""
    received, skipped = decode_edus([edu], A)

    assert received == ()
    assert skipped


@quickly
@given(strategies.transactions(A, B))
def test_transactions_are_taken_whole(body: dict[str, object]) -> None:
    """A receiver that refuses one of these breaks a rule."""
    assert decode_json(encode_canonical(body)) == body
    assert decode_transaction(body, A).skipped == ()


@quickly
@given(strategies.refused_transactions(A, B))
def test_refused_transactions_are_refused(body: object) -> None:
    """Each envelope breaks a rule, and really does."""
    with pytest.raises(BadRequest) as refused:
        decode_transaction(body, A)

    assert refused.value.status in (400, 403)


@quickly
@given(strategies.hostile_transactions(A, B))
def test_hostile_transactions_are_json(body: object) -> None:
    """They get past the parser: what falls over them is behind it."""
    decoded = decode_json(json.dumps(body).encode())
    with contextlib.suppress(BadRequest):
        decode_transaction(decoded, A)


@quickly
@given(strategies.hostile_bodies())
def test_hostile_bodies_are_no_json(body: bytes) -> None:
    """They must not get past the parser (Z-2)."""
    with pytest.raises(BadRequest):
        decode_json(body)


@quickly
@given(strategies.happenings())
def test_stories_are_for_two_servers_and_within_their_rights(story: list[strategies.Happening]) -> None:
    """An engine may refuse a list change; it falls over nothing, and sends nothing to itself."""
    users = {HERE: (ALICE, CAROL), THERE: (BOB, DAVE)}
    engines = {name: an_engine(name, mine) for name, mine in users.items()}
    now_ms = NOW_MS
    for happening in story:
        now_ms += happening.after_ms
        try:
            effects = engines[happening.server_name].receive(happening.event, now_ms)
        except BadRequest:
            continue
        destinations = [getattr(effect, "destination", None) for effect in effects]
        assert happening.server_name not in destinations


def test_stories_have_every_kind_of_event() -> None:
    """What is never drawn is never tested."""
    seen: Counter[str] = Counter()

    @settings(max_examples=30, deadline=None, database=None, derandomize=True)
    @given(strategies.happenings())
    def count(story: list[strategies.Happening]) -> None:
        seen.update(type(happening.event).__name__ for happening in story)

    count()
    assert {"PresenceSet", "ListChanged", "StreamOpened", "TransactionReceived", "RoomMembersSet"} <= set(
        seen
    )


def test_stories_need_two_servers() -> None:
    """A wrong list of users is said at once, not by an empty story."""
    with pytest.raises(ValueError, match="two servers"):
        strategies.happenings([ALICE, CAROL])


@quickly
@given(strategies.received_edus(THERE, [BOB], [ALICE]))
def test_received_edus_are_within_their_rights(edu: object) -> None:
    """E:8: whoever wants forgeries makes them on the wire."""
    observer, observed = getattr(edu, "observer", None), getattr(edu, "observed", None)
    if observer is not None and observed is not None:
        assert {server_of(observer), server_of(observed)} == {HERE, THERE}


def test_check_finds_what_does_not_hold() -> None:
    """A quick look that never complains would be worth nothing."""
    strategies.check(strategies.user_ids("a.test"), lambda user_id: user_id[0] == "@")

    with pytest.raises(AssertionError, match="does not hold for '@"):
        strategies.check(strategies.user_ids("a.test"), lambda user_id: user_id[0] == "#")


@pytest.mark.parametrize("module", ["", ".wire", ".events"])
def test_the_examples_run(module: str) -> None:
    """An example that is wrong is worse than none."""
    result = doctest.testmod(importlib.import_module(f"fedpresence.testing.strategies{module}"))

    assert (result.failed, result.attempted > 0) == (0, True)


def test_nothing_else_imports_hypothesis() -> None:
    """Who does not ask for strategies needs no hypothesis."""
    program = (
        "import sys, fedpresence.testing.builders, fedpresence.testing; print('hypothesis' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "False"
