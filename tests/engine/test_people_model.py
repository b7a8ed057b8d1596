from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from fedpresence.engine.events import DeviceRemoved, Event, PresenceSet
from fedpresence.engine.outgoing import Push
from fedpresence.engine.presence import BUSY, OFFLINE, ONLINE, UNAVAILABLE, PresenceState
from fedpresence.engine.settings import DAY_MS
from fedpresence.ids import DeviceID
from fedpresence.testing.builders import (
    ALICE,
    LAPTOP,
    NOW_MS,
    PHONE,
    a_stream,
    an_activity,
    an_end,
    an_engine,
)
from tests.engine.destination import a_watched_engine

T = NOW_MS
S = 1000
MINUTE = 60 * S

STATES = st.sampled_from([ONLINE, UNAVAILABLE, OFFLINE, BUSY])
DEVICES = st.sampled_from([PHONE, LAPTOP, None])
WAITS = st.sampled_from([0, 0, 1, 999, 10 * S, 29_999, 30_000, 30_001, MINUTE, 5 * MINUTE, 5 * MINUTE + 1])


class OneUser(RuleBasedStateMachine):
    """Alice, her devices, and a server that watches: any order of anything."""

    @initialize()
    def begin(self) -> None:
        """Bob at there.test may see Alice; nothing is known of her yet."""
        self.engine = an_engine()
        self.there = a_watched_engine(self.engine)
        self.last_told: Push | None = None
        self.told_active_ms = 0
        self.last_active_ms = 0
        self.hidden: set[DeviceID | None] = set()
        self.ms = 0

    def happens(self, *events: Event) -> None:
        """Time passes until now, then these happen; each update of it must be news."""
        self.there.at(self.ms, *events)
        for _, push in self.there.news():
            self.an_update_is_news(push)

    def an_update_is_news(self, push: Push) -> None:
        """Never the same twice, and no move of the age alone after `currently_active`."""
        detail = self.engine.user_detail(ALICE, T + self.ms)
        assert detail is not None
        if self.last_told is not None and _seen(push) == _seen(self.last_told):
            assert detail.last_active_ms - self.told_active_ms > MINUTE
            assert not push.currently_active
        self.last_told, self.told_active_ms = push, detail.last_active_ms

    @rule(device=DEVICES, state=STATES, message=st.sampled_from([None, "Tea", ""]))
    def puts(self, device: DeviceID | None, state: PresenceState, message: str | None) -> None:
        """`PUT .../status`."""
        (self.hidden.add if state is OFFLINE else self.hidden.discard)(device)
        self.happens(PresenceSet(ALICE, device, state, message))

    @rule(device=DEVICES, word=st.sampled_from([None, ONLINE, UNAVAILABLE]))
    def opens(self, device: DeviceID | None, word: PresenceState | None) -> None:
        """A stream begins."""
        self.happens(a_stream(word, device_id=device))

    @rule(device=DEVICES)
    def closes(self, device: DeviceID | None) -> None:
        """A stream ends."""
        self.happens(an_end(device_id=device))

    @rule(device=DEVICES, late=st.sampled_from([None, 0, 1, 500, 20 * S, 70 * S, DAY_MS]))
    def acts(self, device: DeviceID | None, late: int | None) -> None:
        """A pro-active event, told now or late."""
        at_ms = None if late is None else T + self.ms - late
        self.happens(an_activity(at_ms, device_id=device))

    @rule(device=DEVICES)
    def signs_out(self, device: DeviceID | None) -> None:
        """The device's token goes."""
        self.hidden.discard(device)
        self.happens(DeviceRemoved(ALICE, device))

    @rule(wait=WAITS)
    def waits(self, wait: int) -> None:
        """Time passes."""
        self.ms += wait
        self.happens()

    @invariant()
    def the_server_knows_what_is_shown(self) -> None:
        """State, message and activity are always what was told last."""
        view = self.engine.view(ALICE, ALICE, T + self.ms)
        assert view is not None
        if self.last_told is None:
            assert (view.state, view.status_msg, view.currently_active) == (OFFLINE, None, False)
        else:
            assert _seen(self.last_told) == (view.state, view.status_msg, view.currently_active)

    @invariant()
    def activity_goes_with_online_and_the_last_minute(self) -> None:
        """P:A-1, A-8."""
        view = self.engine.view(ALICE, ALICE, T + self.ms)
        assert view is not None
        if view.currently_active:
            assert view.state is ONLINE
            assert view.last_active_ago is not None
            assert view.last_active_ago < MINUTE

    @invariant()
    def the_last_active_time_never_goes_back(self) -> None:
        """P:D-9."""
        detail = self.engine.user_detail(ALICE, T + self.ms)
        assert detail is not None
        assert detail.last_active_ms >= self.last_active_ms
        self.last_active_ms = detail.last_active_ms

    @invariant()
    def who_has_only_hidden_devices_is_offline(self) -> None:
        """Z-8, D-5."""
        detail = self.engine.user_detail(ALICE, T + self.ms)
        assert detail is not None
        hidden = {device.device_id for device in detail.devices if device.hidden}
        assert hidden == self.hidden
        if len(hidden) == len(detail.devices):
            assert detail.view.state is OFFLINE
        for device in detail.devices:
            assert device.hidden or device.state is not OFFLINE  # P:D-1

    @invariant()
    def the_next_deadline_is_ahead(self) -> None:
        """A deadline in the past would be woken for again and again."""
        due_ms = self.engine.next_deadline_ms()
        assert due_ms is None or due_ms > T + self.ms


def _seen(push: Push) -> tuple[PresenceState, str | None, bool]:
    return push.state, push.status_msg, push.currently_active


OneUser.TestCase.settings = hypothesis_settings(max_examples=60, stateful_step_count=40, deadline=None)
test_whatever_a_user_does_the_server_that_watches_is_told_what_is_true_and_no_more = OneUser.TestCase
