"""Alice at here.test and Bob at there.test, in a rig of two servers."""

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from fedpresence.engine.events import ListChanged
from fedpresence.ids import ServerName, UserID
from fedpresence.testing.rig.twisted import RigOptions, TwistedRig
from tests.in_reactor import in_reactor

T = TypeVar("T")

HERE, THERE = ServerName("here.test"), ServerName("there.test")
ALICE, BOB = UserID("@alice:here.test"), UserID("@bob:there.test")
PAIR = RigOptions(
    ("here.test", "there.test"), ("alice@here.test", "@bob:there.test"), start_ms=1_700_000_000_000
)
MINUTE_MS, DAY_MS = 60_000, 86_400_000


def with_rig(story: Callable[[TwistedRig], Awaitable[T]], options: RigOptions = PAIR) -> T:
    """What a story in a rig answers; what the rig left behind is looked for."""

    async def told(reactor: Any) -> T:
        rig = await TwistedRig.start(reactor, options)
        try:
            return await story(rig)
        finally:
            await rig.stop()

    return in_reactor(told)


async def befriend(rig: TwistedRig) -> None:
    """Alice observes Bob, who is online."""
    await rig.set_stream(BOB, is_open=True)
    await submit(rig, "here.test", ListChanged(ALICE, invite=(BOB,)))
    await rig.settle()
    await submit(rig, "there.test", ListChanged(BOB, accept=(ALICE,)))
    await rig.settle()


async def submit(rig: TwistedRig, server: str, event: Any) -> None:
    """An event happens at one of them."""
    await parts_of(rig, server).hub.submit(event)


def parts_of(rig: TwistedRig, server: str) -> Any:
    """What one of them, which runs, is made of."""
    daemon = rig.server(server).daemon
    assert daemon is not None
    return daemon.parts


def seen(rig: TwistedRig) -> str | None:
    """What Alice would be shown of Bob."""
    view = parts_of(rig, "here.test").engine.view(ALICE, BOB, rig.now_ms)
    return None if view is None else view.state.value
