"""Bob of another server, as Alice sees him."""

from fedpresence.engine.effects import (
    Effect,
    SendPoll,
    TellObservers,
)
from fedpresence.engine.engine import Engine
from fedpresence.engine.presence import (
    View,
)
from fedpresence.ids import UserID
from fedpresence.testing.builders import (
    ALICE,
    BOB,
    CAROL,
    NOW_MS,
    an_engine,
    pass_time,
    subscribe,
)

T = NOW_MS


def watching() -> Engine:
    """Alice observes Bob of another server, of whom nothing was heard yet."""
    engine = an_engine(users=(ALICE, CAROL))
    subscribe(engine)
    return engine


def shown(engine: Engine, now_ms: int, observer: UserID = ALICE) -> View | None:
    """Bob, as Alice's client may show him."""
    return engine.view(observer, BOB, now_ms)


def told(effects: tuple[Effect, ...]) -> list[tuple[UserID, ...]]:
    """Which observers are due news."""
    return [effect.observers for effect in effects if isinstance(effect, TellObservers)]


def polls_until(engine: Engine, ms: int) -> list[int]:
    """When polls go out, in ms since the beginning, up to then."""
    return [
        now_ms - T
        for now_ms, effects in pass_time(engine, T + ms)
        for effect in effects
        if isinstance(effect, SendPoll)
    ]
