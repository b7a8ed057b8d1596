"""What one other server is told, as it leaves, while an engine lives through a story."""

from dataclasses import dataclass, field

from fedpresence.engine.effects import Effect, SendEdu, SendPush
from fedpresence.engine.engine import Engine
from fedpresence.engine.events import EdusDelivered, Event
from fedpresence.engine.outgoing import Push, Wanted
from fedpresence.ids import ServerName
from fedpresence.testing.builders import NOW_MS, THERE, grant, pass_time


@dataclass
class Destination:
    """Takes every push at once; `told` has them with the moment each was made."""

    engine: Engine
    server: ServerName = THERE
    now_ms: int = NOW_MS
    told: list[tuple[int, Push]] = field(default_factory=list)

    def at(self, ms: int, *events: Event) -> tuple[Effect, ...]:
        """Time passes until `ms` after the beginning, deadline by deadline, then `events` happen there."""
        moment_ms = NOW_MS + ms
        gathered: list[Effect] = []
        while (due_ms := self.engine.next_deadline_ms()) is not None and due_ms <= moment_ms:
            for woken_ms, effects in pass_time(self.engine, due_ms):
                self.take(effects, woken_ms)
                gathered.extend(effects)
        for event in events:
            effects = self.engine.receive(event, moment_ms)
            self.take(effects, moment_ms)
            gathered.extend(effects)
        self.now_ms = moment_ms
        return tuple(gathered)

    def take(self, effects: tuple[Effect, ...], now_ms: int) -> None:
        """Deliver what is for this server."""
        for effect in effects:
            if isinstance(effect, SendPush) and self.server in effect.destinations:
                composed = self.engine.compose(self.server, Wanted(users=(effect.user_id,)), now_ms)
                self.told.extend((now_ms - NOW_MS, push) for push in composed.pushes)
            elif isinstance(effect, SendEdu) and effect.destination == self.server:
                self.engine.compose(self.server, Wanted(owed=(effect.edu,)), now_ms)
                self.engine.receive(EdusDelivered(self.server, (effect.edu,)), now_ms)

    def news(self) -> list[tuple[int, Push]]:
        """What was told since this was asked last."""
        told, self.told = self.told, []
        return told


def a_watched_engine(engine: Engine) -> Destination:
    """Bob at there.test may see Alice of `engine`, and has heard so."""
    destination = Destination(engine)
    destination.take(grant(engine), NOW_MS)
    destination.told.clear()
    return destination
