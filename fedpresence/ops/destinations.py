"""Destinations and their queues, as operators see them.

Source: contract.md, "Admin API".
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Protocol

from fedpresence.ids import ServerName

STATES = ("idle", "sending", "waiting", "failing")


class DestinationStatus(Protocol):
    """One destination. Moments are Unix ms; None for what has not happened or is not planned."""

    @property
    def state(self) -> str:
        """One of STATES."""

    @property
    def pending_users(self) -> int:
        """Users whose news waits."""

    @property
    def owed(self) -> int:
        """List EDUs that wait."""

    @property
    def failing_since_ts(self) -> int | None:
        """Since when nothing gets through."""

    @property
    def next_try_ts(self) -> int | None:
        """When it is tried again."""

    @property
    def last_success_ts(self) -> int | None:
        """The last 2xx."""

    @property
    def last_error(self) -> str | None:
        """Why the last try failed, fit for a log."""


class Destinations(Protocol):
    """What sends to other servers, as far as operators ask it."""

    def describe(self, destination: ServerName | None) -> Mapping[ServerName, DestinationStatus]:
        """Every destination, or one: empty where nothing was ever sent there."""

    def retry(self, destination: ServerName) -> bool:
        """Try now; False where nothing was ever sent there."""


def encode_destination(status: DestinationStatus) -> dict[str, object]:
    """One destination as JSON."""
    return {
        "state": status.state,
        "pending_users": status.pending_users,
        "owed": status.owed,
        "failing_since_ts": status.failing_since_ts,
        "next_try_ts": status.next_try_ts,
        "last_success_ts": status.last_success_ts,
        "last_error": status.last_error,
    }


def summary(statuses: Iterable[DestinationStatus]) -> dict[str, int]:
    """How many destinations are in each state, and what waits for all of them."""
    states: Counter[str] = Counter()
    pending_users = owed = 0
    for status in statuses:
        states[status.state] += 1
        pending_users += status.pending_users
        owed += status.owed
    return {**{state: states[state] for state in STATES}, "pending_users": pending_users, "owed": owed}
