"""A local user's record on its own, driven without an engine."""

from fedpresence.engine.presence import (
    ONLINE,
    LocalUser,
    Published,
)
from fedpresence.testing.builders import NOW_MS, PHONE, settings_of

T = NOW_MS
MINUTE = 60_000
SETTINGS = settings_of()


def at(user: LocalUser, now_ms: int) -> Published:
    """What the user publishes at `now_ms`."""
    user.settle(now_ms, SETTINGS)
    return user.published


def a_user() -> LocalUser:
    """A user who was never there."""
    return LocalUser(since_ms=T)


def online(*, streams: bool = True) -> LocalUser:
    """A user who went online at T, on the phone."""
    user = a_user()
    user.put(PHONE, ONLINE, None, T)
    if streams:
        user.stream_opened(PHONE, None, T)
    at(user, T)
    return user
