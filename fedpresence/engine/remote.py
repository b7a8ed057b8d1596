"""One remote user, as their own server last told us.

Always true: only users somebody here may observe have a record (decision 19); one that was not heard of
for `remote_timeout` is stale, which clients see as offline and the admin API tells apart (decision 8).

Source: edus.md 2.3 and Q-8, Q-11; subscriptions.md O-9, O-26, O-26a.
"""

from dataclasses import dataclass

from fedpresence.engine.presence import NOTHING, OFFLINE, PresenceRecord, Published
from fedpresence.engine.settings import DAY_MS, MINUTE_MS, EngineSettings
from fedpresence.ids import UserID

POLL_AFTER_ACCEPT_MS = 10_000  # S:O-9
POLL_AGAIN_MS = 5 * MINUTE_MS  # S:O-26
USELESS_POLLS = 3  # E:Q-11, S:O-26a


@dataclass(slots=True)
class RemoteUser:
    """What we hold of a remote user. `heard_ms` 0: nothing yet; `poll_at_ms` 0: no poll planned."""

    published: Published = NOTHING
    heard_ms: int = 0
    stale: bool = False
    polled_ms: int = 0  # the last poll, answered or not
    unanswered: int = 0  # polls in a row without a push
    gave_up: bool = False  # so many that one a day is enough
    poll_at_ms: int = 0

    @classmethod
    def restored(cls, record: PresenceRecord, now_ms: int) -> "RemoteUser":
        """What was stored, with its moments clamped to now (Z-21)."""
        active = min(record.last_active_ms, now_ms)
        published = Published(record.state, active, record.status_msg, record.currently_active)
        return cls(published, heard_ms=min(record.heard_ms, now_ms))

    def shown(self) -> Published:
        """What clients may be shown: offline once it is stale."""
        if not self.stale:
            return self.published
        return Published(OFFLINE, self.published.last_active_ms, self.published.status_msg)

    def heard(self, published: Published, now_ms: int) -> None:
        """A push came: it answers every poll."""
        self.published = published
        self.heard_ms = now_ms
        self.stale = False
        self.unanswered = 0
        self.gave_up = False
        self.poll_at_ms = 0

    def is_overdue(self, now_ms: int, settings: EngineSettings) -> bool:
        """Whether nothing was heard of them for too long (E:R-8)."""
        return (
            not self.stale
            and self.published.state is not OFFLINE
            and now_ms - self.heard_ms > settings.remote_timeout_ms
        )

    def polled(self, now_ms: int) -> None:
        """A poll is on its way; the next, if no push answers, by S:O-26 and E:Q-11."""
        self.polled_ms = now_ms
        self.unanswered += 1
        self.poll_at_ms = now_ms + (DAY_MS if self.gave_up else POLL_AGAIN_MS)

    def give_up(self) -> None:
        """Polls are useless here: one a day from the last."""
        self.gave_up = True
        self.poll_at_ms = self.polled_ms + DAY_MS

    def next_deadline_ms(self, settings: EngineSettings) -> int | None:
        """When time alone changes something; None: never."""
        if self.stale or self.published.state is OFFLINE:
            return self.poll_at_ms or None
        stale_ms = self.heard_ms + settings.remote_timeout_ms + 1
        return min(stale_ms, self.poll_at_ms) if self.poll_at_ms else stale_ms

    def record(self, user_id: UserID) -> PresenceRecord:
        """As it is written behind."""
        p = self.published
        return PresenceRecord(
            user_id, p.state, p.last_active_ms, p.status_msg, p.currently_active, self.heard_ms
        )
