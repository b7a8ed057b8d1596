"""Hostile requests: HTTP bent out of shape, and connections that take their time.

Always true: wherever a request is in them, it carries an EDU that would end a grant of ours.
"""

import json
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.scenarios.hostile_head import DRIPPING, SILENT, UNAUTHORIZED
from tests.scenarios.peer import SEND, Answer, Peer, x_matrix
from tests.scenarios.scene import HARM, HERE, MAX_BODY, Row, Scene


def raw(sent: str, answers: str | tuple[str, ...], rule: str, *makers: Callable[[Peer], bytes]) -> Row:
    """Bytes as they are, each on a connection of its own."""

    def play(scene: Scene) -> Iterator[Answer]:
        for maker in makers:
            yield scene.ask(maker(scene["there.test"]))

    return Row(sent, (answers,) if isinstance(answers, str) else answers, rule, play, len(makers))


def harm(**changes: Any) -> Callable[[Peer], bytes]:
    """A whole good request of there.test, changed."""
    return lambda peer: peer.request(HERE, peer.transaction(HARM), **changes)


def head(*lines: str) -> Callable[[Peer], bytes]:
    """A request of these lines."""
    return lambda _: "\r\n".join((*lines, "", "")).encode("latin-1")


def _untouched_body(scene: Scene) -> Iterator[Answer]:
    """The head alone: the answer comes without a byte of the body, and no invitation to send it."""
    peer = scene["there.test"]
    for length, origin in ((MAX_BODY, "evil.test"), (MAX_BODY + 1, "there.test"), (10**18, "there.test")):
        body = peer.transaction(HARM)
        good = peer.authorization(HERE, SEND + "head", body) | {"origin": origin}
        if length == MAX_BODY:
            good["key"] = "ed25519:nobodys"
        yield scene.ask(
            peer.request(
                HERE,
                body,
                uri=SEND + "head",
                body=b"",
                authorization=[x_matrix(good)],
                headers=["Expect: 100-continue"],
                length=length,
            )
        )


