"""Servers that join a room of a homeserver, as plainly as can be: `make_join`, a signed event, `send_join`.

Sharing a room is what makes a homeserver send presence. Source: Matrix server-server API, "Joining Rooms",
"Calculating the content hash for an event", "Signing events"; room versions 1 to 10, "Redactions".
"""

import asyncio
import hashlib
import json
import ssl
import time
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from canonicaljson import encode_canonical_json
from unpaddedbase64 import encode_base64

from benchmarks.peers import Peer, read_message

ROOM_VERSION = "10"
# What is left of an event of this version when it is redacted: these are signed.
_KEPT = frozenset(
    {"type", "room_id", "sender", "state_key", "prev_state", "content", "hashes", "signatures", "depth"}
    | {"prev_events", "auth_events", "origin", "origin_server_ts", "membership"}
)
_KEPT_CONTENT = ("membership", "join_authorised_via_users_server")  # of a membership


async def join_room(peers: Sequence[Peer], room_id: str, server_name: str, port: int, ca_file: str) -> None:
    """`@observer` of each server joins, one after the other."""
    context = ssl.create_default_context(cafile=ca_file)
    for peer in peers:
        await _join_one(peer, room_id, server_name, port, context)


async def _join_one(peer: Peer, room_id: str, server_name: str, port: int, context: ssl.SSLContext) -> None:
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", port, ssl=context, server_hostname=server_name.partition(":")[0]
    )

    async def ask(method: str, uri: str, content: object = None) -> Any:
        writer.write(peer.request(method, uri, server_name, content))
        answer = await read_message(reader)
        if " 200 " not in answer.first_line:
            raise ConnectionError(f"{uri}: {answer.first_line} {answer.body[:200]!r}")
        return json.loads(answer.body)

    user = quote(f"@observer:{peer.name}", safe="")
    room = quote(room_id, safe="")
    made = await ask("GET", f"/_matrix/federation/v1/make_join/{room}/{user}?ver={ROOM_VERSION}")
    event = made["event"] | {"origin": peer.name, "origin_server_ts": int(time.time() * 1000)}
    await ask("PUT", f"/_matrix/federation/v2/send_join/{room}/$join", signed_join(peer, event))
    writer.close()


def signed_join(peer: Peer, event: dict[str, Any]) -> dict[str, Any]:
    """The event with its content hash and our signature over what would be left of it when redacted."""
    bare = {key: value for key, value in event.items() if key not in ("unsigned", "signatures", "hashes")}
    digest = hashlib.sha256(encode_canonical_json(bare)).digest()
    hashed = bare | {"hashes": {"sha256": encode_base64(digest)}}
    left = {key: value for key, value in hashed.items() if key in _KEPT}
    left["content"] = {key: value for key, value in bare["content"].items() if key in _KEPT_CONTENT}
    return hashed | {"signatures": peer.sign(left)["signatures"]}
