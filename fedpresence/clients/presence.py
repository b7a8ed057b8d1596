"""`GET` and `PUT .../presence/{userId}/status`.

Always true: whoever may not see a user gets the same 403, whether that user exists or not.

Source: P:9; decisions 4, 5 and 7.
"""

from fedpresence.clients.parts import ClientParts
from fedpresence.clients.requests import json_body, own_user, user_in_path
from fedpresence.engine.events import PresenceSet, StatusWanted
from fedpresence.engine.presence import View
from fedpresence.errors import BadRequest
from fedpresence.ids import UserID
from fedpresence.request import Request
from fedpresence.wire.status import decode_status, encode_status

ANSWER_WITHIN_S = 1.0  # how long a GET waits for the origin's answer (decision 7)
_USER = -2  # where the path has its user


class PresenceStatus:
    """The handlers of a user's presence status."""

    def __init__(self, parts: ClientParts) -> None:
        self._parts = parts

    async def put(self, request: Request) -> dict[str, object]:
        """Declare the state of the token's device, and the user's message."""
        owner = await self._parts.tokens.owner(request)
        own_user(request, _USER, owner.user_id, "Can only set your own presence state")
        self._parts.changes.admit(owner.user_id)
        settings = self._parts.settings
        status = decode_status(json_body(request), busy=settings.busy)
        event = PresenceSet(owner.user_id, owner.device_id, status.state, status.status_msg)
        await self._parts.changes.change(event)
        return {}

    async def get(self, request: Request) -> dict[str, object]:
        """The true presence of this moment (P:A-6), from the origin where our copy is old."""
        owner = await self._parts.tokens.owner(request)
        observer, observed = owner.user_id, user_in_path(request, _USER)
        engine = self._parts.engine
        view, is_old = await self._parts.hub.read(
            lambda now: (
                engine.view(observer, observed, now),
                engine.wants_fresher_view(observer, observed, now),
            )
        )
        if view is not None and is_old:
            view = await self._fresher_view(observer, observed)
        if view is None:
            raise BadRequest("M_FORBIDDEN", "You are not allowed to see their presence", status=403)
        return encode_status(view, busy=self._parts.settings.busy)

    async def _fresher_view(self, observer: UserID, observed: UserID) -> View | None:
        answered = self._parts.feed.ask(observed, ANSWER_WITHIN_S)
        try:
            await self._parts.hub.submit(StatusWanted(observer, observed))
            await answered
        finally:
            answered.cancel()
        return await self._parts.hub.read(lambda now: self._parts.engine.view(observer, observed, now))
