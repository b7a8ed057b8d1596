"""The client API of one server over a real hub, with an engine that answers as it is told."""

import json as json_module
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from treq.testing import StubTreq
from twisted.internet.defer import Deferred, ensureDeferred, succeed
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.web.resource import Resource

from fedpresence.clients.changes import PresenceChanges
from fedpresence.clients.feed import Feed
from fedpresence.clients.parts import ClientParts, ClientSettings
from fedpresence.clients.resource import add_clients
from fedpresence.clients.tokens import MAX_LOOKUPS, MAX_REMEMBERED, Tokens
from fedpresence.config import LimitsConfig
from fedpresence.engine.effects import Durable, Effect, Notice, Outgoing, TellObservers
from fedpresence.engine.engine import Engine
from fedpresence.engine.events import Event
from fedpresence.engine.presence import PresenceState, View
from fedpresence.engine.subscription import ObserverStage
from fedpresence.hub import Hub
from fedpresence.ids import DeviceID, ServerName, UserID
from fedpresence.storage.store import TokenOwner

HERE = ServerName("here.test")
ALICE = UserID("@alice:here.test")
CAROL = UserID("@carol:here.test")
BOB = UserID("@bob:there.test")
DAN = UserID("@dan:there.test")
PHONE = DeviceID("PHONE")
LAPTOP = DeviceID("LAPTOP")

OFFLINE = View(PresenceState.OFFLINE)
ONLINE = View(PresenceState.ONLINE, 10, "Hello", True)
IDLE = View(PresenceState.UNAVAILABLE, 400_000)

Does = Callable[[Any], Sequence[Effect]]


@dataclass(frozen=True)
class Entry:
    """An entry of a presence list."""

    user_id: UserID
    stage: ObserverStage = ObserverStage.ACCEPTED
    since_ms: int = 1_000
    unreachable: bool = False
    view: View = ONLINE


@dataclass(frozen=True)
class Pair:
    """An open invite, or an observer."""

    user_id: UserID
    since_ms: int = 2_000


@dataclass
class FakeEngine:
    """Remembers events, does with them what `does` says, and shows what it was given."""

    events: list[Event] = field(default_factory=list)
    does: dict[type, Does] = field(default_factory=dict)
    views: dict[tuple[UserID, UserID], View] = field(default_factory=dict)
    lists: dict[UserID, list[Entry]] = field(default_factory=dict)
    invites: dict[UserID, list[Pair]] = field(default_factory=dict)
    observers: dict[UserID, list[Pair]] = field(default_factory=dict)
    users: set[UserID] = field(default_factory=lambda: {ALICE, CAROL})
    old_copies: set[UserID] = field(default_factory=set)

    def receive(self, event: Event, now_ms: int) -> Sequence[Effect]:
        """Remember it, and do as told."""
        self.events.append(event)
        does = self.does.get(type(event))
        return does(event) if does else ()

    def wake_ms(self) -> int | None:
        """Never."""
        return None

    def view(self, observer: UserID, observed: UserID, now_ms: int) -> View | None:
        """As given; the own one always."""
        return self.views.get((observer, observed), OFFLINE if observer == observed else None)

    def visible_to(self, observer: UserID) -> frozenset[UserID]:
        """Whom a view was given of."""
        return frozenset({observer} | {seen for watcher, seen in self.views if watcher == observer})

    def presence_list(self, observer: UserID, now_ms: int) -> Sequence[Entry]:
        """As given."""
        return self.lists.get(observer, [])

    def invites_of(self, user_id: UserID) -> Sequence[Pair]:
        """As given."""
        return self.invites.get(user_id, [])

    def observers_of(self, user_id: UserID) -> Sequence[Pair]:
        """As given."""
        return self.observers.get(user_id, [])

    def user_exists(self, user_id: UserID) -> bool:
        """As given."""
        return user_id in self.users

    def wants_fresher_view(self, observer: UserID, observed: UserID, now_ms: int) -> bool:
        """Whether the copy was said to be old."""
        return observed in self.old_copies

    def of_type(self, wanted: type) -> list[Event]:
        """The events of one type, in order."""
        return [event for event in self.events if isinstance(event, wanted)]


@dataclass
class FakeStore:
    """Tokens in a dict; commits at once, or when released."""

    tokens: dict[str, TokenOwner] = field(default_factory=dict)
    lookups: list[str] = field(default_factory=list)
    held: list[Deferred[None]] | None = None
    slow_lookups: list[tuple[str, Deferred[TokenOwner | None]]] | None = None

    def commit(self, effects: Sequence[Durable], now_ms: int) -> Deferred[None]:
        """On disk at once, or when `held` is released."""
        if self.held is None:
            return succeed(None)
        done: Deferred[None] = Deferred()
        self.held.append(done)
        return done

    def find_token(self, token: str) -> Deferred[TokenOwner | None]:
        """From the dict."""
        self.lookups.append(token)
        if self.slow_lookups is None:
            return succeed(self.tokens.get(token))
        answer: Deferred[TokenOwner | None] = Deferred()
        self.slow_lookups.append((token, answer))
        return answer


@dataclass
class Answer:
    """An HTTP answer; `body` is parsed."""

    status: int
    body: Any
    headers: dict[str, str]

    @property
    def errcode(self) -> str:
        """The Matrix error code."""
        return str(self.body["errcode"])


