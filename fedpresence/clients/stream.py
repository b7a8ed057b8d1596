"""A client's event stream: what is new for one user, waited for where nothing is.

Always true:
- an answer is made from the newest state, one event for each user (P:Y-1, P:Y-2);
- every stream that counts is told to the engine as opened before its answer is made, and as closed
  however it ends; one with `set_presence=offline` is never told (P:O-4);
- a token is never answered twice with the same data in it (P:Y-3);
- after a wait the access token is asked about again: a revoked one gets nothing more.

Source: P:13; clients.md, "Small print".
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from fedpresence.clients.feed import Feed
from fedpresence.clients.mailbox import Mailbox, with_open_invites
from fedpresence.clients.tokens import TokenChecker
from fedpresence.clients.views import Views
from fedpresence.clock import Clock
from fedpresence.engine.effects import Notice
from fedpresence.engine.events import StreamClosed, StreamOpened
from fedpresence.engine.presence import PresenceState, View
from fedpresence.engine.subscription import EduKind
from fedpresence.hub import Hub
from fedpresence.ids import UserID
from fedpresence.request import Request
from fedpresence.storage.store import TokenOwner
from fedpresence.wire.filters import EVERYTHING, PresenceFilter

_log = Logger()

MAX_TIMEOUT_MS = 300_000  # proxies cut long polls far earlier; a client that is gone is noticed by then

_GONE = View(PresenceState.OFFLINE)


@dataclass(frozen=True, slots=True)
class Wish:
    """What a request asks of the stream. `since` None: a snapshot of who is not offline."""

    since: tuple[str, int] | None = None
    full_state: bool = False
    timeout_ms: int = 0
    filter: PresenceFilter = EVERYTHING
    set_presence: PresenceState | None = None


@dataclass(slots=True)
class News:
    """What a user's client has not seen: `number` is up to where, `next_batch` the token for it."""

    number: int
    next_batch: str
    presence: list[tuple[UserID, View]] = field(default_factory=list)
    notices: list[Notice] = field(default_factory=list)

    def __bool__(self) -> bool:
        """Whether there is any."""
        return bool(self.presence or self.notices)


class Stream:
    """Every client's event stream."""

    def __init__(self, hub: Hub, engine: Views, feed: Feed, tokens: TokenChecker, clock: Clock) -> None:
        self._hub = hub
        self._engine = engine
        self._feed = feed
        self._tokens = tokens
        self._clock = clock

    async def news(self, request: Request, owner: TokenOwner, wish: Wish) -> News:
        """What is new, at once or when something is; empty when the time is up."""
        async with self.held_open(owner, wish.set_presence):
            return await self._news(request, owner, wish)

    @asynccontextmanager
    async def held_open(self, owner: TokenOwner, set_presence: PresenceState | None) -> AsyncIterator[None]:
        """The engine knows of a stream for as long as this lasts, if it is one that counts."""
        if set_presence is PresenceState.OFFLINE:
            yield
            return
        opened = self._hub.submit(StreamOpened(owner.user_id, owner.device_id, set_presence))
        try:
            await opened
            yield
        finally:
            closed = self._hub.submit(StreamClosed(owner.user_id, owner.device_id))
            closed.addErrback(_not_closed)

    def snapshot(
        self, box: Mailbox, admitted: PresenceFilter, since: int | None, *, everybody: bool
    ) -> Deferred[News]:
        """Everybody who is not offline, and who has news after `since`; `everybody`: all who may be seen."""
        return self._hub.read(partial(self._snapshot, box, admitted, since, everybody))

    def newer(self, box: Mailbox, admitted: PresenceFilter, since: int) -> Deferred[News]:
        """Whoever has news after `since`."""
        return self._hub.read(partial(self._newer, box, admitted, since))

    def never_ago_ms(self) -> int:
        """The age of somebody who was not active in this run, as far as anybody here knows (E:P-3)."""
        return max(0, int(self._clock.seconds() * 1000) - self._feed.started_ms)

    async def _news(self, request: Request, owner: TokenOwner, wish: Wish) -> News:
        box = self._feed.mailbox(owner.user_id)
        since = None if wish.since is None else box.position(wish.since)
        if since is None or wish.full_state:
            everybody = since is None and wish.since is not None
            return await self.snapshot(box, wish.filter, since, everybody=everybody)
        deadline_s = self._clock.seconds() + min(wish.timeout_ms, MAX_TIMEOUT_MS) / 1000
        while True:
            news = await self.newer(box, wish.filter, since)
            left_s = deadline_s - self._clock.seconds()
            if news or left_s <= 0:
                return news
            since = news.number
            if not await self._feed.wait(box, since, wish.filter.admits, left_s):
                return news
            if await self._tokens.owner(request) != owner:
                return news

    def _snapshot(
        self, box: Mailbox, admitted: PresenceFilter, since: int | None, everybody: bool, now_ms: int
    ) -> News:
        """Everybody who is not offline and the user; offline ones too where an old token is not ours.

        A limit of the filter cuts a snapshot short for good; the user's own presence comes first.
        """
        user_id = box.user_id
        newer = {} if since is None else {u: gone for u, _, gone in box.news_after(since)}
        news = News(box.number, box.token(box.number), notices=self._notices(box, since))
        for observed in sorted(
            self._engine.visible_to(user_id) | newer.keys(), key=lambda u: (u != user_id, u)
        ):
            if not admitted.admits(observed):
                continue
            view = self._engine.view(user_id, observed, now_ms)
            if view is None:
                if newer.get(observed):
                    news.presence.append((observed, _GONE))
            elif (
                everybody
                or observed == user_id
                or view.state is not PresenceState.OFFLINE
                or observed in newer
            ):
                news.presence.append((observed, view))
        if admitted.limit is not None:
            del news.presence[admitted.limit :]
        return news

    def _newer(self, box: Mailbox, admitted: PresenceFilter, since: int, now_ms: int) -> News:
        """Whoever has news after `since`; where a limit cuts, the rest comes with the next token."""
        number = box.number
        presence: list[tuple[UserID, View]] = []
        for observed, at, gone in box.news_after(since):
            if not admitted.admits(observed):
                continue
            view = self._engine.view(box.user_id, observed, now_ms)
            if view is None and not gone:
                continue
            if len(presence) == admitted.limit:
                break
            presence.append((observed, view or _GONE))
            last = at
        else:
            last = number
        notices = [notice for at, notice in box.notices_after(since) if at <= last]
        return News(last, box.token(last), presence, notices)

    def _notices(self, box: Mailbox, since: int | None) -> list[Notice]:
        if since is not None:
            return [notice for _, notice in box.notices_after(since)]
        user_id = box.user_id
        invites = (
            Notice(user_id, EduKind.INVITE, observer=pair.user_id, observed=user_id)
            for pair in self._engine.invites_of(user_id)
        )
        return with_open_invites(box.unread(), invites)


def _not_closed(failure: Failure) -> None:
    _log.debug("a stream's end was not told: {reason}", reason=failure.getErrorMessage())
