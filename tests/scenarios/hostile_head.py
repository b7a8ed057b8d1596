"""Hostile requests, first half: who claims to speak, whose keys prove it, and HTTP bent out of shape.

Always true: each of them carries an EDU that would end a grant of ours, or make a request, if it were
believed.
"""

import socket
import time
from collections.abc import Callable, Iterator

from signedjson.key import generate_signing_key

from tests.scenarios.peer import NO_BODY, SEND, Answer, Peer, Wire, x_matrix
from tests.scenarios.scene import BOB, DROP, FRANK, HERE, INVITE, KEY_SERVERS, MAX_BODY, Row, Scene, list_edu

HARM = list_edu(DROP, FRANK, BOB)
UNAUTHORIZED = ("401 M_UNAUTHORIZED",)
Parameters = dict[str, str]
Sign = Callable[[Peer, str, object], Parameters]


def signed(**changes: str) -> Callable[[Parameters], list[bytes]]:
    """The header of a good signature with some of its parameters changed; '' leaves one out."""

    def header(good: Parameters) -> list[bytes]:
        return [x_matrix({name: value for name, value in (good | changes).items() if value})]

    return header


def written(pattern: str) -> Callable[[Parameters], list[bytes]]:
    """A header written by hand around the parameters of a good one."""
    return lambda good: [pattern.format(**good).encode("latin-1")]


def headers(sent: str, answer: str, rule: str, *makers: Callable[[Parameters], list[bytes]]) -> Row:
    """A good transaction of there.test under these `Authorization` headers, one request each."""

    def play(scene: Scene) -> Iterator[Answer]:
        peer = scene["there.test"]
        for maker in makers:
            body, uri = peer.transaction(HARM), SEND + peer.next_txn_id()
            good = peer.authorization(HERE, uri, body)
            yield scene.ask(peer.request(HERE, body, uri=uri, authorization=maker(good)))

    return Row(sent, (answer,), rule, play, len(makers))


def signatures(sent: str, rule: str, *signs: Sign) -> Row:
    """A transaction of there.test under a signature that was made over something else."""

    def play(scene: Scene) -> Iterator[Answer]:
        peer = scene["there.test"]
        for sign in signs:
            body, uri = peer.transaction(HARM), SEND + peer.next_txn_id()
            good = sign(peer, uri, body) | {"origin": peer.name, "destination": HERE}
            yield scene.ask(peer.request(HERE, body, uri=uri, authorization=[x_matrix(good)]))

    return Row(sent, UNAUTHORIZED, rule, play, len(signs))


def from_peers(sent: str, answer: str, rule: str, *names: str) -> Row:
    """An invite by each of these servers, honestly signed."""

    def play(scene: Scene) -> Iterator[Answer]:
        for name in names:
            yield scene.send(name, list_edu(INVITE, f"@x:{name}", BOB))

    return Row(sent, (answer,), rule, play, len(names))


def raw(sent: str, answers: str | tuple[str, ...], rule: str, *makers: Callable[[Peer], bytes]) -> Row:
    """Bytes as they are, each on a connection of its own."""

    def play(scene: Scene) -> Iterator[Answer]:
        for maker in makers:
            yield scene.ask(maker(scene["there.test"]))

    return Row(sent, (answers,) if isinstance(answers, str) else answers, rule, play, len(makers))


def harm(**changes: object) -> Callable[[Peer], bytes]:
    """A whole good request of there.test, changed."""
    return lambda peer: peer.request(HERE, peer.transaction(HARM), **changes)  # type: ignore[arg-type]


def head(*lines: str) -> Callable[[Peer], bytes]:
    """A request of these lines."""
    return lambda _: "\r\n".join((*lines, "", "")).encode("latin-1")


def _origin(name: str) -> Callable[[Parameters], list[bytes]]:
    return signed(origin=name)


# --- rows that need more than a line -------------------------------------------------------------------


