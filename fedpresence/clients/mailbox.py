"""One user's news: of whom since when, and the notices kept for them. Pure.

Always true:
- a mailbox keeps *that* there is news of somebody, never what it was: the answer is made from the
  newest state when it leaves (P:Y-1, P:Y-2), so a mailbox is bounded by the users it may see;
- its numbers only rise, and a token names the mailbox and a number: a token of another run, another
  user or a mailbox given up is not mistaken for one of ours;
- every device reads the same mailbox by its own token.

Source: P:13; S:8.
"""

import re
from collections import deque
from collections.abc import Iterable

from fedpresence.engine.effects import Notice
from fedpresence.errors import BadRequest
from fedpresence.ids import UserID

MAX_NOTICES = 100  # open requests are bounded to as many (Z-13)
MAX_NEWS = 10_000  # observed users; older tokens then get the full snapshot

_TOKEN = re.compile(r"s(?P<number>[0-9]{1,15})_(?P<name>[A-Za-z0-9.-]{1,64})\Z")


def parse_token(text: str) -> tuple[str, int]:
    """The mailbox and the number that a token names; 400 where it is nothing we ever gave out."""
    match = _TOKEN.match(text)
    if match is None:
        raise BadRequest("M_INVALID_PARAM", "since is not a token of this server")
    return match["name"], int(match["number"])


class Mailbox:
    """What a user's clients have not all seen yet. `name` is unlike that of any other mailbox."""

    __slots__ = (
        "_floor",
        "_gone",
        "_news",
        "_notices",
        "acknowledged",
        "name",
        "number",
        "used_ms",
        "user_id",
    )

    def __init__(self, user_id: UserID, name: str, now_ms: int) -> None:
        self.user_id = user_id
        self.name = name
        self.used_ms = now_ms
        self.number = 0  # of the newest entry
        self.acknowledged = 0  # the newest number that a client came back with
        self._floor = 0  # entries up to here may have been given up
        self._news: dict[UserID, int] = {}  # oldest first
        self._gone: set[UserID] = set()  # of these, the news is that they may be seen no more
        self._notices: deque[tuple[int, Notice]] = deque(maxlen=MAX_NOTICES)

    def token(self, number: int) -> str:
        """What a client that has seen everything up to `number` comes back with."""
        return f"s{number}_{self.name}"

    def position(self, token: tuple[str, int]) -> int | None:
        """Up to where the holder of a token has seen this mailbox; None where we cannot tell."""
        name, number = token
        if name != self.name or number > self.number:
            return None
        self.acknowledged = max(self.acknowledged, number)  # of notices, however old it is for the rest
        return number if number >= self._floor else None

    def add_news(self, observed: UserID, *, gone: bool) -> None:
        """There is news of `observed`."""
        self.number += 1
        self._news.pop(observed, None)
        self._news[observed] = self.number
        if gone:
            self._gone.add(observed)
        else:
            self._gone.discard(observed)
        if len(self._news) > MAX_NEWS:
            oldest = next(iter(self._news))
            self._floor = self._news.pop(oldest)
            self._gone.discard(oldest)

    def forget_news(self) -> None:
        """Whoever comes back gets a snapshot; what was acknowledged of the notices stays so."""
        self.number += 1
        self._floor = self.number
        self._news.clear()
        self._gone.clear()

    def add_notice(self, notice: Notice) -> None:
        """Keep a notice; the oldest gives way beyond the hundredth."""
        self.number += 1
        self._notices.append((self.number, notice))

    def news_after(self, number: int) -> list[tuple[UserID, int, bool]]:
        """(observed, number, gone) of all newer entries, oldest first."""
        newer: list[tuple[UserID, int, bool]] = []
        for observed in reversed(self._news):
            at = self._news[observed]
            if at <= number:
                break
            newer.append((observed, at, observed in self._gone))
        newer.reverse()
        return newer

    def notices_after(self, number: int) -> list[tuple[int, Notice]]:
        """(number, notice) of all newer notices, oldest first."""
        return [entry for entry in self._notices if entry[0] > number]

    def unread(self) -> list[Notice]:
        """Notices that no client has acknowledged."""
        return [notice for _, notice in self.notices_after(self.acknowledged)]


def with_open_invites(notices: Iterable[Notice], invites: Iterable[Notice]) -> list[Notice]:
    """Notices and the requests still open, each once (S:T-1)."""
    return list(dict.fromkeys([*notices, *invites]))
