"""What happens to three servers and their users, drawn from a seed.

Always true:
- the same seed is the same schedule, on every machine;
- a schedule says only what is done, never what should come of it.

Source: subscriptions.md 5; contract.md, "Test rig".
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import permutations
from random import Random
from typing import Literal, TypeVar

from fedpresence.engine.presence import PresenceState
from fedpresence.engine.settings import DAY_MS, HOUR_MS, MINUTE_MS, InvitePolicy
from fedpresence.ids import RoomID, ServerName, UserID, server_of
from fedpresence.testing.rig.faults import NO_FAULTS, Faults

A, B, C = ServerName("a.test"), ServerName("b.test"), ServerName("c.test")
SERVERS = (A, B, C)
USERS = tuple(
    UserID(user_id)
    for user_id in (
        *("@alice:a.test", "@anna:a.test", "@bob:b.test", "@bill:b.test"),
        *("@carol:c.test", "@chris:c.test", "@clara:c.test"),
    )
)
NOBODY = UserID("@nobody:b.test")  # has no account
ROOMS = (RoomID("!one:a.test"), RoomID("!two:c.test"))

Word = Literal["invite", "accept", "deny", "revoke", "drop"]
Verb = Literal["stop", "start", "kill", "backup", "restore", "wipe", "rotate_key"]
T = TypeVar("T")

MIN_STEPS, MAX_STEPS = 15, 45
FAMILIAR = 0.85  # how often list changes are about the few pairs that a schedule is about
UNSETTLED = 0.3  # how often the next step does not wait until this one has come to rest


@dataclass(frozen=True, slots=True)
class Say:
    """A change of a user's list."""

    user_id: UserID
    word: Word
    other: UserID


@dataclass(frozen=True, slots=True)
class Grant:
    """The whole way from an invite to an accept, so that grants are frequent."""

    observer: UserID
    observed: UserID


@dataclass(frozen=True, slots=True)
class Put:
    """A user declares a state."""

    user_id: UserID
    state: PresenceState
    status_msg: str | None = None


@dataclass(frozen=True, slots=True)
class Act:
    """A pro-active event."""

    user_id: UserID


@dataclass(frozen=True, slots=True)
class Stream:
    """A user's event stream is open from now on, or no more."""

    user_id: UserID
    is_open: bool
    set_presence: PresenceState | None = None


@dataclass(frozen=True, slots=True)
class Members:
    """Some servers learn who is in a room."""

    room_id: RoomID
    members: frozenset[UserID]
    servers: tuple[ServerName, ...]


@dataclass(frozen=True, slots=True)
class Path:
    """What the path between two servers does from now on."""

    origin: ServerName
    destination: ServerName
    faults: Faults


@dataclass(frozen=True, slots=True)
class Operate:
    """Somebody does something to a server."""

    name: ServerName
    verb: Verb


@dataclass(frozen=True, slots=True)
class SetClock:
    """A server's clock is wrong by so much."""

    name: ServerName
    offset_ms: int


@dataclass(frozen=True, slots=True)
class Pass:
    """Time passes."""

    ms: int


Action = Say | Grant | Put | Act | Stream | Members | Path | Operate | SetClock | Pass


@dataclass(frozen=True, slots=True)
class Step:
    """An action; `settles`: the next one waits until everything that follows from it has happened."""

    action: Action
    settles: bool = True


@dataclass(frozen=True, slots=True)
class Schedule:
    """All of a run. `awake` keep a stream open in the nine quiet days at the end."""

    seed: int
    policy: InvitePolicy
    steps: tuple[Step, ...]
    awake: tuple[UserID, ...]

    def __str__(self) -> str:
        lines = [f"seed {self.seed}, policy {self.policy.value}"]
        lines.extend(f"  {number:3} {describe(step)}" for number, step in enumerate(self.steps))
        lines.append(
            f"  then everything is healed, and nine days pass; awake: {', '.join(self.awake) or '-'}"
        )
        return "\n".join(lines)


