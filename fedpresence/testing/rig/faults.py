"""What can be wrong with the path between two servers, and what it means for one request.

Always true:
- a fault is of one direction, from the server that asks to the server that answers;
- chance is drawn once for each request, when it comes, and only where there is a fault with a chance:
  the same seed and the same requests have the same fate.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from fedpresence.errors import BadRequest

MAX_DELAY_MS = 365 * 86_400_000  # a year; a rig's clock may be turned as far


@dataclass(frozen=True, slots=True)
class Fate:
    """What chance makes of one request.

    `is_lost`: it never arrives. `is_held`: it arrives late, after the next transaction. `is_doubled`: it
    arrives twice. `answer_is_lost`: it arrives, and whoever asked never hears so.
    """

    is_lost: bool = False
    is_held: bool = False
    is_doubled: bool = False
    answer_is_lost: bool = False


_NOTHING = Fate()


@dataclass(frozen=True, slots=True)
class Faults:
    """What a path does to requests; as it stands here, nothing.

    - `down`: connections are refused, those that stand are reset.
    - `latency_ms`: a request arrives that much later; its answer comes back at once.
    - `drop_request`, `drop_response`: how likely a request, or its answer, is lost on the way; whoever
      asked waits until its own timeout.
    - `duplicate`: how likely a request arrives twice, one right after the other.
    - `reorder`: how likely a transaction is held back, unanswered, until the next one was answered.
    - `status`: the answer's HTTP status, made up on the way; a status of success stands for transactions
      alone, other requests get through.
    - `garbage`: the answer is not HTTP; with a `status`, it has that and a body that is no JSON.
    - `hang`: requests are taken and never answered.
    - `trickle_ms`: an answer comes one byte each so many ms, then the connection closes.
    """

    down: bool = False
    latency_ms: int = 0
    drop_request: float = 0
    drop_response: float = 0
    duplicate: float = 0
    reorder: float = 0
    status: int | None = None
    garbage: bool = False
    hang: bool = False
    trickle_ms: int = 0

    def fate(self, random: Random, *, is_transaction: bool) -> Fate:
        """What chance makes of the next request."""
        if not (self.drop_request or self.drop_response or self.duplicate or self.reorder):
            return _NOTHING
        return Fate(
            is_lost=_happens(self.drop_request, random),
            is_held=is_transaction and _happens(self.reorder, random),
            is_doubled=_happens(self.duplicate, random),
            answer_is_lost=_happens(self.drop_response, random),
        )

    def answers_itself(self, *, is_transaction: bool) -> bool:
        """Whether the answer is made up on the way, and the request goes no further."""
        if self.garbage:
            return True
        return self.status is not None and (is_transaction or self.status >= 300)


NO_FAULTS = Faults()


def decode_faults(body: object) -> Faults:
    """The faults that a JSON object names; `{}` is a path that works.

    BadRequest 400 `M_BAD_JSON`, naming the key, where one is unknown, or its value of the wrong type or
    out of range.
    """
    if not isinstance(body, dict):
        raise BadRequest("M_BAD_JSON", "Faults are a JSON object")
    for key, value in body.items():
        if key not in _CHECKS:
            raise BadRequest("M_BAD_JSON", f"{key}: no such fault. Known are {', '.join(_CHECKS)}")
        expected, is_right = _CHECKS[key]
        if not is_right(value):
            raise BadRequest("M_BAD_JSON", f"{key}: expected {expected}")
    return Faults(**body)


def _happens(chance: float, random: Random) -> bool:
    return chance > 0 and random.random() < chance


def _is_flag(value: object) -> bool:
    return isinstance(value, bool)


def _is_delay(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_DELAY_MS


def _is_chance(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return math.isfinite(value) and 0 <= value <= 1


def _is_status(value: object) -> bool:
    if value is None:
        return True
    return isinstance(value, int) and not isinstance(value, bool) and 200 <= value <= 599


_FLAG = ("true or false", _is_flag)
_DELAY = (f"whole milliseconds from 0 to {MAX_DELAY_MS}", _is_delay)
_CHANCE = ("a number from 0 to 1", _is_chance)
_CHECKS: dict[str, tuple[str, Callable[[object], bool]]] = {
    "down": _FLAG,
    "latency_ms": _DELAY,
    "drop_request": _CHANCE,
    "drop_response": _CHANCE,
    "duplicate": _CHANCE,
    "reorder": _CHANCE,
    "status": ("an HTTP status from 200 to 599, or null", _is_status),
    "garbage": _FLAG,
    "hang": _FLAG,
    "trickle_ms": _DELAY,
}
