"""Another homeserver, made of the field's libraries alone: it does exactly what it is told.

Always true: nothing here is fedpresence's. What it signs is signed by `signedjson`, what it speaks is
`http.server` and plain sockets with `ssl`; so what it is believed, another implementation is believed too.
"""

import base64
import contextlib
import itertools
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any

from signedjson.key import encode_verify_key_base64, generate_signing_key, get_verify_key
from signedjson.sign import sign_json
from signedjson.types import SigningKey

TIMEOUT_S = 15.0
DAY_MS = 86_400_000
SEND = "/_matrix/federation/v1/send/"
NO_BODY = object()

_SOURCES = (f"198.18.{n // 250 % 250}.{n % 250 + 1}" for n in itertools.count())


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back; status 0 where nothing did before the connection ended."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""

    @property
    def json(self) -> Any:
        """The body, parsed; an empty object where it is no JSON."""
        try:
            return json.loads(self.body)
        except ValueError:
            return {}

    def __str__(self) -> str:
        if self.status == 0:
            return "no answer"
        errcode = self.json.get("errcode", "") if isinstance(self.json, dict) else ""
        return f"{self.status} {errcode}".strip()


class Wire:
    """One TLS connection to a server, byte by byte."""

    def __init__(self, port: int, server_name: str, ca_file: Path) -> None:
        context = ssl.create_default_context(cafile=str(ca_file))
        plain = socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_S)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = context.wrap_socket(plain, server_hostname=server_name)
        self._reader = self._socket.makefile("rb")

    def __enter__(self) -> "Wire":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def send(self, data: bytes) -> None:
        """These bytes; where the other side has gone already, as much of them as it took."""
        with contextlib.suppress(OSError):
            self._socket.sendall(data)

    def answer(self, data: bytes = b"") -> Answer:
        """Send, and read one answer."""
        self.send(data)
        try:
            return self._answer()
        except (OSError, ValueError):
            return Answer(0)

    def end(self) -> bool:
        """Whether the other side has ended the connection, now or in a moment."""
        try:
            return self._reader.read(1) == b""
        except OSError:
            return True

    def close(self) -> None:
        """Hang up, without courtesy."""
        with contextlib.suppress(OSError):
            self._reader.close()
            self._socket.close()

    def _answer(self) -> Answer:
        line = self._reader.readline(1000)
        if not line:
            return Answer(0)
        status = int(line.split()[1])
        headers = {}
        while (line := self._reader.readline(10_000)) not in (b"\r\n", b""):
            name, _, value = line.decode("latin-1").partition(":")
            headers[name.strip().lower()] = value.strip()
        body = self._reader.read(int(headers.get("content-length", "0")))
        return Answer(status, headers, body)


@dataclass(frozen=True, slots=True)
class Reply:
    """What a peer's key server says: `pieces` one after the other, `pause_s` apart; `raw`: no HTTP around."""

    pieces: Iterable[bytes]
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    pause_s: float = 0.0