def _reflected(scene: Scene) -> Iterator[Answer]:
    """Names that lead to this machine: a port of ours hears nothing."""
    peer = scene["there.test"]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        for n, host in enumerate(
            ("127.0.0.1", "localhost", "127.1", "0x7f.1", "2130706433", "[::ffff:127.0.0.1]", "0.0.0.0", "[::]")
        ):
            name, body = f"{host}:{port}", peer.transaction(origin=f"{host}:{port}")
            uri = SEND + f"reflected{n}"
            header = x_matrix(peer.authorization(HERE, uri, body, origin=name))
            yield scene.ask(peer.request(HERE, body, uri=uri, authorization=[header]))
        listener.settimeout(0)
        try:
            listener.accept()
        except BlockingIOError:
            return
        raise AssertionError("the daemon connected to a blocked address")


def _amplified(scene: Scene) -> Iterator[Answer]:
    """Five invented origins at once from one address."""
    peer = scene["evil.test"]
    for n in range(1, 6):
        name, uri = f"127.0.0.1:{n}", SEND + f"amplified{n}"
        body = peer.transaction(origin=name)
        header = x_matrix(peer.authorization(HERE, uri, body, origin=name))
        yield scene.ask(peer.request(HERE, body, uri=uri, authorization=[header], source="203.0.113.7"))


def _unknown_keys(scene: Scene) -> Iterator[Answer]:
    """Key IDs nobody has: one look at the server, not one for each."""
    peer = scene["there.test"]
    asked = peer.key_requests
    for n in range(10):
        key = generate_signing_key(f"no{n}")
        body, uri = peer.transaction(HARM), SEND + peer.next_txn_id()
        header = x_matrix(peer.authorization(HERE, uri, body, key=key))
        yield scene.ask(peer.request(HERE, body, uri=uri, authorization=[header]))
    assert peer.key_requests - asked <= 1, "each unknown key ID made a fetch"


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


def _smuggled(scene: Scene) -> Iterator[Answer]:
    """A good transaction inside the body of a bad one, and a body that goes on behind its length."""
    peer = scene["there.test"]
    inner = peer.request(HERE, peer.transaction(HARM))
    with scene.wire() as wire:
        yield wire.answer(peer.request(HERE, {}, body=inner))
        version = wire.answer(b"GET /_matrix/federation/v1/version HTTP/1.1\r\nHost: h\r\n\r\n")
        assert version.status == 200, "the connection is out of step"
        yield wire.answer(peer.request(HERE, peer.transaction(HARM), length=10))
        yield wire.answer()
        assert wire.end(), "the connection went on"


def _plain(scene: Scene) -> Iterator[Answer]:
    """No TLS at the TLS port."""
    for data in (b"GET / HTTP/1.1\r\nHost: here.test\r\n\r\n", b"\x16\x03\x01" + b"\xff" * 600, b"\x00" * 100):
        with socket.create_connection(("127.0.0.1", scene.server.federation_port), timeout=10) as plain:
            plain.sendall(data)
            plain.shutdown(socket.SHUT_WR)
            try:
                got = plain.recv(4096)
            except OSError:
                got = b""
            assert not got.startswith(b"HTTP"), got
            yield Answer(0)


def _silent(scene: Scene) -> Iterator[Answer]:
    for name in ("silent.test", "drip.test"):
        yield scene.send(name, list_edu(INVITE, f"@x:{name}", BOB))


def _trickle(scene: Scene) -> Iterator[Answer]:
    """Six seconds of single bytes, then gone: long enough to be in everybody's way."""
    data = harm()(scene["there.test"])
    wire = scene.wire()
    for byte in data[:60]:
        wire.send(bytes([byte]))
        time.sleep(0.1)  # slowness is the attack
    wire.close()
    yield Answer(0)


SILENT = Row(
    "key servers that never answer, or answer one byte a second, while everything else goes on",
    UNAUTHORIZED,
    "Z-4, Z-5: one deadline for the whole exchange, and nobody else waits for it",
    _silent,
    2,
)
TRICKLE = Row(
    "a request at ten bytes a second that is never finished",
    ("no answer",),
    "a connection waits alone; its request has 60 s from the first byte to the last",
    _trickle,
)
SLOW = (SILENT, TRICKLE)


