"""Stories between real processes on the real clock: a minute of the story is a second and a half.

Always true:
- stories may share servers at the same time: each has people of its own, and reads of nobody else;
- every length of time in the configuration has shrunk alike, so stories keep their proportions;
- a moment is the wall clock's: a right ends once the request that ended it was answered.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fedpresence.testing.processes import LocalFederation, OpenStream
from fedpresence.testing.users import User
from tests.stories.cast import House, Person
from tests.stories.rights import Event, RoomHas, Seen
from tests.stories.stage import HERE, THERE, Stage

MINUTE_S = 1.5
PATIENCE_S = 20.0  # nothing takes as long; a loaded machine may
LOOK_AGAIN_S = 0.02


def _shrunk(minutes: float) -> str:
    return f"{round(minutes * MINUTE_S * 1000)}ms"


CONFIG = {
    "presence": {
        "last_active_granularity": _shrunk(1),
        "idle_timeout": _shrunk(5),
        "sync_online_timeout": _shrunk(0.5),
        "refresh_interval": _shrunk(25),
        "remote_timeout": _shrunk(30),
    },
    "federation": {"batch_window": "20ms"},
}


def two_servers(folder: Path) -> LocalFederation:
    """The processes; a context manager."""
    return LocalFederation(folder, [HERE, THERE], CONFIG)


class ProcessStage(Stage):
    """Two running servers; `name` is part of what this story's people are called."""

    def __init__(self, federation: LocalFederation, name: str) -> None:
        super().__init__()
        self._name = name
        self._federation = federation
        self._streams: dict[str, OpenStream] = {}
        self.here, self.there = House(self, federation[HERE]), House(self, federation[THERE])

    def close(self) -> None:
        """Everybody goes."""
        for stream in self._streams.values():
            stream.close()

    # --- the words of stories ----------------------------------------------------------------------

    def after(self, *, seconds: float = 0, minutes: float = 0, hours: float = 0, days: float = 0) -> None:
        """Wait."""
        time.sleep(MINUTE_S * (seconds / 60 + minutes + 60 * (hours + 24 * days)))

    @property
    def now_s(self) -> float:
        """Real time, stretched."""
        return time.time() * self.stretch

    @property
    def stretch(self) -> float:
        """Forty."""
        return 60 / MINUTE_S

    @property
    def blur_s(self) -> float:
        """A quarter of a real second: other processes and two cores."""
        return 0.25 * self.stretch

    # --- what the words are made of ------------------------------------------------------------------

    def make_user(self, localpart: str, server_name: str) -> User:
        """By the command line, while the server runs."""
        return self._federation[server_name].user(f"{localpart}.{self._name}")

    def eventually(self, happened: Callable[[], Any], what: str, instead: Callable[[], Any] = str) -> Any:
        """Look again and again: other processes cannot be awaited."""
        deadline = time.monotonic() + PATIENCE_S
        while not (answer := happened()):
            if time.monotonic() > deadline:
                raise AssertionError(f"this did not happen: {what}; {instead()}")
            time.sleep(LOOK_AGAIN_S)
        return answer

    def settle(self) -> None:
        """Wait while a server has something to say: it is written down once it is answered."""

        def quiet() -> bool:
            return not any(
                destination["state"] in ("sending", "waiting")
                for server in self._federation
                if server.is_running
                for destination in server.admin("GET", "/destinations").body["destinations"].values()
            )

        self.eventually(quiet, "nothing is on its way")

    def open_stream(self, person: Person, user: User, device: str | None) -> None:
        """One long poll after the other."""
        assert device is None, "one device each, here"
        self._streams[person.user_id] = OpenStream(user)

    def close_stream(self, person: Person, user: User, device: str | None) -> None:
        """The last of them ends."""
        self._streams.pop(person.user_id).close()

    def do_to(self, house: House, what: str) -> None:
        """Stop, kill or start the process."""
        assert what in ("stop", "kill", "start")
        getattr(self._federation[house.name], what)()

    def set_room(self, house: House, members: frozenset[str]) -> None:
        """Through the admin API."""
        room_id = f"!{self._name}:there.test"
        body = {"members": sorted(members)}
        assert house.server.admin("PUT", f"/rooms/{quote(room_id)}/members", body).status == 200
        self._note(RoomHas(house.name, room_id, members))

    @contextmanager
    def the_right_begins(self, event: Event) -> Iterator[None]:
        """With the request."""
        self._note(event)
        yield

    @contextmanager
    def the_right_ends(self, event: Event) -> Iterator[None]:
        """With its answer."""
        yield
        self._note(event)

    def seen(self) -> list[Seen]:
        """What both wrote down, by the time of sending."""
        transactions = [self._ours(seen) for server in self._federation for seen in server.transactions()]
        return sorted(((seen["sent_ms"], seen) for seen in transactions), key=lambda each: each[0])

    def wire_text(self) -> str:
        """The same for people."""
        lines = [
            f"{seen['sent_ms']} {seen['from']} to {seen['to']} {seen['status']}: {seen['body']['edus']}"
            for _, seen in self.seen()
        ]
        return "\n".join(lines)

    def _ours(self, seen: dict[str, Any]) -> dict[str, Any]:
        """A transaction without what it says of other stories' people."""
        edus = []
        for edu in seen["body"]["edus"]:
            content = edu["content"]
            if edu["edu_type"] != "m.presence":
                edus += [edu] if self._is_ours(content["observed_user"]) else []
                continue
            content = {key: list(filter(self._is_ours, who)) for key, who in content.items() if key != "push"}
            pushes = [push for push in edu["content"]["push"] if self._is_ours(push["user_id"])]
            edus.append(edu | {"content": content | {"push": pushes}})
        return seen | {"body": seen["body"] | {"edus": edus}}

    def _is_ours(self, user_id: str) -> bool:
        return user_id.partition(":")[0].endswith(f".{self._name}")

    def _note(self, event: Event) -> None:
        self._events.append((time.time() * 1000, event))
