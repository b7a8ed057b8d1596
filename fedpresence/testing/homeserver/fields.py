"""Reading plain JSON objects key by key, with complaints that name the key.

Always true: a complaint is a BadRequest 400 `M_BAD_JSON` that begins with the key it is about.
"""

from collections.abc import Callable, Collection
from typing import Any

from fedpresence.errors import BadRequest

MAX_MS = 1_000 * 365 * 86_400_000  # a thousand years: beyond, a timer's float is no millisecond any more


class Fields:
    """An object whose keys are all known; `name` says which object, in complaints about itself."""

    def __init__(self, value: object, name: str, known: Collection[str]) -> None:
        if not isinstance(value, dict):
            raise complaint(name, "must be a JSON object")
        for key in value:
            if key not in known:
                raise complaint(str(key), f"unknown key; {name} has {', '.join(sorted(known)) or 'none'}")
        self._value: dict[str, Any] = value

    def __contains__(self, key: str) -> bool:
        return key in self._value

    def get(self, key: str) -> object:
        """The value as it is; None where the key is absent."""
        return self._value.get(key)

    def text(self, key: str) -> str | None:
        """A string; None where it is absent."""
        value: str | None = self._checked(key, lambda v: isinstance(v, str), "must be a string")
        return value

    def flag(self, key: str) -> bool:
        """A boolean; false where it is absent."""
        return bool(self._checked(key, lambda v: isinstance(v, bool), "must be true or false"))

    def number(self, key: str, default: int, lowest: int, highest: int) -> int:
        """A whole number between the two, both included."""
        value: int | None = self._checked(
            key,
            lambda v: isinstance(v, int) and not isinstance(v, bool) and lowest <= v <= highest,
            f"must be a whole number from {lowest} to {highest}",
        )
        return default if value is None else value

    def array(self, key: str) -> list[object] | None:
        """An array; None where it is absent."""
        value: list[object] | None = self._checked(key, lambda v: isinstance(v, list), "must be an array")
        return value

    def texts(self, key: str) -> dict[str, str]:
        """An object of strings; empty where it is absent."""
        value: dict[str, str] | None = self._checked(
            key,
            lambda v: isinstance(v, dict) and all(isinstance(inner, str) for inner in v.values()),
            "must be an object whose values are strings",
        )
        return value or {}

    def _checked(self, key: str, holds: Callable[[Any], bool], rule: str) -> Any:
        value = self._value.get(key)
        if value is not None and not holds(value):
            raise complaint(key, rule)
        return value


def complaint(key: str, problem: str) -> BadRequest:
    """The refusal of one key."""
    return BadRequest("M_BAD_JSON", f"{key}: {problem}")
