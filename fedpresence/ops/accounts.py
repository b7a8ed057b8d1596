"""What the command line does to users in the database: access tokens, and the end of an account.

Always true: a token is told once, to whoever asked for it, and only its hash is kept; only users of our
own server name are given one; token commands work beside a running daemon, which honours them at once.

Source: contract.md, "Command line".
"""

import secrets
import string
from collections.abc import Sequence
from typing import Protocol

from twisted.internet.defer import Deferred

from fedpresence.engine.effects import Durable, Effect
from fedpresence.engine.events import Event, UserDeactivated
from fedpresence.errors import BadRequest
from fedpresence.ids import DeviceID, ServerName, UserID, is_compliant, parse_user_id, server_of
from fedpresence.storage.store import Stored, TokenOwner

TOKEN_BYTES = 32  # 256 bits: nobody guesses it
TOKEN_PREFIX = "fp_"  # never a leading dash, and secret scanners know it
MAX_DEVICE_ID_BYTES = 255  # as a Matrix identifier


class Tokens(Protocol):
    """The store, as far as tokens go."""

    def add_token(self, token: str, owner: TokenOwner, now_ms: int) -> Deferred[bool]:
        """See Store."""

    def list_tokens(self, user_id: UserID | None) -> Deferred[list[tuple[UserID, DeviceID | None, int]]]:
        """See Store."""

    def revoke_tokens(
        self, user_id: UserID, device_id: DeviceID | None, *, all_devices: bool
    ) -> Deferred[list[DeviceID | None]]:
        """See Store."""


class Accounts(Tokens, Protocol):
    """The store, as far as ending an account goes."""

    def load(self) -> Deferred[Stored]:
        """See Store."""

    def commit(self, effects: Sequence[Durable], now_ms: int) -> Deferred[None]:
        """See Store."""


class Decider(Protocol):
    """The engine, as far as ending an account goes."""

    def load(self, stored: Stored, now_ms: int) -> object:
        """Begin with what was stored."""

    def receive(self, event: Event, now_ms: int) -> Sequence[Effect]:
        """Decide."""

    def user_exists(self, user_id: UserID) -> bool:
        """Whether this is a local user."""


def parse_local_user(text: str, server_name: ServerName) -> UserID:
    """`text` as a user of ours that may be made; BadRequest otherwise."""
    user_id = parse_user_id(text)
    if server_of(user_id) != server_name:
        raise BadRequest("M_INVALID_PARAM", f"{text} is not a user of {server_name}")
    if not is_compliant(user_id):
        raise BadRequest("M_INVALID_PARAM", f"{text} has characters that a user ID may not have")
    return user_id


def parse_device_id(text: str) -> DeviceID:
    """`text` as a device ID; BadRequest otherwise."""
    if not text or not text.isprintable() or len(text.encode("utf-8", "replace")) > MAX_DEVICE_ID_BYTES:
        raise BadRequest(
            "M_INVALID_PARAM", f"A device ID is 1 to {MAX_DEVICE_ID_BYTES} bytes of printable text"
        )
    return DeviceID(text)


def new_device_id() -> DeviceID:
    """A device ID of the usual shape, so that two tokens of one user are two devices."""
    return DeviceID("".join(secrets.choice(string.ascii_uppercase) for _ in range(10)))


async def add_token(store: Tokens, user_id: UserID, device_id: DeviceID | None, now_ms: int) -> str:
    """A new access token of the user, who exists from now on; BadRequest for a deactivated one."""
    token = TOKEN_PREFIX + secrets.token_urlsafe(TOKEN_BYTES)
    if not await store.add_token(token, TokenOwner(user_id, device_id), now_ms):
        raise BadRequest("M_USER_DEACTIVATED", f"{user_id} is deactivated and gets no token", status=403)
    return token


async def revoke_tokens(store: Tokens, user_id: UserID, device_id: DeviceID | None) -> list[DeviceID | None]:
    """The devices whose tokens are gone now; `device_id` None means all of the user's."""
    return await store.revoke_tokens(user_id, device_id, all_devices=device_id is None)


async def deactivate(store: Accounts, engine: Decider, user_id: UserID, now_ms: int) -> None:
    """No tokens, grants ended, lists dropped, with no daemon running; BadRequest for an unknown user.

    What other servers must be told is owed by the rows, and leaves when the daemon starts.
    """
    engine.load(await store.load(), now_ms)
    if not engine.user_exists(user_id):
        raise BadRequest("M_NOT_FOUND", f"There is no user {user_id}", status=404)
    await store.revoke_tokens(user_id, None, all_devices=True)
    effects = engine.receive(UserDeactivated(user_id), now_ms)
    await store.commit([effect for effect in effects if isinstance(effect, Durable)], now_ms)
