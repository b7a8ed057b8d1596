"""Whether anybody reads what is said at debug.

Twisted makes an event of every word before its observers drop it: for a word of each transaction that costs
as much as reading the transaction's answer.

Always true: it is read unless the process's own log (`ops.logs`) is the one reader, and drops it.
"""


class Debugging:
    """What a module asks before it says something at debug for each transaction."""

    __slots__ = ("is_read",)

    def __init__(self) -> None:
        self.is_read = True


debugging = Debugging()
