"""`fedpresence demo`: two servers, one story, every transaction shown.

Two real daemons, each its own process with its own server name, on loopback with real TLS, a throwaway CA
and shortened timers. Alice at here.test and Bob at there.test live through an invite, an accept, activity,
idling and a drop; each step is awaited on the other server, and the demo fails where one does not come.
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from fedpresence.testing.processes import LocalFederation, OpenStream, ServerProcess, User

HERE, THERE = "here.test", "there.test"
SETTINGS: dict[str, Any] = {
    "presence": {
        "idle_timeout": "6s",
        "last_active_granularity": "2s",
        "sync_online_timeout": "3s",
    }
}
WAIT_S = 15.0
QUIET_S = 0.5  # how long silence is watched where nothing may be sent

BOLD, DIM, GREEN, RED, BLUE, YELLOW, PLAIN = "1", "2", "32", "31", "34", "33", "0"


class _StepFailed(Exception):
    """Something that the story tells did not happen."""


def run_demo(out: TextIO | None = None) -> int:
    """Tell the story on `out`, standard output by default; 0 where every step happened, else 1."""
    teller = _Teller(out or sys.stdout)
    try:
        with tempfile.TemporaryDirectory(prefix="fedpresence-demo-") as folder:
            federation = LocalFederation(Path(folder), [HERE, THERE], SETTINGS)
            teller.step("Two servers start, each its own process: here.test and there.test.")
            with federation:
                for server in federation:
                    teller.say(f"{server.name} answers: federation over TLS, signed with its own key")
                _story(teller, federation)
    except (AssertionError, OSError, _StepFailed) as error:
        teller.failed(error)
        return 1
    teller.step("The end: both servers stopped, every step happened.")
    return 0


def _story(teller: "_Teller", federation: LocalFederation) -> None:
    here, there = federation[HERE], federation[THERE]
    wire = _Wire(teller, [here, there])
    alice, bob = here.user("alice"), there.user("bob")
    alice.sync()

    teller.step("Alice asks to see Bob's presence: she invites him to her presence list.")
    alice.change_list(invite=[bob.user_id])
    wire.expect(HERE, "m.presence_invite")
    request = bob.sync_until(_has_notice("m.presence_invite"), WAIT_S)
    teller.saw(bob, f"asked: {_notice(request)}")
    teller.saw(alice, f"her list says: {_states(alice)}; Bob's status is {_status(alice, bob)}")

    teller.step("Bob accepts. From here both servers track the subscription.")
    bob.change_list(accept=[alice.user_id])
    wire.expect(THERE, "m.presence_accept")
    teller.saw(alice, f"told: {_notice(alice.sync_until(_has_notice('m.presence_accept'), WAIT_S))}")
    teller.saw(alice, f"her list says: {_states(alice)}")
    teller.saw(bob, f"his observers: {[o['user_id'] for o in bob.subscriptions()['observers']]}")

    teller.step("Bob comes online with a message.")
    stream = OpenStream(bob)
    bob.put_status("online", "Fika ☕")
    wire.expect(THERE, "online", currently_active=True, status_msg="Fika ☕")
    seen = alice.presence_of(bob.user_id, WAIT_S, presence="online", status_msg="Fika ☕")
    teller.saw(alice, f"Bob is {_words(seen)}")

    teller.step("Bob types. While 'currently active' is the last word, nothing more is sent.")
    there.is_active(bob.user_id)
    wire.expect_silence(THERE)
    teller.say("no transaction left")

    teller.step(
        "Bob stops typing: two seconds later (a minute, by default) he is no longer currently active."
    )
    wire.expect(THERE, "online", currently_active=False)
    seen = alice.presence_of(bob.user_id, WAIT_S, presence="online", currently_active=False)
    teller.saw(alice, f"Bob is {_words(seen)}")

    teller.step("Bob falls idle: six seconds (five minutes, by default) without activity.")
    wire.expect(THERE, "unavailable")
    seen = alice.presence_of(bob.user_id, WAIT_S, presence="unavailable")
    teller.saw(alice, f"Bob is {_words(seen)}")

    teller.step("Bob comes back: one key pressed.")
    there.is_active(bob.user_id)
    wire.expect(THERE, "online", currently_active=True)
    seen = alice.presence_of(bob.user_id, WAIT_S, presence="online")
    teller.saw(alice, f"Bob is {_words(seen)}")

    teller.step("Alice drops Bob from her list. His server forgets the grant and sends no more.")
    alice.change_list(drop=[bob.user_id])
    wire.expect(HERE, "org.fedpresence.presence_drop")
    _await(lambda: not bob.subscriptions()["observers"], "Bob's server forgets the grant")
    teller.saw(bob, f"his observers: {[o['user_id'] for o in bob.subscriptions()['observers']]}")
    teller.saw(alice, f"Bob's status is {_status(alice, bob)}")
    bob.put_status("unavailable")
    wire.expect_silence(THERE)
    teller.say("Bob changed his status, and nothing left there.test")
    stream.close()


class _Teller:
    """Prints, in colour where the terminal has it."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._colour = out.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
        self._steps = 0

    def step(self, words: str) -> None:
        """The next part of the story."""
        self._steps += 1
        self._print(f"\n{self._in(BOLD, f'{self._steps}. {words}')}")

    def say(self, words: str) -> None:
        """A remark."""
        self._print(f"   {words}")

    def saw(self, user: User, words: str) -> None:
        """What a user's client was shown."""
        self._print(f"   {self._in(GREEN, user.user_id)} {words}")

    def transaction(self, seen: dict[str, Any]) -> None:
        """One signed transaction on the wire."""
        colour = BLUE if seen["from"] == HERE else YELLOW
        head = f"{seen['from']} → {seen['to']}  PUT /send/{seen['txn_id']}  {seen['status']}"
        self._print(f"   {self._in(colour, head)}")
        for edu in seen["body"]["edus"]:
            text = json.dumps(edu["content"], ensure_ascii=False)
            self._print(f"     {self._in(colour, edu['edu_type'])} {self._in(DIM, text)}")

    def failed(self, error: Exception) -> None:
        """The story ends here."""
        self._print(self._in(RED, f"\nThe demo failed: {error}"))
        for note in getattr(error, "__notes__", ()):
            self._print(note)

    def _in(self, colour: str, words: str) -> str:
        return f"\033[{colour}m{words}\033[{PLAIN}m" if self._colour else words

    def _print(self, words: str) -> None:
        print(words, file=self._out, flush=True)


