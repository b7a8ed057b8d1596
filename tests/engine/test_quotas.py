import pytest

from fedpresence.engine.effects import Notice
from fedpresence.engine.events import UserAdded, UserDeactivated
from fedpresence.engine.quotas import (
    MAX_ATTEMPTS,
    NOTICES_PER_ORIGIN,
    OPEN_PER_OBSERVED,
    OPEN_PER_OBSERVER,
    OPEN_PER_ORIGIN,
    InviteQuotas,
)
from fedpresence.engine.schedules import REQUEST_LIFE_MS
from fedpresence.engine.settings import DAY_MS, EngineSettings, InvitePolicy
from fedpresence.engine.subscription import EduKind, ObservedStage
from fedpresence.engine.world import World
from fedpresence.ids import ServerName, UserID, server_of
from fedpresence.testing.builders import (
    ALICE,
    BOB,
    CAROL,
    HERE,
    NOW_MS,
    THERE,
    a_drop,
    an_invite,
    grant,
)
from tests.engine.costs import calls_of
from tests.engine.side import Side, of_type, told


def somebody(number: int, server: ServerName = THERE) -> UserID:
    """One of many users of a server."""
    return UserID(f"@{number}:{server}")


def nobody(number: int) -> UserID:
    """A local user who does not exist."""
    return UserID(f"@nobody{number}:here.test")


def requests(side: Side, observed: UserID = ALICE) -> list[UserID]:
    """Who has asked to observe a user."""
    return [pair.user_id for pair in side.engine.invites_of(observed)]


def is_heard(side: Side, observer: UserID = BOB, observed: UserID = CAROL) -> bool:
    """Whether an invite becomes a request."""
    side.hear(an_invite(observer=observer, observed=observed, origin=server_of(observer)))
    row = side.observed_row(observed, observer)
    return row is not None and row.stage is ObservedStage.REQUESTED


# --- per observer: the same whoever exists ------------------------------------------------------------


def test_one_observer_may_have_a_hundred_open_requests() -> None:
    """E:4 step 6. What is beyond is ignored; what is repeated is not one more."""
    side = Side()
    side.hear(*(an_invite(observed=nobody(number)) for number in range(OPEN_PER_OBSERVER - 1)))
    side.hear(*(an_invite(observed=nobody(number)) for number in range(OPEN_PER_OBSERVER - 1)))

    assert is_heard(side, observed=ALICE)
    assert not is_heard(side, observed=CAROL)


def an_attacker_counts(users: tuple[UserID, ...], target: UserID, answer: str, wait_ms: int) -> int:
    """How many of an observer's invites still get through behind one for `target`."""
    side = Side(users=(ALICE, CAROL, *users))
    if answer == "is deactivated":
        side.do(UserDeactivated(CAROL))
    elif answer == "has blocked":
        side.change(CAROL, deny=(BOB,))
    side.hear(an_invite(observed=target))
    side.wait(wait_ms)
    helpers = [nobody(number) for number in range(OPEN_PER_OBSERVER + 1)]
    side.do(*(UserAdded(user_id) for user_id in helpers))
    side.hear(*(an_invite(observed=user_id) for user_id in helpers))
    return sum(BOB in requests(side, user_id) for user_id in helpers)


def test_a_full_quota_does_not_tell_who_exists() -> None:
    """Z-7: an attacker with accounts here counts how many invites get through, now or days later."""
    for wait_ms in (0, 2 * DAY_MS, 90 * DAY_MS):
        counts = {
            an_attacker_counts((), UserID("@maybe:here.test"), "does not exist", wait_ms),
            an_attacker_counts((), CAROL, "is deactivated", wait_ms),
            an_attacker_counts((), CAROL, "has blocked", wait_ms),
            an_attacker_counts((), CAROL, "has not answered", wait_ms),
        }
        assert counts == {OPEN_PER_OBSERVER - 1}


@pytest.mark.parametrize("observed", [ALICE, nobody(OPEN_PER_OBSERVER)])
def test_a_drop_gives_the_place_back_a_day_later_whoever_exists(observed: UserID) -> None:
    """Who asks and gives up all day long would have no end of names stored, each for good."""
    side = Side()
    side.hear(*(an_invite(observed=nobody(number)) for number in range(OPEN_PER_OBSERVER - 1)))
    side.hear(an_invite(observed=observed))
    side.hear(a_drop(observed=observed))

    side.wait(DAY_MS - 1)
    assert not is_heard(side)

    side.wait(1)
    assert is_heard(side)


