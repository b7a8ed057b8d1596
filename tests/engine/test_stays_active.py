"""The short way for activity of the currently active, beside the long way: they never differ."""

from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from fedpresence.engine.presence import BUSY, OFFLINE, ONLINE, UNAVAILABLE, LocalUser, Reason
from fedpresence.engine.settings import EngineSettings
from fedpresence.ids import DeviceID, ServerName

T = 1_700_000_000_000
SETTINGS = EngineSettings(ServerName("here.test"))
ODD = replace(SETTINGS, idle_timeout_ms=20_000)  # idle before the flag ends

Step = tuple[int, tuple[str, DeviceID | None, Any]]

devices = st.sampled_from((DeviceID("PHONE"), DeviceID("DESK"), None))
states = st.sampled_from((ONLINE, UNAVAILABLE, OFFLINE, BUSY))
steps = st.lists(
    st.tuples(
        st.integers(0, 45_000),  # later than the step before
        st.one_of(
            st.tuples(st.just("active"), devices, st.integers(0, 90_000)),
            st.tuples(st.just("active"), st.just(DeviceID("PHONE")), st.just(0)),
            st.tuples(st.just("put"), devices, states),
            st.tuples(st.just("open"), devices, st.sampled_from((None, UNAVAILABLE))),
            st.tuples(st.just("close"), devices, st.none()),
        ),
    ),
    max_size=40,
)


@given(steps, st.sampled_from((SETTINGS, ODD)))
def test_the_short_way_leaves_what_the_long_way_leaves(steps: list[Step], settings: EngineSettings) -> None:
    """A user whose activity is taken too cheaply would fall idle, or flap, or never leave."""
    short, long, now_ms = LocalUser(since_ms=T), LocalUser(since_ms=T), T

    for pause_ms, (what, device_id, detail) in steps:
        now_ms += pause_ms
        told_short: Reason | None = None
        told = [_time_passes(user, now_ms, settings) for user in (short, long)]
        assert told[0] == told[1]
        for user in (short, long):
            if what == "active":
                at_ms = now_ms - detail
                if user is short and user.stays_active(device_id, at_ms, now_ms, settings):
                    continue
                user.active(device_id, at_ms, now_ms)
            elif what == "put":
                user.put(device_id, detail, None, now_ms)
            elif what == "open":
                user.stream_opened(device_id, detail, now_ms)
            else:
                user.stream_closed(device_id, now_ms)
            reason = user.settle(now_ms, settings)
            if user is short:
                told_short = reason
            else:
                assert told_short == reason
        assert short == long
        assert short.next_deadline_ms(settings) == long.next_deadline_ms(settings)


def _time_passes(user: LocalUser, until_ms: int, settings: EngineSettings) -> list[tuple[int, Reason]]:
    """Wake the user at each of their moments: what is told, and when."""
    told = []
    while (due_ms := user.next_deadline_ms(settings)) is not None and due_ms <= until_ms:
        reason = user.settle(due_ms, settings)
        if reason is not None:
            told.append((due_ms, reason))
    return told
