"""A listener that passes everything through, and requests to it."""

from collections.abc import Awaitable, Callable

from fedpresence.admission import BodyBudget
from fedpresence.config import LimitsConfig
from fedpresence.homeserver.relay import PassThrough, Relay, streams
from fedpresence.site import BoundedSite
from tests.homeserver.listener import Listener, play

LIMITS = LimitsConfig(client_body=1024)


class Front(Listener):
    """What is below `/_matrix/` streams; other bodies are held in memory."""

    def serve(self, relay: Relay) -> BoundedSite:
        """Everything, as it comes."""
        self.budget = BodyBudget(4096)
        return BoundedSite(PassThrough(relay), LIMITS, self.reactor, self.budget, streams((b"/_matrix/",)))


def with_front(story: Callable[[Front], Awaitable[None]]) -> None:
    """Play a story, and clean up."""
    play(Front, story)


def a_request(
    method: bytes = b"GET", uri: bytes = b"/_matrix/x", *headers: bytes, body: bytes | None = None
) -> bytes:
    """A request that closes its connection."""
    lines = [method + b" " + uri + b" HTTP/1.1", b"Host: here.test", b"Connection: close", *headers]
    if body is not None:
        lines.append(b"Content-Length: %d" % len(body))
    return b"\r\n".join([*lines, b"", b""]) + (body or b"")
