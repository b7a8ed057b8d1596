"""A destination, an engine and a client that say what a test tells them."""

import json
from collections.abc import Callable, Mapping
from random import Random
from typing import Any

from twisted.internet.defer import Deferred, ensureDeferred, succeed
from twisted.internet.task import Clock

from fedpresence.engine.effects import SendEdu, SendPush, Urgency
from fedpresence.engine.events import Event
from fedpresence.engine.outgoing import Composed, ListEdu, Push, Wanted
from fedpresence.engine.presence import PresenceState, Published
from fedpresence.engine.settings import ServerLists
from fedpresence.engine.subscription import EduKind, OwedEdu
from fedpresence.errors import DeliveryFailed
from fedpresence.ids import ServerName, UserID
from fedpresence.outbound.service import Outbound, OutboundSettings
from fedpresence.outbound.status import TransactionSeen
from fedpresence.outbound.tools import Decisions

HERE, THERE = ServerName("here.test"), ServerName("there.test")
ALICE, CAROL = UserID("@alice:here.test"), UserID("@carol:here.test")
BOB = UserID("@bob:there.test")
START_MS = 1_700_000_000_000

Outcome = int | DeliveryFailed | Deferred[int]


def refusal(status: int, **more: Any) -> DeliveryFailed:
    """An answer that is not 2xx."""
    return DeliveryFailed("there.test", f"answered {status}", status=status, heard=True, **more)


def unreachable() -> DeliveryFailed:
    """No connection."""
    return DeliveryFailed("there.test", "cannot connect")


def silence() -> DeliveryFailed:
    """A timeout after sending."""
    return DeliveryFailed("there.test", "no answer in 60 s", heard=True)


class Engine:
    """Rights and states; everybody sees everybody until told otherwise."""

    def __init__(self) -> None:
        self.states: dict[UserID, Published] = {}
        self.forbidden: set[UserID] = set()
        self.counter = 0
        self.stale: set[OwedEdu] = set()
        self.events: list[Event] = []
        self.composing: Deferred[None] | None = None
        self.composed_at: list[int] = []

    def publish(self, user: UserID, state: PresenceState, last_active_ms: int = START_MS) -> None:
        """The user's newest state."""
        self.states[user] = Published(state, last_active_ms)

    def forbid(self, user: UserID) -> None:
        """A right ends."""
        self.forbidden.add(user)
        self.counter += 1

    def decisions(self) -> Decisions:
        """As a sender sees it."""
        return Decisions(
            settling=lambda: self.composing,
            compose=lambda _to, wanted, moment: self._compose(wanted, moment),
            rights=lambda destination: self.counter,
            needs_refresh=lambda destination, user: user not in self.forbidden,
            submit=self._submit,
        )

    def _submit(self, event: Event) -> "Deferred[None]":
        self.events.append(event)
        return succeed(None)

    def _compose(self, wanted: Wanted, moment_ms: int) -> Composed:
        self.composed_at.append(moment_ms)
        self.composing = None
        online = Published(PresenceState.ONLINE, START_MS)
        published = {u: self.states.get(u, online) for u in wanted.users if u not in self.forbidden}
        owed = tuple(edu for edu in wanted.owed if edu not in self.stale)
        return Composed(
            before=(
                *(ListEdu(edu.kind, edu.observer, edu.observed) for edu in owed),
                *wanted.drops,
            ),
            pushes=tuple(Push(user, content.state, 0) for user, content in published.items()),
            published=published,
            polls=wanted.polls,
            unpolls=wanted.unpolls,
            owed=owed,
            stale_owed=tuple(edu for edu in wanted.owed if edu in self.stale),
            rights=self.counter,
        )


