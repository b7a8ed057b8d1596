import datetime
import os
import socket
import ssl
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from OpenSSL import SSL
from twisted.internet.error import CannotListenError
from twisted.internet.protocol import Factory

from fedpresence.errors import ConfigError
from fedpresence.listening import Certificates, Listener, listen, reload_certificates
from tests.in_reactor import in_reactor

PEM = serialization.Encoding.PEM
Key = ec.EllipticCurvePrivateKey


def a_certificate(name: str, key: Key, issuer: str, issuer_key: Key, *, ca: bool) -> bytes:
    now = datetime.datetime.now(datetime.UTC)
    day = datetime.timedelta(days=1)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - day)
        .not_valid_after(now + day)
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
    )
    if not ca:
        names = x509.SubjectAlternativeName([x509.DNSName(name)])
        builder = builder.add_extension(names, critical=False)
    return builder.sign(issuer_key, hashes.SHA256()).public_bytes(PEM)


class Chain:
    """A root, an intermediate and a server's certificate, as a public authority issues them."""

    def __init__(self, folder: Path) -> None:
        root, middle, leaf = (ec.generate_private_key(ec.SECP256R1()) for _ in range(3))
        self.root = folder / "root.pem"
        self.root.write_bytes(a_certificate("root", root, "root", root, ca=True))
        self.intermediate = a_certificate("middle", middle, "root", root, ca=True)
        self.leaf = a_certificate("here.test", leaf, "middle", middle, ca=False)
        self.key = folder / "key.pem"
        no_password = serialization.NoEncryption()
        self.key.write_bytes(leaf.private_bytes(PEM, serialization.PrivateFormat.PKCS8, no_password))
        self.file = folder / "cert.pem"


def shake_hands(certificates: Certificates, root: Path) -> int:
    """A client that trusts only `root` connects to here.test; the serial number it was shown."""
    server = certificates.serverConnectionForTLS(None)
    server.set_accept_state()
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.create_default_context(cafile=str(root))
    client = context.wrap_bio(to_client, to_server, server_hostname="here.test")
    for _ in range(10):
        try:
            client.do_handshake()
        except ssl.SSLWantReadError:
            server.bio_write(to_server.read())
            with suppress(SSL.WantReadError):
                server.do_handshake()
            to_client.write(server.bio_read(65_536))
        else:
            shown = client.getpeercert(binary_form=True)
            assert shown is not None
            return x509.load_der_x509_certificate(shown).serial_number
    raise AssertionError("the handshake does not end")


def test_the_whole_chain_of_a_file_is_shown(tmp_path: Path) -> None:
    """Twisted's own `ssl:` endpoint shows the first certificate alone, and every peer refuses us."""
    chain = Chain(tmp_path)
    chain.file.write_bytes(chain.leaf + chain.intermediate)

    assert shake_hands(Certificates(chain.key, chain.file), chain.root)


def test_the_rest_of_the_chain_may_have_a_file_of_its_own(tmp_path: Path) -> None:
    """`extraCertChain` means here what it means to Twisted."""
    chain = Chain(tmp_path)
    chain.file.write_bytes(chain.leaf)
    extra = tmp_path / "chain.pem"
    extra.write_bytes(chain.intermediate)

    assert shake_hands(Certificates(chain.key, chain.file, extra), chain.root)


def test_a_leaf_alone_is_what_peers_refuse(tmp_path: Path) -> None:
    """The tests above would be worth nothing if a client did without the intermediate."""
    chain = Chain(tmp_path)
    chain.file.write_bytes(chain.leaf)

    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(Certificates(chain.key, chain.file), chain.root)


def test_certificates_reload_all_or_none(tmp_path: Path) -> None:
    """One bad file at a renewal must not leave half of the listeners with new certificates."""
    chains = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        chain = Chain(tmp_path / name)
        chain.file.write_bytes(chain.leaf + chain.intermediate)
        chains.append(chain)
    listeners = [Listener(None, Certificates(chain.key, chain.file)) for chain in chains]
    first = listeners[0].certificates
    assert first is not None
    before = shake_hands(first, chains[0].root)
    (tmp_path / "new").mkdir()
    renewed = Chain(tmp_path / "new")
    chains[0].key.write_bytes(renewed.key.read_bytes())
    chains[0].file.write_bytes(renewed.leaf + renewed.intermediate)
    chains[1].file.write_bytes(b"no certificate")

    with pytest.raises(ConfigError, match="listeners"):
        reload_certificates(listeners)
    assert shake_hands(first, chains[0].root) == before

    reload_certificates(listeners[:1])
    assert shake_hands(first, renewed.root) != before


def listen_for_a_moment(path: Path) -> None:
    """Open a Unix listener there, and close it again."""

    async def story(reactor: Any) -> None:
        listener = await listen(f"unix:{path}", Factory(), reactor)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
        await listener.port.stopListening()

    in_reactor(story)


def leave_behind(path: Path) -> None:
    """What a daemon of our process ID leaves there as it is killed: with Docker each has the same."""
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(path))
    path.with_name(f"{path.name}.lock").symlink_to(str(os.getpid()))


def test_a_unix_socket_that_a_killed_daemon_left_is_taken_over(tmp_path: Path) -> None:
    """In a container the lock names ourselves: each start after a crash failed until it was removed."""
    path = tmp_path / "run.sock"

    leave_behind(path)
    listen_for_a_moment(path)
    assert list(tmp_path.iterdir()) == []

    leave_behind(path)
    path.unlink()  # as somebody does who takes it for all that is in the way
    listen_for_a_moment(path)
    assert list(tmp_path.iterdir()) == []


def test_a_unix_socket_where_somebody_listens_is_not_taken_away(tmp_path: Path) -> None:
    """Two daemons with one path: the second one must not lock the first one out."""
    path = tmp_path / "run.sock"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        path.with_name("run.sock.lock").symlink_to(str(os.getpid()))

        with pytest.raises(CannotListenError):
            listen_for_a_moment(path)

        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))


def test_a_file_where_a_unix_socket_should_be_stays(tmp_path: Path) -> None:
    """A mistake in the path must not cost somebody their database."""
    path = tmp_path / "run.sock"
    path.write_text("precious", encoding="utf-8")

    with pytest.raises(CannotListenError):
        listen_for_a_moment(path)

    assert path.read_text(encoding="utf-8") == "precious"
