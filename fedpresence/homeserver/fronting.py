"""What of a transaction is presence, and whose presence may be answered without the homeserver (pure).

Always true:
- a transaction counts as presence alone only where nothing else is in it, known or unknown;
- an origin is answered alone only while its last sample at the homeserver got a 200, and for 10 minutes
  after it; the number of origins remembered is bounded.

Source: H:6.2, step 5; Z-26.
"""

from collections import OrderedDict
from enum import Enum

from fedpresence.engine.subscription import EduKind
from fedpresence.ids import ServerName
from fedpresence.wire.edus import PRESENCE

SAMPLE_MS = 600_000  # one in ten minutes shows the homeserver that the origin is alive: H:6.2
MAX_ORIGINS = 10_000  # who is forgotten is sampled once more
ENVELOPE = frozenset({"origin", "origin_server_ts", "pdus", "edus"})
OURS = frozenset({PRESENCE, *(kind.value for kind in EduKind)})
OUR_PREFIX = "org.fedpresence."


class Share(Enum):
    """How much of a transaction is presence."""

    NONE = "none"
    SOME = "some"
    ALL = "all"


def share_of(content: object) -> Share:
    """How much of a transaction's body is presence; ALL only where that is beyond doubt."""
    edus = content.get("edus") if isinstance(content, dict) else None
    if not isinstance(content, dict) or not isinstance(edus, list):
        return Share.NONE
    ours = [_is_presence(edu) for edu in edus]
    if not any(ours):
        return Share.NONE
    is_all = all(ours) and content.get("pdus") == [] and content.keys() <= ENVELOPE
    return Share.ALL if is_all else Share.SOME


def has_others(content: object) -> bool:
    """Whether anything in a transaction is not ours to take: answered by us alone, it would be lost."""
    edus = content.get("edus", []) if isinstance(content, dict) else None
    if not isinstance(content, dict) or not isinstance(edus, list):
        return True
    return bool(content.get("pdus")) or not content.keys() <= ENVELOPE or not all(map(_is_presence, edus))


def must_last(content: object) -> bool:
    """Whether there is more than pushes in it: presence is said again, an accept may not be."""
    edus = content.get("edus") if isinstance(content, dict) else None
    return isinstance(edus, list) and any(_is_presence(edu) and edu["edu_type"] != PRESENCE for edu in edus)


class Samples:
    """What the homeserver said to the last transaction that it got of each origin."""

    def __init__(self) -> None:
        self._taken_ms: OrderedDict[ServerName, int] = OrderedDict()

    def __len__(self) -> int:
        return len(self._taken_ms)

    def forwarded(self, origin: ServerName, status: int | None, now_ms: int) -> None:
        """A transaction that `origin` really sent was answered with `status`; None: not at all."""
        if status != 200:
            self._taken_ms.pop(origin, None)
            return
        self._taken_ms[origin] = now_ms
        self._taken_ms.move_to_end(origin)
        if len(self._taken_ms) > MAX_ORIGINS:
            self._taken_ms.popitem(last=False)

    def may_answer(self, origin: ServerName, now_ms: int) -> bool:
        """Whether presence of `origin` may be answered without the homeserver now."""
        taken_ms = self._taken_ms.get(origin)
        return taken_ms is not None and now_ms - taken_ms < SAMPLE_MS


def _is_presence(edu: object) -> bool:
    edu_type = edu.get("edu_type") if isinstance(edu, dict) else None
    return isinstance(edu_type, str) and (edu_type in OURS or edu_type.startswith(OUR_PREFIX))
