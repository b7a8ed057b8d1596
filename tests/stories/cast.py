"""Who acts in a story: people, the servers they are at, the paths between, and a server that is a script.

Always true:
- a verb in the present tense that people do (`invites`, `connects`) is done when it returns;
- what they see (`sees`, `watches`, `sees_a_request_from`) is waited for as long as the stage is patient,
  and is an AssertionError in plain words where it does not come.
"""

from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from fedpresence.testing.users import Server, User
from tests.stories.rights import Ended, Granted, server_of

if TYPE_CHECKING:
    from tests.stories.stage import Stage

NOTICES = {
    "m.presence_invite": "asked",
    "m.presence_accept": "accepted",
    "org.fedpresence.presence_drop": "withdrawn",
}


class Person:
    """A user with a client, who watches and is watched."""

    def __init__(self, stage: "Stage", user: User) -> None:
        self.user_id = user.user_id
        self.name = user.user_id.removeprefix("@").partition(":")[0]
        self._stage = stage
        self._user = user
        self._told: list[str] = []
        self._look_for_notices()

    def __str__(self) -> str:
        return self.name

    # --- lists -----------------------------------------------------------------------------------

    def invites(self, *others: "Person | Stranger") -> None:
        """Asks to watch them."""
        assert self.asks_to_watch(*others) == 200

    def asks_to_watch(self, *others: "Person | Stranger") -> int:
        """Asks, and may be refused: the HTTP status."""
        return self._user.change_list(invite=[other.user_id for other in others]).status

    def drops(self, other: "Person | Stranger") -> None:
        """Wants to watch them no more."""
        assert self._user.change_list(drop=[other.user_id]).status == 200

    def accepts(self, observer: "Person | Stranger") -> None:
        """Lets them watch."""
        with self._stage.the_right_begins(Granted(self.user_id, observer.user_id)):
            assert self._user.change_list(accept=[observer.user_id]).status == 200

    def denies(self, observer: "Person | Stranger") -> None:
        """Does not let them watch."""
        with self._stage.the_right_ends(Ended(self.user_id, observer.user_id)):
            assert self._user.change_list(deny=[observer.user_id]).status == 200

    def revokes(self, observer: "Person | Stranger") -> None:
        """Takes back what they were let."""
        with self._stage.the_right_ends(Ended(self.user_id, observer.user_id)):
            assert self._user.change_list(revoke=[observer.user_id]).status == 200

    def comes_to_watch(self, other: "Person") -> None:
        """Asks and is let: how most stories begin."""
        self.invites(other)
        other.sees_a_request_from(self)
        other.accepts(self)
        self.watches(other)

    # --- presence --------------------------------------------------------------------------------

    def connects(self, device: str | None = None) -> None:
        """Has a client that listens, from now on."""
        self._stage.open_stream(self, self._user, device)

    def disconnects(self, device: str | None = None) -> None:
        """Closes that client."""
        self._stage.close_stream(self, self._user, device)

    def says(self, presence: str, message: str | None = None) -> None:
        """Sets the presence by hand, and the message, or none."""
        assert self._user.put_status(presence, message).status == 200

    def hides(self) -> None:
        """Appears offline."""
        self.says("offline")

    def does_something(self, device: str | None = None) -> None:
        """Writes, types or reads somewhere: a pro-active event."""
        event = {"user_id": self.user_id} | ({"device_id": device} if device else {})
        answer = self._user.server.admin("POST", "/activity", {"events": [event]})
        assert answer.status == 200, answer

    # --- what they find out ----------------------------------------------------------------------

    def sees_a_request_from(self, observer: "Person | Stranger") -> None:
        """Is asked by them, and has not answered."""
        self._eventually(lambda: observer.user_id in self._ids("invites"), f"a request from {observer}")

    def sees_no_request_from(self, observer: "Person | Stranger") -> None:
        """Is not asked by them, or has answered."""
        self._eventually(lambda: observer.user_id not in self._ids("invites"), f"no request from {observer}")

    def waits_for(self, other: "Person | Stranger") -> None:
        """Has asked them, without an answer yet."""
        self._eventually(lambda: self._stands_with(other) == "pending", f"{other} pending on the list")

    def watches(self, other: "Person | Stranger") -> None:
        """Has them on the list, accepted."""
        self._eventually(lambda: self._stands_with(other) == "accepted", f"{other} accepted on the list")

    def does_not_list(self, other: "Person | Stranger") -> None:
        """Has them on the list no more, and may not see them by asking either."""
        self._eventually(lambda: self._stands_with(other) is None, f"{other} not on the list")

    def is_watched_by(self, observer: "Person | Stranger") -> None:
        """Lets them watch, and their server wants to know."""
        self._eventually(lambda: self._observers().get(observer.user_id) is False, f"{observer} watching")

    def is_muted_for(self, observer: "Person | Stranger") -> None:
        """Lets them watch, and their server does not want to know."""
        self._eventually(lambda: self._observers().get(observer.user_id) is True, f"{observer} not listening")

    def is_not_watched_by(self, observer: "Person | Stranger") -> None:
        """Does not let them watch."""
        self._eventually(lambda: observer.user_id not in self._observers(), f"{observer} not watching")

    def sees(
        self, other: "Person | Stranger", presence: str, *, message: str | None = None, active: bool = False
    ) -> None:
        """The list shows them so, as it stands: nobody else is asked for it."""
        wanted = {"presence": presence}
        wanted |= {"status_msg": message} if message else {}

        def shown() -> bool:
            content = self._listed().get(other.user_id, {})
            return {
                key: content[key] for key in ("presence", "status_msg") if key in content
            } == wanted and content.get("currently_active", False) is active

        self._eventually(shown, f"{other} as {wanted}, active {active}", lambda: self._listed())

    def asks_about(self, other: "Person | Stranger") -> dict[str, Any]:
        """`GET …/status`: what it shows; the server may ask theirs for it first (decision 7)."""
        answer = self._user.status_of(other.user_id)
        assert answer.status == 200, answer
        assert isinstance(answer.body, dict)
        return answer.body

    def may_not_see(self, other: "Person | Stranger") -> None:
        """Asking for their presence is refused."""
        self._eventually(lambda: self._user.status_of(other.user_id).status == 403, f"403 about {other}")

    def is_told(self, what: str, about: "Person | Stranger", times: int = 1) -> None:
        """So many notices have come since the story began: asked, accepted, declined, revoked, ..."""
        notice = f"{what} {about.user_id}"

        def count() -> bool:
            self._look_for_notices()
            return self._told.count(notice) >= times

        self._eventually(count, f"{times} times told {what!r} about {about}", lambda: self._told)
        assert self._told.count(notice) == times, f"{self} was told more than {times} times: {self._told}"

    # --- inside ----------------------------------------------------------------------------------

    def _eventually(self, happened: Any, what: str, instead: Any = None) -> None:
        try:
            self._stage.eventually(happened, f"{self} has {what}")
        except AssertionError as error:
            error.add_note(f"instead: {(instead or self._user.subscriptions)()}")
            raise

    def _ids(self, key: str) -> set[str]:
        return {entry["user_id"] for entry in self._user.subscriptions()[key]}

    def _stands_with(self, other: "Person | Stranger") -> str | None:
        found = {entry["user_id"]: entry["state"] for entry in self._user.subscriptions()["list"]}
        return found.get(other.user_id)

    def _observers(self) -> dict[str, bool]:
        answer = self._user.server.admin("GET", f"/users/{quote(self.user_id)}")
        assert answer.status == 200, answer
        return {entry["user_id"]: entry["muted"] for entry in answer.body["observers"]}

    def _listed(self) -> dict[str, dict[str, Any]]:
        answer = self._user.call("GET", f"/_matrix/client/v3/presence/list/{self.user_id}")
        assert answer.status == 200, answer
        return {event["content"]["user_id"]: event["content"] for event in answer.body}

    def _look_for_notices(self) -> None:
        """What `/sync` has for them; a sync that declares `offline` shows in nothing (P:O-4).

        Once more after each notice, as clients do: what was not acknowledged comes again.
        """
        while events := self._user.sync(set_presence="offline").get("to_device", {}).get("events", ()):
            for event in events:
                content = event["content"]
                what = NOTICES.get(event["type"]) or content["reason"]
                pair = {content["observer_user"], content["observed_user"]} - {self.user_id}
                self._told.append(f"{what} {pair.pop()}")


