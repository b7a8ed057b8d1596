"""What a fake homeserver is told to send, and what came back.

Always true: an order is honest unless it says what to forge; a forged request is wrong in that one thing
alone, so the answer says what that thing is worth.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from canonicaljson import encode_canonical_json

from fedpresence.errors import BadRequest
from fedpresence.ids import ServerName, parse_server_name
from fedpresence.testing.homeserver.fields import Fields, complaint

Forgery = Literal["signature", "key_id", "origin", "destination", "body", "missing"]
"""What is wrong with a request.

`signature`: it is over something else. `key_id`: the header names a key that is not published. `origin`:
another server is claimed to have sent it. `destination`: it was signed for another server. `body`: it was
changed after it was signed. `missing`: it has no signature at all.
"""

FORGERIES: tuple[Forgery, ...] = get_args(Forgery)


@dataclass(frozen=True, slots=True)
class Answered:
    """What came back: `status` None where nothing did, and `reason` then says why.

    `body` is parsed where it is JSON, else its text; `headers` have lower-case names.
    """

    status: int | None
    body: object = None
    headers: Mapping[str, str] = field(default_factory=dict)
    reason: str = ""


@dataclass(frozen=True, slots=True)
class SendOrder:
    """One transaction to send: `edus` in an ordinary envelope, or `content` as the whole body.

    `claim` is who is claimed to have sent it, with the forgery `origin`; None is the destination itself.
    """

    to: ServerName
    edus: tuple[object, ...] | None = None
    content: object = None
    txn_id: str | None = None
    forge: Forgery | None = None
    claim: ServerName | None = None


def decode_order(obj: object) -> SendOrder:
    """An order from `{"to", "edus" or "content", "txn_id"?, "forge"?, "claim"?}`.

    BadRequest names the key that is wrong.

    >>> decode_order({"to": "here.test", "edus": []}).to
    'here.test'
    >>> decode_order({"to": "here.test", "edus": [], "forge": "luck"})
    Traceback (most recent call last):
    fedpresence.errors.BadRequest: forge: must be one of signature, key_id, origin, destination, body, missing
    """
    fields = Fields(obj, "an order", {"to", "edus", "content", "txn_id", "forge", "claim"})
    to = _server_name(fields, "to")
    if to is None:
        raise complaint("to", "must be there: the server to send to")
    if ("edus" in fields) == ("content" in fields):
        raise complaint("edus", "one of edus and content must be there")
    key = "edus" if "edus" in fields else "content"
    try:
        encode_canonical_json(fields.get(key))
    except (ValueError, RecursionError) as error:
        raise complaint(key, "cannot be written as JSON") from error
    edus = fields.array("edus")
    if "edus" in fields and edus is None:
        raise complaint("edus", "must be an array")
    forge = fields.text("forge")
    if forge is not None and forge not in FORGERIES:
        raise complaint("forge", f"must be one of {', '.join(FORGERIES)}")
    claim = _server_name(fields, "claim")
    if claim is not None and forge != "origin":
        raise complaint("claim", "is for the forgery origin alone")
    return SendOrder(
        to=to,
        edus=None if edus is None else tuple(edus),
        content=fields.get("content"),
        txn_id=_txn_id(fields),
        forge=forge,
        claim=claim,
    )


def encode_answered(answered: Answered) -> dict[str, object]:
    """What came back, as plain JSON; `reason` only where nothing came."""
    encoded: dict[str, object] = {"status": answered.status, "body": answered.body}
    if answered.reason:
        encoded["reason"] = answered.reason
    return encoded


def _txn_id(fields: Fields) -> str | None:
    txn_id = fields.text("txn_id")
    if txn_id == "":
        raise complaint("txn_id", "must not be empty")
    return txn_id


def _server_name(fields: Fields, key: str) -> ServerName | None:
    text = fields.text(key)
    if text is None:
        return None
    try:
        return parse_server_name(text)
    except BadRequest as error:
        raise complaint(key, error.message) from error
