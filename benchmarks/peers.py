"""Other homeservers, played as plainly as can be: HTTP/1.1 over TLS, signatures by signedjson.

Nothing of fedpresence is used here, so that a mistake of ours in signing or in HTTP is not made twice.
All server names that one process plays share a host and differ in their port (`there.test:1`,
`there.test:2`), so one certificate and one listener serve them all; who is meant, `Host` says.

Source: Matrix server-server API, "Request Authentication", "Retrieving server keys".
"""

import asyncio
import json
import re
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from canonicaljson import encode_canonical_json
from signedjson.key import generate_signing_key, get_verify_key
from signedjson.sign import sign_json, verify_signed_json
from signedjson.types import SigningKey, VerifyKey
from unpaddedbase64 import encode_base64

_X_MATRIX = re.compile(r'(\w+)="([^"]*)"')
_DAY_MS = 86_400_000


@dataclass(frozen=True, slots=True)
class Message:
    """A request or an answer: its first line, headers by lower-case name, body."""

    first_line: str
    headers: Mapping[str, str]
    body: bytes
    size: int = 0  # as it came, in bytes


Handler = Callable[[Message], object]
"""What a peer answers with a 200, as a JSON value; an exception is a 400."""


class Peer:
    """One server name with its key."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._key: SigningKey = generate_signing_key("a1")
        self._key_id = f"{self._key.alg}:{self._key.version}"

    def key_object(self) -> dict[str, object]:
        """The answer to `GET /_matrix/key/v2/server`."""
        public = encode_base64(get_verify_key(self._key).encode())
        unsigned: dict[str, object] = {
            "server_name": self.name,
            "verify_keys": {self._key_id: {"key": public}},
            "old_verify_keys": {},
            "valid_until_ts": int(time.time() * 1000) + _DAY_MS,
        }
        return self.sign(unsigned)

    def sign(self, value: dict[str, object]) -> dict[str, object]:
        """The value, and our signature in it."""
        return dict(sign_json(value, self.name, self._key))

    def request(self, method: str, uri: str, destination: str, content: object = None) -> bytes:
        """A signed request, ready to be written; None: without content."""
        to_sign: dict[str, object] = {
            "method": method,
            "uri": uri,
            "origin": self.name,
            "destination": destination,
        }
        if content is not None:
            to_sign["content"] = content
        signature = sign_json(to_sign, self.name, self._key)["signatures"][self.name][self._key_id]
        body = b"" if content is None else encode_canonical_json(content)  # as Synapse sends it
        head = (
            f"{method} {uri} HTTP/1.1\r\nHost: {destination}\r\n"
            f'Authorization: X-Matrix origin="{self.name}",destination="{destination}",'
            f'key="{self._key_id}",sig="{signature}"\r\n'
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        return head.encode("ascii") + body


def verify(message: Message, content: object, keys: Mapping[str, VerifyKey]) -> str:
    """The origin whose signature the request carries; an exception where it does not prove it."""
    claims = dict(_X_MATRIX.findall(message.headers["authorization"]))
    method, uri, _ = message.first_line.split(" ")
    if claims["destination"] != message.headers["host"]:
        raise ValueError("signed for another destination")
    origin: str = claims["origin"]
    signed = {
        "method": method,
        "uri": uri,
        "origin": origin,
        "destination": claims["destination"],
        "content": content,
        "signatures": {origin: {claims["key"]: claims["sig"]}},
    }
    verify_signed_json(signed, origin, keys[claims["key"]])
    return origin


async def listen(port: int, certificate: str, private_key: str, handler: Handler) -> asyncio.Server:
    """Serve `handler` on a port of the loopback interface."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, private_key)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                message = await read_message(reader)
                try:
                    status, body = "200 OK", json.dumps(handler(message)).encode("utf-8")
                except Exception as error:
                    status, body = "400 Bad Request", json.dumps({"error": repr(error)}).encode("utf-8")
                head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\n"
                writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode("ascii") + body)
        except (asyncio.IncompleteReadError, OSError):
            writer.close()

    return await asyncio.start_server(serve, "127.0.0.1", port, ssl=context, backlog=1000)


async def read_message(reader: asyncio.StreamReader) -> Message:
    """The next request or answer; IncompleteReadError where the connection ends."""
    raw = await reader.readuntil(b"\r\n\r\n")
    head = raw.decode("latin-1").split("\r\n")
    pairs = (line.partition(":") for line in head[1:] if line)
    headers = {name.lower(): value.strip() for name, _, value in pairs}
    if headers.get("transfer-encoding", "").lower() == "chunked":
        body = await _read_chunks(reader)
    else:
        body = await reader.readexactly(int(headers.get("content-length", 0)))
    return Message(head[0], headers, body, len(raw) + len(body))


async def _read_chunks(reader: asyncio.StreamReader) -> bytes:
    body = b""
    while length := int((await reader.readuntil(b"\r\n")).partition(b";")[0], 16):
        body += await reader.readexactly(length)
        await reader.readuntil(b"\r\n")
    await reader.readuntil(b"\r\n")  # no trailers
    return body
