"""The registration file: what the homeserver and we know of each other as an application service.

Always true: a registration that we write is valid YAML of mode 0600, and never written over another; one
that everybody on the machine can read is refused; no complaint repeats a token.

Source: H:2.1.
"""

import re
import secrets
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedpresence.config import Config, ListenerConfig, read_settings
from fedpresence.config_endpoints import parse_endpoint, reachable
from fedpresence.errors import ConfigError
from fedpresence.ids import ServerName, UserID
from fedpresence.ops.secret_files import write_secret

SETTING = "appservice.registration"
LOCALPART = "fedpresence"
MAX_FILE_BYTES = 65_536
_TOO_OPEN = stat.S_IROTH | stat.S_IWOTH | stat.S_IWGRP  # the group may read: it may be the homeserver's
_HOW_TO_MAKE = "Make one with: fedpresence generate-registration -c FILE"
_LOCALPART = re.compile(r"[a-z0-9._=/+-]+\Z")
_UNSTABLE_EPHEMERAL = "de.sorunome.msc2409.push_ephemeral"

TEMPLATE = """\
# fedpresence as an application service of {server_name}. It holds secrets: as_token can act as every user.
id: fedpresence
url: "{url}"
as_token: "{as_token}"
hs_token: "{hs_token}"
sender_localpart: {localpart}
# Typing and receipts; older homeservers know the second name.
receive_ephemeral: true
de.sorunome.msc2409.push_ephemeral: true
rate_limited: false
namespaces:
  # Everybody here, and nobody's alone: exclusive would end all registration.
  users:
    - exclusive: false
      regex: '{regex}'
  rooms: []
  aliases: []
"""


@dataclass(frozen=True, slots=True)
class Registration:
    """What both sides agreed on. `url` None: the homeserver sends nothing."""

    id: str
    url: str | None
    as_token: str = field(repr=False)
    hs_token: str = field(repr=False)
    sender_localpart: str
    receives_ephemeral: bool

    def bot(self, server_name: ServerName) -> UserID:
        """The user that we are where we act as nobody else."""
        return UserID(f"@{self.sender_localpart}:{server_name}")


def load_registration(path: Path) -> Registration:
    """The registration in the file; ConfigError naming `appservice.registration` where it is no good."""
    _check_file(path)
    try:
        written = read_settings(path)
    except ConfigError as error:
        raise ConfigError.of(SETTING, f"{path} cannot be used: {error}", _HOW_TO_MAKE) from error
    url = written.get("url")
    if url is not None and not isinstance(url, str):
        raise _wrong(path, "url", "is no text.")
    registration = Registration(
        id=_text(path, written, "id"),
        url=url or None,
        as_token=_token(path, written, "as_token"),
        hs_token=_token(path, written, "hs_token"),
        sender_localpart=_text(path, written, "sender_localpart"),
        receives_ephemeral=written.get("receive_ephemeral") is True
        or written.get(_UNSTABLE_EPHEMERAL) is True,
    )
    if registration.as_token == registration.hs_token:
        raise _wrong(path, "hs_token", "is the as_token: whoever overhears one has both.")
    if not _LOCALPART.match(registration.sender_localpart):
        raise _wrong(path, "sender_localpart", "is not the part of a user ID between @ and the colon.")
    return registration


def generate_registration(server_name: ServerName, url: str) -> str:
    """A registration for everybody on `server_name`, with new tokens, as YAML."""
    regex = f"^@.*:{re.escape(server_name)}$"  # homeservers anchor the beginning at most
    return TEMPLATE.format(
        server_name=server_name,
        url=url,
        as_token=secrets.token_hex(32),
        hs_token=secrets.token_hex(32),
        localpart=LOCALPART,
        regex=regex,
    )


def write_registration(path: Path, text: str) -> None:
    """`text` alone in a new file of mode 0600; ConfigError where it cannot be made."""
    write_secret(
        path,
        text,
        never_over="a registration is never written over: the homeserver knows its tokens",
        instead="Name another file, or move this one away.",
    )


def appservice_url(config: Config) -> str | None:
    """Where the homeserver reaches us, by the listener that serves `appservice`; None where unknown."""
    for listener in config.listeners:
        url = _url_of(listener) if "appservice" in listener.resources else None
        if url is not None:
            return url
    return None


def next_steps(config: Config, path: Path | None) -> str:
    """What an operator does with a registration that was just made."""
    steps = []
    if path is None:
        steps.append("Keep it in a file that only fedpresence and the homeserver can read (mode 0640).")
    if path is None or path.absolute() != config.appservice_registration:
        steps.append(f"Name it in the configuration: appservice: {{registration: {path or 'FILE'}}}")
    if config.homeserver_url is None:
        steps.append("Name the homeserver in the configuration: homeserver: {url: http://127.0.0.1:8008}")
    if not any("appservice" in listener.resources for listener in config.listeners):
        steps.append("Serve the resource appservice on a listener that only the homeserver reaches.")
    steps += [
        "Let the homeserver's user read the file: put that user in the file's group, and chmod 640.",
        f"Synapse: add it to app_service_config_files: [{path or 'FILE'}]; Dendrite: "
        "app_service_api.config_files. Restart the homeserver.",
        "Restart fedpresence: it then asks the homeserver who is in which room.",
    ]
    return "\n".join(f"{number}. {step}" for number, step in enumerate(steps, start=1))


def _url_of(listener: ListenerConfig) -> str | None:
    endpoint = parse_endpoint(listener.endpoint)
    if endpoint.kind not in ("tcp", "tcp4", "tcp6") or not endpoint.port or not int(endpoint.port):
        return None  # of TLS, a socket or a free port only the operator knows the address
    return f"http://{reachable(endpoint.interface)}:{endpoint.port}"


def _check_file(path: Path) -> None:
    try:
        state = path.stat()
    except FileNotFoundError as error:
        raise ConfigError.of(SETTING, f"there is no file {path}.", _HOW_TO_MAKE) from error
    except OSError as error:
        raise ConfigError.of(
            SETTING, f"{path} cannot be read: {error.strerror}.", "Let the user of the daemon read it."
        ) from error
    if not stat.S_ISREG(state.st_mode) or state.st_size > MAX_FILE_BYTES:
        raise ConfigError.of(SETTING, f"{path} is not a registration file.", _HOW_TO_MAKE)
    if state.st_mode & _TOO_OPEN:
        raise ConfigError.of(
            SETTING,
            f"{path} can be read or changed by others (mode {stat.S_IMODE(state.st_mode):04o}).",
            f"Run: chmod 640 {path}",
        )


def _text(path: Path, written: dict[Any, Any], name: str) -> str:
    value = written.get(name)
    if not isinstance(value, str) or not value:
        raise _wrong(path, name, "is missing, or no text.")
    return value


def _token(path: Path, written: dict[Any, Any], name: str) -> str:
    value = written.get(name)
    if isinstance(value, str) and value.isascii() and value.isprintable() and value and " " not in value:
        return value
    raise _wrong(path, name, "is not a token: printable ASCII without spaces, in quotes.")


def _wrong(path: Path, name: str, problem: str) -> ConfigError:
    return ConfigError.of(SETTING, f"{name} in {path} {problem}", "Mend it, and the homeserver's copy too.")
