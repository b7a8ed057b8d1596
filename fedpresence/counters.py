"""What happened, counted: the few words that the shells say and the metrics hear.

Always true: names and label values come from fixed sets, never from the network as they came, so the
number of series is bounded.
"""

from typing import Protocol


class Counters(Protocol):
    """Somebody who counts."""

    def count(self, name: str, amount: int = 1, **labels: str) -> None:
        """So many more of `name` with these labels."""


class NullCounters:
    """Nobody counts."""

    def count(self, name: str, amount: int = 1, **labels: str) -> None:
        """Forget it."""