class Peer:
    """A homeserver with a name, a signing key, and a port where it answers for its keys.

    `keys` makes the answer to `GET /_matrix/key/v2/server`; None is silence. Transactions sent to it are
    kept in `received`, and answered with the status that `take` says.
    """

    def __init__(
        self,
        name: str,
        certificate: tuple[Path, Path],
        keys: "Callable[[Peer], Reply | None] | None" = None,
        *,
        tls: bool = True,
    ) -> None:
        self.name = name
        self.signing_key: SigningKey = generate_signing_key("p1")
        self.received: list[dict[str, Any]] = []
        self.take: Callable[[], int] = lambda: 200
        self.key_requests = 0
        self.closing = threading.Event()
        self._keys = keys or Peer.honest_keys
        self._txn_ids = (f"{name}-{int(time.time())}-{n}" for n in itertools.count())
        self._server = _Server(self, certificate if tls else None)
        self.port: int = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        """Answer nobody any more."""
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()

    # --- keys ---------------------------------------------------------------------------------------

    def key_object(self, *signers: SigningKey, **changes: object) -> dict[str, Any]:
        """The signed key object, with `changes`; by our own key unless others sign."""
        key = self.signing_key
        unsigned: dict[str, Any] = {
            "server_name": self.name,
            "verify_keys": verify_keys(key),
            "old_verify_keys": {},
            "valid_until_ts": now_ms() + DAY_MS,
        }
        signed = unsigned | changes
        for signer in signers or (key,):
            signed = sign_json(signed, self.name, signer)
        return signed

    def honest_keys(self) -> Reply:
        """What `/_matrix/key/v2/server` should say."""
        return Reply([json.dumps(self.key_object()).encode()])

    # --- requests -----------------------------------------------------------------------------------

    def next_txn_id(self) -> str:
        """A transaction ID that was not used before."""
        return next(self._txn_ids)

    def transaction(self, *edus: object, **changes: object) -> dict[str, Any]:
        """The body of a transaction."""
        body: dict[str, Any] = {
            "origin": self.name,
            "origin_server_ts": now_ms(),
            "pdus": [],
            "edus": [*edus],
        }
        return body | changes

    def authorization(
        self,
        destination: str,
        uri: str,
        content: object = NO_BODY,
        *,
        method: str = "PUT",
        key: SigningKey | None = None,
        origin: str | None = None,
    ) -> dict[str, str]:
        """The parameters of an `X-Matrix` header, signed by plain `signedjson`."""
        key, origin = key or self.signing_key, origin or self.name
        request: dict[str, Any] = {"method": method, "uri": uri, "origin": origin, "destination": destination}
        if content is not NO_BODY:
            request["content"] = content
        key_id = f"{key.alg}:{key.version}"
        sig = sign_json(request, origin, key)["signatures"][origin][key_id]
        return {"origin": origin, "destination": destination, "key": key_id, "sig": sig}

    def request(
        self,
        destination: str,
        content: object,
        *,
        txn_id: str | None = None,
        uri: str | None = None,
        method: str = "PUT",
        body: bytes | None = None,
        authorization: Iterable[bytes] | None = None,
        headers: Iterable[str] = (),
        length: int | None = None,
        source: str | None = None,
    ) -> bytes:
        """A whole signed request. What is given instead of what belongs there is sent as it is given.

        `source` is the address that a reverse proxy saw it come from; each request has one of its own.
        """
        uri = uri if uri is not None else SEND + (txn_id if txn_id is not None else self.next_txn_id())
        body = body if body is not None else json.dumps(content).encode()
        if authorization is None:
            authorization = [x_matrix(self.authorization(destination, uri, content, method=method))]
        lines = [
            f"{method} {uri} HTTP/1.1".encode(),
            f"Host: {destination}".encode(),
            f"X-Forwarded-For: {source or next(_SOURCES)}".encode(),
            b"Content-Type: application/json",
            *(b"Authorization: " + value for value in authorization),
            *(header.encode("latin-1") for header in headers),
        ]
        if not any(line.lower().startswith(b"transfer-encoding") for line in lines):
            lines.append(f"Content-Length: {len(body) if length is None else length}".encode())
        return b"\r\n".join(lines) + b"\r\n\r\n" + body

    # --- what its port does -------------------------------------------------------------------------

    def answer_keys(self) -> Reply | None:
        """The answer about our keys."""
        self.key_requests += 1
        return self._keys(self)

    def __repr__(self) -> str:
        return f"Peer({self.name})"


def x_matrix(parameters: Mapping[str, str]) -> bytes:
    """The `Authorization` header of these parameters, as the specification writes it."""
    return b"X-Matrix " + b",".join(
        f'{name}="{value}"'.encode("latin-1") for name, value in parameters.items()
    )


def verify_keys(*keys: SigningKey) -> dict[str, dict[str, str]]:
    """The public halves, as they stand in a key object."""
    return {
        f"{key.alg}:{key.version}": {"key": encode_verify_key_base64(get_verify_key(key))} for key in keys
    }


def padded(sig: str) -> str:
    """The same Base64, with the padding that Matrix leaves out."""
    return base64.b64encode(base64.b64decode(sig + "==")).decode()


def now_ms() -> int:
    """Unix time."""
    return int(time.time() * 1000)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, peer: Peer, certificate: tuple[Path, Path] | None) -> None:
        self._context: ssl.SSLContext | None = None
        if certificate is not None:
            key_file, certificate_file = certificate
            self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._context.load_cert_chain(certificate_file, key_file)
        super().__init__(("127.0.0.1", 0), _handler_of(peer))

    def get_request(self) -> tuple[Any, Any]:
        accepted, address = super().get_request()
        if self._context is None:
            return accepted, address
        # The handshake comes with the first read, in the connection's own thread.
        return self._context.wrap_socket(accepted, server_side=True, do_handshake_on_connect=False), address

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Who hangs up on us is no news."""


def _handler_of(peer: Peer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            """Our keys, as told."""
            reply = peer.answer_keys() if self.path == "/_matrix/key/v2/server" else Reply([b"{}"], 404)
            self.close_connection = True
            if reply is None:
                peer.closing.wait()
                return
            self.send_response(reply.status)
            for name, value in reply.headers.items():
                self.send_header(name, value)
            self.send_header("Connection", "close")
            self.end_headers()
            for piece in reply.pieces:
                self.wfile.write(piece)
                if reply.pause_s and peer.closing.wait(reply.pause_s):
                    return

        def do_PUT(self) -> None:
            """Take a transaction, like every homeserver does, whatever is in it; or as told."""
            peer.received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            data = b'{"pdus":{}}'
            self.send_response(peer.take())
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:
            """Nobody reads it."""

    return Handler
