"""Connections that write when they are told to: TCP, and TLS for those who come to us.

Twisted asks the system first whether it may write, and the answer is a turn of the reactor later, though
it is nearly always yes: for a request or an answer that costs more than to write it.

Always true: bytes leave in the order in which they were written. Once the system did not take all of them,
everything goes the way of Twisted, through its buffer, for as long as the connection stands. So it does once
there is a producer that must be asked for each piece: Twisted asks when its buffer has become empty.

TLS to other servers is in `outbound/tls_connection.py`.
"""

from typing import Any

from twisted.internet.tcp import Connection
from twisted.protocols.tls import TLSMemoryBIOFactory, TLSMemoryBIOProtocol


class PromptTransport:
    """Stands for a connection; all but writing is as it was."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._is_prompt = True

    def write(self, data: bytes) -> None:
        """As ITransport."""
        connection = self._connection
        if self._is_prompt and connection.connected:
            try:
                taken = connection.socket.send(data)
            except OSError:  # full, or lost: as Twisted will find out
                taken = 0
            if taken == len(data):
                return
            self._is_prompt = False
            data = data[taken:]
        connection.write(data)

    def writeSequence(self, data: list[bytes]) -> None:
        """As ITransport."""
        self.write(b"".join(data))

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """As IConsumer."""
        self._is_prompt = self._is_prompt and streaming
        self._connection.registerProducer(producer, streaming)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)


def prompt(transport: Any) -> Any:
    """`transport`, which writes at once where it is a TCP connection."""
    return PromptTransport(transport) if isinstance(transport, Connection) else transport


def has_unsent(transport: Any) -> bool:
    """Whether something that was written has not been taken by the system yet; Twisted has no word for it."""
    if isinstance(transport, TLSMemoryBIOProtocol):
        return bool(transport._appSendBuffer) or has_unsent(transport.transport)
    return bool(getattr(transport, "dataBuffer", b"") or getattr(transport, "_tempDataLen", 0))


class PromptTls(TLSMemoryBIOProtocol):
    """TLS that writes at once: to collect what is written takes a timer, and a message is one piece."""

    def makeConnection(self, transport: Any) -> None:
        """As IProtocol."""
        TLSMemoryBIOProtocol.makeConnection(self, prompt(transport))


class PromptTlsFactory(TLSMemoryBIOFactory):
    """Wraps what a factory builds in such a TLS."""

    protocol = PromptTls
