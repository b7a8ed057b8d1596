"""The header fields of an HTTP message.

Always true: no value of a field can begin another field.

The names are those of Twisted's `Headers`, as far as they are needed here, and so is how a name is written.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache


class Fields:
    """The header fields of a message, by name, whatever the case of its letters."""

    __slots__ = ("_values",)

    def __init__(self) -> None:
        self._values: dict[bytes, list[bytes]] = {}

    def addRawHeader(self, name: bytes, value: bytes) -> None:
        """One more value of this name."""
        self._values.setdefault(name.lower(), []).append(value)

    def setRawHeaders(self, name: bytes, values: list[bytes]) -> None:
        """These values, and no others; a line break in one is a blank."""
        self._values[name.lower()] = [one_line(value) for value in values]

    def removeHeader(self, name: bytes) -> None:
        """No value."""
        self._values.pop(name.lower(), None)

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


def one_line(value: bytes) -> bytes:
    """`value` with a blank for each line break."""
    return b" ".join(value.splitlines()) if b"\n" in value or b"\r" in value else value


@lru_cache(maxsize=1000)
def _usual(name: bytes) -> bytes:
    return name.title()
