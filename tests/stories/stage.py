"""Where a story is played: the same words, in a rig where time is turned or between real processes.

    def a_story(stage: Stage) -> None:
        alice, bob, after = stage.alice, stage.bob, stage.after
        alice.invites(bob)
        bob.sees_a_request_from(alice)
        stage.the_path(stage.there, stage.here).goes_down()
        after(minutes=5)

Always true:
- `alice` and `dave` are at `here.test`, `bob` and `carol` at `there.test`; nobody knows anybody yet;
- `after` lets the story's time pass: in the rig at once and exactly, between processes by waiting;
- a story that ends is held against `rights`: nothing was ever told to a server without a right to it.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from fedpresence.testing.users import User
from tests.stories.cast import House, Path, Person, Stranger
from tests.stories.rights import Event, Seen, leaks

HERE, THERE, OLD = "here.test", "there.test", "old.test"

Story = Callable[["Stage"], None]


@dataclass(frozen=True)
class Said:
    """One thing that a transaction said: a list EDU, or one user's push, poll or unpoll."""

    at_ms: int
    origin: str
    destination: str
    kind: str  # invite, accept, deny, drop; push, poll, unpoll
    user_id: str  # of a list EDU, who is observed
    content: dict[str, Any]
    txn_id: str
    is_taken: bool  # answered with 200

    def __str__(self) -> str:
        return f"push {self.content['presence']}" if self.kind == "push" else self.kind


class Ear:
    """What one server says to another, from the moment of listening; each thing is heard once."""

    def __init__(self, stage: "Stage", origin: str, destination: str) -> None:
        self._stage = stage
        self._names = origin, destination
        self._read = len(stage.said(origin, destination))

    def hears(self, *what: str) -> list[Said]:
        """Exactly this was said, in this order and in a few words each; AssertionError for more or less."""
        self._stage.eventually(
            lambda: len(self.unheard()) >= len(what), f"{self._names[0]} says {what}", self._words
        )
        heard = self.unheard()
        assert [str(said) for said in heard] == list(what), f"{self._names[0]} said {self._words()}"
        self._read += len(heard)
        return heard

    def hears_among_others(self, what: str) -> Said:
        """This was said; the rest up to it does not matter."""

        def find() -> int | None:
            found = (place for place, said in enumerate(self.unheard(), 1) if str(said) == what)
            return next(found, None)

        place: int = self._stage.eventually(find, f"{self._names[0]} says {what}", self._words)
        said = self.unheard()[place - 1]
        self._read += place
        return said

    def hears_nothing(self) -> None:
        """Nothing was said up to now."""
        assert not self.unheard(), f"{self._names[0]} said what it must not: {self._words()}"

    def unheard(self) -> list[Said]:
        """What was said, and not yet heard."""
        return self._stage.said(*self._names)[self._read :]

    def _words(self) -> list[str]:
        return [f"{said} {said.user_id} {said.content}" for said in self.unheard()]


