from random import Random

import pytest

from fedpresence.errors import BadRequest
from fedpresence.testing.rig.faults import MAX_DELAY_MS, NO_FAULTS, Fate, Faults, decode_faults


def test_nothing_named_is_a_path_that_works() -> None:
    """`{}` heals."""
    assert decode_faults({}) == NO_FAULTS == Faults()


def test_every_fault_can_be_named() -> None:
    """A fault that the control API cannot set might as well not exist."""
    body = {
        "down": True,
        "latency_ms": 1,
        "drop_request": 0.5,
        "drop_response": 1,
        "duplicate": 0,
        "reorder": 1.0,
        "status": 503,
        "garbage": True,
        "hang": True,
        "trickle_ms": MAX_DELAY_MS,
    }

    assert decode_faults(body) == Faults(True, 1, 0.5, 1, 0, 1.0, 503, True, True, MAX_DELAY_MS)


def test_no_status_may_be_said() -> None:
    """Whoever writes all keys down has to write something."""
    assert decode_faults({"status": None}) == NO_FAULTS


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("lag", 1),
        ("down", 1),
        ("down", None),
        ("latency_ms", -1),
        ("latency_ms", 1.0),
        ("latency_ms", True),
        ("latency_ms", MAX_DELAY_MS + 1),
        ("drop_request", 1.1),
        ("drop_response", -0.1),
        ("duplicate", True),
        ("duplicate", float("nan")),
        ("reorder", "1"),
        ("status", 199),
        ("status", 600),
        ("status", "503"),
        ("status", True),
        ("garbage", "yes"),
        ("hang", 0),
        ("trickle_ms", None),
    ],
)
def test_a_complaint_names_the_key(key: str, value: object) -> None:
    """A typing error in a test must not look like a path without faults."""
    with pytest.raises(BadRequest) as caught:
        decode_faults({"down": False, key: value})

    assert (caught.value.status, caught.value.errcode) == (400, "M_BAD_JSON")
    assert caught.value.message.startswith(f"{key}: ")


def test_faults_are_an_object() -> None:
    """A list is somebody's mistake."""
    with pytest.raises(BadRequest):
        decode_faults(["down"])


def test_chances_of_one_are_certain() -> None:
    """Most tests want a fault to happen, not to be likely."""
    faults = Faults(drop_request=1, drop_response=1, duplicate=1, reorder=1)

    assert faults.fate(Random(1), is_transaction=True) == Fate(True, True, True, True)
    assert faults.fate(Random(1), is_transaction=False) == Fate(True, False, True, True)


def test_a_chance_happens_as_often_as_it_says() -> None:
    """Half is half."""
    random, faults = Random(1), Faults(drop_request=0.5)

    lost = sum(faults.fate(random, is_transaction=True).is_lost for _ in range(1000))

    assert 450 < lost < 550


def test_a_path_without_chances_draws_none() -> None:
    """A path that is healed must not change what chance does to the others."""
    random = Random(1)
    before = random.getstate()

    Faults(latency_ms=5, status=500).fate(random, is_transaction=True)

    assert random.getstate() == before


@pytest.mark.parametrize(
    ("faults", "transactions", "others"),
    [
        (NO_FAULTS, False, False),
        (Faults(status=503), True, True),
        (Faults(status=302), True, True),
        (Faults(status=202), True, False),
        (Faults(garbage=True), True, True),
        (Faults(garbage=True, status=200), True, True),
    ],
)
def test_what_is_answered_on_the_way(faults: Faults, transactions: bool, others: bool) -> None:
    """A success is made up for transactions alone: without keys nothing could be sent at all."""
    assert faults.answers_itself(is_transaction=True) is transactions
    assert faults.answers_itself(is_transaction=False) is others