class Server:
    """The client and all destinations: answers by `outcomes` in turn, then by `otherwise`."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.reachable: Outcome = 200
        self.away: set[ServerName] = set()  # unreachable, whatever the others are
        self.outcomes: list[Outcome] = []
        self.otherwise: Callable[[str, Mapping[str, object]], Outcome] = lambda txn_id, content: 200
        self.opened: list[tuple[ServerName, int]] = []
        self.sent: list[tuple[str, Mapping[str, object]]] = []
        self.given_back = 0
        self.keeps = True  # its links, where it is reachable
        self.closed = False

    def kept(self, destination: ServerName) -> "_Link | None":
        """A link where one stands."""
        if self.reachable != 200 or not self.keeps or destination in self.away:
            return None
        self.opened.append((destination, round(self._clock.seconds() * 1000)))
        return _Link(self)

    async def open(self, destination: ServerName) -> "_Link":
        """A link, unless unreachable."""
        self.opened.append((destination, round(self._clock.seconds() * 1000)))
        await _as_said(unreachable() if destination in self.away else self.reachable)
        return _Link(self)

    async def close(self) -> None:
        """Remember it."""
        self.closed = True

    def pushed(self) -> list[list[str]]:
        """Who was in each transaction."""
        return [[item["user_id"] for item in items(content)] for _, content in self.sent]

    def kinds(self) -> list[list[str]]:
        """The EDU types of each transaction."""
        return [[edu["edu_type"] for edu in edus(content)] for _, content in self.sent]


class _Link:
    def __init__(self, server: Server) -> None:
        self._server = server

    def send_transaction(self, txn_id: str, body: bytes) -> "Deferred[int]":
        content: dict[str, object] = json.loads(body)
        self._server.sent.append((txn_id, content))
        outcomes = self._server.outcomes
        outcome = outcomes.pop(0) if outcomes else self._server.otherwise(txn_id, content)
        return ensureDeferred(_as_said(outcome))

    def give_back(self) -> None:
        self._server.given_back += 1


async def _as_said(outcome: Outcome) -> int:
    if isinstance(outcome, DeliveryFailed):
        raise outcome
    return await outcome if isinstance(outcome, Deferred) else outcome


def edus(content: Mapping[str, object]) -> list[Any]:
    """The EDUs of a transaction."""
    found: Any = content["edus"]
    return list(found)


def items(content: Mapping[str, object]) -> list[Any]:
    """The push items of a transaction."""
    return [item for edu in edus(content) for item in edu["content"].get("push", [])]


class Rig:
    """An Outbound with all around it."""

    def __init__(self, **settings: Any) -> None:
        self.clock = Clock()
        self.clock.advance(START_MS / 1000)
        self.engine = Engine()
        self.server = Server(self.clock)
        self.seen: list[TransactionSeen] = []
        self.boot_users: list[tuple[ServerName, UserID]] = []
        self.outbound = Outbound(
            self.clock,
            self.server,
            self.engine.decisions(),
            OutboundSettings(HERE, **settings),
            Random(1),
            boot_users=lambda: self.boot_users,
            on_transaction=self.seen.append,
        )

    def start(self) -> "Rig":
        """As the daemon does."""
        self.outbound.startService()
        return self

    def push(
        self, user: UserID = ALICE, urgency: Urgency = Urgency.CHANGE, destination: ServerName = THERE
    ) -> None:
        """The engine says that news is due."""
        self.outbound.enqueue(SendPush((destination,), user, urgency))

    def owe(self, kind: EduKind = EduKind.INVITE, generation: int = 1, observer: UserID = ALICE) -> OwedEdu:
        """The engine says that an EDU is owed."""
        edu = OwedEdu(kind, observer, BOB, generation, START_MS)
        self.outbound.enqueue(SendEdu(THERE, edu))
        return edu

    def wait(self, seconds: float = 0.0) -> None:
        """Time passes, a little at a time."""
        end = self.clock.seconds() + seconds
        self.clock.advance(0)
        self.clock.advance(0)
        while (left := end - self.clock.seconds()) > 0.001:
            self.clock.advance(min(left, 0.05 if seconds < 1_000 else 1.0))
            self.clock.advance(0)


def only(server: ServerName) -> ServerLists:
    """Nobody but this server."""
    return ServerLists(allow=(server,))
