"""Members of a large JSON object changed while its bytes pass; the rest of it is neither decoded nor kept.

Always true:
- what is not the value of a member that was named comes out as it went in, byte for byte;
- a named member that the object has is changed in its place, one that it lacks is added before the closing
  brace: no key stands twice, of which clients make different things;
- what is no JSON object passes untouched, and is never `complete`;
- memory is bounded by a piece, a key and the values of the named members; time grows with the bytes, however
  they are cut.

Source: H:6.3 (a).
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from enum import Enum, auto

Change = Callable[[bytes], bytes | None]
"""The new value of a member, from the old one (empty where there is none); None leaves it as it is."""

MAX_KEY = 4096  # bytes from the end of one member to the value of the next; a key of /sync has thirty

SURVEYED = 1024  # bytes: a longer piece is first asked whether a value ends in it, ten times as fast as read

_SPACE = rb"[ \t\r\n]*+"
_STRING = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_OPENING = re.compile(_SPACE + rb"(\{?)")
_KEY = re.compile(rb"%b(,?)%b(%b)%b:%b(?=.)" % (_SPACE, _SPACE, _STRING, _SPACE, _SPACE), re.DOTALL)
_CLOSING = re.compile(_SPACE + rb"\}")
_TO_NEXT_BRACKET = re.compile(rb'(?:[^"{}\[\]]++|%b)*+' % _STRING, re.DOTALL)
_TO_NEXT_MEMBER = re.compile(rb'(?:[^"{}\[\],]++|%b)*+' % _STRING, re.DOTALL)
_TO_STRING_END = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+', re.DOTALL)
_AS_CURLY = bytes.maketrans(b"[]", b"{}")
_ALL_BUT_BRACKETS = bytes(c for c in range(256) if c not in b"[]{}")
_EVENTS = re.compile(rb'%b\{%b"events"%b:%b\[%b' % ((_SPACE,) * 5))


class _Place(Enum):
    BEFORE = auto()  # the opening brace is still to come
    BETWEEN = auto()  # next is a member, or the closing brace
    WITHIN = auto()  # the value of a member
    BEHIND = auto()  # the closing brace has passed
    LOST = auto()  # this is no JSON object


class Splicer:
    """Is fed an object's bytes in pieces, and gives them back with the members of `changes` changed."""

    def __init__(self, changes: Mapping[str, Change]) -> None:
        self._changes = dict(changes)  # those still to be made
        self._place = _Place.BEFORE
        self._kept = b""  # what cannot be told without the bytes behind it
        self._out: list[bytes] = []
        self._is_empty = True
        self._depth = 0  # of containers within the value that passes
        self._in_string = False  # which began in a piece before
        self._surveyed = False  # whether this piece was: once is enough
        self._change: Change | None = None  # of the value that passes
        self._old: list[bytes] = []  # what has passed of it

    @property
    def complete(self) -> bool:
        """Whether the whole object has passed, and with it every change."""
        return self._place is _Place.BEHIND

    def feed(self, data: bytes) -> bytes:
        """What may go on of all that has come."""
        data, self._kept = self._kept + data, b""
        self._surveyed = False
        at: int | None = 0
        while at is not None and at < len(data):
            begin = at
            if self._place is _Place.WITHIN:
                at = self._within(data, begin)
            elif self._place is _Place.BETWEEN:
                at = self._between(data, begin)
            elif self._place is _Place.BEFORE:
                at = self._before(data, begin)
            else:
                at = self._pass(data, begin, len(data))
            if at is None:
                self._kept = data[begin:]
        out, self._out = b"".join(self._out), []
        return out

    def finish(self) -> bytes:
        """What is left where the bytes end before the object does."""
        left = b"".join(self._old) + self._kept
        self._old, self._kept = [], b""
        return left

    def _before(self, data: bytes, at: int) -> int | None:
        found = _OPENING.match(data, at)
        assert found is not None, "it matches the empty string"
        if found[1]:
            self._place = _Place.BETWEEN
        elif found.end() < len(data):
            self._place = _Place.LOST
        return self._pass(data, at, found.end())

    def _between(self, data: bytes, at: int) -> int | None:
        closing = _CLOSING.match(data, at)
        if closing is not None:
            self._add_missing()
            self._place = _Place.BEHIND
            return self._pass(data, at, closing.end())
        key = _KEY.match(data, at)
        if key is not None and bool(key[1]) is not self._is_empty:
            self._is_empty = False
            self._place = _Place.WITHIN
            end = self._pass(data, at, key.end())
            self._change = self._changes.pop(_name(key[2]), None)
            return end
        if key is None and len(data) - at <= MAX_KEY:
            return None
        self._place = _Place.LOST
        return at

    def _within(self, data: bytes, at: int) -> int | None:
        if self._depth and not self._surveyed:
            self._surveyed = True
            if len(data) - at >= SURVEYED and self._stays_within(data[at:]):
                return self._pass(data, at, len(data))
        if self._in_string:
            return self._within_string(data, at)
        found = (_TO_NEXT_BRACKET if self._depth else _TO_NEXT_MEMBER).match(data, at)
        assert found is not None, "it matches the empty string"
        end = found.end()
        mark = data[end : end + 1]
        if mark == b'"':
            self._in_string = True
        elif mark in (b"{", b"["):
            self._depth += 1
        elif mark and self._depth:
            self._depth -= 1
        elif mark:
            self._pass(data, at, end)
            self._value_ends()
            return end
        return self._pass(data, at, end + len(mark))

    def _stays_within(self, piece: bytes) -> bool:
        """Whether the value does not end in this piece; counted if so."""
        if piece.endswith(b"\\"):
            return False
        parts = piece.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')  # every other one is a string
        brackets = b"".join(parts[self._in_string :: 2]).translate(_AS_CURLY, _ALL_BUT_BRACKETS)
        while True:  # peel off the innermost pairs until nothing is left but what closes, then what opens
            peeled = brackets.replace(b"{}", b"")
            if len(peeled) == len(brackets):
                break
            brackets = peeled
        closing = brackets.count(b"}")
        if closing >= self._depth:
            return False
        self._depth += len(brackets) - 2 * closing
        self._in_string ^= len(parts) % 2 == 0
        return True

    def _within_string(self, data: bytes, at: int) -> int | None:
        found = _TO_STRING_END.match(data, at)
        assert found is not None, "it matches the empty string"
        end = found.end()
        if data[end : end + 1] == b'"':
            self._in_string = False
            return self._pass(data, at, end + 1)
        return self._pass(data, at, end) if end > at else None  # a backslash, and behind it is not here

    def _pass(self, data: bytes, begin: int, end: int) -> int:
        """Let bytes go on; those of a value that will change are kept for that."""
        (self._out if self._change is None else self._old).append(data[begin:end])
        return end

    def _value_ends(self) -> None:
        self._place = _Place.BETWEEN
        if self._change is not None:
            old = b"".join(self._old)
            new = self._change(old)
            self._out.append(old if new is None else new)
            self._change, self._old = None, []

    def _add_missing(self) -> None:
        for name, change in self._changes.items():
            value = change(b"")
            if value is not None:
                comma = b"" if self._is_empty else b","
                self._out.append(comma + json.dumps(name).encode("ascii") + b":" + value)
                self._is_empty = False


def encode_events(events: Sequence[object]) -> bytes:
    """The value of a section that holds `events`."""
    return b'{"events":[' + _encode_items(events) + b"]}"


def with_events(section: bytes, events: Sequence[object]) -> bytes | None:
    """A section with `events` before its own, which stay as they are; None where it is no section."""
    if not section:
        return encode_events(events)
    found = _EVENTS.match(section)
    if found is None:
        return encode_events(events) if section.translate(None, b" \t\r\n") == b"{}" else None
    end = found.end()
    comma = b"" if section[end : end + 1] == b"]" or not events else b","
    return section[:end] + _encode_items(events) + comma + section[end:]


def _encode_items(events: Sequence[object]) -> bytes:
    return json.dumps(events, separators=(",", ":")).encode("ascii")[1:-1]


def _name(string: bytes) -> str:
    """What a key says; one that is no JSON is no name of ours."""
    try:
        name = json.loads(string)
    except ValueError:
        return ""
    assert isinstance(name, str)
    return name
