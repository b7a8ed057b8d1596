"""The body of a request that is handled while it still arrives.

Always true:
- what has come and nobody has taken yet is at most what one read of the connection brings: until somebody
  takes it, the client is not read from;
- what is collected and then not wanted as a whole is not lost: it goes out first when the body is sent on;
- a body that ends too early, or is too long, is an error for whoever takes it, never a shorter body.

Source: H:6.2; issue 6, "big bodies stream".
"""

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionLost
from twisted.internet.interfaces import IPushProducer
from twisted.python.failure import Failure
from zope.interface import implementer


@implementer(IPushProducer)
class IncomingBody:
    """One body; `length` is None where it is chunked, `hold` and `release` stop and start its coming.

    It is collected, sent on, or collected in part and then sent on.
    """

    def __init__(self, length: int | None, hold: Callable[[], None], release: Callable[[], None]) -> None:
        self.length = length
        self.received = 0
        self.complete = False
        self._hold = hold
        self._release = release
        self._kept: list[bytes] = []
        self._may_keep: Callable[[int], bool] | None = None
        self._collected: Deferred[bytes | None] | None = None
        self._consumer: Any = None
        self._sent: Deferred[None] | None = None
        self._error: Exception | None = None
        self._paused = False
        self._unwanted = False

    # --- for whoever takes it --------------------------------------------------------------------

    def collect(self, may_keep: Callable[[int], bool]) -> "Deferred[bytes | None]":
        """The whole body; None as soon as `may_keep` (asked with the size of each piece) says no.

        After a None, and after the whole too, the body can still be sent on. Its error where it has one.
        """
        collected: Deferred[bytes | None] = Deferred(lambda _: self._collecting_ended())
        self._may_keep, self._collected = may_keep, collected
        if not all(may_keep(len(data)) for data in self._kept):
            self._stop_collecting(None)
        else:
            self._go_on()
        return collected

    def collect_no_further(self) -> None:
        """It takes too long: who collects gets None now, as if no more might be kept."""
        if self._collected is not None:
            self._hold()
            self._stop_collecting(None)

    def send_to(self, consumer: Any) -> "Deferred[None]":
        """Send it all on to `consumer`, who may pause us; fires when it was, fails with its error."""
        sent: Deferred[None] = Deferred(lambda _: self.stopProducing())
        self._consumer, self._sent = consumer, sent
        kept, self._kept = self._kept, []
        for data in kept:
            consumer.write(data)
        self._go_on()
        return sent

    def pauseProducing(self) -> None:
        """The consumer is full."""
        self._paused = True
        if not self._unwanted and not self.complete:
            self._hold()

    def resumeProducing(self) -> None:
        """The consumer has room again."""
        self._paused = False
        if not self.complete:
            self._release()

    def stopProducing(self) -> None:
        """Nobody wants the rest: it is read and thrown away."""
        self._unwanted = True
        self._kept.clear()
        self._consumer = self._sent = None
        if not self.complete and self._error is None:
            self._release()

    # --- for the connection ----------------------------------------------------------------------

    def arrived(self, data: bytes) -> None:
        """A piece of it."""
        self.received += len(data)
        if self._unwanted or self._error is not None:
            return
        if self._consumer is not None:
            self._consumer.write(data)
            return
        self._kept.append(data)
        if self._may_keep is None:
            self._hold()
        elif not self._may_keep(len(data)):
            self._hold()
            self._stop_collecting(None)

    def ended(self) -> None:
        """That was all."""
        self.complete = True
        self._finish()

    def broken(self, error: Exception | None = None) -> None:
        """It will not come to its end: the client has gone, or sent too much."""
        if self.complete or self._error is not None:
            return
        self._error = error or ConnectionLost("the client has gone")
        self._kept.clear()
        self._finish()

    # --- inside ----------------------------------------------------------------------------------

    def _go_on(self) -> None:
        if self.complete or self._error is not None:
            self._finish()
        elif not self._paused:
            self._release()

    def _finish(self) -> None:
        if self._collected is not None:
            whole = b"".join(self._kept)
            self._kept = [whole]  # one copy, not two
            self._stop_collecting(whole)
        sent, self._sent = self._sent, None
        if sent is None:
            return
        self._consumer = None
        if self._error is not None:
            sent.errback(Failure(self._error))
        else:
            sent.callback(None)

    def _stop_collecting(self, outcome: bytes | None) -> None:
        collected, self._collected = self._collected, None
        self._may_keep = None
        if collected is None:
            return
        if self._error is not None:
            collected.errback(Failure(self._error))
        else:
            collected.callback(outcome)

    def _collecting_ended(self) -> None:
        self._may_keep = self._collected = None
