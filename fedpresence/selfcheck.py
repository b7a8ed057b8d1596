"""Are we who our server name leads to? Asked once, before the first push.

A staging copy with the production key, or a wrong key, would speak for users that it does not have. So a
signed transaction with nothing in it goes to our own name, through discovery, as any peer's would.

Source: Z-23.
"""

from collections.abc import Awaitable, Callable, Mapping
from enum import Enum

from fedpresence.clock import Clock, now_ms
from fedpresence.errors import DeliveryFailed
from fedpresence.ids import ServerName, is_ip_literal, split_server_name

PRIVATE_ENDINGS = (".test", ".localhost", ".local", ".invalid", ".example")


Send = Callable[[ServerName, str, str, object], Awaitable[object]]


class Arrival(Enum):
    """Where a request to our own name went."""

    HERE = "it came back to this process"
    ELSEWHERE = "another process answered"
    NOWHERE = "nobody answered"


def is_public(server_name: ServerName, resolve: Mapping[ServerName, tuple[str, int]]) -> bool:
    """Whether a name is one that strangers find: not a test's, not an address, not fixed by the operator."""
    host, _ = split_server_name(server_name)
    if is_ip_literal(host) or server_name in resolve or "." not in host:
        return False
    return not host.lower().endswith(PRIVATE_ENDINGS)


class SelfCheck:
    """Sends to ourselves and watches whether it arrives; `heard` is called for what proves to be ours."""

    def __init__(self, server_name: ServerName, clock: Clock) -> None:
        self._server_name = server_name
        self._clock = clock
        self._arrived = False

    def heard(self, origin: ServerName) -> None:
        """Something authentic came in."""
        if origin == self._server_name:
            self._arrived = True

    async def ask(self, send: Send) -> tuple[Arrival, str]:
        """Where our name leads, and in words fit for a log what was answered.

        `send(destination, method, uri, content)` is the client's signed request.
        """
        self._arrived = False
        now = now_ms(self._clock)
        content = {"origin": self._server_name, "origin_server_ts": now, "pdus": [], "edus": []}
        uri = f"/_matrix/federation/v1/send/fpself{now}"
        answered = "answered 200"
        try:
            await send(self._server_name, "PUT", uri, content)
        except DeliveryFailed as error:
            answered = error.reason
            if error.status is None and not self._arrived:
                return Arrival.NOWHERE, answered
        return (Arrival.HERE if self._arrived else Arrival.ELSEWHERE), answered
