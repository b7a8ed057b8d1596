"""`GET /sync` of the homeserver beside us, with presence in it (form B).

Always true:
- the request reaches the homeserver as it came, and its answer the client: status, headers, and every byte
  but `presence`, which is ours, `to_device`, to which our notices are added, and a token that would be the
  client's own again though there is news, which is spelled otherwise (`positions.py`);
- whatever is in doubt on our side (a token that cannot be asked about, a filter that we cannot read, an
  answer that is no JSON object) costs presence and nothing else;
- a long poll is ended early only where it has a token to go on with, the homeserver has not answered, and
  there is news. The homeserver is then asked again, not to wait this time, for the answer must be its own:
  clients take an answer without counts of one-time keys for a device that has none left, and replace them;
- a device's polls are ended early no more often than `ENDS_PER_SECOND`; the last word is told all the same;
- the engine knows of the stream for as long as the request lasts (P:O-2), and after a wait the access token
  is asked about again.

A body is compressed towards the client where the homeserver compresses it: it is asked for what the client
and we can both read.

Source: H:6.3 (a), Z-27; P:13; clients.md, "Small print".
"""

import json
import re
import zlib
from dataclasses import dataclass, replace
from typing import Any

from twisted.internet.defer import CancelledError

from fedpresence.clients.behind import Filters, Relay, Relayed, Through
from fedpresence.clients.mailbox import Mailbox
from fedpresence.clients.parts import ClientParts
from fedpresence.clients.positions import Positions, respelled
from fedpresence.clients.requests import parameter
from fedpresence.clients.stream import MAX_TIMEOUT_MS, News, Stream
from fedpresence.clients.sync import Sync
from fedpresence.clients.throttle import Throttle
from fedpresence.clients.work import Work, until
from fedpresence.clock import now_ms
from fedpresence.engine.presence import PresenceState
from fedpresence.errors import BadRequest
from fedpresence.request import Request
from fedpresence.storage.store import TokenOwner
from fedpresence.web import JSON
from fedpresence.wire.filters import PresenceFilter
from fedpresence.wire.lists import encode_notice
from fedpresence.wire.splice import Splicer, encode_events, with_events
from fedpresence.wire.status import decode_set_presence, encode_event

HEAD_START_S = 0.1  # for the homeserver, where news waits already: its own answer takes the news along
IDENTITY_GRACE_S = 1.0  # what an answer that is ready waits for the word whose it is
ENDS_PER_SECOND, ENDS_BURST = 0.5, 3  # of one device: each costs the homeserver a sync

_TIMEOUT = re.compile(rb"(?<=[?&]timeout=)[^&]*")
_GZIP = 31  # zlib's word for that format


@dataclass(frozen=True, slots=True)
class _Poll:
    """A request whose owner is known; `since` is the homeserver's token, `upstream` its answer."""

    request: Request
    upstream: Work[Any]
    owner: TokenOwner
    box: Mailbox
    filter: PresenceFilter
    since: str | None
    full_state: bool
    may_end_early: bool


