"""One written value of the configuration to the value it means, or a complaint that names its key.

Always true: a parser takes (value, key, folder) and raises nothing but ConfigError, whose problems name
`key` or something below it; a secret is never repeated in a complaint.

Source: contract.md, "Config".
"""

import ipaddress
import re
import stat
from collections.abc import Callable, Mapping
from enum import Enum
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar
from urllib.parse import urlsplit

from nacl.bindings import crypto_core_ed25519_is_valid_point
from unpaddedbase64 import decode_base64

from fedpresence.config_endpoints import absolute_endpoint, parse_endpoint, readable_file
from fedpresence.config_model import RESOURCES, ListenerConfig, OldKey
from fedpresence.errors import BadRequest, ConfigError, ConfigProblem
from fedpresence.ids import KeyID, ServerName, parse_key_id, parse_server_name, split_server_name

T = TypeVar("T")
K = TypeVar("K")
E = TypeVar("E", bound=Enum)
Parser = Callable[[object, str, Path], T]

MAX_LENGTH_MS = 365 * 86_400_000  # a year: whoever waits longer means never, and timers overflow later
MAX_WHOLE = 2**53 - 1  # the largest integer of canonical JSON

_LENGTH = re.compile(r"(?P<count>[0-9]{1,15})(?P<unit>ms|s|m|h|d)?\Z")
_LENGTH_UNITS_MS = {None: 1, "ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_SIZE = re.compile(r"(?P<count>[0-9]{1,15})(?P<unit>B|KiB|MiB|GiB)?\Z")
_SIZE_UNITS = {None: 1, "B": 1, "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3}
_ROOM_GLOB = re.compile(r"[!*][^\x00-\x20]{0,254}\Z")
_GLOB = re.compile(r"[0-9A-Za-z.:*?\[\]-]{1,255}\Z")
_NAMESPACE = re.compile(r"[A-Za-z_][\w.]*\Z")
_LEVELS = ("debug", "info", "warn", "error", "critical")
_SQLITE = "sqlite:///"


def shown(value: object) -> str:
    """A value as a complaint repeats it: quoted when it is text, and short."""
    text = f'"{value}"' if isinstance(value, str) else "an empty value" if value is None else repr(value)
    return text if len(text) <= 80 else text[:76] + "..." + text[-1]


def length_of_time(*, least_ms: int = 1) -> Parser[int]:
    """Whole milliseconds of `300s`, `5m`, `30d` or a bare number."""

    def parse(value: object, key: str, folder: Path) -> int:
        match = _LENGTH.match(str(value)) if _is_whole(value) or isinstance(value, str) else None
        if match is None:
            raise ConfigError.of(
                key,
                f"{shown(value)} is not a length of time.",
                "Use for example 300s, 5m or 30d (a bare number is milliseconds).",
            )
        length_ms = int(match["count"]) * _LENGTH_UNITS_MS[match["unit"]]
        if not least_ms <= length_ms <= MAX_LENGTH_MS:
            raise ConfigError.of(
                key, f"{shown(value)} is out of range.", f"Use {least_ms}ms to 365d, for example 5m."
            )
        return length_ms

    return parse


def whole(least: int, most: int = MAX_WHOLE) -> Parser[int]:
    """A whole number in a range."""

    def parse(value: object, key: str, folder: Path) -> int:
        if not isinstance(value, int) or not _is_whole(value):
            raise ConfigError.of(key, f"{shown(value)} is not a whole number.", f"Use for example {least}.")
        if not least <= value <= most:
            raise ConfigError.of(key, f"{value} is out of range.", f"Use {least} to {most}.")
        return value

    return parse


def size(least: int) -> Parser[int]:
    """Bytes: a whole number, or `64KiB`, `16MiB`."""

    def parse(value: object, key: str, folder: Path) -> int:
        match = _SIZE.match(str(value)) if _is_whole(value) or isinstance(value, str) else None
        if match is None:
            raise ConfigError.of(key, f"{shown(value)} is not a size.", "Use bytes, 64KiB or 16MiB.")
        count = int(match["count"]) * _SIZE_UNITS[match["unit"]]
        if not least <= count <= MAX_WHOLE:
            raise ConfigError.of(key, f"{shown(value)} is too small or too large.", f"Use at least {least}.")
        return count

    return parse


def positive(value: object, key: str, folder: Path) -> float:
    """A number above zero; whole ones stay whole."""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value <= MAX_WHOLE:
        return value
    raise ConfigError.of(key, f"{shown(value)} is not a number above 0.", "Use for example 5.")


def switch(value: object, key: str, folder: Path) -> bool:
    """True or false."""
    if isinstance(value, bool):
        return value
    raise ConfigError.of(key, f"{shown(value)} is neither true nor false.", "Use true or false.")


def choice(*words: str) -> Parser[str]:
    """One of `words`."""

    def parse(value: object, key: str, folder: Path) -> str:
        if isinstance(value, str) and value in words:
            return value
        raise ConfigError.of(key, f"{shown(value)} is not known.", f"Use one of {', '.join(words)}.")

    return parse


def member_of(words: type[E]) -> Parser[E]:
    """One of an enum's values."""
    word = choice(*(member.value for member in words))

    def parse(value: object, key: str, folder: Path) -> E:
        return words(word(value, key, folder))

    return parse


def optional(parse: Parser[T]) -> Parser[T | None]:
    """None where nothing is given, else what `parse` makes of it."""

    def parse_or_none(value: object, key: str, folder: Path) -> T | None:
        return None if value is None else parse(value, key, folder)

    return parse_or_none


def server_name(value: object, key: str, folder: Path) -> ServerName:
    """A Matrix server name."""
    try:
        return parse_server_name(value)
    except BadRequest as error:
        raise ConfigError.of(
            key,
            f"{shown(value)} is not a server name.",
            "Use what stands behind the colon of a user ID, for example example.org or example.org:8448.",
        ) from error


def glob(value: object, key: str, folder: Path) -> str:
    """A server name, or a pattern of one."""
    if isinstance(value, str) and _GLOB.match(value):
        return value
    raise ConfigError.of(
        key,
        f"{shown(value)} is not a server name or a glob.",
        'Use for example example.org or "*.example.org".',
    )


def room_glob(value: object, key: str, folder: Path) -> str:
    """A room ID, or a pattern of one. Newer rooms have an ID without a server name."""
    if isinstance(value, str) and _ROOM_GLOB.match(value):
        return value
    raise ConfigError.of(
        key,
        f"{shown(value)} is not a room ID or a glob.",
        'Use for example "!ops:example.org" or "*:example.org".',
    )


def network(value: object, key: str, folder: Path) -> str:
    """An IP address or network in CIDR form."""
    try:
        if not isinstance(value, str):
            raise ValueError("not text")
        return str(ipaddress.ip_network(value))
    except ValueError as error:
        raise ConfigError.of(
            key, f"{shown(value)} is not a network ({error}).", 'Use for example 10.0.0.0/8 or "fc00::/7".'
        ) from error


def list_of(parse: Parser[T]) -> Parser[tuple[T, ...]]:
    """A tuple of what `parse` makes of each; every wrong one is named by its index."""

    def parse_all(value: object, key: str, folder: Path) -> tuple[T, ...]:
        if not isinstance(value, list):
            raise ConfigError.of(key, f"{shown(value)} is not a list.", "Write it as [one, two].")
        parsed: list[T] = []
        problems: list[ConfigProblem] = []
        for index, item in enumerate(value):
            try:
                parsed.append(parse(item, f"{key}[{index}]", folder))
            except ConfigError as error:
                problems += error.problems
        if problems:
            raise ConfigError(problems)
        return tuple(parsed)

    return parse_all


def mapping_of(parse_name: Parser[K], parse: Parser[T]) -> Parser[Mapping[K, T]]:
    """A read-only mapping; every wrong name or value is named by its own key."""

    def parse_all(value: object, key: str, folder: Path) -> Mapping[K, T]:
        if not isinstance(value, dict):
            raise ConfigError.of(key, f"{shown(value)} is not a mapping.", "Write it as {name: value}.")
        parsed: dict[K, T] = {}
        problems: list[ConfigProblem] = []
        for name, item in value.items():
            try:
                parsed_name = parse_name(name, f"{key}.{name}", folder)
                parsed[parsed_name] = parse(item, f"{key}.{name}", folder)
            except ConfigError as error:
                problems += error.problems
        if problems:
            raise ConfigError(problems)
        return MappingProxyType(parsed)

    return parse_all


def host_and_port(value: object, key: str, folder: Path) -> tuple[str, int]:
    """(host, port) of `host:port`; an IPv6 address stands in brackets."""
    try:
        host, port = split_server_name(parse_server_name(value))
    except BadRequest:
        port = None
    if port is None:
        raise ConfigError.of(
            key, f'{shown(value)} is not "host:port".', 'Use for example "10.1.2.3:8448" or "[::1]:8448".'
        )
    return host, port


def key_id(value: object, key: str, folder: Path) -> KeyID:
    """The ID of a signing key."""
    try:
        return parse_key_id(value)
    except BadRequest as error:
        fix = "Use for example ed25519:a_1."
        raise ConfigError.of(key, f"{shown(value)} is not a key ID.", fix) from error


def old_key(value: object, key: str, folder: Path) -> OldKey:
    """A retired verify key, `{key, expired_ts}`.

    Never repeated in a complaint: it may be the seed in the key file, which is as long, and secret. Of
    sixteen seeds fifteen are no verify key; published as one, a seed lets anybody sign as the retired key.
    """
    if not isinstance(value, dict) or set(value) != {"key", "expired_ts"}:
        raise ConfigError.of(
            key, "an old key has exactly key and expired_ts.", "Write {key: BASE64, expired_ts: UNIX_MS}."
        )
    expired_ts = whole(0)(value["expired_ts"], f"{key}.expired_ts", folder)
    text = value["key"]
    try:
        data = decode_base64(text) if isinstance(text, str) else b""
    except ValueError:
        data = b""
    if len(data) != 32 or not crypto_core_ed25519_is_valid_point(data):
        raise ConfigError.of(
            f"{key}.key",
            "is not an ed25519 verify key.",
            "Use what /_matrix/key/v2/server showed for it. What stands in the key file is the secret half.",
        )
    return OldKey(str(text).rstrip("="), expired_ts)


def file(value: object, key: str, folder: Path) -> Path:
    """The absolute path of a file that can be read."""
    return readable_file(folder / _text(value, key), key)


def path(value: object, key: str, folder: Path) -> Path:
    """The absolute path of a file that may not exist yet."""
    text = _text(value, key)
    if "\0" in text or (folder / text).is_dir():
        raise ConfigError.of(key, f"{shown(text)} names no file.", "Name a file, for example in this folder.")
    return folder / text


def key_file(value: object, key: str, folder: Path) -> Path:
    """The absolute path of our signing key file."""
    path = folder / _text(value, key)
    return readable_file(path, key, fix=f"Make one with: fedpresence generate-key -o {path}")


def ca_file(value: object, key: str, folder: Path) -> Path:
    """The absolute path of a file with certificates in PEM form."""
    path = readable_file(folder / _text(value, key), key)
    if b"-----BEGIN CERTIFICATE-----" not in path.read_bytes():
        raise ConfigError.of(key, f"{path} has no certificate in PEM form.", "Name a file of certificates.")
    return path


def database_path(value: object, key: str, folder: Path) -> Path:
    """The absolute path of `sqlite:///path`."""
    text = _text(value, key)
    fix = "Use for example sqlite:///fedpresence.db or sqlite:////var/lib/fedpresence/fedpresence.db."
    path = text.removeprefix(_SQLITE)
    if not text.startswith(_SQLITE):
        raise ConfigError.of(key, f"{shown(text)} is not a database that this version knows.", fix)
    if not path or path.endswith("/") or path.startswith(":") or "?" in path or "\0" in path:
        raise ConfigError.of(key, f"{shown(text)} names no file.", fix)
    absolute = folder / path
    if not absolute.parent.is_dir():
        raise ConfigError.of(
            key, f"the folder {absolute.parent} does not exist.", f"Make it: mkdir -p {absolute.parent}"
        )
    if absolute.is_dir():
        raise ConfigError.of(key, f"{absolute} is a folder.", fix)
    return absolute


def url(value: object, key: str, folder: Path) -> str:
    """An http or https base URL, without its last slash."""
    text = _text(value, key)
    try:
        parts = urlsplit(text)
        good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        good = False
    if not good or parts.query or parts.fragment or parts.username is not None or not text.isprintable():
        raise ConfigError.of(
            key, f"{shown(text)} is not a base URL.", "Use for example http://127.0.0.1:8008."
        )
    return text.rstrip("/")


def level(value: object, key: str, folder: Path) -> str:
    """The name of a log level."""
    return choice(*_LEVELS)(value, key, folder)


def namespace(value: object, key: str, folder: Path) -> str:
    """The name of a logger: a module of ours or of Twisted's."""
    if isinstance(value, str) and _NAMESPACE.match(value):
        return value
    raise ConfigError.of(key, f"{shown(value)} is not a module.", "Use for example fedpresence.outbound.")


def secret(value: object, key: str, folder: Path) -> str:
    """A bearer token, never repeated in a complaint."""
    if isinstance(value, str) and value and value.isascii() and value.isprintable() and " " not in value:
        return value
    raise ConfigError.of(
        key, "is not a token: printable ASCII without spaces.", "Put a long random text in quotes."
    )


def secret_file(value: object, key: str, folder: Path) -> str:
    """The bearer token in a file that others on this machine cannot read."""
    path = readable_file(folder / _text(value, key), key)
    if path.stat().st_mode & stat.S_IROTH:
        raise ConfigError.of(key, f"everybody on this machine can read {path}.", f"Run: chmod 600 {path}")
    return secret(path.read_text("utf-8", "replace").strip(), key, folder)


def listeners(value: object, key: str, folder: Path) -> tuple[ListenerConfig, ...]:
    """Where to listen and what to serve there; no address twice."""
    if isinstance(value, list) and not value:
        raise ConfigError.of(key, "is empty: nothing would be served.", "Give at least one listener.")
    parsed = list_of(_listener)(value, key, folder)
    seen: dict[tuple[str, str], int] = {}
    for index, listener in enumerate(parsed):
        endpoint = parse_endpoint(listener.endpoint)
        if endpoint.port and int(endpoint.port) != 0:
            first = seen.setdefault((endpoint.port, endpoint.interface), index)
            if first != index:
                raise ConfigError.of(
                    f"{key}[{index}].endpoint",
                    f"port {endpoint.port} is taken by {key}[{first}].",
                    f"Use another port, or name these resources in {key}[{first}].",
                )
    return parsed


def _listener(value: object, key: str, folder: Path) -> ListenerConfig:
    example = 'Write {endpoint: "tcp:8008:interface=127.0.0.1", resources: [client]}.'
    if not isinstance(value, dict):
        raise ConfigError.of(key, f"{shown(value)} is not a listener.", example)
    problems = [
        ConfigProblem(f"{key}.{name}", "is not a known key.", "A listener has endpoint and resources.")
        for name in value
        if name not in ("endpoint", "resources")
    ]
    endpoint = ""
    resources: tuple[str, ...] = ()
    try:
        if "endpoint" not in value:
            raise ConfigError.of(f"{key}.endpoint", "is missing.", example)
        endpoint = absolute_endpoint(_text(value["endpoint"], f"{key}.endpoint"), f"{key}.endpoint", folder)
    except ConfigError as error:
        problems += error.problems
    try:
        if "resources" not in value:
            raise ConfigError.of(f"{key}.resources", "is missing.", example)
        resources = _resources(value["resources"], f"{key}.resources", folder)
    except ConfigError as error:
        problems += error.problems
    if problems:
        raise ConfigError(problems)
    return ListenerConfig(endpoint, resources)


def _resources(value: object, key: str, folder: Path) -> tuple[str, ...]:
    names = list_of(_resource)(value, key, folder)
    if not names:
        raise ConfigError.of(key, "is empty.", f"Use any of {', '.join(RESOURCES)}.")
    if len(set(names)) < len(names):
        raise ConfigError.of(key, "names a resource twice.", "Name each once.")
    return names


def _resource(value: object, key: str, folder: Path) -> str:
    fix = f"Use any of {', '.join(RESOURCES)}."
    if not isinstance(value, str) or value not in RESOURCES:
        raise ConfigError.of(key, f"{shown(value)} is not a resource.", fix)
    return value


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _text(value: object, key: str) -> str:
    if not isinstance(value, str) or not value:
        raise ConfigError.of(key, f"{shown(value)} is not text.", "Put it in quotes.")
    return value
