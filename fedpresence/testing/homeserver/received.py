"""What a fake homeserver was asked, and what it thinks of the signature.

Always true: a request counts as verified only where every `X-Matrix` header of it was checked against a
key that its origin publishes.
"""

from dataclasses import dataclass
from urllib.parse import unquote

SEND_PATH = "/_matrix/federation/v1/send/"
KEY_PATH = "/_matrix/key/v2/server"
VERSION_PATH = "/_matrix/federation/v1/version"


@dataclass(frozen=True, slots=True)
class ReceivedRequest:
    """One request, as it came.

    `uri` is exactly what stood in the request line. `origin` is who it claims to be from, None where it
    has no `X-Matrix` header that can be read; `txn_id` is None for everything but a transaction.
    `content` is the parsed body, None where there is none or it is no JSON. `reason` says why it is not
    verified.
    """

    method: str
    uri: str
    origin: str | None
    txn_id: str | None
    content: object
    verified: bool
    reason: str
    received_ms: int

    @property
    def edus(self) -> list[dict[str, object]]:
        """The EDUs of a transaction, those that are objects; none where it is something else."""
        edus = (
            self.content.get("edus") if isinstance(self.content, dict) and self.txn_id is not None else None
        )
        return [edu for edu in edus if isinstance(edu, dict)] if isinstance(edus, list) else []


def txn_id_of(method: str, uri: str) -> str | None:
    """The transaction's ID; None where it is no transaction.

    >>> txn_id_of("PUT", "/_matrix/federation/v1/send/fp%2F1/")
    'fp/1'
    """
    path = uri.partition("?")[0]
    if method != "PUT" or not path.startswith(SEND_PATH):
        return None
    return unquote(path.removeprefix(SEND_PATH).removesuffix("/"))


def encode_received(request: ReceivedRequest) -> dict[str, object]:
    """The request as plain JSON: its fields, by their names."""
    return {
        "method": request.method,
        "uri": request.uri,
        "origin": request.origin,
        "txn_id": request.txn_id,
        "content": request.content,
        "verified": request.verified,
        "reason": request.reason,
        "received_ms": request.received_ms,
    }
