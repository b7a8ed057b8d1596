"""Which server signed this request, or why we do not believe it.

Always true:
- what the head claims is only a claim; an origin is believed after its signature over the whole request
  was checked with a key that holds now;
- of several `Authorization` headers all have the same origin, none whose key we can get is wrong, and at
  least one is right.

Source: F:6.2, F:6.3; Z-1 for the order of the steps.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from fedpresence.engine.settings import ServerLists
from fedpresence.errors import BadRequest, NotAuthentic
from fedpresence.ids import KeyID, ServerName
from fedpresence.wire.signing import VerifyKey, XMatrix, parse_x_matrix, verify_request

MAX_HEADERS = 8  # one per signing key: nobody has more, and each may cost a look-up and a check


class KeyLookup(Protocol):
    """Who knows other servers' keys."""

    def key_at_hand(self, server_name: ServerName, key_id: KeyID) -> VerifyKey | None:
        """A key that holds now; None where it takes more than a look."""

    async def verify_key(self, server_name: ServerName, key_id: KeyID, source: str) -> VerifyKey:
        """A key that holds now, for the address `source`; NotAuthentic, or BadRequest 429."""


@dataclass(frozen=True, slots=True)
class Claim:
    """What a request's head says of its origin; nothing of it is proven."""

    origin: ServerName
    headers: tuple[XMatrix, ...]


@dataclass(frozen=True, slots=True)
class Credentials:
    """A claim, and the keys that can prove it."""

    origin: ServerName
    signatures: tuple[tuple[XMatrix, VerifyKey], ...]


class OriginCheck:
    """Believes nothing but signatures, and takes requests only from servers that the lists permit."""

    def __init__(self, server_name: ServerName, keys: KeyLookup, servers: ServerLists) -> None:
        self.server_name = server_name
        self._keys = keys
        self._servers = servers

    def reload(self, servers: ServerLists) -> None:
        """New server lists, from the next request on (Z-9)."""
        self._servers = servers

    def claim(self, authorization: Sequence[bytes]) -> Claim:
        """What the `Authorization` headers say. No key is looked for, no signature checked.

        NotAuthentic where there is no readable `X-Matrix` header, several disagree or the destination is
        not us; BadRequest 400 for a parameter that stands twice, 403 for an origin not permitted.
        """
        ours = [header for header in authorization if header.lstrip()[:8].lower() == b"x-matrix"]
        if not ours:
            raise NotAuthentic("Missing Authorization header of the scheme X-Matrix")
        if len(ours) > MAX_HEADERS:
            raise NotAuthentic("Too many Authorization headers")
        headers = tuple([parse_x_matrix(header) for header in ours])
        origin = headers[0].origin
        for header in headers:
            if header.origin != origin:
                raise NotAuthentic("The Authorization headers name several origins")
            if header.destination is not None and header.destination != self.server_name:
                raise NotAuthentic("The request is for another server")
        if origin != self.server_name and not self._servers.permit(origin):
            raise BadRequest("M_FORBIDDEN", "This server does not talk to yours", status=403)
        return Claim(origin, headers)

    def credentials_at_hand(self, claim: Claim) -> Credentials | None:
        """The same as `credentials`, where all keys are at hand."""
        found = []
        for header in claim.headers:
            key = self._keys.key_at_hand(header.origin, header.key_id)
            if key is None:
                return None
            found.append((header, key))
        return Credentials(claim.origin, tuple(found))

    async def credentials(self, claim: Claim, source: str) -> Credentials:
        """The keys that `claim` needs: those that can be had. NotAuthentic where that is none.

        BadRequest 429 where keys may not be fetched just now.
        """
        found = []
        refusal: BadRequest | None = None
        for header in claim.headers:
            try:
                found.append((header, await self._keys.verify_key(header.origin, header.key_id, source)))
            except BadRequest as error:
                refusal = error
        if not found:
            raise refusal or NotAuthentic("No key")
        return Credentials(claim.origin, tuple(found))

    def verify(
        self, credentials: Credentials, *, method: str, uri: str, content: object, body: bytes | None = None
    ) -> ServerName:
        """The origin, proven; NotAuthentic where one of the signatures is wrong.

        `body` is what `content` was decoded from, where that is at hand.
        """
        for header, verify_key in credentials.signatures:
            verify_request(
                header,
                verify_key,
                method=method,
                uri=uri,
                destination=self.server_name,
                content=content,
                body=body,
            )
        return credentials.origin
