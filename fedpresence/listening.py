"""Open a listener from its endpoint string, with certificates that can be renewed while it runs.

Twisted's own `ssl:` endpoint takes only the first certificate of a file and reads it once; here the file
may hold the full chain, and a reload reads it again.
"""

import socket
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from OpenSSL import SSL, crypto
from twisted.internet import ssl
from twisted.internet.endpoints import TCP4ServerEndpoint, serverFromString
from twisted.internet.interfaces import IOpenSSLServerConnectionCreator
from twisted.logger import Logger
from zope.interface import implementer

from fedpresence.config_endpoints import Endpoint, parse_endpoint
from fedpresence.errors import ConfigError
from fedpresence.prompt import PromptTlsFactory

_log = Logger()

BACKLOG = 1024  # who is not taken at once waits a second: all peers come back together after a restart
PEM_END = b"-----END CERTIFICATE-----"


@implementer(IOpenSSLServerConnectionCreator)
class Certificates:
    """A TLS context whose files are read again by a reload; each connection asks for the newest `options`."""

    def __init__(self, private_key: Path, chain: Path, extra_chain: Path | None = None) -> None:
        self._private_key = private_key
        self._chain = chain
        self._extra_chain = extra_chain
        self.options = self.read()

    def serverConnectionForTLS(self, protocol: object) -> SSL.Connection:
        """One more connection, with the newest certificate."""
        return SSL.Connection(self.options.getContext(), None)

    def read(self) -> Any:
        """What the files hold now, to become `options`; ConfigError where they are no good."""
        try:
            certificates = _certificates(self._chain)
            if self._extra_chain is not None:
                certificates += _certificates(self._extra_chain)
            key = ssl.KeyPair.load(self._private_key.read_bytes(), crypto.FILETYPE_PEM)
            options = ssl.CertificateOptions(
                privateKey=key.original,
                certificate=certificates[0].original,
                extraCertChain=[certificate.original for certificate in certificates[1:]],
                raiseMinimumTo=ssl.TLSVersion.TLSv1_2,
            )
            options.getContext()  # a key that does not fit its certificate is found here
        except (OSError, SSL.Error, crypto.Error, IndexError, ValueError) as error:
            raise ConfigError.of(
                "listeners",
                f"the certificate {self._chain} with the key {self._private_key} cannot be used: {error!r}.",
                "Give a PEM file with the full chain and the private key that belongs to its first.",
            ) from error
        return options


class Listener:
    """An open port (Twisted's IListeningPort); `certificates` None where it speaks plain TCP."""

    def __init__(self, port: Any, certificates: Certificates | None) -> None:
        self.port = port
        self.certificates = certificates


def reload_certificates(listeners: Iterable[Listener]) -> None:
    """Read every listener's files again; ConfigError, and all old ones stay, where one is no good."""
    certificates = [each.certificates for each in listeners if each.certificates is not None]
    for each, options in [(each, each.read()) for each in certificates]:
        each.options = options


async def listen(endpoint: str, factory: Any, reactor: Any) -> Listener:
    """Listen at `endpoint`; ConfigError where its files are no good, CannotListenError where it is taken."""
    parsed = parse_endpoint(endpoint)
    if parsed.kind != "ssl":
        if parsed.kind == "unix":
            _take_away_stale(Path(parsed.positional[0]))
        if parsed.kind.startswith("tcp") and "backlog" not in parsed.named and len(parsed.positional) < 2:
            endpoint += f":backlog={BACKLOG}"
        try:
            return Listener(await serverFromString(reactor, endpoint).listen(factory), None)
        except OSError as error:  # of a Unix socket's lock; else it is a CannotListenError
            raise ConfigError.of(
                "listeners",
                f"{endpoint} cannot be opened: {error.strerror}.",
                "Make its folder, and let us write to it.",
            ) from error
    certificates = _certificates_of(parsed)
    server = TCP4ServerEndpoint(
        reactor,
        int(parsed.port or 0),
        backlog=int(parsed.named.get("backlog", BACKLOG)),
        interface=parsed.interface,
    )
    tls: Any = PromptTlsFactory
    return Listener(await server.listen(tls(certificates, False, factory)), certificates)


def _take_away_stale(path: Path) -> None:
    """A Unix socket where nobody listens any more, and its lock.

    Twisted judges the lock by the process that it names: in a container that is always ourselves.
    """
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            pass
        except OSError:
            return
        else:
            return
    with suppress(OSError):
        if path.is_socket() or not path.exists():  # else it is no socket at all, and not ours to remove
            path.unlink(missing_ok=True)
            path.with_name(f"{path.name}.lock").unlink(missing_ok=True)


def _certificates_of(endpoint: Endpoint) -> Certificates:
    private_key = Path(endpoint.named.get("privateKey", "server.pem"))
    extra = endpoint.named.get("extraCertChain")
    return Certificates(
        private_key, Path(endpoint.named.get("certKey", private_key)), Path(extra) if extra else None
    )


def _certificates(path: Path) -> list[Any]:
    parts = path.read_bytes().split(PEM_END)
    return [ssl.Certificate.loadPEM(part + PEM_END) for part in parts[:-1]]
