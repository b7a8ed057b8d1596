"""`GET /sync`, and the event stream of the old API (`/events`, `/initialSync`).

Always true: every answer has all the sections that a stock client looks for, empty but for presence
and notices; parameters that nobody knows are ignored.

Source: P:13; clients.md, "Small print".
"""

from fedpresence.clients.mailbox import parse_token
from fedpresence.clients.parts import ClientParts
from fedpresence.clients.requests import parameter
from fedpresence.clients.stream import News, Stream, Wish
from fedpresence.errors import BadRequest
from fedpresence.request import Request
from fedpresence.wire.filters import EVERYTHING, filter_of
from fedpresence.wire.lists import encode_notice
from fedpresence.wire.status import decode_set_presence, encode_event, encode_historic_event

_MAX_DIGITS = 15  # of a timeout: far beyond what we wait, and far below what is slow to convert


class Sync:
    """The handlers of the event stream."""

    def __init__(self, parts: ClientParts) -> None:
        self._parts = parts
        self._stream = Stream(parts.hub, parts.engine, parts.feed, parts.tokens, parts.clock)

    async def sync(self, request: Request) -> dict[str, object]:
        """`GET /sync`: a long poll, answered at once without `since` or with `full_state`."""
        owner = await self._parts.tokens.owner(request)
        set_presence = parameter(request, b"set_presence")
        wanted = parameter(request, b"filter")
        wish = Wish(
            since=_since(request, b"since"),
            full_state=parameter(request, b"full_state") == "true",
            timeout_ms=_timeout_ms(request),
            filter=filter_of(wanted) if wanted else EVERYTHING,
            set_presence=None if set_presence is None else decode_set_presence(set_presence),
        )
        return self._encode(await self._stream.news(request, owner, wish))

    async def events(self, request: Request) -> dict[str, object]:
        """`GET /events`: as a sync, in the historic form; without `from` nothing is new yet."""
        owner = await self._parts.tokens.owner(request)
        since = _since(request, b"from")
        if since is None:
            box = self._parts.feed.mailbox(owner.user_id)
            since = (box.name, box.number)
        wish = Wish(since=since, timeout_ms=_timeout_ms(request))
        news = await self._stream.news(request, owner, wish)
        return {"start": _encode_token(since), "end": news.next_batch, "chunk": self._encode_historic(news)}

    async def initial_sync(self, request: Request) -> dict[str, object]:
        """`GET /initialSync`: a snapshot in the historic form."""
        owner = await self._parts.tokens.owner(request)
        news = await self._stream.news(request, owner, Wish())
        return {
            "end": news.next_batch,
            "presence": self._encode_historic(news),
            "rooms": [],
            "receipts": [],
            "account_data": [],
        }

    def _encode(self, news: News) -> dict[str, object]:
        busy, never_ago_ms = self._parts.settings.busy, self._stream.never_ago_ms()
        presence = [
            encode_event(user_id, view, never_ago_ms=never_ago_ms, busy=busy)
            for user_id, view in news.presence
        ]
        return {
            "next_batch": news.next_batch,
            "presence": {"events": presence},
            "account_data": {"events": []},
            "rooms": {"join": {}, "invite": {}, "leave": {}},
            "to_device": {"events": [encode_notice(notice) for notice in news.notices]},
            "device_lists": {"changed": [], "left": []},
            "device_one_time_keys_count": {},
        }

    def _encode_historic(self, news: News) -> list[dict[str, object]]:
        busy = self._parts.settings.busy
        return [encode_historic_event(user_id, view, busy=busy) for user_id, view in news.presence]


def _since(request: Request, name: bytes) -> tuple[str, int] | None:
    text = parameter(request, name)
    return parse_token(text) if text else None


def _encode_token(token: tuple[str, int]) -> str:
    name, number = token
    return f"s{number}_{name}"


def _timeout_ms(request: Request) -> int:
    text = parameter(request, b"timeout")
    if text is None:
        return 0
    if not (text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS):
        raise BadRequest("M_INVALID_PARAM", "timeout must be a whole number of milliseconds")
    return int(text)
