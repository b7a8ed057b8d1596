"""Hostile requests: who claims to speak, and whose keys prove it.

Always true: each of them carries an EDU that would end a grant of ours, or make a request, if it were
believed.
"""

import socket
from collections.abc import Callable, Iterator

from signedjson.key import generate_signing_key

from tests.scenarios.peer import NO_BODY, SEND, Answer, Peer, x_matrix
from tests.scenarios.scene import BOB, HARM, HERE, INVITE, LOOK_ALIKES, Row, Scene, list_edu

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


def _origin(name: str) -> Callable[[Parameters], list[bytes]]:
    return signed(origin=name)


# --- rows that need more than a line -------------------------------------------------------------------


def _reflected(scene: Scene) -> Iterator[Answer]:
    """Names that lead to this machine: a port of ours hears nothing."""
    peer = scene["there.test"]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        for n, host in enumerate(
            (
                "127.0.0.1",
                "localhost",
                "127.1",
                "0x7f.1",
                "2130706433",
                "[::ffff:127.0.0.1]",
                "0.0.0.0",
                "[::]",
            )
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


SILENT = from_peers(
    "a key server that never answers", *UNAUTHORIZED, "Z-4: given up after ten seconds", "silent.test"
)
DRIPPING = from_peers(
    "a key server that answers one byte a second",
    *UNAUTHORIZED,
    "Z-5: one deadline for the whole exchange",
    "drip.test",
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
        "an unreadable header: quotes without an end, no commas, no `=`, bytes beyond ASCII",
        *UNAUTHORIZED,
        "F:6.2, a real tokenizer",
        written('X-Matrix origin="{origin}",key="{key}",sig="{sig}'),
        written('X-Matrix origin="{origin}" key="{key}" sig="{sig}"'),
        written('X-Matrix origin;"{origin}",key="{key}",sig="{sig}"'),
        written('X-Matrix origin=,key="{key}",sig="{sig}"'),
        written('X-Matrix "{origin}","{key}","{sig}"'),
        written('X-Matrix origin="{origin}\\",key="{key}",sig="{sig}"'),
        written('X-Matrix origin="{origin}"x,key="{key}",sig="{sig}"'),
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
        *map(_origin, LOOK_ALIKES),
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
        "a key server that answers rubbish: no JSON, 60 000 brackets, `NaN`, a list, a gzip",
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
)
