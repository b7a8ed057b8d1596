"""The header fields of HTTP messages: those that came, and those of an answer.

Always true: no value of a field can begin another field.

The names are those of Twisted's `Headers`, as far as they are needed here.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache


class Fields:
    """The header fields of a request, by name, whatever the case of its letters."""

    __slots__ = ("_values",)

    def __init__(self) -> None:
        self._values: dict[bytes, list[bytes]] = {}

    def addRawHeader(self, name: bytes, value: bytes) -> None:
        """One more value of this name."""
        name = name.lower()
        if name in self._values:
            self._values[name].append(value)
        else:
            self._values[name] = [value]

    def getRawHeaders(self, name: bytes, default: Sequence[bytes] = ()) -> Sequence[bytes]:
        """All values in their order; `default` where there is none."""
        return self._values.get(name.lower(), default)

    def getAllRawHeaders(self) -> Iterator[tuple[bytes, list[bytes]]]:
        """Every name, as it is usually written, with its values."""
        for name, values in self._values.items():
            yield _usual(name), values

    def __len__(self) -> int:
        """How many names there are."""
        return len(self._values)


class AnswerFields:
    """The header fields of an answer, as they will be sent; a name is always written the same way."""

    __slots__ = ("_lines",)

    def __init__(self) -> None:
        self._lines: dict[bytes, bytes] = {}

    def setHeader(self, name: bytes, value: bytes) -> None:
        """This value, and no other; a line break in it is a blank."""
        if b"\n" in value or b"\r" in value:
            value = one_line(value)
        self._lines[name] = b"%b: %b\r\n" % (name, value)

    def setRawHeaders(self, name: bytes, values: Sequence[bytes]) -> None:
        """These values, and no others."""
        self._lines[name] = b"".join([b"%b: %b\r\n" % (name, one_line(value)) for value in values])

    def removeHeader(self, name: bytes) -> None:
        """No value."""
        self._lines.pop(name, None)

    def hasHeader(self, name: bytes) -> bool:
        """Whether there is one."""
        return name in self._lines

    def encode(self) -> bytes:
        """All of them, with the empty line behind."""
        return b"".join((*self._lines.values(), b"\r\n"))


def one_line(value: bytes) -> bytes:
    """`value` with a blank for each line break."""
    return b" ".join(value.splitlines())


@lru_cache(maxsize=1000)
def _usual(name: bytes) -> bytes:
    return name.title()
