"""`currently_active` by the clock: the worked timeline of presence.md 8.5, row by row on the wire.

Always true: each row says whether an update *must* go out, and how it reads, or *must not*; nothing else
is said about Bob from the first row to the last.
"""

from typing import Any

from tests.stories.cast import Person
from tests.stories.stage import Stage


class Clockwork:
    """Bob's second by second: what happens `at` a moment, and what his server must and must not say."""

    def __init__(self, stage: Stage, observed: Person) -> None:
        self._stage = stage
        self._observed = observed
        self._wire = stage.listen(stage.there, stage.here)
        self._start_s = stage.now_s
        self._now_s = 0.0

    def at(self, seconds: float) -> None:
        """Let time pass until then; nothing may be said about it on the way."""
        self._now_s = seconds
        self._stage.after(seconds=max(0, self._start_s + seconds - self._stage.now_s))

    def must_not(self) -> None:
        """There is no update."""
        self._wire.hears_nothing()

    def must(self, presence: str, *, ago: float, active: bool = False, message: str | None = None) -> None:
        """There is exactly one update, now, and it reads like this; `ago` in seconds."""
        (said,) = self._wire.hears(f"push {presence}")
        content = dict(said.content)
        blur_s = self._stage.blur_s
        assert abs(said.at_ms / 1000 * self._stretch - self._start_s - self._now_s) <= blur_s, said
        assert abs(content.pop("last_active_ago") / 1000 * self._stretch - ago) <= blur_s, said
        wanted: dict[str, Any] = {"user_id": self._observed.user_id, "presence": presence}
        wanted |= {"status_msg": message} if message else {}
        if not active and content.get("currently_active") is False and presence == "online":
            del content["currently_active"]  # absent means false (P:A-1)
        assert content == wanted | ({"currently_active": True} if active else {}), said

    def answers(self, observer: Person, presence: str, *, ago: float, active: bool) -> None:
        """Whoever asks is told the true value: no update, at most the answer to a poll (P:A-2a, A-6)."""
        asking = self._stage.listen(self._stage.here, self._stage.there)
        content = observer.asks_about(self._observed)
        assert abs(content["last_active_ago"] / 1000 * self._stretch - ago) <= self._stage.blur_s, content
        assert (content["presence"], content.get("currently_active", False)) == (presence, active), content
        if asking.unheard():
            asking.hears("poll")
            self.must(presence, ago=ago, active=active)
        self.must_not()

    @property
    def _stretch(self) -> float:
        return self._stage.stretch


def the_worked_timeline(stage: Stage) -> None:
    """P:8.5 is the contract with every homeserver that watches: these updates, then, and no others."""
    alice, bob = stage.alice, stage.bob
    alice.comes_to_watch(bob)
    clock = Clockwork(stage, bob)

    clock.at(0)
    bob.says("online")
    bob.connects()
    clock.must("online", ago=0, active=True)

    clock.at(30)
    bob.does_something()
    clock.must_not()

    clock.at(60)
    clock.must_not()  # the timer of the first moment: he was active since

    clock.at(61)
    clock.must_not()  # a fixed update every 60 s is a bug

    clock.at(80)
    clock.answers(alice, "online", ago=50, active=True)

    clock.at(85)
    bob.does_something()
    clock.must_not()

    clock.at(144.9)
    clock.must_not()
    clock.at(145)
    clock.must("online", ago=60)

    clock.at(200)
    bob.does_something()
    clock.must("online", ago=0, active=True)

    for second in (210, 220, 230, 240, 250, 259):
        clock.at(second)
        bob.does_something()
        clock.must_not()

    clock.at(262)
    bob.says("online", "Fika")
    clock.must("online", ago=0, active=True, message="Fika")

    clock.at(321.9)
    clock.must_not()
    clock.at(322)
    clock.must("online", ago=60, message="Fika")

    for second in range(323, 562, 29):
        clock.at(second)
        bob.disconnects()
        bob.connects()
        clock.must_not()  # only /sync calls

    clock.at(562)
    clock.must_not()  # exactly 300 s is not yet idle: I-2
    clock.at(562.001)
    clock.must("unavailable", ago=300, message="Fika")

    clock.at(600)
    bob.does_something()
    clock.must("online", ago=0, active=True, message="Fika")  # I-4

    clock.at(610)
    bob.says("unavailable")
    clock.must("unavailable", ago=10)  # I-3, S-1: the message is gone

    clock.at(620)
    bob.does_something()
    clock.must("online", ago=0, active=True)

    clock.at(640)
    bob.disconnects()
    clock.must_not()  # O-1

    clock.at(670)
    clock.must_not()
    clock.at(670.001)
    clock.must("offline", ago=50)

    stage.after(days=1)
    clock.must_not()  # an offline state has no timers: O-5


def one_message_makes_three_updates(stage: Stage) -> None:
    """The smallest case: activity inside the active minute is no news, it only moves the minute's end."""
    alice, bob = stage.alice, stage.bob
    alice.comes_to_watch(bob)
    bob.connects()
    bob.says("unavailable")
    stage.after(seconds=30)
    clock = Clockwork(stage, bob)

    clock.at(0)
    bob.says("online")
    clock.must("online", ago=0, active=True)

    clock.at(30)
    bob.does_something()
    clock.must_not()

    clock.at(61)
    clock.must_not()

    clock.at(90)
    clock.must("online", ago=60)

    clock.at(329)
    clock.must_not()
    clock.at(330.001)
    clock.must("unavailable", ago=300)


def idle_for_a_night(stage: Stage) -> None:
    """Who idles with an open client is no news to anybody, and must not expire over there either (U-5)."""
    alice, bob = stage.alice, stage.bob
    alice.comes_to_watch(bob)
    bob.connects()
    stage.after(minutes=6)
    alice.sees(bob, "unavailable")
    wire = stage.listen(stage.there, stage.here)

    for _ in range(8):
        stage.after(hours=1)
        alice.sees(bob, "unavailable")

    refreshes = wire.unheard()
    assert {str(said) for said in refreshes} == {"push unavailable"}
    assert 8 * 60 / 25 <= len(refreshes) <= 8 * 60 / 15, "one in 25 minutes, jittered"


STORIES = (the_worked_timeline, one_message_makes_three_updates, idle_for_a_night)
