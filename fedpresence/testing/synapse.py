"""A real Synapse as a process, for whoever tests against one: SQLite, loopback, an environment of its own.

    python = installed_synapse()        # or install_synapse(folder)
    synapse = Synapse(python, folder, name, port, signing_key_path=..., ca_file=...)
    synapse.start()
    token = synapse.register("alice")

It speaks plain HTTP: whoever stands in front of it brings the TLS, or `tls` gives it a listener of its own.

Always true: nothing of Synapse is imported; it is a program that we start, and its limits are raised so
that a test measures something else.

Source: homeserver-integration.md 7.
"""

import hashlib
import hmac
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import yaml

from fedpresence.ids import ServerName
from fedpresence.testing.http import Answer, request
from fedpresence.testing.merging import merged

ENVIRONMENT = "SYNAPSE_PYTHON"  # the Python interpreter of an environment that has matrix-synapse
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 20.0
UNLIMITED = {"per_second": 1_000_000, "burst_count": 1_000_000}


@dataclass(frozen=True, slots=True)
class Tls:
    """A federation listener of Synapse's own: where nobody stands in front of it."""

    port: int
    private_key: Path
    certificate: Path


class NoSynapse(Exception):
    """There is none, and none could be installed: says why."""


def installed_synapse() -> Path:
    """The interpreter that the environment names; NoSynapse where it names none."""
    named = os.environ.get(ENVIRONMENT)
    if not named:
        raise NoSynapse(f"{ENVIRONMENT} names no Python interpreter that has matrix-synapse")
    return Path(named)


def install_synapse(folder: Path, timeout_s: float = 600.0) -> Path:
    """An environment of its own in `folder`, made unless it is there; its interpreter, or NoSynapse."""
    python = folder / "bin" / "python"
    if not (folder / "bin" / "synapse_homeserver").exists():
        commands: tuple[list[str], ...] = (
            [sys.executable, "-m", "venv", str(folder)],
            [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "matrix-synapse"],
        )
        for command in commands:
            try:
                done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=timeout_s)
            except subprocess.TimeoutExpired:
                raise NoSynapse(f"matrix-synapse was not installed in {timeout_s:.0f} s") from None
            if done.returncode:
                raise NoSynapse(f"matrix-synapse cannot be installed: {done.stderr[-500:]}")
    return python