class FilledSync:
    """The handlers of requests that wait at the homeserver for news."""

    def __init__(self, parts: ClientParts, relay: Relay) -> None:
        self._parts = parts
        self._relay = relay
        self._clock = parts.clock
        self._stream = Stream(parts.hub, parts.engine, parts.feed, parts.tokens, parts.clock)
        self._alone = Sync(parts)
        self._filters = Filters(relay, parts.clock)
        self._positions = Positions()
        self._is_served = False  # whether the homeserver has answered one
        self._ends: Throttle[TokenOwner] = Throttle(ENDS_PER_SECOND, ENDS_BURST)

    async def sync(self, request: Request) -> object:
        """`GET /sync`; None where it was answered here."""
        encoding = b"gzip" if _accepts_gzip(_header(request, b"accept-encoding")) else b"identity"
        extra = [(b"Accept-Encoding", encoding)]
        upstream: Work[Any] = Work(self._relay.forward(request, extra_headers=extra))
        try:
            owner = await self._owner(request, upstream)
            poll = None
            try:
                set_presence = _set_presence(request)
                said = parameter(request, b"filter")
                if owner is not None:
                    admitted = await self._filters.find(request, owner, said)
                    poll = self._poll(request, upstream, owner, admitted)
            except BadRequest:
                pass  # the homeserver says what is wrong
            if owner is None or poll is None:
                return await self._relayed(request, upstream)
            async with self._stream.held_open(owner, set_presence):
                if await self._has_news_first(poll):
                    upstream.cancel()
                    at_once = _without_waiting(request.uri)
                    upstream = Work(self._relay.forward(request, uri=at_once, extra_headers=extra))
                    poll = replace(poll, upstream=upstream)
                return await self._relayed(request, upstream, poll)
        except BaseException:
            if upstream.done:
                self._drop(upstream)
            raise
        finally:
            upstream.cancel()

    async def connected(self, request: Request) -> None:
        """Any other request that waits for news (sliding sync): passed through, a stream while it lasts."""
        passing: Work[None] = Work(self._relay.pass_through(request))
        try:
            owner = await self._owner(request, passing)
            if owner is not None and not passing.done:
                try:
                    set_presence = _set_presence(request)
                except BadRequest:
                    set_presence = PresenceState.OFFLINE  # says nothing
                async with self._stream.held_open(owner, set_presence):
                    await until(passing, clock=self._clock)
            await until(passing, clock=self._clock)
            passing.result()
            _must_be_whole(bool(request.finished))
        finally:
            passing.cancel()

    async def _owner(self, request: Request, upstream: Work[Any]) -> TokenOwner | None:
        """Whose request it is; None where that cannot be told, or not as soon as it is answered."""
        asking = Work(self._parts.tokens.owner(request))
        try:
            await until(asking, upstream, clock=self._clock)
            await until(asking, clock=self._clock, timeout_s=IDENTITY_GRACE_S)
            return asking.result() if asking.done else None
        except BadRequest:
            return None
        finally:
            asking.cancel()

    def _poll(
        self, request: Request, upstream: Work[Any], owner: TokenOwner, admitted: PresenceFilter
    ) -> _Poll:
        since, timeout = parameter(request, b"since"), parameter(request, b"timeout") or "0"
        full_state = parameter(request, b"full_state") == "true"
        return _Poll(
            request=request,
            upstream=upstream,
            owner=owner,
            box=self._parts.feed.mailbox(owner.user_id),
            filter=admitted,
            since=since or None,
            full_state=full_state,
            may_end_early=bool(since and timeout.strip("0")) and not full_state and not admitted.silent,
        )

    # --- waiting --------------------------------------------------------------------------------

    async def _has_news_first(self, poll: _Poll) -> bool:
        """Whether there is news to tell before the homeserver answers; back when either is so."""
        upstream, box, clock = poll.upstream, poll.box, self._clock
        if not poll.may_end_early:
            await until(upstream, clock=clock)
            return False
        wait_s = HEAD_START_S
        while not upstream.done:
            said = self._said(poll)
            newer = None if said is None else await self._stream.newer(box, poll.filter, said)
            if newer is None or newer:
                if wait_s:
                    await until(upstream, clock=clock, timeout_s=wait_s)
                wait_s = self._ends.take(poll.owner, now_ms(clock)) / 1000
                if wait_s:
                    continue
                break
            wait_s = 0.0
            feed, number = self._parts.feed, newer.number
            waiting = Work(feed.wait(box, number, poll.filter.admits, MAX_TIMEOUT_MS / 1000))
            try:
                await until(waiting, upstream, clock=clock)
                if waiting.done and not waiting.result():
                    break  # it is one of too many of the user's polls, or the run ends
            finally:
                waiting.cancel()
        if not upstream.done and await self._owner(poll.request, upstream) == poll.owner:
            return not upstream.done
        await until(upstream, clock=clock)
        return False

    def _said(self, poll: _Poll) -> int | None:
        """Up to where the client was told; None where it is due a snapshot."""
        assert poll.since is not None
        position = self._positions.find(poll.owner, poll.since, poll.box.name)
        return None if position is None else poll.box.position((poll.box.name, position.said))

    # --- answering ------------------------------------------------------------------------------

    async def _relayed(self, request: Request, upstream: Work[Any], poll: _Poll | None = None) -> object:
        """The homeserver's answer; with presence in it, where it is one and `poll` says whose."""
        await until(upstream, clock=self._clock)
        relayed: Relayed = upstream.result()
        if relayed.status == 404:
            return await self._not_served(request, relayed)
        self._is_served |= relayed.status == 200
        if (
            relayed.status != 200
            or poll is None
            or not _is_readable(relayed)
            or await self._owner(request, upstream) != poll.owner
        ):
            _must_be_whole(await self._relay.give_back(request, relayed))
            return None
        news = await self._news(poll)
        given: list[str] = []

        def next_batch(value: bytes) -> bytes | None:
            token = _token(value)
            if token is None:
                return None
            repeats = token == poll.since and bool(news.presence or news.notices)
            given.append(respelled(token) if repeats else token)
            return json.dumps(given[0]).encode("ascii") if given[0] != token else None

        splicer = Splicer(
            {
                "next_batch": next_batch,
                "presence": lambda value: self._presence_section(value, news),
                "to_device": lambda value: self._to_device_section(value, news),
            }
        )
        through = _Unpacked(splicer) if _is_packed(relayed) else splicer
        _must_be_whole(await self._relay.give_back(request, relayed, through))
        if splicer.complete and given:
            self._told(poll, given[0], news)
        return None

    async def _not_served(self, request: Request, relayed: Relayed) -> object:
        """A homeserver without `/sync`, one that knows tokens alone, leaves it all to us.

        One that had it has it still, and a proxy speaks for it: our token would be of no use to it later.
        """
        unserved, body = await self._relay.is_unserved(relayed)
        if unserved and not self._is_served:
            return await self._alone.sync(request)
        self._relay.give_back_whole(request, relayed, body)
        _must_be_whole(bool(request.finished))
        return None

    async def _news(self, poll: _Poll) -> News:
        """What is said now: presence that is not surely known, and notices that were not told."""
        position = None
        if poll.since is not None:
            position = self._positions.find(poll.owner, poll.since, poll.box.name)
        seen = None if position is None else position.seen
        if seen is None or poll.full_state:
            everybody = poll.since is not None and seen is None
            news = await self._stream.snapshot(poll.box, poll.filter, seen, everybody=everybody)
        else:
            news = await self._stream.newer(poll.box, poll.filter, seen)
        if position is not None:
            newer = poll.box.notices_after(position.said)
            news.notices = [notice for at, notice in newer if at <= news.number]
        return news

    def _told(self, poll: _Poll, given: str, news: News) -> None:
        """The answer is written: remember up to where, unless the client left."""
        if poll.request.finished and not poll.request._disconnected:
            self._positions.answered(poll.owner, poll.since, given, poll.box.name, news.number)

    def _presence(self, news: News) -> list[dict[str, object]]:
        busy, never_ago_ms = self._parts.settings.busy, self._stream.never_ago_ms()
        return [
            encode_event(user_id, view, never_ago_ms=never_ago_ms, busy=busy)
            for user_id, view in news.presence
        ]

    def _presence_section(self, value: bytes, news: News) -> bytes | None:
        """Ours, whatever the homeserver says: it was switched off, and its last words are of that."""
        return encode_events(self._presence(news)) if value or news.presence else None

    def _to_device_section(self, value: bytes, news: News) -> bytes | None:
        notices = [encode_notice(notice) for notice in news.notices]
        return with_events(value, notices) if notices else None

    def _drop(self, upstream: Work[Any]) -> None:
        """The client left, or we failed, before the homeserver's answer, which is here, was given back."""
        try:
            self._relay.drop(upstream.result())
        except Exception:  # it had failed, and there is nobody to tell
            return


