"""A network in memory: real TLS, real HTTP, no sockets and no reactor."""

from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from random import Random
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.error import ConnectionRefusedError
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.protocol import Factory
from twisted.internet.ssl import CertificateOptions, KeyPair, PrivateCertificate
from twisted.internet.task import Clock
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.test.iosim import FakeTransport, IOPump, connect
from twisted.web.resource import Resource
from twisted.web.server import Site
from zope.interface import implementer

from fedpresence.config_model import DEFAULT_BLOCKED_NETWORKS
from fedpresence.ids import ServerName
from fedpresence.outbound.addresses import BlockedNetworks
from fedpresence.outbound.client import Client
from fedpresence.outbound.connections import Connections
from fedpresence.outbound.discovery import Discovery
from fedpresence.outbound.srv import SrvRecord
from fedpresence.outbound.tls import TlsPolicy
from fedpresence.outbound.wellknown import fetch_well_known

START_S = 1_700_000_000
PUBLIC = "93.184.215.14"
PUBLIC_2 = "93.184.215.15"


class Authority:
    """A throwaway CA."""

    def __init__(self, folder: Path, name: str = "test authority") -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _subject(name)
        certificate = _sign(self._name, self._key.public_key(), self._name, self._key, None)
        self.pem = certificate.public_bytes(serialization.Encoding.PEM)
        self.ca_file = folder / "ca.pem"
        self.ca_file.write_bytes(self.pem)

    def certificate_for(
        self, *names: str, common_names: Iterable[str] = ("a server",), is_expired: bool = False
    ) -> PrivateCertificate:
        """A certificate with its key, for DNS and IP names."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = _subject(*common_names)
        return _with_key(_sign(subject, key.public_key(), self._name, self._key, names, is_expired), key)


def self_signed_for(name: str) -> PrivateCertificate:
    """A certificate that vouches for itself."""
    key, subject = ec.generate_private_key(ec.SECP256R1()), _subject(name)
    return _with_key(_sign(subject, key.public_key(), subject, key, (name,)), key)


def _subject(*common_names: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name) for name in common_names])


def _sign(
    subject: x509.Name,
    key: ec.EllipticCurvePublicKey,
    issuer: x509.Name,
    issuer_key: ec.EllipticCurvePrivateKey,
    names: tuple[str, ...] | None,
    is_expired: bool = False,
) -> x509.Certificate:
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=2))
        .not_valid_after(now + timedelta(days=-1 if is_expired else 1))
        .add_extension(x509.BasicConstraints(ca=names is None, path_length=None), critical=True)
    )
    if names:
        alternatives: list[x509.GeneralName] = [_general_name(name) for name in names]
        builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
    return builder.sign(issuer_key, hashes.SHA256())


def _with_key(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> PrivateCertificate:
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    made: PrivateCertificate = PrivateCertificate.loadPEM(pem + private)
    return made


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)


class Network:
    """Hosts by address and port, names by resolver; what was dialled is remembered in `dialled`."""

    def __init__(self, authority: Authority) -> None:
        self.authority = authority
        self.clock = Clock()
        self.clock.advance(START_S)
        self.dialled: list[tuple[str, int]] = []
        self.sni: list[bytes | None] = []
        self.names: dict[str, list[str]] = {}
        self.srv: dict[str, list[SrvRecord]] = {}
        self.pumps: list[IOPump] = []
        self._hosts: dict[tuple[str, int], Any] = {}

    def host(
        self,
        address: str,
        port: int,
        resource: Resource,
        *certificate_names: str,
        certificate: PrivateCertificate | None = None,
    ) -> None:
        """A web server at an address."""
        shown = certificate or self.authority.certificate_for(*certificate_names)
        self.listen(address, port, Site(resource, reactor=self.clock), shown)

    def listen(self, address: str, port: int, factory: Any, certificate: PrivateCertificate) -> None:
        """Any protocol behind TLS at an address."""
        key: KeyPair = certificate.privateKey
        context = CertificateOptions(
            privateKey=key.original,
            certificate=certificate.original,
            contextForServerName=self._remember_sni,
        )
        make: Any = TLSMemoryBIOFactory
        self._hosts[(address, port)] = make(context, False, factory, clock=self.clock)

    def client(
        self,
        *,
        resolve: dict[ServerName, tuple[str, int]] | None = None,
        tls: TlsPolicy | None = None,
        per_second: int = 100,
    ) -> Client:
        """A client of this network, with a signer that signs by naming what it signs."""
        connections = Connections(
            self.clock,
            self._resolve,
            lambda address, port: _Endpoint(self, address, port),
            tls or TlsPolicy(ca_file=self.authority.ca_file),
            BlockedNetworks(DEFAULT_BLOCKED_NETWORKS),
            per_second=per_second,
        )
        discovery = Discovery(
            self.clock,
            lambda host: fetch_well_known(connections, host),
            self._lookup_srv,
            resolve or {},
            Random(1),
        )
        return Client(self.clock, discovery, connections, _Signer())

    def flush(self) -> None:
        """Carry all that was written, until nobody writes any more."""
        moved = True
        while moved:
            self.clock.advance(0)
            moved = sum(pump.pump() for pump in self.pumps) > 0

    def dial(self, address: str, port: int, factory: Any) -> "Deferred[Any]":
        """Connect a client's protocol with the host's."""
        self.dialled.append((address, port))
        host = self._hosts.get((address, port))
        if host is None:
            return fail(ConnectionRefusedError())
        client, server = factory.buildProtocol(None), host.buildProtocol(None)
        pump = connect(
            server,
            FakeTransport(server, isServer=True),
            client,
            FakeTransport(client, isServer=False),
        )
        self.pumps.append(pump)
        return succeed(client)

    def _remember_sni(self, name: bytes | None) -> None:
        self.sni.append(name)

    async def _resolve(self, host: str) -> list[str]:
        try:
            return [str(ip_address(host))]
        except ValueError:
            return self.names.get(host, [])

    async def _lookup_srv(self, name: str) -> list[SrvRecord]:
        return self.srv.get(name, [])


class _Signer:
    def authorization_of(self, method: str, uri: str, destination: ServerName, body: bytes | None) -> str:
        return f"signed {method} {uri} {destination} {body.decode() if body is not None else None}"


@implementer(IStreamClientEndpoint)
class _Endpoint:
    def __init__(self, network: Network, address: str, port: int) -> None:
        self._network, self._address, self._port = network, address, port

    def connect(self, protocolFactory: Factory) -> "Deferred[Any]":
        return self._network.dial(self._address, self._port, protocolFactory)


class Recorder(Resource):
    """Answers every request by `answer`, and remembers it."""

    isLeaf = True

    def __init__(self, answer: Callable[[Any], Any]) -> None:
        Resource.__init__(self)
        self._answer = answer
        self.requests: list[Any] = []

    def render(self, request: Any) -> Any:
        """Remember, then answer."""
        self.requests.append((request.method, request.uri, request.requestHeaders, request.content.read()))
        return self._answer(request)
