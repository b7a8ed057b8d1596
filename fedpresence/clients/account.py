"""What stock clients ask before their first sync, answered sensibly and emptily.

Always true: nothing here is kept; a filter is kept in its own ID.

Source: clients.md, "The least a standalone presence server must answer"; P:13 for the capability.
"""

from fedpresence.clients.parts import ClientParts
from fedpresence.clients.requests import json_body, own_user, segment
from fedpresence.errors import BadRequest
from fedpresence.request import Request
from fedpresence.wire.filters import decode_filter_id, encode_filter_id

VERSIONS = ("r0.0.1", "r0.1.0", "r0.2.0", "r0.3.0", "r0.4.0", "r0.5.0", "r0.6.1", "v1.1", "v1.11")
_BUSY_FLAG = "org.matrix.msc3026.busy_presence"  # P:1
_REFUSAL = "Not your own user ID"


class Account:
    """The handlers of everything around an account that is not presence."""

    def __init__(self, parts: ClientParts) -> None:
        self._parts = parts

    async def versions(self, request: Request) -> dict[str, object]:
        """What we speak; no token is needed."""
        return {"versions": list(VERSIONS), "unstable_features": {_BUSY_FLAG: self._parts.settings.busy}}

    async def whoami(self, request: Request) -> dict[str, object]:
        """Whose token it is."""
        owner = await self._parts.tokens.owner(request)
        answer: dict[str, object] = {"user_id": owner.user_id, "is_guest": False}
        if owner.device_id is not None:
            answer["device_id"] = owner.device_id
        return answer

    async def capabilities(self, request: Request) -> dict[str, object]:
        """Presence both ways (MSC1862), and no accounts to be changed here."""
        await self._parts.tokens.owner(request)
        off = {"enabled": False}
        return {
            "capabilities": {
                "m.presence": {"send_enabled": True, "receive_enabled": True},
                "m.change_password": off,
                "m.set_displayname": off,
                "m.set_avatar_url": off,
                "m.3pid_changes": off,
            }
        }

    async def push_rules(self, request: Request) -> dict[str, object]:
        """No rules, for there are no messages."""
        await self._parts.tokens.owner(request)
        return {"global": {"override": [], "content": [], "room": [], "sender": [], "underride": []}}

    async def joined_rooms(self, request: Request) -> dict[str, object]:
        """None that a client could enter."""
        await self._parts.tokens.owner(request)
        return {"joined_rooms": []}

    async def turn_server(self, request: Request) -> dict[str, object]:
        """None."""
        await self._parts.tokens.owner(request)
        return {}

    async def rtc_transports(self, request: Request) -> dict[str, object]:
        """None (MSC4143); a 404 is an error with a traceback in the log of a current client."""
        await self._parts.tokens.owner(request)
        return {"rtc_transports": []}

    async def login_flows(self, request: Request) -> dict[str, object]:
        """None: tokens are made by the operator."""
        return {"flows": []}

    async def add_filter(self, request: Request) -> dict[str, object]:
        """An ID that holds the filter."""
        owner = await self._parts.tokens.owner(request)
        own_user(request, -2, owner.user_id, _REFUSAL)
        return {"filter_id": encode_filter_id(json_body(request))}

    async def filter(self, request: Request) -> dict[str, object]:
        """The filter that an ID holds."""
        owner = await self._parts.tokens.owner(request)
        own_user(request, -3, owner.user_id, _REFUSAL)
        return decode_filter_id(segment(request, -1))

    async def account_data(self, request: Request) -> dict[str, object]:
        """None of any type."""
        owner = await self._parts.tokens.owner(request)
        own_user(request, -3, owner.user_id, _REFUSAL)
        raise BadRequest("M_NOT_FOUND", "Account data not found", status=404)

    async def profile(self, request: Request) -> dict[str, object]:
        """None of anybody."""
        raise BadRequest("M_NOT_FOUND", "Profile was not found", status=404)