def _others_meanwhile(scene: Scene) -> Iterator[Answer]:
    assert all(scene.is_waiting(row) for row in SLOW), "begun too early to show anything"
    began = time.monotonic()
    with scene.wire() as wire:
        peer = scene["there.test"]
        for _ in range(10):
            yield wire.answer(peer.request(HERE, peer.transaction()))
    assert time.monotonic() - began < 5.0, "somebody else's slowness was felt"


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

WHO_SPEAKS = (
    headers(
        "no `Authorization` header, an empty one, another scheme",
        *UNAUTHORIZED,
        "F:6.3",
        lambda _: [],
        lambda _: [b""],
        lambda _: [b"Bearer 0123456789abcdef"],
        lambda _: [b"Basic YWxpY2U6c2VjcmV0"],
        lambda _: [b"X-Matrix"],
        lambda _: [b"X-Matrix "],
        written('X-MatrixY origin="{origin}",key="{key}",sig="{sig}"'),
        written('X-Matrix\torigin="{origin}",key="{key}",sig="{sig}"'),
    ),
    headers(
        "a header that cannot be read: quotes without an end, no commas, no `=`, controls, bytes beyond ASCII",
        *UNAUTHORIZED,
        "F:6.2, a real tokenizer",
        written('X-Matrix origin="{origin}",key="{key}",sig="{sig}'),
        written('X-Matrix origin="{origin}" key="{key}" sig="{sig}"'),
        written('X-Matrix origin;"{origin}",key="{key}",sig="{sig}"'),
        written('X-Matrix origin=,key="{key}",sig="{sig}"'),
        written('X-Matrix "{origin}","{key}","{sig}"'),
        written('X-Matrix origin="{origin}\\",key="{key}",sig="{sig}"'),
        written('X-Matrix origin="{origin}"x,key="{key}",sig="{sig}"'),
        written('X-Matrix origin="{origin}\x01",key="{key}",sig="{sig}"'),
        written('X-Matrix origin="{origin}\xff",key="{key}",sig="{sig}"'),
        written('X-Matrix origin="{origin}",=,key="{key}",sig="{sig}"'),
        lambda _: [b"X-Matrix " + b'"\\' * 1000],
        lambda _: [b"X-Matrix " + b"," * 3000],
    ),
    headers(
        "a header of more than 4096 bytes",
        *UNAUTHORIZED,
        "ours: what is honest needs less than 1 KiB",
        written('X-Matrix origin="{origin}",key="{key}",sig="{sig}",x="' + "x" * 4096 + '"'),
    ),
    headers(
        "a parameter that stands twice, in the same words or in others",
        "400 M_UNAUTHORIZED",
        "F:6.2",
        written('X-Matrix origin="{origin}",origin="{origin}",key="{key}",sig="{sig}"'),
        written('X-Matrix origin="evil.test",key="{key}",sig="{sig}",ORIGIN="{origin}"'),
        written('X-Matrix origin="{origin}",key="{key}",sig="x",sig="{sig}"'),
    ),
    headers(
        "a parameter that is missing, or `signature` instead of `sig`",
        *UNAUTHORIZED,
        "F:6.2, F:9",
        signed(origin=""),
        signed(key=""),
        signed(sig=""),
        written('X-Matrix origin="{origin}",key="{key}",signature="{sig}"'),
    ),
    headers(
        "an origin that is no server name",
        *UNAUTHORIZED,
        "F:1.1, F:6.3",
        *map(
            _origin,
            (
                "there.test/",
                "https://there.test",
                "there.test:",
                "there.test:0",
                "there.test:65536",
                "there_test",
                "@frank:there.test",
                "there.test,evil.test",
                "there.test evil.test",
                "*",
                "256.1.1.1",
                "[::1",
                "x" * 256,
            ),
        ),
    ),
    headers(
        "the right origin in other spelling: upper case, a dot at the end, the default port",
        *UNAUTHORIZED,
        "F:1.1: names are compared byte for byte; another name is another server with other keys",
        _origin("THERE.TEST."),
        _origin("there.test."),
    ),
    headers(
        "a destination that is not us",
        *UNAUTHORIZED,
        "F:6.2",
        signed(destination="elsewhere.test"),
        signed(destination="HERE.test"),
        signed(destination="here.test:8448"),
        signed(destination="*"),
    ),
    headers(
        "a key ID of another algorithm, or none at all",
        *UNAUTHORIZED,
        "F:3.1",
        *(
            signed(key=key_id)
            for key_id in ("ed448:p1", "rsa:p1", "p1", "ed25519", "ed25519:", "ed25519:p 1", "ed25519:../p1")
        ),
    ),
    Row(
        "ten key IDs that the origin does not have",
        UNAUTHORIZED,
        "Z-4: one fetch for an unknown key ID per server in 5 minutes",
        _unknown_keys,
        10,
    ),
    headers(
        "a signature that is no Base64 of 64 bytes",
        *UNAUTHORIZED,
        "F:3.1",
        *(signed(sig=sig) for sig in ("x", "A" * 85, "A" * 87, "-_" * 43, "A" * 85 + "=", "\u00e9" * 86)),
    ),
    headers(
        "a signature of 64 bytes that is wrong: all zero, ends swapped, one bit turned",
        *UNAUTHORIZED,
        "F:3.1",
        signed(sig="A" * 86),
        lambda good: [x_matrix(good | {"sig": good["sig"][43:] + good["sig"][:43]})],
        lambda good: [x_matrix(good | {"sig": ("B" if good["sig"][0] == "A" else "A") + good["sig"][1:]})],
    ),
    headers(
        "several headers: of two origins, one right and one wrong, more than eight",
        *UNAUTHORIZED,
        "F:6.2: one origin, none whose key we have is wrong",
        lambda good: [x_matrix(good), x_matrix(good | {"origin": "evil.test"})],
        lambda good: [x_matrix(good), x_matrix(good | {"sig": "A" * 86})],
        lambda good: [x_matrix(good | {"sig": "A" * 86}), x_matrix(good)],
        lambda good: [x_matrix(good)] * 9,
    ),
    headers(
        "our own name as the origin",
        *UNAUTHORIZED,
        "F:K-6: our keys are ours",
        signed(origin=HERE),
    ),
    signatures(
        "a signature over something else: the method, the URI, the destination, the content, no content",
        "F:6.1",
        lambda peer, uri, body: peer.authorization(HERE, uri, body, method="POST"),
        lambda peer, uri, body: peer.authorization(HERE, uri, body, method="put"),
        lambda peer, uri, body: peer.authorization(HERE, uri + "x", body),
        lambda peer, uri, body: peer.authorization(HERE, uri + "/", body),
        lambda peer, uri, body: peer.authorization(HERE, uri + "?x=1", body),
        lambda peer, uri, body: peer.authorization(HERE, f"https://{HERE}{uri}", body),
        lambda peer, uri, body: peer.authorization("elsewhere.test", uri, body),
        lambda peer, uri, body: peer.authorization(HERE, uri, body, origin="elsewhere.test"),
        lambda peer, uri, body: peer.authorization(HERE, uri, peer.transaction()),
        lambda peer, uri, body: peer.authorization(HERE, uri, NO_BODY),
        lambda peer, uri, body: peer.authorization(HERE, uri, {}),
    ),
    signatures(
        "a signature with a key that is not the origin's, under the ID of the one that is",
        "F:3.1",
        lambda peer, uri, body: peer.authorization(HERE, uri, body, key=generate_signing_key("p1")),
    ),
    from_peers(
        "an honest transaction of a server on `federation.deny`",
        "403 M_FORBIDDEN",
        "F:6.3, Z-9",
        "denied.test",
    ),
    Row(
        "origins that lead back to this machine, in every spelling of loopback",
        UNAUTHORIZED,
        "Z-5: the address connected to is checked, and nothing listening there heard of it",
        _reflected,
        8,
    ),
    Row(
        "five invented origins at once from one address",
        ("401 M_UNAUTHORIZED", "429 M_LIMIT_EXCEEDED"),
        "Z-4: two key fetches a second for one address",
        _amplified,
        5,
    ),
)

