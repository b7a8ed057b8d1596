"""A real Synapse under the same load, in the same run: so that a ratio is honest.

It is installed from its package into an environment of its own, once. SQLite, presence on, its limits on
clients raised; users share one public room with a member of each destination, which joins it as servers do.
All destinations are ports of `localhost`, which is how Synapse finds them without a name server.
"""

import hashlib
import hmac
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import quote
from urllib.request import Request, urlopen

import yaml

from benchmarks.children import Child
from benchmarks.joining import ROOM_VERSION
from benchmarks.report import CheckFailedError, check
from benchmarks.world import Watched, verify_keys
from fedpresence.ids import ServerName, UserID
from fedpresence.testing.certificates import ThrowawayCA
from fedpresence.testing.processes import free_port

HOST = ServerName("localhost")
PACKAGE = "matrix-synapse"
SECRET = "only for a benchmark"
START_WITHIN_S = 60.0
INSTALL_WITHIN_S = 900.0
JOIN_WITHIN_S = 300.0
STOP_WITHIN_S = 30.0
SETTLE_S = 5.0  # it sends what the joins caused
UNLIMITED = {"per_second": 100_000, "burst_count": 100_000}


@contextmanager
def synapse_world(environment: Path, users: int, destinations: int) -> Iterator[tuple[Watched, list[UserID]]]:
    """A Synapse with so many users, all of whom every destination may see."""
    python = _installed(environment)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ca = ThrowawayCA(folder)
        client_port, federation_port = free_port(), free_port()
        server_name = f"{HOST}:{federation_port}"
        user_ids = [UserID(f"@user{number}:{server_name}") for number in range(users)]
        private_key, certificate = ca.issue(HOST)
        config = _config(folder, server_name, client_port, federation_port)
        config |= {
            "tls_certificate_path": str(certificate),
            "tls_private_key_path": str(private_key),
            "federation_custom_ca_list": [str(ca.ca_file)],
        }
        config_file = folder / "homeserver.yaml"
        config_file.write_text(yaml.safe_dump(config), encoding="utf-8")
        command = [str(python), "-m", "synapse.app.homeserver", "-c", str(config_file)]
        _run([*command, "--generate-keys"], START_WITHIN_S)
        ports = [free_port() for _ in range(destinations)]
        specification = {
            "ports": ports,
            "certificate": str(certificate),
            "private_key": str(private_key),
            "verify_keys": verify_keys(folder / "signing.key"),
            "rights": {f"{HOST}:{port}": user_ids for port in ports},
        }
        url = f"http://127.0.0.1:{client_port}"
        with (folder / "output.txt").open("wb") as output:
            process = subprocess.Popen(command, cwd=folder, stdout=output, stderr=output)
        try:
            with Child("benchmarks.destinations", specification) as child:
                _wait_until_ready(process, url, folder)
                tokens = {user_id: _register(url, user_id) for user_id in user_ids}
                room_id = _make_room(url, tokens)
                child.ask(
                    "join",
                    timeout_s=JOIN_WITHIN_S,
                    room_id=room_id,
                    server_name=server_name,
                    port=federation_port,
                    ca_file=str(ca.ca_file),
                )
                time.sleep(SETTLE_S)  # there is nothing to ask whether it has done with the joins
                world = Watched(process.pid, url, child, tokens.__getitem__)
                yield world, user_ids
                world.counts()
        finally:
            process.terminate()
            try:
                process.wait(STOP_WITHIN_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _installed(environment: Path) -> Path:
    """The Python of an environment that has Synapse."""
    python = environment / "bin" / "python"
    if not (environment / "bin" / "synapse_homeserver").exists():
        print(f"installing {PACKAGE} into {environment}", file=sys.stderr)
        _run([sys.executable, "-m", "venv", str(environment)], INSTALL_WITHIN_S)
        _run([str(python), "-m", "pip", "install", "--quiet", PACKAGE], INSTALL_WITHIN_S)
    return python


def _config(folder: Path, server_name: str, client_port: int, federation_port: int) -> dict[str, Any]:
    log_file = folder / "log.yaml"
    log_file.write_text(yaml.safe_dump({"version": 1, "root": {"level": "WARNING"}}), encoding="utf-8")
    listener = {"type": "http", "bind_addresses": ["127.0.0.1"]}
    limits = ("registration", "message", "room_creation", "joins_per_room", "profile")
    limited: dict[str, Any] = {f"rc_{name}": UNLIMITED for name in limits}
    limited["rc_presence"] = {"per_user": UNLIMITED}
    limited["rc_joins"] = {"local": UNLIMITED, "remote": UNLIMITED}
    limited["rc_invites"] = {"per_room": UNLIMITED, "per_user": UNLIMITED, "per_issuer": UNLIMITED}
    limited["rc_login"] = {"address": UNLIMITED, "account": UNLIMITED}
    return {
        **limited,
        "server_name": server_name,
        "pid_file": str(folder / "synapse.pid"),
        "listeners": [
            {**listener, "port": client_port, "resources": [{"names": ["client"], "compress": False}]},
            {
                **listener,
                "port": federation_port,
                "tls": True,
                "resources": [{"names": ["federation"], "compress": False}],
            },
        ],
        "ip_range_blacklist": [],
        "federation_ip_range_blacklist": [],
        "database": {"name": "sqlite3", "args": {"database": str(folder / "homeserver.db")}},
        "media_store_path": str(folder / "media"),
        "signing_key_path": str(folder / "signing.key"),
        "log_config": str(log_file),
        "trusted_key_servers": [],
        "suppress_key_server_warning": True,
        "report_stats": False,
        "registration_shared_secret": SECRET,
        "macaroon_secret_key": SECRET,
        "form_secret": SECRET,
        "bcrypt_rounds": 4,
        "presence": {"enabled": True},
    }


def _register(url: str, user_id: UserID) -> str:
    """A new user's access token."""
    name = user_id[1:].partition(":")[0]
    path = "/_synapse/admin/v1/register"
    nonce = _ask(url, "GET", path)["nonce"]
    words = "\0".join([nonce, name, "password", "notadmin"]).encode("ascii")
    mac = hmac.new(SECRET.encode("ascii"), words, hashlib.sha1).hexdigest()
    content = {"nonce": nonce, "username": name, "password": "password", "admin": False, "mac": mac}
    token: str = _ask(url, "POST", path, content)["access_token"]
    return token


def _make_room(url: str, tokens: dict[UserID, str]) -> str:
    """A public room that everybody is in."""
    first, *others = tokens.values()
    content = {"preset": "public_chat", "room_version": ROOM_VERSION}
    room_id: str = _ask(url, "POST", "/_matrix/client/v3/createRoom", content, first)["room_id"]
    for token in others:
        _ask(url, "POST", f"/_matrix/client/v3/join/{quote(room_id, safe='')}", {}, token)
    return room_id


def _ask(url: str, method: str, path: str, content: object = None, token: str | None = None) -> Any:
    headers = {"Content-Type": "application/json"}
    if token is not None:
        headers["Authorization"] = f"Bearer {token}"
    data = None if content is None else json.dumps(content).encode("utf-8")
    try:
        with urlopen(Request(url + path, data, headers, method=method), timeout=START_WITHIN_S) as answer:
            return json.loads(answer.read())
    except HTTPError as error:
        raise CheckFailedError(f"{path}: {error.code} {error.read()[:500]!r}") from error


def _wait_until_ready(process: "subprocess.Popen[bytes]", url: str, folder: Path) -> None:
    deadline_s = time.monotonic() + START_WITHIN_S
    while True:
        output = (folder / "output.txt").read_text("utf-8", "replace")[-5000:]
        check(process.poll() is None, f"Synapse ended:\n{output}")
        check(time.monotonic() < deadline_s, f"Synapse does not answer:\n{output}")
        try:
            _ask(url, "GET", "/_matrix/client/versions")
        except (URLError, ConnectionError):
            time.sleep(0.1)  # a port cannot be awaited
        else:
            return


def _run(command: list[str], within_s: float) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=within_s)
    if done.returncode:
        raise CheckFailedError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-5000:]}")