class Synapse:
    """One Synapse and its folder. `config` is merged into what is written here."""

    def __init__(
        self,
        python: Path,
        folder: Path,
        name: ServerName,
        port: int,
        *,
        signing_key_path: Path,
        ca_file: Path,
        tls: Tls | None = None,
        registrations: Sequence[Path] = (),
        config: Mapping[str, Any] | None = None,
        log_level: str = "INFO",
    ) -> None:
        self.name = name
        self.url = f"http://127.0.0.1:{port}"
        self.folder = folder
        self.log_file = folder / "synapse.log"
        self._python = python
        self._secret = secrets.token_hex()
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)
        listeners: list[dict[str, Any]] = [
            {
                "port": port,
                "type": "http",
                "tls": False,
                "x_forwarded": True,
                "bind_addresses": ["127.0.0.1"],
                "resources": [{"names": ["client", "federation"], "compress": False}],
            }
        ]
        own: dict[str, Any] = {
            "server_name": name,
            "pid_file": str(folder / "pid"),
            "listeners": listeners,
            "database": {"name": "sqlite3", "args": {"database": str(folder / "homeserver.db")}},
            "media_store_path": str(folder / "media"),
            "signing_key_path": str(signing_key_path),
            "log_config": str(folder / "log.yaml"),
            "federation_custom_ca_list": [str(ca_file)],
            "ip_range_blacklist": [],
            "trusted_key_servers": [],
            "report_stats": False,
            "registration_shared_secret": self._secret,
            "macaroon_secret_key": secrets.token_hex(),
            "form_secret": secrets.token_hex(),
            "app_service_config_files": [str(path) for path in registrations],
            "presence": {"enabled": False},
            **dict.fromkeys(("rc_message", "rc_registration", "rc_joins_per_room"), UNLIMITED),
            "rc_login": {"address": UNLIMITED, "account": UNLIMITED},
            "rc_joins": {"local": UNLIMITED, "remote": UNLIMITED},
            "rc_invites": {"per_room": UNLIMITED, "per_user": UNLIMITED, "per_issuer": UNLIMITED},
            "rc_presence": {"per_user": UNLIMITED},
        }
        if tls is not None:
            listeners.append(
                {
                    "port": tls.port,
                    "type": "http",
                    "tls": True,
                    "bind_addresses": ["127.0.0.1"],
                    "resources": [{"names": ["federation"], "compress": False}],
                }
            )
            own["tls_certificate_path"] = str(tls.certificate)
            own["tls_private_key_path"] = str(tls.private_key)
        self._config_file = folder / "homeserver.yaml"
        self._config_file.write_text(yaml.safe_dump(merged(own, config or {})), encoding="utf-8")
        logging = {
            "version": 1,
            "formatters": {"line": {"format": "%(asctime)s %(name)s %(levelname)s %(message)s"}},
            "handlers": {
                "file": {
                    "class": "logging.FileHandler",
                    "formatter": "line",
                    "filename": str(self.log_file),
                }
            },
            "root": {"level": log_level, "handlers": ["file"]},
            "disable_existing_loggers": False,
        }
        (folder / "log.yaml").write_text(yaml.safe_dump(logging), encoding="utf-8")

    @property
    def pid(self) -> int:
        """The process that runs now."""
        assert self._process is not None, f"Synapse {self.name} does not run"
        return self._process.pid

    def start(self) -> None:
        """Start it and wait until it answers."""
        self.begin()
        self.wait_until_ready()

    def begin(self) -> None:
        """Start its process."""
        with (self.folder / "output.txt").open("ab") as output:
            self._process = subprocess.Popen(
                [str(self._python), "-m", "synapse.app.homeserver", "-c", str(self._config_file)],
                stdout=output,
                stderr=output,
                stdin=subprocess.DEVNULL,
                env={name: value for name, value in os.environ.items() if not name.startswith("PYTHON")},
            )

    def wait_until_ready(self) -> None:
        """Return once it answers; AssertionError with its log where it ends before that."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            assert self._process is not None
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"Synapse {self.name} does not answer:\n{self.log()}")
            try:
                if request("GET", f"{self.url}/_matrix/client/versions", timeout_s=5).status == 200:
                    return
            except OSError:
                time.sleep(0.1)  # nothing to await: it opens its port when it likes

    def stop(self) -> None:
        """Stop it cleanly."""
        self._end(kill=False)

    def kill(self) -> None:
        """Stop it as a crash would."""
        self._end(kill=True)

    def register(self, localpart: str, *, admin: bool = False, password: str | None = None) -> str:
        """A new user; their access token. They can log in where there is a password."""
        url = f"{self.url}/_synapse/admin/v1/register"
        nonce = request("GET", url).body["nonce"]
        password = password or secrets.token_hex(8)
        words = [nonce, localpart, password, "admin" if admin else "notadmin"]
        mac = hmac.new(self._secret.encode(), "\0".join(words).encode(), hashlib.sha1).hexdigest()
        body = {"nonce": nonce, "username": localpart, "password": password, "admin": admin, "mac": mac}
        answer = request("POST", url, body)
        assert answer.status == 200, answer
        token: str = answer.body["access_token"]
        return token

    def call(self, token: str, method: str, path: str, body: object = None) -> Answer:
        """`path` below `/_matrix/client/v3`, asked of Synapse itself."""
        return request(method, f"{self.url}/_matrix/client/v3{path}", body, token=token)

    def log(self, last: int = 5000) -> str:
        """The end of what it logged and printed."""
        texts = [
            path.read_text(encoding="utf-8", errors="replace")[-last:]
            for path in (self.folder / "output.txt", self.log_file)
            if path.exists()
        ]
        return "\n".join(texts)

    def _end(self, *, kill: bool) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        with process:
            if kill:
                process.kill()
            else:
                process.terminate()
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def quoted(identifier: str) -> str:
    """A user, room or event ID as one segment of a path."""
    return quote(identifier, safe="")
