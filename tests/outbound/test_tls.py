import os
import ssl
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.ssl import Certificate, PrivateCertificate
from twisted.logger import capturedLogs, formatEvent

from fedpresence.errors import ConfigError, DeliveryFailed
from fedpresence.ids import ServerName
from fedpresence.outbound.client import Client
from fedpresence.outbound.tls import SYSTEM_BUNDLES, TlsPolicy, load_system_authorities
from tests.asynchronous import as_deferred, result_of
from tests.outbound.network import PUBLIC, Authority, Network, Recorder, self_signed_for

END = "-----END CERTIFICATE-----"
_NONE: Any = None  # where no such file is, which the types do not know
NOTHING = ssl.get_default_verify_paths()._replace(cafile=_NONE, capath=_NONE)


def ask(network: Network, name: str, client: Client | None = None) -> int:
    """The status with which a server of that name answers; DeliveryFailed where it is not believed."""
    network.names.setdefault(name, [PUBLIC])
    client = client or network.client()
    asking = as_deferred(client.send(ServerName(f"{name}:8448"), "PUT", "/_matrix/x", {}))
    network.flush()
    return result_of(asking)[0]


def refuse(network: Network, name: str) -> DeliveryFailed:
    with pytest.raises(DeliveryFailed) as caught:
        ask(network, name)
    return caught.value


@pytest.fixture
def server(network: Network) -> Recorder:
    return Recorder(lambda request: b"{}")


def show(network: Network, server: Recorder, certificate: PrivateCertificate) -> None:
    network.host(PUBLIC, 8448, server, certificate=certificate)


# --- whom a certificate is for -----------------------------------------------------------------------


def test_a_name_that_is_only_the_subject_does_not_count(network: Network, server: Recorder) -> None:
    """Authorities check the alternative names alone, and may put anything into a subject (RFC 9525)."""
    show(network, server, network.authority.certificate_for(common_names=["there.test"]))

    assert not refuse(network, "there.test").heard
    assert server.requests == []


def test_a_wildcard_stands_for_one_label(network: Network, server: Recorder) -> None:
    """Hosting providers have one certificate for all their customers."""
    network.host(PUBLIC, 8448, server, "*.hosting.test")

    assert ask(network, "alice.hosting.test") == 200
    refuse(network, "matrix.alice.hosting.test")
    refuse(network, "hosting.test")
    assert len(server.requests) == 1


def test_a_certificate_that_expired_does_not_count(network: Network, server: Recorder) -> None:
    """And the log says that it is this."""
    show(network, server, network.authority.certificate_for("there.test", is_expired=True))

    assert "expired" in refuse(network, "there.test").reason
    assert server.requests == []


def test_a_certificate_that_vouches_for_itself_does_not_count(network: Network, server: Recorder) -> None:
    """Anybody can make one."""
    show(network, server, self_signed_for("there.test"))

    assert "signed certificate" in refuse(network, "there.test").reason
    assert server.requests == []


@pytest.mark.parametrize("name", ["a..test", "a" * 64 + ".test", ".".join(["a" * 49] * 5), ".test", "test.."])
def test_a_name_that_no_certificate_can_be_for_is_a_server_that_is_not_reached(
    network: Network, server: Recorder, name: str
) -> None:
    """Strangers choose the names that we ask: none may be our failure."""
    show(network, server, network.authority.certificate_for("there.test"))

    assert not refuse(network, name).heard
    assert server.requests == []


# --- whom we trust -----------------------------------------------------------------------------------


@pytest.fixture
def pem(authority: Authority) -> str:
    return authority.pem.decode()