class _Unpacked:
    """A compressed body unpacked, changed and packed again, piece by piece."""

    def __init__(self, inner: Through) -> None:
        self._inner = inner
        self._unpacking = zlib.decompressobj(_GZIP)
        self._packing = zlib.compressobj(wbits=_GZIP)

    def feed(self, data: bytes) -> bytes:
        """What goes on of all that has come."""
        return self._packing.compress(self._inner.feed(self._unpacking.decompress(data)))

    def finish(self) -> bytes:
        """The rest of it."""
        rest = self._inner.feed(self._unpacking.flush()) + self._inner.finish()
        return self._packing.compress(rest) + self._packing.flush()


def _must_be_whole(written: bool) -> None:
    """Nothing more can be said to who did not get all of it."""
    if not written:
        raise CancelledError


def _set_presence(request: Request) -> PresenceState | None:
    text = parameter(request, b"set_presence")
    return None if text is None else decode_set_presence(text)


def _without_waiting(uri: bytes) -> bytes:
    """The same request for an answer at once."""
    return _TIMEOUT.sub(b"0", uri)


def _is_readable(relayed: Relayed) -> bool:
    kind = relayed.headers.getRawHeaders(b"content-type", [b""])[0]
    encoding = relayed.headers.getRawHeaders(b"content-encoding", [b""])[0].strip().lower()
    return kind.lower().startswith(JSON) and encoding in (b"", b"identity", b"gzip")


def _is_packed(relayed: Relayed) -> bool:
    return relayed.headers.getRawHeaders(b"content-encoding", [b""])[0].strip().lower() == b"gzip"


def _accepts_gzip(header: bytes) -> bool:
    """Whether it names gzip with a weight other than nought."""
    for coding in header.lower().split(b","):
        name, _, weight = coding.partition(b";")
        if name.strip() == b"gzip":
            return weight.strip().rstrip(b"0.") != b"q="
    return False


def _header(request: Request, name: bytes) -> bytes:
    return b",".join(request.requestHeaders.getRawHeaders(name, []))


def _token(value: bytes) -> str | None:
    try:
        token = json.loads(value)
    except ValueError:
        return None
    return token if isinstance(token, str) else None
