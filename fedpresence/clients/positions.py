"""Up to where each client of a homeserver beside us has seen our news, by the homeserver's tokens. Pure.

The homeserver's token goes through unchanged, so that it serves a client here and there alike, and says
nothing of us; our own position is kept beside it (Z-27).

Always true:
- a token is kept as its hash, for the user and the device that it was given to;
- a new token starts at what came with it: who brings the token has had the answer, and who lost the answer
  brings the token before it, whose position has not moved;
- an answer with news has another token than the one before it, or clients such as matrix-nio and those of
  matrix-rust-sdk take it for the same answer again and drop it. Where only we have news, the homeserver's
  token is spelled otherwise: with a zero before its second number, which for the homeserver changes nothing;
- where a token cannot be spelled otherwise it is repeated, and nobody can tell whether that answer arrived.
  What it said counts as seen when the next answer with that token has said it again; it is not waited
  with, and wakes nobody, twice;
- memory is bounded: a device has its last few tokens, and whoever was quiet longest is forgotten and gets a
  snapshot.

Source: Z-27; H:6.3 (a); P:Y-3.
"""

import hashlib
import re
from collections import OrderedDict
from dataclasses import dataclass

from fedpresence.storage.store import TokenOwner

MAX_DEVICES = 50_000  # at most 50 MB with all their tokens
TOKENS_EACH = 4  # the one in use, the one before it should its answer be lost, and two for a second tab

SPELLINGS = 8  # of one token, in turn; more than a device has in use

_SECOND_NUMBER = re.compile(r"([sm][0-9][^_]*_)(0*)(0|[1-9][0-9]*)(_.*)?")  # s12_3_4 of Synapse and Dendrite


def respelled(token: str) -> str:
    """The token in its next spelling: the same to the homeserver, another to the client.

    Numbers are read as numbers there, so one zero more in front makes no difference. A token of another
    kind stays as it is.
    """
    found = _SECOND_NUMBER.fullmatch(token)
    if found is None:
        return token
    before, zeros, digits, behind = found.groups("")
    return before + "0" * ((len(zeros) + 1) % SPELLINGS) + digits + behind


@dataclass(frozen=True, slots=True)
class Position:
    """In a mailbox: `said` is up to where a client was told, `seen` up to where it surely knows.

    `seen` None: it knows nothing for sure, not even the snapshot.
    """

    box: str
    seen: int | None
    said: int


class Positions:
    """The positions of all devices."""

    def __init__(self, max_devices: int = MAX_DEVICES, tokens_each: int = TOKENS_EACH) -> None:
        self._max_devices = max_devices
        self._tokens_each = tokens_each
        self._devices: OrderedDict[TokenOwner, OrderedDict[bytes, Position]] = OrderedDict()

    def __len__(self) -> int:
        """Of how many devices something is known."""
        return len(self._devices)

    def find(self, owner: TokenOwner, token: str, box: str) -> Position | None:
        """The position that goes with a token; None where none is known in this mailbox."""
        tokens = self._devices.get(owner)
        found = None if tokens is None else tokens.get(_hash(token))
        return found if found is not None and found.box == box else None

    def answered(self, owner: TokenOwner, came: str | None, given: str, box: str, number: int) -> None:
        """Who came with a token was given one, and told everything up to `number`."""
        if came != given:
            self._keep(owner, given, Position(box, number, number))
            return
        before = self.find(owner, given, box)
        if before is None:
            self._keep(owner, given, Position(box, None, number))
        else:
            seen, said = min(number, before.said), max(number, before.said)
            self._keep(owner, given, Position(box, seen, said))

    def _keep(self, owner: TokenOwner, token: str, position: Position) -> None:
        tokens = self._devices.setdefault(owner, OrderedDict())
        self._devices.move_to_end(owner)
        digest = _hash(token)
        tokens[digest] = position
        tokens.move_to_end(digest)
        if len(tokens) > self._tokens_each:
            tokens.popitem(last=False)
        if len(self._devices) > self._max_devices:
            self._devices.popitem(last=False)


def _hash(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()[:16]