def refused(ca_file: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        TlsPolicy(ca_file=ca_file)
    (problem,) = caught.value.problems
    assert problem.key == "federation.ca_file"
    return str(caught.value)


@pytest.mark.parametrize("text", ["", "no certificate", "-----BEGIN PRIVATE KEY-----\nAAAA\n"])
def test_a_ca_file_without_a_certificate_is_the_operators_to_mend(tmp_path: Path, text: str) -> None:
    """A wrong file must say so at the start, and not trust nobody in silence."""
    ca_file = tmp_path / "ca.pem"
    ca_file.write_text(text)

    assert "holds no certificate" in refused(ca_file)


@pytest.mark.parametrize("is_behind_a_good_one", [False, True])
@pytest.mark.parametrize("damage", ["cut short", "not base64", "not ASCII", "no certificate inside"])
def test_one_certificate_that_cannot_be_read_condemns_its_file(
    tmp_path: Path, pem: str, damage: str, is_behind_a_good_one: bool
) -> None:
    """Else the servers that it vouches for would be refused one by one, and nobody knew why."""
    damaged = {
        "cut short": pem[: len(pem) // 2],
        "not base64": pem.replace(pem[100:110], "!" * 10),
        "not ASCII": pem.replace(pem[100:110], "ü" * 10),
        "no certificate inside": "-----BEGIN CERTIFICATE-----\nAAAA\n" + END + "\n",
    }[damage]
    ca_file = tmp_path / "ca.pem"
    ca_file.write_text(pem + damaged if is_behind_a_good_one else damaged, "utf-8")

    assert "cannot be read" in refused(ca_file)


def test_a_ca_file_that_is_not_there_is_the_operators_to_mend(tmp_path: Path) -> None:
    """As is one that is a folder: neither is a traceback."""
    assert "cannot be read" in refused(tmp_path / "ca.pem")
    assert "cannot be read" in refused(tmp_path)


def test_all_certificates_of_a_ca_file_count_and_what_is_around_them_does_not(
    network: Network, server: Recorder, pem: str, tmp_path: Path
) -> None:
    """Bundles are put together by hand, with a note of whose is which."""
    other = Authority(tmp_path, "other authority")
    ca_file = tmp_path / "both.pem"
    ca_file.write_text(f"# the other's, für später\n{other.pem.decode()}\nours:\n{pem}\n", "utf-8")
    client = network.client(tls=TlsPolicy(ca_file=ca_file))

    show(network, server, network.authority.certificate_for("ours.test"))
    assert ask(network, "ours.test", client) == 200
    show(network, server, other.certificate_for("others.test"))
    assert ask(network, "others.test", client) == 200


@pytest.mark.parametrize("is_folder", [False, True])
def test_the_systems_authorities_are_where_the_environment_says(
    network: Network,
    server: Recorder,
    is_folder: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """SSL_CERT_FILE and SSL_CERT_DIR are how a container is told of a company's own authority."""
    named = network.authority.ca_file
    if is_folder:
        named = tmp_path
        original = Certificate.loadPEM(network.authority.pem).original
        (named / f"{original.subject_name_hash():08x}.0").write_bytes(network.authority.pem)
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    monkeypatch.delenv("SSL_CERT_DIR", raising=False)
    monkeypatch.setenv("SSL_CERT_DIR" if is_folder else "SSL_CERT_FILE", os.fspath(named))
    network.host(PUBLIC, 8448, server, "there.test")

    assert ask(network, "there.test", network.client(tls=TlsPolicy())) == 200


def trusted(defaults: ssl.DefaultVerifyPaths, *bundles: Path) -> tuple[bool, bool]:
    """Whether a test authority became trusted, and whether it is said that there are any."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    found = load_system_authorities(context, defaults, bundles)
    names = [certificate.get("subject") for certificate in context.get_ca_certs()]
    return ((("commonName", "test authority"),),) in names, found


def test_a_python_that_was_built_elsewhere_finds_the_systems_authorities(
    authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its OpenSSL looks where it was built, where there may be a folder, with no file that it would find."""
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    monkeypatch.delenv("SSL_CERT_DIR", raising=False)
    (tmp_path / "ca-bundle.crt").write_text("found by no hash")

    empty = NOTHING._replace(capath=os.fspath(tmp_path))

    assert trusted(NOTHING, tmp_path / "none", authority.ca_file) == (True, True)
    assert trusted(empty, authority.ca_file) == (True, True)


def test_what_the_operator_or_openssl_names_is_not_added_to(
    authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who names one authority wants no others."""
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    monkeypatch.delenv("SSL_CERT_DIR", raising=False)
    (tmp_path / "01234567.0").touch()

    with_file = NOTHING._replace(cafile="/somewhere/cert.pem")
    with_folder = NOTHING._replace(capath=os.fspath(tmp_path))
    assert trusted(with_file, authority.ca_file) == (False, True)
    assert trusted(with_folder, authority.ca_file) == (False, True)
    monkeypatch.setenv("SSL_CERT_DIR", os.fspath(tmp_path))
    assert trusted(NOTHING, authority.ca_file) == (False, True)


def test_no_authorities_at_all_are_said_at_the_start_and_no_ground_to_give_up_those_of_before(
    authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A container without them would else refuse server after server; a package may be upgraded just now.

    Who started without them can reload the rest of the configuration.
    """
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    monkeypatch.delenv("SSL_CERT_DIR", raising=False)
    monkeypatch.setattr(ssl, "get_default_verify_paths", lambda: NOTHING)

    with capturedLogs() as logged:
        policy = TlsPolicy(bundles=(tmp_path / "none",))
    policy.take_over(policy.read(None))
    found = policy.read(authority.ca_file)
    policy.read(None)  # a reload that found some and then failed at a certificate has changed nothing
    policy.take_over(found)
    with pytest.raises(ConfigError) as caught:
        policy.read(None)

    (event,) = logged
    assert "ca-certificates" in str(formatEvent(event)) and "ca-certificates" in str(caught.value)
    assert caught.value.problems[0].key == "federation.ca_file"


def test_the_known_bundles_are_absolute() -> None:
    """A relative one would be whatever lies in the folder from which we were started."""
    assert all(bundle.is_absolute() for bundle in SYSTEM_BUNDLES)


# --- authorities that are renewed --------------------------------------------------------------------


def test_renewed_authorities_count_for_new_connections_and_those_that_stand_go_on(
    network: Network, server: Recorder, pem: str, tmp_path: Path
) -> None:
    """A private authority is replaced every few years, and presence need not stop for it."""
    renewed = Authority(tmp_path, "renewed authority")
    ca_file = tmp_path / "trusted.pem"
    ca_file.write_text(pem)
    policy = TlsPolicy(ca_file=ca_file)
    client = network.client(tls=policy)
    show(network, server, network.authority.certificate_for("stays.test", "leaves.test"))
    assert ask(network, "stays.test", client) == 200

    ca_file.write_bytes(renewed.pem)
    policy.take_over(policy.read(ca_file))

    with pytest.raises(DeliveryFailed):
        ask(network, "leaves.test", client)
    dialled = len(network.dialled)
    assert ask(network, "stays.test", client) == 200
    assert len(network.dialled) == dialled
    show(network, server, renewed.certificate_for("comes.test"))
    assert ask(network, "comes.test", client) == 200


@pytest.mark.parametrize("text", ["", "-----BEGIN CERTIFICATE-----\nAAAA\n" + END])
def test_a_file_that_the_environment_names_is_the_operators_to_mend(
    network: Network, server: Recorder, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenSSL itself says nothing and trusts nobody; who was trusted before must stay so."""
    named = tmp_path / "named.pem"
    named.write_bytes(network.authority.pem)
    monkeypatch.setenv("SSL_CERT_FILE", os.fspath(named))
    policy = TlsPolicy()
    network.host(PUBLIC, 8448, server, "there.test")

    named.write_text(text)
    with pytest.raises(ConfigError) as caught:
        policy.read(None)

    (problem,) = caught.value.problems
    assert problem.key == "SSL_CERT_FILE"
    assert os.fspath(named) in problem.problem and "PEM" in problem.fix
    assert ask(network, "there.test", network.client(tls=policy)) == 200
