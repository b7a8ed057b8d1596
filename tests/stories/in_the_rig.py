"""Stories in a rig: time is turned, everything due has happened, and paths can be broken.

Always true:
- a rig is used for several stories; each finds its servers empty, its paths whole, its clocks right;
- a moment is a place in the rig's list of transactions: what was sent before somebody spoke stands before
  it, what was sent because of it stands behind it.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote

from fedpresence.testing.rig.process import Rig, RigHomeserver
from fedpresence.testing.users import User
from tests.stories.cast import House, Person, Stranger
from tests.stories.rights import DataBack, DataKept, DataLost, Event, PathLies, RoomHas, Seen
from tests.stories.stage import HERE, OLD, THERE, Stage, Story

USERS = ("alice@here.test", "bob@there.test", "carol@there.test", "dave@here.test")
ROOM = "!room:there.test"
PATIENCE_STEPS = 16  # of a batch window and a bit
STEP_MS = 250
MANY_TRANSACTIONS = 500  # a rig with more of them behind it gets slow to read


class RigStage(Stage):
    """One story's share of a rig's life."""

    def __init__(self, rig: Rig) -> None:
        super().__init__()
        self._rig = rig
        self._old: RigHomeserver | None = None
        self._first = len(rig.transactions())
        self._streams: set[tuple[str, str | None]] = set()
        self._paths: set[tuple[str, str]] = set()
        self._clocks: set[str] = set()
        for name in (HERE, THERE):
            rig[name].start()
            rig[name].wipe()
        rig.settle()
        self.here, self.there = House(self, rig[HERE]), House(self, rig[THERE])

    def close(self) -> None:
        """Put everything right for the next story."""
        for path in self._paths:
            self._rig.heal(*path)
        for user_id, device in self._streams:
            self._rig.user(user_id).stream(open=False, device_id=device)
        for name in self._clocks:
            self._rig[name].set_clock(0)
        if self._old is not None:
            self._old.forget_received()
        self._rig.settle()

    # --- the words of stories ----------------------------------------------------------------------

    def after(self, *, seconds: float = 0, minutes: float = 0, hours: float = 0, days: float = 0) -> None:
        """Turn the clock."""
        self._rig.advance(seconds=seconds, minutes=minutes, hours=hours, days=days)

    @property
    def now_s(self) -> float:
        """The rig's time."""
        return self._rig.now_ms / 1000

    @property
    def stretch(self) -> float:
        """A second is a second."""
        return 1

    @property
    def blur_s(self) -> float:
        """A batch window and a bit."""
        return STEP_MS / 1000

    def erin(self) -> Stranger:
        """Of a scripted homeserver."""
        self._old = self._rig.homeserver(OLD)
        return Stranger(f"@erin:{OLD}")

    def old_server_sends(self, house: House, *edus: object) -> None:
        """One transaction that must be taken."""
        answered = self._rig.homeserver(OLD).send(house.name, edus)
        assert answered["status"] == 200, answered
        self.settle()

    # --- what the words are made of ------------------------------------------------------------------

    def make_user(self, localpart: str, server_name: str) -> User:
        """One who is in the rig from its start; the server knew nothing of them when the story began."""
        return self._rig.user(f"{localpart}@{server_name}")

    def eventually(self, happened: Callable[[], Any], what: str, instead: Callable[[], Any] = str) -> Any:
        """Look, and turn the clock by a few seconds in all."""
        self._rig.settle()
        for _ in range(PATIENCE_STEPS):
            if answer := happened():
                return answer
            self._rig.advance(ms=STEP_MS)
        raise AssertionError(f"this did not happen: {what}; {instead()}")

    def settle(self) -> None:
        """Nothing is on its way."""
        self._rig.settle()

    def open_stream(self, person: Person, user: User, device: str | None) -> None:
        """Without any client."""
        self._rig.user(person.user_id).stream(device_id=device)
        self._streams.add((person.user_id, device))

    def close_stream(self, person: Person, user: User, device: str | None) -> None:
        """The same device's."""
        self._rig.user(person.user_id).stream(open=False, device_id=device)
        self._streams.discard((person.user_id, device))

    def do_to(self, house: House, what: str) -> None:
        """Any operation of the rig."""
        self._rig.settle()
        events: dict[str, Event] = {
            "wipe": DataLost(house.name),
            "backup": DataKept(house.name),
            "restore": DataBack(house.name),
        }
        if what in events:
            self._note(events[what])
        getattr(self._rig[house.name], what)()
        self._rig.settle()

    def set_path(self, origin: str, destination: str, **faults: object) -> None:
        """A link of the rig's; what waits in a batch window leaves before it changes."""
        self._rig.advance(ms=STEP_MS)
        self._note(PathLies(origin, destination, faults.get("status") == 200))
        self._rig.link(origin, destination, **faults)
        self._paths.add((origin, destination))

    def set_clock(self, house: House, offset_ms: int) -> None:
        """Restarts the server: a running one would not look."""
        self._rig[house.name].set_clock(offset_ms)
        self._clocks.add(house.name)
        self._rig.settle()

    def set_room(self, house: House, members: frozenset[str]) -> None:
        """Through the admin API."""
        self._rig.settle()
        self._note(RoomHas(house.name, ROOM, members))
        body = {"members": sorted(members)}
        assert house.server.admin("PUT", f"/rooms/{quote(ROOM)}/members", body).status == 200

    @contextmanager
    def the_right_begins(self, event: Event) -> Iterator[None]:
        """From what is sent because of it."""
        self._rig.settle()
        self._note(event)
        yield

    @contextmanager
    def the_right_ends(self, event: Event) -> Iterator[None]:
        """With what was sent before it."""
        self._rig.settle()
        self._note(event)
        yield

    def seen(self) -> list[Seen]:
        """The rig's transactions since the story began, by their places."""
        return list(enumerate(self._rig.transactions()[self._first :]))

    def wire_text(self) -> str:
        """The rig's own words."""
        return "\n".join(self._rig.wire_text().splitlines()[self._first :])

    def _note(self, event: Event) -> None:
        self._events.append((len(self._rig.transactions()) - self._first, event))


class Theatre:
    """Plays stories in a rig, one after the other; a new rig where the last one is spoilt or full."""

    def __init__(self, seed: int = 7) -> None:
        self._seed = seed
        self._rig: Rig | None = None

    def play(self, story: Story) -> None:
        """The whole story."""
        rig = self._ready()
        stage = RigStage(rig)
        try:
            stage.play(story)
            stage.close()
        except BaseException as error:
            error.add_note(f"--- log of the rig ---\n{rig.log()}")
            self._rig = None
            rig.kill()
            raise

    def close(self) -> None:
        """Stop the rig; it must end well."""
        rig, self._rig = self._rig, None
        if rig is not None:
            rig.close()

    def _ready(self) -> Rig:
        if self._rig is not None and len(self._rig.transactions()) > MANY_TRANSACTIONS:
            self.close()
        if self._rig is None:
            self._rig = Rig((HERE, THERE), USERS, seed=self._seed).start()
        return self._rig
