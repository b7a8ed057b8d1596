"""A server without its doors: engine, hub, store in memory and the real Outbound, on a clock that is turned.

Always true: what leaves is counted as it leaves; every destination takes all, unless told otherwise.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from random import Random

from twisted.internet.task import Clock
from twisted.python.failure import Failure

from fedpresence.engine.effects import InboxFilled, Notice, Outgoing, TellObservers
from fedpresence.engine.engine import Engine
from fedpresence.engine.events import Event, InboxDue, Started, Stopping, UserAdded
from fedpresence.engine.settings import EngineSettings
from fedpresence.hub import Hub
from fedpresence.ids import ServerName, UserID
from fedpresence.outbound.service import Outbound, OutboundSettings
from fedpresence.outbound.tools import Decisions
from fedpresence.storage.memory import MemoryStore
from fedpresence.testing.builders import HERE, NOW_MS
from tests.asynchronous import result_of
from tests.outbound.sending import Server, items


class SendingServer:
    """Begins a run on what `store` holds, at `now_ms`."""

    def __init__(
        self,
        store: MemoryStore | None = None,
        now_ms: int = NOW_MS,
        users: Iterable[UserID] = (),
        settings: EngineSettings | None = None,
    ) -> None:
        self.clock = Clock()
        self.clock.advance(now_ms / 1000)
        self.store = store or MemoryStore()
        self.net = Server(self.clock)
        self.told: list[TellObservers] = []
        settings = settings or EngineSettings(HERE)
        self.engine = Engine(settings, now_ms)
        self.engine.load(result_of(self.store.load()), now_ms)
        self.hub = Hub(self.engine, self.store, self.clock, self._perform, _fatal)
        engine, hub = self.engine, self.hub
        self.outbound = Outbound(
            self.clock,
            self.net,
            Decisions(
                settling=hub.settling,
                compose=engine.compose,
                rights=engine.rights,
                needs_refresh=lambda to, user_id: engine.needs_refresh(to, user_id, self.now_ms),
                submit=hub.submit,
            ),
            OutboundSettings(HERE, refresh_interval_ms=settings.refresh_interval_ms),
            Random(1),
            boot_users=engine.boot_users,
        )
        self.outbound.startService()
        self.do(Started(), *(UserAdded(user_id) for user_id in users))

    @property
    def now_ms(self) -> int:
        """The clock's time."""
        return round(self.clock.seconds() * 1000)

    def do(self, *events: Event) -> None:
        """Events at this moment."""
        for event in events:
            result_of(self.hub.submit(event))
        self.clock.advance(0)

    def wait(self, ms: int, step_ms: int = 50) -> None:
        """Time passes, a little at a time."""
        end_ms = self.now_ms + ms
        while (left_ms := end_ms - self.now_ms) > 0:
            self.clock.advance(min(left_ms, step_ms) / 1000)

    def reopened(self, after_ms: int) -> "SendingServer":
        """The next run, `after_ms` later, after a clean stop."""
        records = self.engine.take_dirty(1_000_000)
        result_of(self.store.save_presence(records, self.now_ms))
        return SendingServer(self.store.reopened(), self.now_ms + after_ms)

    def stop(self) -> None:
        """The last words of a clean stop, and their five seconds."""
        self.do(Stopping(offline=False))
        self.wait(5_000)

    def transactions_a_second(self) -> Counter[int]:
        """How many connections were used, in each second of the clock."""
        return Counter(at_ms // 1000 for _, at_ms in self.net.opened)

    def pushes_of(self, user_id: UserID) -> list[Mapping[str, object]]:
        """What was said of a user, in order."""
        return [item for _, content in self.net.sent for item in items(content) if item["user_id"] == user_id]

    def _perform(self, effect: Outgoing) -> None:
        if isinstance(effect, TellObservers):
            self.told.append(effect)
        elif isinstance(effect, InboxFilled):
            self.clock.callLater(0, self.hub.submit, InboxDue())
        elif not isinstance(effect, Notice):
            self.outbound.enqueue(effect)


def _fatal(failure: Failure) -> None:
    failure.raiseException()


def destination(number: int) -> ServerName:
    """One of many servers."""
    return ServerName(f"s{number}.test")
