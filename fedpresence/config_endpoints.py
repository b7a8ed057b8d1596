"""Endpoint strings of the configuration: read, made absolute, and tried before anything listens.

Always true: what comes out is a string that Twisted's `serverFromString` takes, and whatever files it
names are absolute and were readable. Nothing is opened here but those files.

Source: Twisted's documentation of endpoint strings; contract.md, "Config".
"""

import ipaddress
from dataclasses import dataclass
from pathlib import Path

from twisted.internet.endpoints import serverFromString

from fedpresence.errors import ConfigError

_FILES_OF_SSL = ("privateKey", "certKey", "extraCertChain", "dhParameters")
_PORT_KINDS = ("tcp", "tcp4", "tcp6", "ssl")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An endpoint string taken apart: `tcp:8448:interface=::1` has the kind `tcp`."""

    kind: str
    positional: tuple[str, ...]
    named: dict[str, str]

    def __str__(self) -> str:
        parts = [self.kind, *(_quoted(value).replace("=", "\\=") for value in self.positional)]
        parts += [f"{name}={_quoted(value)}" for name, value in self.named.items()]
        return ":".join(parts)

    @property
    def port(self) -> str | None:
        """The port as it was written, for the kinds that have one."""
        if self.kind not in _PORT_KINDS:
            return None
        return self.positional[0] if self.positional else self.named.get("port")

    @property
    def interface(self) -> str:
        """The address it listens on; empty for all."""
        return self.named.get("interface", "")


def parse_endpoint(text: str) -> Endpoint:
    """`text` taken apart by Twisted's rules: `:` divides, `=` names, a backslash quotes."""
    parts: list[tuple[str | None, str]] = []
    name: str | None = None
    current = ""
    characters = iter(text)
    for character in characters:
        if character == "\\":
            current += next(characters, "")
        elif character == ":":
            parts.append((name, current))
            name, current = None, ""
        elif character == "=" and name is None:
            name, current = current, ""
        else:
            current += character
    parts.append((name, current))
    return Endpoint(
        kind=parts[0][1],
        positional=tuple(value for name, value in parts[1:] if name is None),
        named={name: value for name, value in parts[1:] if name is not None},
    )


def absolute_endpoint(text: str, key: str, folder: Path) -> str:
    """The endpoint string with its files made absolute; ConfigError naming `key` where it cannot work."""
    endpoint = parse_endpoint(text)
    if endpoint.kind in _PORT_KINDS:
        _check_port(endpoint, key)
    if endpoint.kind == "ssl":
        endpoint = _with_tls_files(endpoint, key, folder)
    elif endpoint.kind == "unix":
        endpoint = _with_socket(endpoint, key, folder)
    absolute = str(endpoint)
    try:
        serverFromString(None, absolute)
    except Exception as error:  # a plugin's parser, or OpenSSL's, may raise anything at all
        reason = str(error) or type(error).__name__
        raise ConfigError.of(
            key,
            f'"{text}" is not an endpoint that Twisted can listen on ({reason}).',
            "Use for example tcp:8008:interface=127.0.0.1 or ssl:8448:privateKey=tls.key:certKey=tls.crt.",
        ) from error
    return absolute


def missing_folder(text: str) -> Path | None:
    """The folder of the Unix socket that an absolute endpoint names, where it does not exist yet."""
    endpoint = parse_endpoint(text)
    if endpoint.kind != "unix":
        return None
    folder = Path(endpoint.positional[0]).parent
    return None if _is_folder(folder) else folder


def reachable(interface: str) -> str:
    """The address to connect to for one that is listened on: "all" has a spelling of its own."""
    try:
        address = ipaddress.ip_address(interface or "0.0.0.0")
    except ValueError:
        return interface  # a name
    if address.is_unspecified:
        address = ipaddress.ip_address("::1" if address.version == 6 else "127.0.0.1")
    return f"[{address}]" if address.version == 6 else str(address)


def _check_port(endpoint: Endpoint, key: str) -> None:
    port = endpoint.port
    fix = f"Use 1 to 65535 (0 takes any free one), for example {endpoint.kind}:8448."
    if not port:
        raise ConfigError.of(key, "has no port.", fix)
    if not (port.isascii() and port.isdigit()):
        raise ConfigError.of(key, f'"{port}" is not a port.', fix)
    if len(port) > 5 or int(port) > 65535:
        raise ConfigError.of(key, f"port {port} is out of range.", fix)


def _with_socket(endpoint: Endpoint, key: str, folder: Path) -> Endpoint:
    positional, named = endpoint.positional, dict(endpoint.named)
    address = positional[0] if positional else named.pop("address", "")
    path = folder / address
    if not address or _is_folder(path):
        raise ConfigError.of(key, "names no socket.", "Add its path: unix:/run/fedpresence/client.sock.")
    return Endpoint(endpoint.kind, (str(path), *positional[1:]), named)


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:
        return False  # as far as we may see


def _with_tls_files(endpoint: Endpoint, key: str, folder: Path) -> Endpoint:
    named = dict(endpoint.named)
    for name in ("privateKey", "certKey"):
        if not named.get(name):
            raise ConfigError.of(
                key, f"names no {name}.", "Add it: ssl:8448:privateKey=tls.key:certKey=tls.crt."
            )
    for name in _FILES_OF_SSL:
        if name in named:
            named[name] = str(readable_file(folder / named[name], key, what=f"{name} file"))
    return Endpoint(endpoint.kind, endpoint.positional, named)


def readable_file(path: Path, key: str, *, what: str = "file", fix: str = "") -> Path:
    """`path`, once its first byte could be read; ConfigError naming `key` otherwise.

    `fix` is for a file that is not there.
    """
    try:
        with path.open("rb") as file:
            file.read(1)
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        reason = getattr(error, "strerror", None) or str(error)
        if not fix or not isinstance(error, FileNotFoundError):
            fix = "Check the path (a relative one counts from the config's folder) and its permissions."
        raise ConfigError.of(key, f"the {what} {path} cannot be read: {reason}.", fix) from error
    return path


def _quoted(value: str) -> str:
    return value.replace("\\", "\\\\").replace(":", "\\:")