class _Wire:
    """Follows what the servers send, and shows each transaction once."""

    def __init__(self, teller: _Teller, servers: list[ServerProcess]) -> None:
        self._teller = teller
        self._servers = {server.name: server for server in servers}
        self._shown = {server.name: 0 for server in servers}

    def expect(self, sender: str, what: str, **content: object) -> None:
        """Wait for a transaction of `sender` with this EDU type, or a push of this state and content."""

        def came() -> bool:
            return any(_carries(seen, what, content) for seen in self._new(sender))

        _await(came, f"{sender} sends {what}")

    def expect_silence(self, sender: str) -> None:
        """Nothing may leave `sender` for a moment."""
        time.sleep(QUIET_S)  # silence has no event to wait for
        if new := self._new(sender):
            raise _StepFailed(f"{sender} sent what it must not: {new}")

    def _new(self, sender: str) -> list[dict[str, Any]]:
        """Transactions of `sender` not shown before; those of others are shown beside."""
        mine: list[dict[str, Any]] = []
        for name, server in self._servers.items():
            transactions = server.transactions()
            fresh = transactions[self._shown[name] :]
            self._shown[name] = len(transactions)
            for seen in fresh:
                self._teller.transaction(seen)
            if name == sender:
                mine = fresh
        return mine


def _await(happened: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not happened():
        if time.monotonic() > deadline:
            raise _StepFailed(f"this did not happen: {what}")
        time.sleep(0.02)  # other processes' files and answers cannot be awaited


def _carries(seen: dict[str, Any], what: str, content: dict[str, object]) -> bool:
    for edu in seen["body"]["edus"]:
        if edu["edu_type"] == what:
            return True
        for push in edu["content"].get("push", ()):
            if push["presence"] == what and all(push.get(key) == value for key, value in content.items()):
                return True
    return False


def _has_notice(kind: str) -> Callable[[Any], bool]:
    return lambda answer: any(event["type"] == kind for event in answer["to_device"]["events"])


def _notice(answer: Any) -> str:
    event = answer["to_device"]["events"][-1]
    return f"{event['type']} from {event['sender']}"


def _states(user: User) -> dict[str, str]:
    return {entry["user_id"]: entry["state"] for entry in user.subscriptions()["list"]}


def _status(user: User, other: User) -> str:
    answer = user.status_of(other.user_id)
    return answer.body["presence"] if answer.status == 200 else f"not for her: {answer.body['errcode']}"


def _words(content: dict[str, Any]) -> str:
    words = [str(content["presence"]), f"last active {content['last_active_ago']} ms ago"]
    if content.get("currently_active"):
        words.append("currently active")
    if content.get("status_msg"):
        words.append(f"“{content['status_msg']}”")
    return ", ".join(words)
