"""What the client shell asks of the engine: pure reads, called through `Hub.read`.

Always true: nothing here decides; whoever may not see a user gets None or an empty answer.
"""

from collections.abc import Sequence
from typing import Protocol

from fedpresence.engine.presence import View
from fedpresence.ids import UserID
from fedpresence.wire.lists import Listed, Since


class Views(Protocol):
    """The engine, as far as clients know it."""

    def view(self, observer: UserID, observed: UserID, now_ms: int) -> View | None:
        """The presence of `observed`, None where `observer` may not see it; the own one always."""

    def visible_to(self, observer: UserID) -> frozenset[UserID]:
        """Everybody the observer may see, itself included."""

    def presence_list(self, observer: UserID, now_ms: int) -> Sequence[Listed]:
        """The pending and accepted entries of the observer's list."""

    def invites_of(self, user_id: UserID) -> Sequence[Since]:
        """Open requests to watch this user."""

    def observers_of(self, user_id: UserID) -> Sequence[Since]:
        """Who was granted to watch this user."""

    def user_exists(self, user_id: UserID) -> bool:
        """Whether this local user is known."""

    def wants_fresher_view(self, observer: UserID, observed: UserID, now_ms: int) -> bool:
        """Whether a GET should ask the origin first (decision 7)."""