def test_who_asks_again_after_a_drop_takes_no_second_place() -> None:
    """People change their minds, and a full quota is no reason to hear only the drop."""
    side = Side()
    for _ in range(OPEN_PER_OBSERVER + 1):
        side.hear(an_invite(observed=ALICE))
        side.hear(a_drop(observed=ALICE))

    assert is_heard(side, observed=ALICE)
    assert is_heard(side, observed=CAROL)


def test_a_withdrawn_request_that_came_back_stays_open() -> None:
    """The day of the drop is over, the request is not: it ends as every other."""
    side = Side()
    side.hear(*(an_invite(observed=nobody(number)) for number in range(OPEN_PER_OBSERVER)))
    side.hear(a_drop(observed=nobody(3)))
    side.hear(an_invite(observed=nobody(3)))

    side.wait(2 * DAY_MS)

    assert not is_heard(side)


def test_an_answer_gives_the_place_back() -> None:
    """Somebody who is accepted everywhere may go on asking."""
    side = Side()
    side.hear(an_invite(observed=ALICE))
    side.hear(*(an_invite(observed=nobody(number)) for number in range(OPEN_PER_OBSERVER - 1)))
    assert not is_heard(side)

    side.change(ALICE, accept=(BOB,))

    assert is_heard(side)


def test_a_grant_by_policy_gives_the_place_back() -> None:
    """It was answered."""
    side = Side(invite_policy=InvitePolicy.ACCEPT)
    side.hear(an_invite(observed=ALICE))
    side.hear(*(an_invite(observed=nobody(number)) for number in range(OPEN_PER_OBSERVER - 1)))

    side.hear(an_invite(observed=CAROL))

    assert [entry.user_id for entry in side.engine.observers_of(CAROL)] == [BOB]


def test_a_granted_observer_is_heard_beyond_any_quota() -> None:
    """A check must get its answer."""
    side = Side()
    side.hear(an_invite(observed=ALICE))
    side.change(ALICE, accept=(BOB,))
    side.sends_and_is_heard()
    side.hear(*(an_invite(observed=nobody(number)) for number in range(OPEN_PER_OBSERVER + 1)))

    side.hear(an_invite(observed=ALICE))

    assert [edu.kind for edu in side.owed] == [EduKind.ACCEPT]


def test_a_restart_does_not_tell_who_exists() -> None:
    """Z-7: only requests to users who exist are stored; to count these again would tell the two apart."""

    def is_heard_after_a_restart(observed: UserID) -> bool:
        side = Side()
        side.hear(an_invite(observed=observed))
        side.restart()
        side.hear(*(an_invite(observed=nobody(number)) for number in range(OPEN_PER_OBSERVER - 1)))
        return is_heard(side, observed=CAROL)

    assert is_heard_after_a_restart(ALICE)
    assert is_heard_after_a_restart(UserID("@maybe:here.test"))


# --- per origin ---------------------------------------------------------------------------------------


def quotas(max_attempts: int = MAX_ATTEMPTS) -> InviteQuotas:
    """Quotas alone: nobody has been asked yet."""
    return InviteQuotas(World(EngineSettings(HERE), NOW_MS), max_attempts)


def test_one_origin_may_have_ten_thousand_open_requests() -> None:
    """E:4 step 6: users cost a server nothing; other servers are not touched."""
    limits = quotas()
    for number in range(OPEN_PER_ORIGIN):
        assert limits.admit(somebody(number), ALICE, NOW_MS)

    assert not limits.admit(somebody(OPEN_PER_ORIGIN), ALICE, NOW_MS)
    assert limits.admit(somebody(0, ServerName("other.test")), ALICE, NOW_MS)


def test_attempts_end_with_the_life_of_a_request() -> None:
    """S:T-18: nobody waits for an answer longer than that."""
    limits = quotas()
    for number in range(OPEN_PER_OBSERVER):
        limits.admit(BOB, nobody(number), NOW_MS)

    assert not limits.admit(BOB, ALICE, NOW_MS + REQUEST_LIFE_MS - 1)
    assert limits.admit(BOB, ALICE, NOW_MS + REQUEST_LIFE_MS)


