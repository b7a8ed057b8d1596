"""`GET` and `POST .../presence/list/{userId}`, and the user's own view of all subscriptions.

Always true: a request is checked whole before any of it is done; nobody reads or changes the list of
somebody else.

Source: P:10, S:8; contract.md, "Client API".
"""

from fedpresence.clients.parts import ClientParts
from fedpresence.clients.requests import json_body, own_user, user_in_path
from fedpresence.engine.events import ListChanged
from fedpresence.errors import BadRequest
from fedpresence.ids import UserID, server_of
from fedpresence.request import Request
from fedpresence.wire.lists import decode_list_change, encode_list, encode_subscriptions

_USER = -1  # where the path has its user


class PresenceList:
    """The handlers of a user's presence list."""

    def __init__(self, parts: ClientParts) -> None:
        self._parts = parts

    async def get(self, request: Request) -> list[dict[str, object]]:
        """The observer's list, pending entries included."""
        user_id = await self._own_list(request, "Cannot read another user's presence list")
        entries = await self._parts.hub.read(lambda now: self._parts.engine.presence_list(user_id, now))
        return encode_list(entries, busy=self._parts.settings.busy)

    async def post(self, request: Request) -> dict[str, object]:
        """Invite, accept, deny, revoke and drop: all of the request, or nothing of it."""
        user_id = await self._own_list(request, "Cannot modify another user's presence list")
        self._parts.changes.admit(user_id)
        change = decode_list_change(user_id, json_body(request))
        if change != ListChanged(user_id):
            await self._parts.hub.submit(change)
        return {}

    async def subscriptions(self, request: Request) -> dict[str, object]:
        """The user's list with its stages, open invites, and observers."""
        owner = await self._parts.tokens.owner(request)
        user_id, engine = owner.user_id, self._parts.engine
        own_user(request, _USER, user_id, "Cannot read another user's subscriptions")
        return await self._parts.hub.read(
            lambda now: encode_subscriptions(
                engine.presence_list(user_id, now), engine.invites_of(user_id), engine.observers_of(user_id)
            )
        )

    async def _own_list(self, request: Request, refusal: str) -> UserID:
        owner = await self._parts.tokens.owner(request)
        if server_of(user_in_path(request, _USER)) != self._parts.settings.server_name:
            raise BadRequest("M_INVALID_PARAM", "User not hosted on this homeserver")
        own_user(request, _USER, owner.user_id, refusal)
        return owner.user_id
