import pytest

from fedpresence.engine.events import Activity
from fedpresence.testing.rig.twisted import DEVICE, RigOptions, TwistedRig
from tests.testing.rig.pair import BOB, MINUTE_MS, PAIR, befriend, seen, submit, with_rig

STEP_MS = 30_000
THERE_STOPS = RigOptions(
    PAIR.servers, PAIR.users, config={"presence": {"offline_on_stop": True}}, start_ms=PAIR.start_ms
)


async def watch(rig: TwistedRig, ms: int, states: list[str | None]) -> None:
    """What Alice is shown meanwhile, every half minute."""
    for _ in range(ms // STEP_MS):
        await rig.advance(STEP_MS)
        states.append(seen(rig))


@pytest.mark.parametrize("online_for_min", [1, 20, 47])
def test_a_restart_within_the_timeout_shows_nobody_as_gone(online_for_min: int) -> None:
    """An upgrade is no news, whenever it comes between two refreshes: a clean stop says "still here"."""

    async def story(rig: TwistedRig) -> list[str | None]:
        states: list[str | None] = []
        await befriend(rig)
        await rig.advance(online_for_min * MINUTE_MS)
        await rig.server("there.test").stop()
        await watch(rig, 29 * MINUTE_MS, states)
        await rig.server("there.test").start()
        await watch(rig, 40 * MINUTE_MS, states)
        return states

    states = with_rig(story)

    assert len(states) > 100
    assert set(states) <= {"online", "unavailable"}


def test_a_crash_right_after_a_refresh_shows_nobody_as_gone_either() -> None:
    """Nobody could say anything; but what was said last holds for half an hour."""

    async def story(rig: TwistedRig) -> list[str | None]:
        states: list[str | None] = []
        await befriend(rig)
        await submit(rig, "there.test", Activity(BOB, DEVICE, None))
        await rig.server("there.test").kill()
        await watch(rig, 25 * MINUTE_MS, states)
        await rig.server("there.test").start()
        await watch(rig, 40 * MINUTE_MS, states)
        return states

    assert set(with_rig(story)) <= {"online", "unavailable"}


def test_a_longer_stop_shows_offline_and_the_return_at_once() -> None:
    """After the timeout nobody is believed to be here; the start must not wait for a refresh to say so."""

    async def story(rig: TwistedRig) -> list[str | None]:
        await befriend(rig)
        await rig.server("there.test").stop()
        await rig.advance(40 * MINUTE_MS)
        states = [seen(rig)]
        await rig.server("there.test").start()
        await rig.advance(2_000)
        return [*states, seen(rig)]

    states = with_rig(story)

    assert states[0] == "offline"
    assert states[1] in ("online", "unavailable")


def test_a_stop_that_should_say_offline_says_so_and_the_return_too() -> None:
    """P-10: the operator's word; a server that is gone for good leaves nobody online behind."""

    async def story(rig: TwistedRig) -> list[str | None]:
        await befriend(rig)
        states = [seen(rig)]
        await rig.server("there.test").stop()
        states.append(seen(rig))
        await rig.advance(MINUTE_MS)
        await rig.server("there.test").start()
        await rig.advance(2_000)
        return [*states, seen(rig)]

    assert with_rig(story, THERE_STOPS) == ["online", "offline", "online"]