class Stage(ABC):
    """The servers, the people and the time of one story."""

    here: House
    there: House

    def __init__(self) -> None:
        self._events: list[tuple[float, Event]] = []
        self._people: dict[str, Person] = {}

    @property
    def alice(self) -> Person:
        """At `here.test`."""
        return self._person("alice", HERE)

    @property
    def bob(self) -> Person:
        """At `there.test`."""
        return self._person("bob", THERE)

    @property
    def carol(self) -> Person:
        """At `there.test`, with Bob."""
        return self._person("carol", THERE)

    @property
    def dave(self) -> Person:
        """At `here.test`, with Alice."""
        return self._person("dave", HERE)

    def play(self, story: Story) -> None:
        """The whole story, and then whether anything was told that must not be."""
        try:
            story(self)
            self.nothing_leaked()
        except BaseException as error:
            error.add_note(f"--- the wire ---\n{self.wire_text()}")
            raise

    # --- the words of stories ----------------------------------------------------------------------

    @abstractmethod
    def after(self, *, seconds: float = 0, minutes: float = 0, hours: float = 0, days: float = 0) -> None:
        """Let so much time of the story pass."""

    @property
    @abstractmethod
    def now_s(self) -> float:
        """The story's time in seconds."""

    @property
    @abstractmethod
    def stretch(self) -> float:
        """How many of the story's seconds a second of the clocks is."""

    @property
    @abstractmethod
    def blur_s(self) -> float:
        """How exactly moments can be told, in the story's seconds."""

    def the_path(self, origin: "House | Stranger", destination: "House | Stranger") -> Path:
        """One direction between two servers."""
        return Path(self, _name(origin), _name(destination))

    def listen(self, origin: "House | Stranger", destination: "House | Stranger") -> Ear:
        """Hear what is said on a path from now on."""
        self.settle()
        return Ear(self, _name(origin), _name(destination))

    def erin(self) -> Stranger:
        """A user of a server that takes everything and does nothing by itself."""
        raise NotImplementedError(NEEDS_A_RIG)

    def old_server_sends(self, house: House, *edus: object) -> None:
        """Erin's server says these to another, in one transaction."""
        raise NotImplementedError(NEEDS_A_RIG)

    def nothing_leaked(self) -> None:
        """Every push went to a server that had a right to it."""
        self.settle()
        found = leaks(self._events, self.seen(), (HERE, THERE))
        assert not found, "told without a right:\n" + "\n".join(found)

    # --- what the words are made of ------------------------------------------------------------------

    @abstractmethod
    def make_user(self, localpart: str, server_name: str) -> User:
        """Somebody with a token, whom nobody knows yet."""

    @abstractmethod
    def eventually(self, happened: Callable[[], Any], what: str, instead: Callable[[], Any] = str) -> Any:
        """What `happened` answers once it is true; AssertionError with `what` and `instead` where never."""

    @abstractmethod
    def settle(self) -> None:
        """Let everything arrive that is on its way."""

    @abstractmethod
    def open_stream(self, person: Person, user: User, device: str | None) -> None:
        """A device listens from now on."""

    @abstractmethod
    def close_stream(self, person: Person, user: User, device: str | None) -> None:
        """A device listens no more."""

    @abstractmethod
    def do_to(self, house: House, what: str) -> None:
        """`stop`, `kill`, `start`, and in a rig `wipe`, `backup`, `restore`, `rotate_key`."""

    def set_path(self, origin: str, destination: str, **faults: object) -> None:
        """What is wrong with a path from now on."""
        raise NotImplementedError(NEEDS_A_RIG)

    def set_clock(self, house: House, offset_ms: int) -> None:
        """A server's clock is off by so much."""
        raise NotImplementedError(NEEDS_A_RIG)

    @abstractmethod
    def set_room(self, house: House, members: frozenset[str]) -> None:
        """A server learns who is in the room."""

    @abstractmethod
    def the_right_begins(self, event: Event) -> AbstractContextManager[None]:
        """What is done inside gives a right."""

    @abstractmethod
    def the_right_ends(self, event: Event) -> AbstractContextManager[None]:
        """What is done inside takes a right."""

    @abstractmethod
    def seen(self) -> list[Seen]:
        """Every transaction of this story, with its moment as rights count it."""

    @abstractmethod
    def wire_text(self) -> str:
        """The same for people."""

    def _person(self, localpart: str, server_name: str) -> Person:
        if localpart not in self._people:
            self._people[localpart] = Person(self, self.make_user(localpart, server_name))
        return self._people[localpart]

    def said(self, origin: str, destination: str) -> list[Said]:
        """All that one server said to another in this story; what was repeated on the way only once."""
        return [
            said
            for _, seen in self.seen()
            if (seen["from"], seen["to"]) == (origin, destination) and not seen.get("duplicate")
            for said in _said(seen)
        ]


NEEDS_A_RIG = "only a rig can do that: this story cannot be played between processes"

_KINDS = {
    "m.presence_invite": "invite",
    "m.presence_accept": "accept",
    "m.presence_deny": "deny",
    "org.fedpresence.presence_drop": "drop",
}


def _name(place: House | Stranger) -> str:
    return place.name if isinstance(place, House) else place.server_name


def _said(seen: dict[str, Any]) -> Iterator[Said]:
    def said(kind: str, user_id: str, content: dict[str, Any]) -> Said:
        is_taken = seen["status"] == 200
        return Said(
            seen["sent_ms"], seen["from"], seen["to"], kind, user_id, content, seen["txn_id"], is_taken
        )

    for edu in seen["body"]["edus"]:
        content = edu["content"]
        if edu["edu_type"] != "m.presence":
            yield said(_KINDS[edu["edu_type"]], content["observed_user"], content)
            continue
        for push in content.get("push", ()):
            yield said("push", push["user_id"], push)
        for kind in ("poll", "unpoll"):
            for user_id in content.get(kind, ()):
                yield said(kind, user_id, {"user_id": user_id})