def _chunks(scene: Scene) -> Iterator[Answer]:
    """A body that never says how long it is."""
    peer = scene["there.test"]
    with scene.wire() as wire:
        chunked = ["Transfer-Encoding: chunked"]
        wire.send(peer.request(HERE, peer.transaction(HARM), body=b"", headers=chunked))
        for _ in range(MAX_BODY // 65_536 + 1):
            wire.send(b"10000\r\n" + b"[" * 65_536 + b"\r\n")
        yield wire.answer()


def _broken_off(scene: Scene) -> Iterator[Answer]:
    """More announced than sent, then nothing."""
    peer = scene["there.test"]
    for body in (b"", b'{"edus":'):
        wire = scene.wire()
        wire.send(peer.request(HERE, peer.transaction(HARM), body=body, length=1000))
        wire.close()
        yield Answer(0)


def _continued(scene: Scene) -> Iterator[Answer]:
    """Expect: 100-continue, invited, and then no JSON."""
    peer = scene["there.test"]
    with scene.wire() as wire:
        body = b"x" * 100
        request = peer.request(HERE, peer.transaction(), body=body, headers=["Expect: 100-continue"])
        yield wire.answer(request[: -len(body)])
        yield wire.answer(body)


def _pipelined(bad: Callable[[Peer], bytes]) -> Callable[[Scene], Iterator[Answer]]:
    def play(scene: Scene) -> Iterator[Answer]:
        """A refusal by the head ends the connection: what came behind it is never parsed."""
        with scene.wire() as wire:
            peer = scene["there.test"]
            yield wire.answer(bad(peer) + peer.request(HERE, peer.transaction(HARM)))
            assert wire.end(), "the connection went on"

    return play


def _behind_nonsense(scene: Scene) -> Iterator[Answer]:
    """Who is told 400 and does not hang up may send on: it costs neither memory nor time."""
    before = _megabytes_of(scene.server.pid)
    for nonsense in (
        b"PUT / HTTP/1.1\r\nContent-Length: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nX: " + b"x" * 20_000,
    ):
        with scene.wire() as wire:
            yield wire.answer(nonsense)
            for _ in range(32):
                wire.send(b"a: b\r\n" * 170_000)  # a megabyte of headers
            began = time.monotonic()
            assert scene.send("there.test").status == 200
            assert time.monotonic() - began < 2.0
    assert _megabytes_of(scene.server.pid) - before < 10


def _megabytes_of(pid: int) -> int:
    status = Path(f"/proc/{pid}/status")
    if not status.exists():
        return 0  # no Linux: only the time is looked at
    (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) // 1024


def _smuggled(scene: Scene) -> Iterator[Answer]:
    """A good transaction inside the body of a bad one, and a body that goes on behind its length."""
    peer = scene["there.test"]
    inner = peer.request(HERE, peer.transaction(HARM))
    with scene.wire() as wire:
        yield wire.answer(peer.request(HERE, {}, body=inner))
        version = wire.answer(b"GET /_matrix/federation/v1/version HTTP/1.1\r\nHost: h\r\n\r\n")
        assert version.status == 200, "the connection is out of step"
        body = peer.transaction(HARM)
        yield wire.answer(peer.request(HERE, body, body=json.dumps(body).encode() + b"\r\n\r\n", length=10))
        yield wire.answer()
        assert wire.end(), "the connection went on"


def _plain(scene: Scene) -> Iterator[Answer]:
    """No TLS at the TLS port."""
    for data in (
        b"GET / HTTP/1.1\r\nHost: here.test\r\n\r\n",
        b"\x16\x03\x01" + b"\xff" * 600,
        b"\x00" * 100,
    ):
        with socket.create_connection(("127.0.0.1", scene.server.federation_port), timeout=10) as plain:
            plain.sendall(data)
            plain.shutdown(socket.SHUT_WR)
            try:
                got = plain.recv(4096)
            except OSError:
                got = b""
            assert not got.startswith(b"HTTP"), got
            yield Answer(0)


def _trickle(scene: Scene) -> Iterator[Answer]:
    """Six seconds of single bytes, then gone: long enough to be in everybody's way."""
    data = harm()(scene["there.test"])
    wire = scene.wire()
    for byte in data[:60]:
        wire.send(bytes([byte]))
        time.sleep(0.1)  # slowness is the attack
    wire.close()
    yield Answer(0)


TRICKLE = Row(
    "a request at ten bytes a second that is never finished",
    ("no answer",),
    "a connection waits alone; its request has 60 s from the first byte to the last",
    _trickle,
)
SLOW = (SILENT, DRIPPING, TRICKLE)


def _others_meanwhile(scene: Scene) -> Iterator[Answer]:
    assert all(scene.is_waiting(row) for row in SLOW), "one ended too early to show anything"
    began = time.monotonic()
    with scene.wire() as wire:
        peer = scene["there.test"]
        for _ in range(10):
            yield wire.answer(peer.request(HERE, peer.transaction()))
    assert time.monotonic() - began < 5.0, "somebody else's slowness was felt"


MEANWHILE = Row(
    "good transactions while key servers are silent and a request trickles in",
    ("200",),
    "Z-4: others are not delayed",
    _others_meanwhile,
    10,
)

UNKNOWN_PATHS = (
    "/_matrix/federation/v1/send",
    "/_matrix/federation/v1/send/",
    "/_matrix/federation/v1/send//",
    "/_matrix/federation/v1/send/1/2",
    "/_matrix/federation/v1/send/1//",
    "/_matrix/federation/v2/send/1",
    "/_matrix/federation/v1/",
    "//_matrix/federation/v1/send/1",
    "/_matrix/federation/v1/../v1/send/1",
    "/_matrix/federation/v1/query/presence",
    "/_matrix/client/v3/presence/@bob:here.test/status",
    "/_fedpresence/admin/v1/status",
    "/_fedpresence/admin/v1/users/@bob:here.test",
    "/metrics",
    "/",
)

BENT_HTTP = (
    raw(
        "another method on `/send`: GET, POST, DELETE, one that nobody knows",
        "405 M_UNRECOGNIZED",
        "F:7.1",
        *(harm(method=method) for method in ("GET", "POST", "DELETE", "PATCH", "BREW", "put")),
    ),
    raw(
        "paths that are not ours to serve here, the admin API among them",
        "404 M_UNRECOGNIZED",
        "F:7.1, F:8; listeners serve what they are given and no more",
        *(harm(uri=uri) for uri in UNKNOWN_PATHS),
    ),
    raw(
        "a request target that is a whole URL, a star, a name",
        ("404 M_UNRECOGNIZED", "400 M_UNKNOWN"),
        "F:6.1: the URI begins with /_matrix/",
        harm(uri=f"https://{HERE}{SEND}1"),
        harm(uri="*"),
        harm(uri="here.test"),
    ),
    raw(
        "a transaction ID of 256 bytes, or one that is not UTF-8",
        "400 M_INVALID_PARAM",
        "ours: kept for a day, so bounded",
        harm(txn_id="x" * 256),
        harm(txn_id="%C3%A9" * 128),
        harm(txn_id="%ff%fe"),
    ),
    raw(
        "a line that is no request: another protocol, HTTP/2, HTTP/0.9, no version, no path",
        "400 M_UNKNOWN",
        "HTTP/1.1 only",
        head("PRI * HTTP/2.0", "", "SM", ""),
        head("GET /"),
        head("SSH-2.0-client"),
        head("GET / HTTP/1.1 x"),
        head("PUT  HTTP/1.1", "Content-Length: 0"),
    ),
    raw(
        "headers beyond reason: 501 of them, one of 20 000 bytes, one without a colon, a control",
        "400 M_UNKNOWN",
        "RFC 9110, 5.5; at most 500 headers, of 16 KiB",
        head("GET / HTTP/1.1", *(f"X-{n}: 1" for n in range(501))),
        head("GET / HTTP/1.1", "X: " + "x" * 20_000),
        head("GET /" + "x" * 20_000 + " HTTP/1.1"),
        head("GET / HTTP/1.1", "no colon here"),
        head("GET / HTTP/1.1", "X: \x01"),
    ),
    raw(
        "a `Content-Length` that is negative, no number, given twice, of 5000 digits, or beside chunks",
        "400 M_UNKNOWN",
        "RFC 9112: request smuggling",
        *(
            head("PUT /_matrix/federation/v1/send/1 HTTP/1.1", "Host: here.test", *lines)
            for lines in (
                ("Content-Length: -1",),
                ("Content-Length: 0x10",),
                ("Content-Length: +5",),
                ("Content-Length: 1", "Content-Length: 2"),
                ("Content-Length: " + "9" * 5000,),
                ("Content-Length: 3", "Transfer-Encoding: chunked"),
                ("Transfer-Encoding: gzip, chunked",),
            )
        ),
    ),
    raw(
        "chunks that are none",
        "400 M_UNKNOWN",
        "RFC 9112",
        *(
            harm(body=chunks, headers=["Transfer-Encoding: chunked"])
            for chunks in (b"zz\r\n", b"-1\r\n", b"5\r\nabcdefgh\r\n", b"1;" + b"x" * 100_000 + b"\r\n")
        ),
    ),
    Row(
        "the head alone, with `Expect: 100-continue`: of a body too large, or under a key that nobody has",
        ("401 M_UNAUTHORIZED", "413 M_TOO_LARGE"),
        "Z-1: decided by the head; not a byte of the body is invited or read",
        _untouched_body,
        3,
    ),
    Row(
        "chunks without an end",
        ("413 M_TOO_LARGE",),
        "F:7.1: counted as they come",
        _chunks,
    ),
    Row(
        "`Expect: 100-continue`, and then no JSON",
        ("100", "400 M_NOT_JSON"),
        "Z-1: invited only once the head is good",
        _continued,
        2,
    ),
    Row(
        "more announced than sent, then gone",
        ("no answer",),
        "half a transaction is none",
        _broken_off,
        2,
    ),
    Row(
        "a good transaction pipelined behind one without a signature",
        UNAUTHORIZED,
        "Z-1: an early refusal closes; nothing behind it is parsed",
        _pipelined(harm(authorization=[])),
    ),
    Row(
        "a good transaction pipelined behind a broken head",
        ("400 M_UNKNOWN",),
        "nothing behind it is parsed",
        _pipelined(head("PUT / HTTP/1.1", "Content-Length: x")),
    ),
    Row(
        "64 megabytes of headers behind a broken head, and behind a line without an end",
        ("400 M_UNKNOWN",),
        "thrown away unread: over TLS a close waits for the other side",
        _behind_nonsense,
        2,
    ),
    Row(
        "a good transaction smuggled in the body of a bad one, and behind a `Content-Length` that lies",
        ("400 M_NOT_JSON", "400 M_UNKNOWN"),
        "a body is a body; what follows it is a request of its own, and no HTTP",
        _smuggled,
        3,
    ),
    Row(
        "no TLS at the TLS port",
        ("no answer",),
        "F:5.2",
        _plain,
        3,
    ),
)