def describe(step: Step) -> str:
    """One step, for humans."""
    rest = "" if step.settles else "   ... and at once"
    match step.action:
        case Say(user_id, word, other):
            return f"{user_id} {word} {other}{rest}"
        case Grant(observer, observed):
            return f"{observed} lets {observer} observe{rest}"
        case Put(user_id, state, status_msg):
            return f"{user_id} puts {state.value} {status_msg or ''}{rest}"
        case Stream(user_id, is_open, set_presence):
            said = f" with {set_presence.value}" if set_presence else ""
            return f"{user_id} {'opens' if is_open else 'closes'} a stream{said}{rest}"
        case Members(room_id, members, servers):
            return f"{', '.join(servers)}: in {room_id} are {', '.join(sorted(members)) or 'none'}{rest}"
        case Path(origin, destination, faults):
            words = [f"{key}={value}" for key, value in _differences(faults)]
            return f"{origin} → {destination} {', '.join(words) or 'healed'}{rest}"
        case Pass(ms):
            return f"{ms / 1000:,.3f} s pass"
    return f"{step.action}{rest}"


def schedule_of(seed: int, *, max_steps: int = MAX_STEPS) -> Schedule:
    """The schedule of a seed."""
    return _Generator(Random(f"schedule {seed}"), seed).schedule(max_steps)


def _differences(faults: Faults) -> list[tuple[str, object]]:
    return [
        (name, value)
        for name in Faults.__slots__
        if (value := getattr(faults, name)) != getattr(NO_FAULTS, name)
    ]