def test_many_origins_cannot_shut_out_everybody() -> None:
    """A peer may own any number of names: what is full forgets its oldest, and takes the next."""
    limits = quotas(max_attempts=1_000)
    for number in range(1_000):
        limits.admit(UserID(f"@x:{number}.evil.test"), ALICE, NOW_MS)

    assert limits.admit(BOB, ALICE, NOW_MS)
    assert limits.admit(BOB, CAROL, NOW_MS)


# --- per observed user --------------------------------------------------------------------------------


def test_a_flood_of_one_origin_stops_at_a_hundred() -> None:
    """Z-13: the newest of the most demanding origin gives way; in a flood that is the newcomer."""
    side = Side()
    for number in range(OPEN_PER_OBSERVED):
        side.hear(an_invite(observer=somebody(number)))
    before = requests(side)

    effects = side.hear(an_invite(observer=somebody(1000)))

    assert (requests(side), told(effects)) == (before, [])


def test_a_flood_of_one_origin_does_not_crowd_others_out() -> None:
    """Z-13: whoever comes from elsewhere takes the place of the flood's newest."""
    side = Side()
    for number in range(OPEN_PER_OBSERVED):
        side.now_ms += 1
        side.hear(an_invite(observer=somebody(number)))
    other = ServerName("other.test")

    side.hear(an_invite(observer=UserID("@erin:other.test"), origin=other), origin=other)

    assert UserID("@erin:other.test") in requests(side)
    assert somebody(OPEN_PER_OBSERVED - 1) not in requests(side)
    assert len(requests(side)) == OPEN_PER_OBSERVED


def test_a_flood_of_many_origins_does_not_crowd_the_first_out() -> None:
    """Names are free: those who were there keep their place, and nobody is told of the rest."""
    side = Side()
    for number in range(OPEN_PER_OBSERVED + 20):
        origin = ServerName(f"{number}.evil.test")
        effects = side.hear(an_invite(observer=UserID(f"@x:{origin}"), origin=origin), origin=origin)

    assert of_type(effects, Notice) == []
    assert UserID("@x:0.evil.test") in requests(side)
    assert len(requests(side)) == OPEN_PER_OBSERVED


def test_an_invite_costs_the_same_however_many_observe_the_user_or_asked_before() -> None:
    """A hundred of one transaction took 20 ms, and 200 ms for a user with ten thousand observers.

    Whose next request is that slow exists, and is popular (Z-7).
    """

    def cost(observers: int, *, open_requests: int) -> int:
        side = Side()
        for number in range(observers):
            grant(side.engine, observer=somebody(number), observed=ALICE, now_ms=side.now_ms)
        for number in range(1000, 1000 + open_requests):
            side.hear(an_invite(observer=somebody(number)))
        return calls_of(lambda: side.hear(an_invite(observer=somebody(5000))))

    assert cost(1, open_requests=1) == cost(50, open_requests=1) == cost(1, open_requests=50)
    full = OPEN_PER_OBSERVED
    assert cost(1, open_requests=full) == cost(50, open_requests=full)


def test_who_asks_and_withdraws_wakes_nobody_without_end() -> None:
    """Z-13: each observer is another, so "once per pair" is no limit; IDs can be advertisements."""
    side = Side()
    notices: list[Notice] = []
    for number in range(NOTICES_PER_ORIGIN + 20):
        for edu in (an_invite(observer=somebody(number)), a_drop(observer=somebody(number))):
            notices += of_type(side.hear(edu), Notice)
    other = ServerName("other.test")
    theirs = side.hear(an_invite(observer=UserID("@erin:other.test"), origin=other), origin=other)
    side.hear(an_invite(observer=BOB))

    assert len(notices) == NOTICES_PER_ORIGIN
    assert len(of_type(theirs, Notice)) == 1, "others are not silenced"
    assert BOB in requests(side), "what is not told is there all the same"


def test_somebody_granted_takes_no_place() -> None:
    """The limit is on what waits for the user's word."""
    side = Side()
    for number in range(OPEN_PER_OBSERVED):
        side.hear(an_invite(observer=somebody(number)))

    side.change(ALICE, accept=(somebody(0),))

    assert is_heard(side, observed=ALICE)
