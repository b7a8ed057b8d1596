"""What a client's request says: token, path, parameters, body.

Always true: paths are percent-decoded exactly once (by Twisted); nothing here logs, for queries carry
tokens and bodies status messages.

Source: P:9; clients.md, "Requests by client".
"""

from dataclasses import dataclass
from typing import NamedTuple

from fedpresence.errors import BadRequest
from fedpresence.ids import UserID, parse_user_id
from fedpresence.request import Request
from fedpresence.wire.json import decode_json


def access_token(request: Request) -> str:
    """The token in the header or, as old clients send it, in the query; 401 `M_MISSING_TOKEN` without."""
    header = request.getHeader(b"authorization")
    if header is not None:
        scheme, _, token = header.decode("utf-8", "replace").strip().partition(" ")
        token = token.lstrip()  # nothing stands behind it
        if token and scheme.lower() == "bearer":
            return token
    token_argument = parameter(request, b"access_token")
    if not token_argument:
        raise BadRequest("M_MISSING_TOKEN", "Missing access token", status=401)
    return token_argument


class Credentials(NamedTuple):
    """Whose request it claims to be. An application service names the user, and the device, it acts as."""

    token: str
    user_id: str | None = None
    device_id: str | None = None

    def __repr__(self) -> str:
        """Without the token."""
        return f"Credentials(user_id={self.user_id!r}, device_id={self.device_id!r})"


@dataclass(frozen=True, slots=True)
class Refused:
    """A token that is good no more, in the homeserver's words.

    Without `soft_logout` a client throws away all that it has, the keys of its messages too.
    """

    errcode: str
    soft_logout: bool


def credentials(request: Request) -> Credentials:
    """What says whose request it is; 401 `M_MISSING_TOKEN` without a token."""
    device_id = parameter(request, b"device_id") or parameter(request, b"org.matrix.msc3202.device_id")
    return Credentials(access_token(request), parameter(request, b"user_id"), device_id)


def parameter(request: Request, name: bytes) -> str | None:
    """The first value of a query parameter; None where it is absent."""
    values = request.args.get(name) if request.args else None
    if not values:
        return None
    try:
        value: str = values[0].decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadRequest("M_INVALID_PARAM", f"{name.decode('ascii')} is not UTF-8") from error
    return value


def segment(request: Request, index: int) -> str:
    """A segment of the path, decoded; `index` as in a list, so -1 is the last."""
    assert request.prepath is not None, "Twisted has found the resource by it"
    try:
        text: str = request.prepath[index].decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadRequest("M_INVALID_PARAM", "The path is not UTF-8") from error
    return text


def user_in_path(request: Request, index: int) -> UserID:
    """The user ID in a segment of the path; 400 `M_INVALID_PARAM` where it is none."""
    return parse_user_id(segment(request, index))


def own_user(request: Request, index: int, user_id: UserID, refusal: str) -> None:
    """Nothing where the path names the token's user; otherwise 403 `M_FORBIDDEN` with `refusal`."""
    if segment(request, index) != user_id:
        user_in_path(request, index)  # it may be no user ID at all, which is another error
        raise BadRequest("M_FORBIDDEN", refusal, status=403)


def json_body(request: Request) -> object:
    """The body, which the site has measured, as JSON; 400 where it is none."""
    assert request.content is not None, "all of the body is there before a resource answers"
    return decode_json(request.content.read())
