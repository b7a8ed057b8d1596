"""What the stories are told with: waiting for what other processes do, and reading their wire logs.

Other processes' files and answers cannot be awaited as events, so they are looked at again and again:
generously long where something must happen, briefly where nothing may.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from fedpresence.testing.processes import LocalFederation, ServerProcess, User

T = TypeVar("T")

PATIENCE_S = 20.0  # nothing takes as long; a loaded machine may
SILENCE_S = 0.5  # twice a batch window and more
LOOK_AGAIN_S = 0.01

INVITE, ACCEPT, DENY = "m.presence_invite", "m.presence_accept", "m.presence_deny"
DROP = "org.fedpresence.presence_drop"


def eventually(happened: Callable[[], T | None], what: str, timeout_s: float = PATIENCE_S) -> T:
    """What `happened` answers as soon as that is true; AssertionError saying `what` where it never is."""
    deadline = time.monotonic() + timeout_s
    while not (answer := happened()):
        assert time.monotonic() < deadline, f"this did not happen: {what}"
        time.sleep(LOOK_AGAIN_S)
    return answer


@dataclass(frozen=True)
class Said:
    """One thing that a transaction said: a list EDU, or one user's push, poll or unpoll."""

    txn_id: str
    kind: str
    users: tuple[str, ...]
    content: dict[str, Any]

    def __str__(self) -> str:
        return f"push {self.content['presence']}" if self.kind == "push" else self.kind


class Wire:
    """What one server says to others about some users, from now on; each thing is read once."""

    def __init__(self, server: ServerProcess, *about: User) -> None:
        self._server = server
        self._let_it_finish()
        self._about = {user.user_id for user in about}
        self._read = len(server.transactions())
        self._unread: list[Said] = []

    def expect(self, kind: str, **content: object) -> Said:
        """Wait for this EDU type, or "push", with this content; what was said before it is read over."""

        def said() -> Said | None:
            for at, this in enumerate(self._look()):
                if this.kind == kind and all(this.content.get(key) == v for key, v in content.items()):
                    del self._unread[: at + 1]
                    return this
            return None

        try:
            return eventually(said, f"{self._server.name} says {kind} {content}")
        except AssertionError as error:
            error.add_note(f"it said: {[(str(s), s.users, s.content) for s in self._unread]}")
            raise

    def rest(self) -> list[str]:
        """All that was said meanwhile, in a few words each."""
        self._let_it_finish()
        said, self._unread = self._look(), []
        return [str(this) for this in said]

    def expect_silence(self, seconds: float = SILENCE_S) -> None:
        """Nothing may be said for a moment, nor may anything be unread."""
        time.sleep(seconds)  # silence has no event to wait for
        said = self._look()
        assert not said, f"{self._server.name} said what it must not: {[(str(s), s.users) for s in said]}"

    def _let_it_finish(self) -> None:
        """Wait while something is on its way: it is written down only once it is answered."""

        def quiet() -> bool:
            found = self._server.admin("GET", "/destinations").body["destinations"].values()
            return not any(destination["state"] in ("sending", "waiting") for destination in found)

        eventually(quiet, f"{self._server.name} has nothing left to say")

    def _look(self) -> list[Said]:
        transactions = self._server.transactions()
        taken = [seen for seen in transactions[self._read :] if seen["status"] == 200]
        self._read = len(transactions)
        said = (this for seen in taken for this in _said(seen))
        self._unread += [this for this in said if not self._about or self._about & set(this.users)]
        return self._unread


def _said(seen: dict[str, Any]) -> Iterator[Said]:
    for edu in seen["body"]["edus"]:
        content = edu["content"]
        if edu["edu_type"] != "m.presence":
            pair = content["observer_user"], content["observed_user"]
            yield Said(seen["txn_id"], edu["edu_type"], pair, content)
            continue
        for push in content.get("push", ()):
            yield Said(seen["txn_id"], "push", (push["user_id"],), push)
        for kind in ("poll", "unpoll"):
            for user_id in content.get(kind, ()):
                yield Said(seen["txn_id"], kind, (user_id,), {"user_id": user_id})


def befriend(observer: User, observed: User) -> None:
    """`observer` invites, `observed` accepts; returns when both servers know."""
    assert observer.change_list(invite=[observed.user_id]).status == 200
    eventually(lambda: observer.user_id in invites_of(observed), "the request arrives")
    assert observed.change_list(accept=[observer.user_id]).status == 200
    eventually(lambda: list_of(observer).get(observed.user_id) == "accepted", "the accept arrives")


def list_of(user: User) -> dict[str, str]:
    """Whom the user watches, and whether they accepted."""
    return {entry["user_id"]: entry["state"] for entry in user.subscriptions()["list"]}


def invites_of(user: User) -> set[str]:
    """Whose request waits for the user's answer."""
    return {entry["user_id"] for entry in user.subscriptions()["invites"]}


def observers_of(user: User) -> set[str]:
    """Who was granted the user's presence."""
    return {entry["user_id"] for entry in user.subscriptions()["observers"]}


def notice(kind: str, **content: object) -> Callable[[Any], bool]:
    """For `sync_until`: whether an answer holds this notice."""

    def found(answer: Any) -> bool:
        return any(
            event["type"] == kind and all(event["content"].get(key) == v for key, v in content.items())
            for event in answer["to_device"]["events"]
        )

    return found


def set_room(federation: LocalFederation, room_id: str, members: list[User]) -> None:
    """Tell both servers who is in the room."""
    body: dict[str, Any] = {"members": [user.user_id for user in members]}
    for server in federation:
        answer = server.admin("PUT", f"/rooms/{room_id}/members", body)
        assert answer.status == 200, answer


def seen_by(observer: User, observed: User) -> str:
    """The state that GET shows, or the error code."""
    answer = observer.status_of(observed.user_id)
    shown = answer.body["presence"] if answer.status == 200 else answer.body["errcode"]
    assert isinstance(shown, str)
    return shown
