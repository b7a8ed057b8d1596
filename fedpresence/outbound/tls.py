"""Who a server must prove to be before it is told anything.

Always true: unless the operator switched checking off, a connection is authenticated for the name of
discovery's table (never the SRV target), an IP name by its IP SAN; SNI is that name, and none for an IP.

Source: F:5.2. `federation.ca_file` takes the place of the system's authorities.
"""

from collections import OrderedDict
from pathlib import Path
from typing import Any

from OpenSSL import SSL
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator
from twisted.internet.ssl import (
    Certificate,
    CertificateOptions,
    optionsForClientTLS,
    platformTrust,
    trustRootFromCertificates,
)
from twisted.protocols.tls import TLSMemoryBIOProtocol
from zope.interface import implementer

from fedpresence.errors import ConfigError
from fedpresence.ids import is_ip_literal

MAX_CONTEXTS = 64  # half a megabyte and some milliseconds each, mostly the system's authorities
_BEGIN, _END = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"


class TlsPolicy:
    """Makes what a TLS handshake with a name needs; the most recent names are kept."""

    def __init__(self, *, verify: bool = True, ca_file: Path | None = None) -> None:
        self._verify = verify
        self._trust_root = platformTrust() if ca_file is None else _authorities(ca_file)
        self._creators: OrderedDict[str, Any] = OrderedDict()

    def creator_for(self, name: str) -> Any:
        """What connects (IOpenSSLClientConnectionCreator) to a server whose certificate is for `name`."""
        creator = self._creators.pop(name, None)
        if creator is None:
            creator = (
                optionsForClientTLS(name, trustRoot=self._trust_root) if self._verify else _Unverified(name)
            )
        self._creators[name] = creator
        if len(self._creators) > MAX_CONTEXTS:
            self._creators.popitem(last=False)
        return creator


@implementer(IOpenSSLClientConnectionCreator)
class _Unverified:
    """TLS to whoever answers; still with SNI, or the wrong server might."""

    def __init__(self, name: str) -> None:
        self._sni = None if is_ip_literal(name) else name.encode("ascii")
        self._context = CertificateOptions(verify=False).getContext()

    def clientConnectionForTLS(
        self,
        tlsProtocol: TLSMemoryBIOProtocol,
    ) -> SSL.Connection:
        """A connection that takes any certificate."""
        connection = SSL.Connection(self._context, None)
        if self._sni is not None:
            connection.set_tlsext_host_name(self._sni)
        return connection


def _authorities(ca_file: Path) -> Any:
    key = "federation.ca_file"
    try:
        text = ca_file.read_text("ascii", errors="replace")
    except OSError as error:
        raise ConfigError.of(key, f"{ca_file} cannot be read: {error.strerror}.") from error
    blocks = [block.partition(_END)[0] for block in text.split(_BEGIN)[1:]]
    try:
        certificates = [Certificate.loadPEM(f"{_BEGIN}{block}{_END}\n".encode()) for block in blocks]
    except Exception as error:  # whatever the parser raises, the file is wrong
        raise ConfigError.of(key, f"{ca_file} has a certificate that cannot be read.") from error
    if not certificates:
        raise ConfigError.of(key, f"{ca_file} holds no certificate.", "Give a file of PEM certificates.")
    return trustRootFromCertificates(certificates)