class _Generator:
    """Draws steps that make sense one after the other: who is stopped is started again some time."""

    def __init__(self, random: Random, seed: int) -> None:
        self._random = random
        self._seed = seed
        everybody = list(permutations(USERS, 2))
        apart = [(o, t) for o, t in everybody if server_of(o) != server_of(t)]
        together = [(o, t) for o, t in everybody if server_of(o) == server_of(t)]
        self._pairs = random.sample(apart, random.randint(2, 5)) + random.sample(together, 1)
        self._everybody = everybody
        self._stopped: set[ServerName] = set()
        self._broken: set[tuple[ServerName, ServerName]] = set()
        self._backups: set[ServerName] = set()

    def schedule(self, max_steps: int) -> Schedule:
        """A beginning that is not empty, then whatever comes."""
        random = self._random
        policies = (InvitePolicy.ASK,) * 6 + tuple(InvitePolicy)
        policy = random.choice(policies)
        steps = [Step(Stream(user, True)) for user in USERS if random.random() < 0.5]
        steps += [Step(Grant(*pair)) for pair in self._pairs if random.random() < 0.6]
        for _ in range(random.randint(MIN_STEPS, max_steps)):
            steps.extend(self._next())
        awake = (random.choice(USERS),) if random.random() < 0.12 else ()
        return Schedule(self._seed, policy, tuple(steps), awake)

    # --- one step, or a few that belong together -------------------------------------------------

    def _next(self) -> list[Step]:
        draw: list[tuple[float, Callable[[], list[Step]]]] = [
            (22, self._say),
            (6, self._grant),
            (12, self._put),
            (5, lambda: self._one(Act(self._watched()))),
            (7, self._stream),
            (5, self._members),
            (13, self._break_path),
            (5, self._heal_path if self._broken else self._pass),
            (8, self._operate),
            (6 if self._stopped else 0, self._start_one),
            (5, self._news_goes_astray),
            (3, self._crash_in_the_middle),
            (2, self._lose_data),
            (1.5, lambda: self._one(SetClock(self._server(), self._offset()))),
            (16, self._pass),
        ]
        weights = [weight for weight, _ in draw]
        (_, chosen), *_ = self._random.choices(draw, weights)
        return chosen()

    def _say(self) -> list[Step]:
        observer, observed = self._pair()
        draw: tuple[tuple[UserID, Word, UserID], ...] = (
            *((observer, "invite", observed),) * 3,
            *((observed, "accept", observer),) * 3,
            (observed, "deny", observer),
            *((observed, "revoke", observer),) * 2,
            *((observer, "drop", observed),) * 2,
        )
        said = self._random.choice(draw)
        steps = self._one(Say(*said))
        if self._random.random() < 0.15:
            steps = steps * 2  # impatient
        if said[1] == "invite" and self._random.random() < 0.03:
            steps += self._one(Say(observer, "invite", NOBODY))
        if said[1] == "drop" and self._random.random() < 0.3:
            steps += self._one(Say(observer, "invite", observed))  # and changes the mind
        return steps

    def _grant(self) -> list[Step]:
        return [Step(Grant(*self._pair()))]

    def _put(self) -> list[Step]:
        user_id = self._watched()
        state = self._random.choice(
            (PresenceState.ONLINE, PresenceState.ONLINE, PresenceState.UNAVAILABLE, PresenceState.OFFLINE)
        )
        status_msg = self._random.choice((None, "tea", "at work", f"note {self._random.randrange(100)}"))
        return self._one(Put(user_id, state, status_msg))

    def _stream(self) -> list[Step]:
        is_open = self._random.random() < 0.6
        said = self._random.choice((None, None, None, PresenceState.UNAVAILABLE, PresenceState.OFFLINE))
        return self._one(Stream(self._watched(), is_open, said if is_open else None))

    def _members(self) -> list[Step]:
        room_id = self._random.choice(ROOMS)
        count = self._random.choice((0, 2, 2, 3, 4))
        members = frozenset(self._random.sample(USERS, count))
        servers = SERVERS if self._random.random() < 0.7 else (self._server(),)
        return self._one(Members(room_id, members, servers))

    def _break_path(self) -> list[Step]:
        origin, destination = self._random.sample(SERVERS, 2)
        self._broken.add((origin, destination))
        faults = self._faults()
        steps = self._one(Path(origin, destination, faults))
        if self._random.random() < 0.3:
            steps += self._one(Path(destination, origin, faults))
            self._broken.add((destination, origin))
        return steps

    def _heal_path(self) -> list[Step]:
        path = self._random.choice(sorted(self._broken))
        self._broken.discard(path)
        return self._one(Path(*path, NO_FAULTS))

    def _operate(self) -> list[Step]:
        name = self._server()
        verb: Verb = self._random.choice(("stop", "kill", "kill", "backup", "rotate_key"))
        if verb in ("stop", "kill"):
            self._stopped.add(name)
            steps = self._one(Operate(name, verb))
            if self._random.random() < 0.6:
                steps += self._one(Operate(name, "start"))
                self._stopped.discard(name)
            return steps
        if verb == "backup":
            self._backups.add(name)
        return self._one(Operate(name, verb))

    def _start_one(self) -> list[Step]:
        name = self._random.choice(sorted(self._stopped))
        self._stopped.discard(name)
        return self._one(Operate(name, "start"))

    def _news_goes_astray(self) -> list[Step]:
        """Nobody knows whether a push arrived, or when: and then its right ends, and maybe begins again."""
        observer, observed = self._pair()
        path = server_of(observed), server_of(observer)
        steps = [Step(Grant(observer, observed))] if self._random.random() < 0.7 else []
        steps += self._one(Stream(observed, True))
        if path[0] != path[1]:
            self._broken.add(path)
            late = Faults(latency_ms=self._random.choice((100, 5_000, 70_000)))
            lost = self._random.choice(
                (Faults(drop_response=1.0), Faults(drop_request=1.0), Faults(hang=True))
            )
            steps += self._one(Path(*path, self._random.choice((late, lost, lost, NO_FAULTS))))
        state = self._random.choice((PresenceState.UNAVAILABLE, PresenceState.ONLINE))
        steps += self._one(Put(observed, state, "on my way"))
        if self._random.random() < 0.5:
            steps.append(Step(Pass(self._random.choice((1, 200, 1_000, 61_000, 65_000)))))
        ends: tuple[Action, ...] = (
            Say(observed, "revoke", observer),
            Say(observed, "revoke", observer),
            Say(observer, "drop", observed),
            Members(ROOMS[0], frozenset(), SERVERS),
            Operate(path[1], "wipe"),
        )
        steps += self._one(self._random.choice(ends))
        if self._random.random() < 0.3:
            steps += self._one(Say(observed, "accept", observer))
        if path[0] != path[1] and self._random.random() < 0.6:
            self._broken.discard(path)
            steps += self._one(Path(*path, NO_FAULTS))
        return steps

    def _crash_in_the_middle(self) -> list[Step]:
        """Of a change, with a transaction on its way or a commit not done."""
        observer, observed = self._pair()
        word: Word = self._random.choice(("invite", "drop"))
        change = Say(observer, word, observed)
        if self._random.random() < 0.5:
            change = Say(observed, self._random.choice(("accept", "revoke", "deny")), observer)
        name = self._random.choice((server_of(observer), server_of(observed)))
        steps = [Step(change, settles=False)]
        if self._random.random() < 0.3:
            steps.append(Step(Put(observed, PresenceState.OFFLINE), settles=False))
        steps += [Step(Operate(name, "kill"), settles=False), Step(Operate(name, "start"))]
        self._stopped.discard(name)
        return steps

    def _lose_data(self) -> list[Step]:
        if self._backups and self._random.random() < 0.7:
            return self._one(Operate(self._random.choice(sorted(self._backups)), "restore"))
        return self._one(Operate(self._server(), "wipe"))

    def _pass(self) -> list[Step]:
        near = (1, 150, 250, 1_000, 11_000, 31_000, MINUTE_MS, 6 * MINUTE_MS)
        far = (31 * MINUTE_MS, HOUR_MS, HOUR_MS + MINUTE_MS, 3 * HOUR_MS)
        days = (DAY_MS + HOUR_MS, DAY_MS + HOUR_MS, 2 * DAY_MS, 8 * DAY_MS)
        group = self._random.choices((near, far, days), (72, 25, 3))[0]
        return [Step(Pass(self._random.choice(group)))]

    # --- parts of steps --------------------------------------------------------------------------

    def _one(self, action: Action) -> list[Step]:
        return [Step(action, settles=self._random.random() >= UNSETTLED)]

    def _pair(self) -> tuple[UserID, UserID]:
        return self._random.choice(self._pairs if self._random.random() < FAMILIAR else self._everybody)

    def _watched(self) -> UserID:
        return self._random.choice(self._pairs)[1] if self._random.random() < FAMILIAR else self._user()

    def _user(self) -> UserID:
        return self._random.choice(USERS)

    def _server(self) -> ServerName:
        return self._random.choice(SERVERS)

    def _offset(self) -> int:
        return self._random.choice((0, -5 * HOUR_MS, -HOUR_MS // 2, 90_000, 2 * HOUR_MS, 5 * HOUR_MS))

    def _faults(self) -> Faults:
        random = self._random
        chance = random.choice((0.2, 0.5, 1.0))
        draw = (
            Faults(down=True),
            Faults(down=True),
            Faults(latency_ms=random.choice((20, 250, 3_000, 20_000, 90_000))),
            Faults(drop_request=chance),
            Faults(drop_request=chance),
            Faults(drop_response=chance),
            Faults(drop_response=chance),
            Faults(duplicate=chance),
            Faults(reorder=chance),
            Faults(reorder=chance, duplicate=0.5),
            Faults(drop_request=0.2, drop_response=0.2, duplicate=0.3, reorder=0.3, latency_ms=50),
            Faults(status=random.choice((500, 502, 429, 400, 403, 401, 404))),
            Faults(status=200),
            Faults(status=200),
            Faults(hang=True),
            Faults(garbage=True),
            Faults(garbage=True, status=random.choice((200, 500))),
            Faults(trickle_ms=random.choice((1, 40, 1_000))),
        )
        return random.choice(draw)