class House:
    """A server under test, as a place where things happen to it."""

    def __init__(self, stage: "Stage", server: Server) -> None:
        self.name = str(server.name)
        self.server = server
        self._stage = stage

    def __str__(self) -> str:
        return self.name

    def stops(self) -> None:
        """Is stopped for a while, in good order."""
        self._stage.do_to(self, "stop")

    def crashes(self) -> None:
        """Is no more, from one moment to the next."""
        self._stage.do_to(self, "kill")

    def starts_again(self) -> None:
        """Comes back on its data."""
        self._stage.do_to(self, "start")

    def loses_its_database(self) -> None:
        """Comes back knowing its users, and nothing else."""
        self._stage.do_to(self, "wipe")

    def is_backed_up(self) -> None:
        """Its data is copied."""
        self._stage.do_to(self, "backup")

    def goes_back_to_its_backup(self) -> None:
        """Comes back on the copy: what was since then never happened."""
        self._stage.do_to(self, "restore")

    def signs_with_a_new_key(self) -> None:
        """Its signing key is changed, as operators do."""
        self._stage.do_to(self, "rotate_key")

    def has_its_clock_ahead(self, *, hours: float = 0, days: float = 0) -> None:
        """Its clock is wrong by so much (negative: behind); 0: right again."""
        self._stage.set_clock(self, round(3_600_000 * (hours + 24 * days)))

    def knows_a_room(self, *members: "Person | Stranger") -> None:
        """Is told who is in the room; nobody: it is empty."""
        self._stage.set_room(self, frozenset(member.user_id for member in members))