class Asked:
    """A request on its way: answered, or waiting."""

    def __init__(self, world: "World", deferred: Deferred[Answer]) -> None:
        self._world = world
        self._results: list[Answer | Failure] = []
        self._deferred = deferred
        deferred.addBoth(self._results.append)

    @property
    def waits(self) -> bool:
        """Whether there is no answer yet."""
        self._world.treq.flush()
        return not self._results

    @property
    def answer(self) -> Answer:
        """The answer, which must have come."""
        assert not self.waits, "not answered yet"
        result = self._results[0]
        if isinstance(result, Failure):
            result.raiseException()
        assert isinstance(result, Answer)
        return result

    def hang_up(self) -> None:
        """The client goes away."""
        self._deferred.cancel()
        self._world.treq.flush()


class World:
    """One server's client API, its clock, its store and an engine: the fake one, unless another is given."""

    def __init__(
        self,
        *,
        busy: bool = False,
        limits: LimitsConfig | None = None,
        max_tokens: int = MAX_REMEMBERED,
        max_lookups: int = MAX_LOOKUPS,
        engine: Engine | None = None,
    ) -> None:
        self.clock = Clock()
        self.clock.advance(1_700_000_000)
        self.engine = FakeEngine()
        self.store = FakeStore(
            {
                "alice-phone": TokenOwner(ALICE, PHONE),
                "alice-laptop": TokenOwner(ALICE, LAPTOP),
                "carol": TokenOwner(CAROL, None),
            }
        )
        self.fatal: list[Failure] = []
        self.deciding = engine or self.engine
        self.hub = Hub(self.deciding, self.store, self.clock, self._perform, self.fatal.append)
        self.limits = limits or LimitsConfig()
        self.tokens = Tokens(
            self.store,
            self.hub,
            self.deciding,
            self.clock,
            max_remembered=max_tokens,
            max_lookups=max_lookups,
        )
        self.changes = PresenceChanges(self.hub, self.clock, self.limits)
        self.restart("run1", busy=busy)

    def restart(self, epoch: str, *, busy: bool = False) -> None:
        """A new run: nothing that the feed knew is known any more."""
        self.feed = Feed(self.clock, epoch)
        self.parts = ClientParts(
            hub=self.hub,
            engine=self.deciding,
            tokens=self.tokens,
            feed=self.feed,
            changes=self.changes,
            clock=self.clock,
            settings=ClientSettings(HERE, busy=busy),
        )
        root = Resource()
        add_clients(root, self.parts)
        self.treq = StubTreq(root)

    def _perform(self, effect: Outgoing) -> None:
        if isinstance(effect, TellObservers):
            self.feed.tell(effect)
        elif isinstance(effect, Notice):
            self.feed.notice(effect)

    def ask(
        self,
        method: str,
        path: str,
        *,
        token: str | None = "alice-phone",
        body: object = None,
        data: bytes | None = None,
        params: dict[str, str] | None = None,
    ) -> Asked:
        """Send a request; `path` is below `/_matrix/client/v3` where it is not absolute."""
        if not path.startswith("/"):
            path = f"/_matrix/client/v3/{path}"
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        if body is not None:
            data = json_module.dumps(body).encode()
        return Asked(self, ensureDeferred(self._send(method, path, headers, data, params)))

    def answer(self, method: str, path: str, **rest: Any) -> Answer:
        """The answer to a request that is answered at once."""
        return self.ask(method, path, **rest).answer

    def sync(self, token: str = "alice-phone", **params: str | int) -> Asked:
        """A sync; long, with a `timeout`."""
        return self.ask(
            "GET", "sync", token=token, params={name: str(value) for name, value in params.items()}
        )

    def tell(self, observed: UserID, view: View | None, *observers: UserID, gone: bool = False) -> None:
        """The engine has news of `observed` for these observers."""
        self.show(observed, view, *observers)
        self.feed.tell(TellObservers(observed, observers, gone))

    def show(self, observed: UserID, view: View | None, *observers: UserID) -> None:
        """These observers see `observed` so from now on, without any news of it."""
        for observer in observers:
            if view is None:
                self.engine.views.pop((observer, observed), None)
            else:
                self.engine.views[(observer, observed)] = view

    async def _send(
        self,
        method: str,
        path: str,
        headers: dict[str, str],
        data: bytes | None,
        params: dict[str, str] | None,
    ) -> Answer:
        stub: Any = self.treq  # treq's functions are attributes that it makes at run time
        response = await stub.request(
            method, f"http://here.test{path}", headers=headers, data=data, params=params or {}
        )
        content = await response.content()
        found = {
            name.decode().lower(): values[0].decode() for name, values in response.headers.getAllRawHeaders()
        }
        return Answer(response.code, json_module.loads(content) if content else None, found)


def status_path(user_id: str) -> str:
    """`presence/{userId}/status`, encoded as most clients do."""
    return f"presence/{quote(user_id, safe='')}/status"


def list_path(user_id: str) -> str:
    """`presence/list/{userId}`."""
    return f"presence/list/{quote(user_id, safe='')}"


def presence_of(answer: Answer) -> dict[str, str]:
    """Who is what in the presence section of a sync's answer."""
    return {event["sender"]: event["content"]["presence"] for event in answer.body["presence"]["events"]}
