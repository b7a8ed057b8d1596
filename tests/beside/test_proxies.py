import http.client
import re
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import Queue

from fedpresence.config import load_config
from fedpresence.ids import ServerName
from fedpresence.ops.keys import generate_key_file
from fedpresence.testing.certificates import ThrowawayCA
from fedpresence.testing.processes import free_port

GUIDE = Path(__file__).parent.parent.parent / "docs" / "beside-synapse.md"
NAME = ServerName("matrix.example.org")
SYNAPSE, FEDPRESENCE = "synapse", "fedpresence"


def block(name: str) -> str:
    """A block of the guide, as an operator pastes it."""
    found = re.search(rf"<!-- {name} -->\n```\w*\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None, name
    return found[1]


class Upstream:
    """Whoever stands behind the proxy: says its name, and remembers the request lines it got."""

    def __init__(self, name: str) -> None:
        self.seen: Queue[tuple[str, str, bytes]] = Queue()
        seen = self.seen

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                seen.put((self.requestline, self.headers.get("Authorization") or "", body))
                self.send_response(200)
                self.send_header("Content-Length", str(len(name)))
                self.end_headers()
                self.wfile.write(name.encode())

            do_PUT = do_POST = do_GET

            def log_message(self, format: str, *words: object) -> None:
                """Nothing: the test knows."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.server.server_address[1])


class Proxy:
    """nginx with the guide's configuration, and both who stand behind it."""

    def __init__(self, port: int, ca_file: Path, synapse: Upstream, fedpresence: Upstream) -> None:
        self.synapse = synapse
        self.fedpresence = fedpresence
        self._port = port
        self._context = ssl.create_default_context(cafile=str(ca_file))
        self._context.check_hostname = False  # it is reached by its address

    def ask(self, method: str, path: str, body: bytes | None = None) -> str:
        """Who answered."""
        connection = http.client.HTTPSConnection("127.0.0.1", self._port, context=self._context, timeout=20)
        try:
            connection.request(method, path, body, {"Authorization": "X-Matrix it"})
            return connection.getresponse().read().decode()
        finally:
            connection.close()


@contextmanager
def running_nginx(program: str, folder: Path, server: str, replaced: Mapping[str, str]) -> Iterator[None]:
    """A running nginx with a server block of the guide's in which this is replaced, until the block ends."""
    for old, new in replaced.items():
        assert old in server, old
        server = server.replace(old, new)
    temporary = "".join(
        f"{kind}_temp_path {folder}/{kind};\n"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (folder / "nginx.conf").write_text(
        f"daemon off;\nmaster_process off;\npid {folder}/pid;\nerror_log {folder}/error.log;\n"
        f"events {{}}\nhttp {{\naccess_log off;\n{temporary}{server}}}\n"
    )
    command = [program, "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", str(folder / "error.log")]
    subprocess.run([*command, "-t"], check=True, capture_output=True)
    process = subprocess.Popen(command)
    try:
        yield
    finally:
        process.terminate()
        process.wait(20)


@contextmanager
def nginx(program: str, folder: Path, server: str) -> Iterator[Proxy]:
    """A proxy before two who only say their names."""
    ca = ThrowawayCA(folder / "ca")
    key_file, certificate_file = ca.issue(NAME)
    synapse, fedpresence = Upstream(SYNAPSE), Upstream(FEDPRESENCE)
    port = free_port()
    replaced = {
        "127.0.0.1:8008": f"127.0.0.1:{synapse.port}",
        "127.0.0.1:9008": f"127.0.0.1:{fedpresence.port}",
        "listen 443 ssl;": "",
        "listen 8448 ssl": f"listen 127.0.0.1:{port} ssl",
        "/etc/ssl/matrix.example.org.pem": str(certificate_file),
        "/etc/ssl/matrix.example.org.key": str(key_file),
    }
    proxy = Proxy(port, ca.ca_file, synapse, fedpresence)
    try:
        with running_nginx(program, folder, server, replaced):
            deadline = time.monotonic() + 20
            while True:
                try:
                    proxy.ask("GET", "/_matrix/client/versions")
                    break
                except OSError:
                    assert time.monotonic() < deadline, (folder / "error.log").read_text()
                    time.sleep(0.02)  # nginx does not say when it listens
            synapse.seen.get()
            yield proxy
    finally:
        for upstream in (synapse, fedpresence):
            upstream.server.shutdown()
            upstream.server.server_close()


def with_mirror() -> str:
    """The guide's server block where `/sync` is mirrored (form A)."""
    sync = re.compile(r"  location ~ \^/_matrix/client/\(r0\|v3\|[^)]*\)/sync\$ \{.*?\n  \}\n", re.DOTALL)
    server, count = sync.subn(lambda _: block("nginx-mirror"), block("nginx"))
    assert count == 1
    return server


def test_the_guides_nginx_routes_each_path_to_whom_it_belongs(nginx_program: str, tmp_path: Path) -> None:
    """Four paths come to us; everything else must reach the homeserver as if we were not there."""
    with nginx(nginx_program, tmp_path, block("nginx")) as proxy:
        for path in (
            "/_matrix/client/v3/presence/%40alice%3Aexample.org/status",
            "/_matrix/client/v3/sync?timeout=0",
            "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync?timeout=0",
            "/_matrix/federation/v1/send/1",
            "/_fedpresence/client/v1/subscriptions/%40alice%3Aexample.org",
        ):
            assert proxy.ask("GET", path) == FEDPRESENCE, path
        for path in (
            "/_matrix/client/v3/rooms/!r/messages",
            "/_matrix/client/v3/rooms/!r/sync",
            "/_matrix/federation/v1/send_join/!r/$e",
            "/_matrix/federation/v2/send_join/!r/$e",
            "/_matrix/key/v2/server",
            "/_matrix/media/v3/download/example.org/x",
        ):
            assert proxy.ask("GET", path) == SYNAPSE, path


def test_the_guides_nginx_leaves_signed_paths_and_bodies_as_they_are(
    nginx_program: str, tmp_path: Path
) -> None:
    """A signature covers the path as it was written, `%2F` and doubled slashes too."""
    with nginx(nginx_program, tmp_path, block("nginx")) as proxy:
        path, body = "/_matrix/federation/v1/send/a%2Fb%20c%3F//d?x=%7e", b'{"pdus":[],"edus":[]}' * 5_000

        assert proxy.ask("PUT", path, body) == FEDPRESENCE

        assert proxy.fedpresence.seen.get(timeout=20) == (f"PUT {path} HTTP/1.1", "X-Matrix it", body)


def test_the_guides_mirror_shows_us_a_sync_that_goes_to_synapse(nginx_program: str, tmp_path: Path) -> None:
    """Form A: we see who syncs, with what, and are not in the way."""
    with nginx(nginx_program, tmp_path, with_mirror()) as proxy:
        assert proxy.ask("GET", "/_matrix/client/v3/sync?timeout=0&set_presence=unavailable") == SYNAPSE

        line, token, _ = proxy.fedpresence.seen.get(timeout=20)
        assert line == "GET /_fedpresence/sync_tap?timeout=0&set_presence=unavailable HTTP/1.1"
        assert token == "X-Matrix it"

        sliding = "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync?timeout=30000"
        assert proxy.ask("POST", sliding, b"{}") == SYNAPSE
        assert proxy.fedpresence.seen.get(timeout=20)[0].startswith(
            "POST /_fedpresence/sync_tap?timeout=30000 "
        )


def test_the_guides_configuration_is_accepted(tmp_path: Path) -> None:
    """What is pasted must load; only the files' places differ here."""
    generate_key_file(tmp_path / "signing.key")
    config_file = tmp_path / "config.yaml"
    text = block("config").replace("/etc/matrix-synapse/homeserver.signing.key", "signing.key")
    text = text.replace("/etc/fedpresence/", f"{tmp_path}/").replace("/var/lib/fedpresence/", f"{tmp_path}/")
    config_file.write_text(text)
    token = tmp_path / "admin.token"
    token.touch(mode=0o600)
    token.write_text("t0p-secret-of-this-test-alone")

    config = load_config(config_file, {})

    assert config.homeserver_url == "http://127.0.0.1:8008"