class Path:
    """One direction between two servers. What is wrong with it stays so until it `works_again`."""

    def __init__(self, stage: "Stage", origin: str, destination: str) -> None:
        self._stage = stage
        self._names = origin, destination

    def works_again(self) -> None:
        """Nothing is wrong with it."""
        self._stage.set_path(*self._names)

    def goes_down(self) -> None:
        """Nobody gets through."""
        self._stage.set_path(*self._names, down=True)

    def swallows_what_it_takes(self) -> None:
        """Answers 200 and forgets, as most homeservers of today do."""
        self._stage.set_path(*self._names, status=200)

    def loses_the_answers(self) -> None:
        """Everything arrives, and whoever sent it never hears so."""
        self._stage.set_path(*self._names, drop_response=1)

    def is_bad_weather(self, chance: float) -> None:
        """Loses, repeats and holds back as chance will have it."""
        self._stage.set_path(
            *self._names, drop_request=chance, drop_response=chance, duplicate=chance, reorder=chance
        )

    def says_everything_twice(self) -> None:
        """Each transaction arrives two times."""
        self._stage.set_path(*self._names, duplicate=1)

    def holds_one_back(self) -> None:
        """A transaction arrives late, after the next one."""
        self._stage.set_path(*self._names, reorder=1)

    def never_answers(self) -> None:
        """Takes everything and is silent."""
        self._stage.set_path(*self._names, hang=True)

    def is_slow(self, *, seconds: float) -> None:
        """What is sent arrives so much later."""
        self._stage.set_path(*self._names, latency_ms=round(seconds * 1000))


class Stranger:
    """A user of a server that is a script: does only what a story makes that server say."""

    def __init__(self, user_id: str) -> None:
        self.user_id = user_id
        self.server_name = server_of(user_id)

    def __str__(self) -> str:
        return self.user_id
