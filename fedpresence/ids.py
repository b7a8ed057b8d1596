"""Names of the Matrix world, parsed once at the edge.

Always true: a value of one of these types has passed its parser, so nothing behind the edge checks
it again. Server names are compared byte for byte.

Source: Matrix appendices, "Server Name" and "User Identifiers" (F:1.1, F:1.2).
"""

import ipaddress
import re
from functools import lru_cache
from typing import NewType, TypeGuard

from fedpresence.errors import BadRequest

UserID = NewType("UserID", str)
ServerName = NewType("ServerName", str)
KeyID = NewType("KeyID", str)
DeviceID = NewType("DeviceID", str)
RoomID = NewType("RoomID", str)

MAX_ID_BYTES = 255  # a whole user ID: appendices, "User Identifiers"
MAX_SERVER_NAME_BYTES = 255  # a DNS name can be no longer, and nothing longer fits a user ID

_SERVER_NAME = re.compile(
    r"(?P<host>\[[0-9A-Fa-f:.]{2,45}\]|[0-9A-Za-z.-]{1,255})(?::(?P<port>[0-9]{1,5}))?\Z"
)
_IPV4_SHAPED = re.compile(r"[0-9]+(?:\.[0-9]+){3}\Z")
_KEY_ID = re.compile(r"ed25519:[a-zA-Z0-9_]{1,64}\Z")
_COMPLIANT_LOCALPART = re.compile(r"[\x21-\x39\x3b-\x7e]+\Z")  # U+0021..U+007E without the colon
_COMPLIANT_USER = re.compile(rf"@{_COMPLIANT_LOCALPART.pattern}")


def parse_server_name(text: object) -> ServerName:
    """`text` as a server name; BadRequest (`M_INVALID_PARAM`) where it breaks the grammar."""
    if isinstance(text, str) and len(text) <= MAX_SERVER_NAME_BYTES and _is_server_name(text):
        return ServerName(text)
    raise BadRequest("M_INVALID_PARAM", "Not a valid server name")


def parse_user_id(text: object) -> UserID:
    """`text` as a user ID, historic localparts included; BadRequest (`M_INVALID_PARAM`) otherwise."""
    if isinstance(text, str) and text.startswith("@") and "\0" not in text:
        _, colon, server = text[1:].partition(":")
        try:
            size = len(text.encode("utf-8"))
        except UnicodeEncodeError:
            size = MAX_ID_BYTES + 1
        if colon and size <= MAX_ID_BYTES:
            try:
                parse_server_name(server)
            except BadRequest:
                pass
            else:
                return UserID(text)
    raise BadRequest("M_INVALID_PARAM", "Not a valid user ID: expected @localpart:server")


def parse_room_id(text: object) -> RoomID:
    """`text` as a room ID, with or without a server name in it; BadRequest (`M_INVALID_PARAM`) otherwise."""
    is_shaped = isinstance(text, str) and text.startswith("!") and text.isprintable()
    if is_shaped and 1 < len(str(text).encode("utf-8")) <= MAX_ID_BYTES:
        return RoomID(str(text))
    raise BadRequest("M_INVALID_PARAM", "Not a valid room ID")


def parse_key_id(text: object) -> KeyID:
    """`text` as the ID of an ed25519 key; BadRequest where it is something else."""
    if isinstance(text, str) and _KEY_ID.match(text):
        return KeyID(text)
    raise BadRequest("M_INVALID_PARAM", "Not a valid key ID: expected ed25519:version")


def server_of(user_id: UserID) -> ServerName:
    """The server name a user belongs to: all that stands behind the first colon."""
    return ServerName(user_id.partition(":")[2])


def is_compliant(user_id: UserID) -> bool:
    """Whether clients may be shown this ID outside an event (F:1.2): printable and not empty."""
    return _COMPLIANT_LOCALPART.match(user_id[1:].partition(":")[0]) is not None


def is_compliant_of(text: str, server_name: ServerName) -> TypeGuard[UserID]:
    """Whether `text` is a compliant user ID of that very server: all that its own users need be asked."""
    name, _, server = text.partition(":")
    return server == server_name and len(text) <= MAX_ID_BYTES and _COMPLIANT_USER.match(name) is not None


def split_server_name(name: ServerName) -> tuple[str, int | None]:
    """Host (IPv6 without its brackets) and port; None where the name has no port."""
    match = _SERVER_NAME.match(name)
    assert match is not None, "a ServerName has passed its parser"
    host = match["host"].strip("[]")
    return host, int(match["port"]) if match["port"] else None


def is_ip_literal(host: str) -> bool:
    """Whether a host is written as an IP address."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


@lru_cache(maxsize=10_000)  # fifty user IDs in an EDU end in the same name; at most some 5 MB
def _is_server_name(text: str) -> bool:
    match = _SERVER_NAME.match(text)
    return match is not None and _host_is_valid(match["host"]) and _port_is_valid(match["port"])


def _host_is_valid(host: str) -> bool:
    if host.startswith("[") or _IPV4_SHAPED.match(host):
        return is_ip_literal(host.strip("[]"))
    return True


def _port_is_valid(port: str | None) -> bool:
    return port is None or 1 <= int(port) <= 65535