WHOSE_KEYS = (
    from_peers(
        "a key server that answers rubbish: no JSON, nested 60 000 deep, `NaN`, a list, a gzip that nobody asked for",
        *UNAUTHORIZED,
        "F:K-1, Z-2",
        "garbage.test",
        "deep.test",
        "nan.test",
        "list.test",
        "gzip.test",
    ),
    from_peers("a key object of another server", *UNAUTHORIZED, "F:K-1", "othername.test"),
    from_peers("a key object without a signature", *UNAUTHORIZED, "F:K-1", "unsigned.test"),
    from_peers(
        "a key object signed with a key that it does not hold", *UNAUTHORIZED, "F:K-1, F:9", "stranger.test"
    ),
    from_peers("keys that have expired", *UNAUTHORIZED, "F:K-2", "expired.test"),
    from_peers(
        "a `valid_until_ts` that is a float, or text", *UNAUTHORIZED, "F:4.1", "float.test", "text.test"
    ),
    from_peers(
        "a signature with a key that stands only in `old_verify_keys`", *UNAUTHORIZED, "F:K-3", "retired.test"
    ),
    from_peers("keys of unknown algorithms only", *UNAUTHORIZED, "F:3.1", "algorithm.test"),
    from_peers("65 keys", *UNAUTHORIZED, "Z-4", "manykeys.test"),
    from_peers(
        "a key object of more than 64 KiB, and one without an end",
        *UNAUTHORIZED,
        "Z-4, Z-5: read to the cap and no further",
        "large.test",
        "endless.test",
    ),
    from_peers(
        "a key server that answers 500, redirects elsewhere, refuses the connection, speaks no TLS, has "
        "another's certificate",
        *UNAUTHORIZED,
        "Z-5, F:5.2",
        "error.test",
        "redirect.test",
        "refused.test",
        "plain.test",
        "wrongcert.test",
    ),
    Row(
        "good transactions while key servers are silent and a request trickles in",
        ("200",),
        "Z-4: others are not delayed",
        _others_meanwhile,
        10,
    ),
)
assert {name for name in KEY_SERVERS} >= {"silent.test", "drip.test"}

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
        ("404 M_UNRECOGNIZED", "405"),
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
        "a line that is no request: another protocol, HTTP/2, HTTP/0.9, no version, no path, nothing",
        "400 M_UNKNOWN",
        "HTTP/1.1 only",
        head("PRI * HTTP/2.0", "", "SM", ""),
        head("GET /"),
        head("SSH-2.0-client"),
        head("GET / HTTP/1.1 x"),
        head("PUT  HTTP/1.1", "Content-Length: 0"),
        head("", "", ""),
    ),
    raw(
        "headers beyond reason: 501 of them, one of 20 000 bytes, one without a colon",
        "400 M_UNKNOWN",
        "Twisted's limits: 500 headers, 16 KiB a line",
        head("GET / HTTP/1.1", *(f"X-{n}: 1" for n in range(501))),
        head("GET / HTTP/1.1", "X: " + "x" * 20_000),
        head("GET /" + "x" * 20_000 + " HTTP/1.1"),
        head("GET / HTTP/1.1", "no colon here"),
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
            for chunks in (b"zz\r\n", b"-1\r\n", b"5\r\nabcdefgh\r\n", b"1;" + b"x" * 20_000 + b"\r\n")
        ),
    ),
    Row(
        "the head alone of a body that is too large, or of an origin without that key, `Expect: 100-continue`",
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

__all__ = ["BENT_HTTP", "HARM", "SLOW", "WHOSE_KEYS", "WHO_SPEAKS", "Wire", "harm"]
