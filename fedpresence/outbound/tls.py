"""Who a server must prove to be before it is told anything.

Always true: unless the operator switched checking off, a connection is authenticated for the name of
discovery's table (never the SRV target), an IP name by its IP SAN; SNI is that name, and none for an IP;
authorities are read again by a reload: they count for new connections, and those that stand go on.

Source: F:5.2. `federation.ca_file` takes the place of the system's authorities.
"""

import os
import re
import ssl
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from twisted.logger import Logger

from fedpresence.errors import ConfigError

_log = Logger()

_BEGIN = re.compile("-----BEGIN (TRUSTED )?CERTIFICATE-----")
_HASHED = re.compile(r"[0-9a-f]{8}\.[0-9]+")  # the only names of files that OpenSSL finds in a folder

_CA_FILE = "federation.ca_file"
_GIVE_PEM = "Give a file of PEM certificates."
_NONE_FOUND = "No certificate authorities were found: no other server will be trusted."
_FIND_THEM = "Install the system's (ca-certificates), or name a file in federation.ca_file."

# Where systems have their authorities. A Python that was built elsewhere (by hand, by uv) looks for them
# where its OpenSSL was built.
SYSTEM_BUNDLES = (
    Path("/etc/ssl/certs/ca-certificates.crt"),  # Debian, Ubuntu, Alpine, Arch, Gentoo
    Path("/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem"),  # Fedora, RHEL
    Path("/etc/pki/tls/certs/ca-bundle.crt"),  # older ones
    Path("/etc/ssl/ca-bundle.pem"),  # openSUSE
    Path("/etc/ssl/cert.pem"),  # BSD, macOS
)


class TlsSession:
    """One end of TLS, in memory: what came goes into `incoming`, what is to leave comes out of `outgoing`."""

    __slots__ = ("incoming", "outgoing", "tls")

    def __init__(self, context: ssl.SSLContext, name: str) -> None:
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_hostname=name)


class Authorities(NamedTuple):
    """Whom some files vouched for when they were read; `found`: whether there was anybody."""

    context: ssl.SSLContext
    found: bool


class TlsPolicy:
    """Begins TLS with a server by its name; new connections share the newest authorities.

    `bundles` are where the system's authorities may be.
    """

    def __init__(
        self,
        *,
        verify: bool = True,
        ca_file: Path | None = None,
        bundles: tuple[Path, ...] = SYSTEM_BUNDLES,
    ) -> None:
        self._verify = verify
        self._bundles = bundles
        self._authorities = self._read(ca_file)
        if not self._authorities.found:  # clients can be served all the same
            _log.warn("{problem} {fix}", problem=_NONE_FOUND, fix=_FIND_THEM)

    def read(self, ca_file: Path | None) -> Authorities:
        """Whom the files vouch for now, to be taken over; ConfigError where they are no good, or gone."""
        authorities = self._read(ca_file)
        if self._authorities.found and not authorities.found:
            raise ConfigError.of(_CA_FILE, _NONE_FOUND, _FIND_THEM)
        return authorities

    def take_over(self, authorities: Authorities) -> None:
        """Believe these from now on, and no others."""
        self._authorities = authorities

    def session_with(self, name: str) -> TlsSession:
        """TLS to a server whose certificate is for `name`; ValueError where there can be none."""
        try:
            return TlsSession(self._authorities.context, name)
        except (ValueError, ssl.SSLError) as error:  # an empty label, or one that is too long
            raise ValueError(f"no certificate can be for {name}") from error

    def _read(self, ca_file: Path | None) -> Authorities:
        context, found = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), True
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.hostname_checks_common_name = False
        context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_TICKET  # no session is taken up again
        if ca_file is not None:
            _load_authorities(context, ca_file, _CA_FILE)
        elif self._verify:
            found = load_system_authorities(context, ssl.get_default_verify_paths(), self._bundles)
        if not self._verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return Authorities(context, found)


def check_named_authorities() -> None:
    """ConfigError where SSL_CERT_FILE names a file that is no good; for TLS that is not made here."""
    _load_named(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), ssl.get_default_verify_paths())


def load_system_authorities(
    context: ssl.SSLContext, defaults: ssl.DefaultVerifyPaths, bundles: tuple[Path, ...]
) -> bool:
    """Trust what SSL_CERT_FILE and SSL_CERT_DIR name, or what OpenSSL finds, or the first of `bundles`.

    Answers whether there are any; ConfigError where the file that SSL_CERT_FILE names is no good.
    """
    context.load_default_certs()
    if _load_named(context, defaults) or defaults.openssl_capath_env in os.environ:
        return True
    if defaults.cafile is not None or (defaults.capath is not None and _has_hashed(defaults.capath)):
        return True
    for bundle in bundles:
        with suppress(OSError):
            context.load_verify_locations(bundle)
            return True
    return False


def _load_named(context: ssl.SSLContext, defaults: ssl.DefaultVerifyPaths) -> bool:
    """Whether SSL_CERT_FILE names a file, whose mistakes OpenSSL would pass over."""
    named = os.environ.get(defaults.openssl_cafile_env)
    if named:
        _load_authorities(context, Path(named), defaults.openssl_cafile_env)
    return bool(named)


def _has_hashed(folder: str) -> bool:
    try:
        return any(_HASHED.fullmatch(file.name) for file in Path(folder).iterdir())
    except OSError:
        return False


def _load_authorities(context: ssl.SSLContext, file: Path, key: str) -> None:
    try:
        text = file.read_text("ascii", errors="replace")
    except OSError as error:
        raise ConfigError.of(key, f"{file} cannot be read: {error.strerror}.", _GIVE_PEM) from error
    if not _BEGIN.search(text):
        raise ConfigError.of(key, f"{file} holds no certificate.", _GIVE_PEM)
    try:
        context.load_verify_locations(file)
    except OSError as error:  # SSLError among them
        raise ConfigError.of(key, f"{file} has a certificate that cannot be read.", _GIVE_PEM) from error
