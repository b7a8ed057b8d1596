"""Who a server must prove to be before it is told anything.

Always true: unless the operator switched checking off, a connection is authenticated for the name of
discovery's table (never the SRV target), an IP name by its IP SAN; SNI is that name, and none for an IP.

Source: F:5.2. `federation.ca_file` takes the place of the system's authorities.
"""

import ssl
from pathlib import Path

from fedpresence.errors import ConfigError

_BEGIN = "-----BEGIN CERTIFICATE-----"


class TlsSession:
    """One side of TLS, which reads and writes memory: what came goes into `incoming`, what is to leave lies
    in `outgoing`."""

    __slots__ = ("incoming", "outgoing", "tls")

    def __init__(self, context: ssl.SSLContext, name: str) -> None:
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_hostname=name)


class TlsPolicy:
    """Begins TLS with a server by its name; all share one context."""

    def __init__(self, *, verify: bool = True, ca_file: Path | None = None) -> None:
        self._context = context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.hostname_checks_common_name = False
        if ca_file is None:
            context.load_default_certs()
        else:
            _load_authorities(context, ca_file)
        if not verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE

    def session_with(self, name: str) -> TlsSession:
        """TLS to a server whose certificate is for `name`; ValueError where no certificate can be."""
        return TlsSession(self._context, name)


def _load_authorities(context: ssl.SSLContext, ca_file: Path) -> None:
    key = "federation.ca_file"
    try:
        text = ca_file.read_text("ascii", errors="replace")
    except OSError as error:
        raise ConfigError.of(key, f"{ca_file} cannot be read: {error.strerror}.") from error
    if _BEGIN not in text:
        raise ConfigError.of(key, f"{ca_file} holds no certificate.", "Give a file of PEM certificates.")
    try:
        context.load_verify_locations(ca_file)
    except (ssl.SSLError, OSError) as error:
        raise ConfigError.of(key, f"{ca_file} has a certificate that cannot be read.") from error
