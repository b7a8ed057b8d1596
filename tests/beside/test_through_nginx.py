from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from fedpresence.testing.crowds import people, share_a_room
from fedpresence.testing.domains import Domain
from fedpresence.testing.http import request
from fedpresence.testing.processes import free_port
from fedpresence.testing.users import OpenStream
from tests.beside.conftest import Town
from tests.beside.test_proxies import block, running_nginx, with_mirror
from tests.scenarios.story import eventually


@contextmanager
def before(program: str, domain: Domain, town: Town, folder: Path, server: str) -> Iterator[None]:
    """A proxy on the public port of a domain, with TLS there, and without for its clients here."""
    assert domain.daemon is not None
    key_file, certificate_file = town.ca.issue(domain.name)
    plain = free_port()
    replaced = {
        "127.0.0.1:8008": urlsplit(domain.synapse.url).netloc,
        "127.0.0.1:9008": urlsplit(domain.daemon.client_url).netloc,
        "listen 443 ssl;": f"listen 127.0.0.1:{plain};",
        "listen 8448 ssl": f"listen 127.0.0.1:{domain.port} ssl",
        "/etc/ssl/matrix.example.org.pem": str(certificate_file),
        "/etc/ssl/matrix.example.org.key": str(key_file),
    }
    with running_nginx(program, folder, server, replaced):
        domain.address = f"http://127.0.0.1:{plain}"

        def answers() -> bool:
            try:
                return request("GET", f"{domain.address}/_matrix/client/versions").status == 200
            except OSError:
                return False

        eventually(answers, "nginx")
        try:
            yield
        finally:
            domain.address = None


def test_presence_and_messages_pass_through_the_guides_nginx(
    nginx_program: str, town: Town, tmp_path: Path
) -> None:
    """Form B as the guide has it: TLS, signed paths, long polls and all."""
    (here,), (there,) = town.build(True, behind_proxy=True), town.build(True)
    with before(nginx_program, here, town, tmp_path, block("nginx")):
        alice, bob = people((here, "alice"), (there, "bob"))
        room_id = share_a_room(alice, bob)

        alice.put_status("online", "through nginx")
        bob.presence_of(alice.user_id, 20, status_msg="through nginx")
        bob.put_status("online", "seen through nginx")
        alice.presence_of(bob.user_id, 20, status_msg="seen through nginx")
        bob.say(room_id, "hello")
        alice.reads("hello")
        alice.say(room_id, "hello yourself")
        bob.reads("hello yourself")

    # Form A, for the same users: a reload of nginx.
    with before(nginx_program, here, town, tmp_path, with_mirror()):
        alice.put_status("online", "by the tap")
        bob.presence_of(alice.user_id, 20, status_msg="by the tap")
        stream = OpenStream(alice)
        try:
            eventually(
                lambda: bob.status_of(alice.user_id).body["presence"] == "unavailable", "idle, but here"
            )
            alice.say(room_id, "still here")
            bob.presence_of(alice.user_id, 20, presence="online", currently_active=True)
            bob.put_status("unavailable", "seen by GET")
            eventually(
                lambda: alice.status_of(bob.user_id).body.get("status_msg") == "seen by GET", "seen by GET"
            )
            assert "presence" not in alice.sync()
        finally:
            stream.close()
