"""Hostile requests: bodies that are no JSON, envelopes that are no transactions, replays and floods.

Always true: what is signed here is signed well, by a server that may sign it.
"""

import json
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

from tests.scenarios.peer import SEND, Answer, Peer, now_ms, x_matrix
from tests.scenarios.scene import (
    ACCEPT,
    ALICE,
    CAROL,
    DENY,
    HARM,
    HERE,
    INVITE,
    MALLORY,
    MAX_BODY,
    OSCAR,
    WRONG_TYPES,
    Row,
    Scene,
    list_edu,
    online,
    push,
)


def envelopes(sent: str, answer: str, rule: str, *each: dict[str, object]) -> Row:
    """An honestly signed transaction with these keys instead of its own."""

    def play(scene: Scene) -> Iterator[Answer]:
        peer = scene["there.test"]
        for changes in each:
            body = peer.transaction(HARM, **changes)
            yield scene.ask(peer.request(HERE, {k: v for k, v in body.items() if v is not MISSING}))

    return Row(sent, (answer,), rule, play, len(each))


def bodies(sent: str, answer: str, rule: str, *each: Callable[[str], bytes]) -> Row:
    """Bytes in place of a good body, which is what is signed; the text of the good one is at hand."""

    def play(scene: Scene) -> Iterator[Answer]:
        peer = scene["there.test"]
        for make in each:
            content = peer.transaction(HARM)
            yield scene.ask(peer.request(HERE, content, body=make(json.dumps(content))))

    return Row(sent, (answer,), rule, play, len(each))


def contents(sent: str, answer: str, rule: str, *each: object) -> Row:
    """Values that are signed as they are and are no transaction."""

    def play(scene: Scene) -> Iterator[Answer]:
        for content in each:
            yield scene.ask(scene["there.test"].request(HERE, content))

    return Row(sent, (answer,), rule, play, len(each))


def one(sent: str, answers: str | tuple[str, ...], rule: str, play: Any, times: int = 1) -> Row:
    """A row that is a function of its own."""
    return Row(sent, (answers,) if isinstance(answers, str) else answers, rule, play, times)


MISSING = object()


def plus(text: str) -> Callable[[str], bytes]:
    """The good body with one more key, and this as its value."""
    return lambda good: f'{good[:-1]},"x":{text}}}'.encode()


# --- bodies and envelopes ---------------------------------------------------------------------------

NOT_JSON = (
    bodies(
        "no JSON: nothing, text, cut short, more behind it, comments, single quotes, a form, a gzip",
        "400 M_NOT_JSON",
        "F:7.1",
        lambda good: b"",
        lambda good: b" \r\n",
        lambda good: b"hello",
        lambda good: good[:-1].encode(),
        lambda good: good.encode() * 2,
        lambda good: good.encode() + b"\0",
        lambda good: b"/**/" + good.encode(),
        lambda good: good.replace('"', "'").encode(),
        lambda good: b"edus=%5B%5D&pdus=%5B%5D",
        lambda good: b"\x1f\x8b\x08\x00" + bytes(50),
        lambda good: (good[:-1] + ",}").encode(),
        plus("01"),
        plus("+1"),
        plus(".5"),
        plus('"\t"'),
        plus('"\\x41"'),
        plus("undefined"),
    ),
    bodies(
        "a byte order mark, UTF-16, UTF-32, bytes that are no UTF-8, an overlong slash, a surrogate in UTF-8",
        "400 M_NOT_JSON",
        "RFC 8259: UTF-8 alone",
        lambda good: b"\xef\xbb\xbf" + good.encode(),
        lambda good: good.encode("utf-16"),
        lambda good: good.encode("utf-32"),
        lambda good: good[:-1].encode() + b',"x":"\xff"}',
        lambda good: good[:-1].encode() + b',"x":"\xc0\xaf"}',
        lambda good: good[:-1].encode() + b',"x":"\xed\xa0\x80"}',
    ),
    bodies(
        "`NaN`, `Infinity`, `-Infinity`",
        "400 M_NOT_JSON",
        "Z-2",
        *(plus(name) for name in ("NaN", "Infinity", "-Infinity", "[NaN]")),
    ),
    bodies(
        "a number too large for a float, an integer of 5000 digits",
        "400 M_BAD_JSON",
        "Z-2",
        plus("1e999"),
        plus("-1e999"),
        plus("9" * 5000),
        plus("-" + "9" * 5000),
    ),
    bodies(
        "a key that stands twice, at the top, inside an EDU, spelled with an escape",
        "400 M_BAD_JSON",
        "F:2: which one was signed?",
        lambda good: (good[:-1] + ',"edus":[]}').encode(),
        lambda good: b'{"edus":[],' + good[1:].encode(),
        lambda good: good.replace('"content"', '"edu_type":"x","content"').encode(),
        lambda good: (good[:-1] + ',"\\u0065dus":[]}').encode(),
        plus('{"a":1,"a":1}'),
    ),
    bodies(
        "half a surrogate pair",
        "400 M_BAD_JSON",
        "F:2, Z-2",
        *(
            plus(text)
            for text in ('"\\ud800"', '"\\udc00"', '"\\ud800x"', '"\\udc00\\ud800"', '{"\\uD8ff":1}')
        ),
    ),
    bodies(
        "nested 101, 10 000 and a million deep, brackets that do not match",
        "400 M_BAD_JSON",
        "Z-2: counted before anything is built",
        plus("[" * 101 + "]" * 101),
        plus('{"a":' * 101 + "1" + "}" * 101),
        plus("[" * 10_000 + "]" * 10_000),
        plus("[" * 1_000_000 + "]" * 1_000_000),
    ),
    bodies(
        "brackets that do not match, by the hundred thousand",
        "400 M_NOT_JSON",
        "Z-2",
        lambda good: b"[" * 99_000,
        lambda good: b"]" * 200_000,
        lambda good: b"[}" * 40_000,
        lambda good: b'{"a":' * 20_000,
    ),
    bodies(
        "100 001 values, a million empty objects",
        "400 M_BAD_JSON",
        "Z-2",
        plus("[" + "0," * 100_000 + "0]"),
        plus("[" + "{}," * 600_000 + "{}]"),
        plus("{" + ",".join(f'"{n}":0' for n in range(100_001)) + "}"),
    ),
)


def _null(scene: Scene) -> Iterator[Answer]:
    """A body of `null` is no content: nothing was signed that could be rebuilt."""
    peer = scene["there.test"]
    yield scene.ask(peer.request(HERE, None))


ENVELOPES = (
    contents(
        "a body that is JSON and no object",
        "400 M_BAD_JSON",
        "F:7.1",
        [],
        [HARM],
        "x",
        1,
        1.5,
        True,
        False,
    ),
    one("a body of `null`", "401 M_UNAUTHORIZED", "F:6.1: no content was signed", _null),
    contents("an empty object", "400 M_BAD_JSON", "F:7.1", {}),
    envelopes(
        "`pdus` missing, or no list",
        "400 M_BAD_JSON",
        "F:7.1",
        *({"pdus": value} for value in (MISSING, *WRONG_TYPES) if not isinstance(value, list)),
    ),
    envelopes(
        "`edus` that are no list",
        "400 M_BAD_JSON",
        "F:7.1",
        *({"edus": value} for value in WRONG_TYPES if not isinstance(value, list)),
    ),
    envelopes(
        "`origin_server_ts` missing, no integer, beyond 2^53",
        "400 M_BAD_JSON",
        "F:7.1, Z-3",
        *(
            {"origin_server_ts": value}
            for value in (MISSING, 2**53, -(2**53), 1.0, 1e15, *WRONG_TYPES)
            if type(value) is not int or abs(value) > 2**52
        ),
    ),
    envelopes(
        "an `origin` in the body that is not the one that signed",
        "403 M_FORBIDDEN",
        "F:7.1",
        *({"origin": value} for value in (*WRONG_TYPES, "evil.test", HERE, "THERE.TEST", "there.test ")),
    ),
    envelopes(
        "51 PDUs, 101 EDUs, 10 000 EDUs",
        "400 M_BAD_JSON",
        "F:7.1",
        {"pdus": [{}] * 51},
        {"edus": [HARM] * 101},
        {"edus": [HARM] * 10_000},
    ),
    envelopes(
        "50 PDUs that are none, and keys that nobody knows",
        "200",
        "F:R-4: silence is handled",
        {"edus": [], "pdus": [None, 1, "x", {}, []] * 10},
        {"edus": MISSING, "edu": [HARM], "EDUS": [HARM], "pdu_failures": [HARM], "destination": "x"},
    ),
)

# --- again, and all at once -------------------------------------------------------------------------


def _replayed(*names: str) -> Callable[[Scene], Iterator[Answer]]:
    def play(scene: Scene) -> Iterator[Answer]:
        for name in names:
            yield scene.ask(scene.kept[name])

    return play


def _same_id(scene: Scene) -> Iterator[Answer]:
    """The ID of a transaction that was taken, with other EDUs in it."""
    for txn_id in ("drop-1", "drop%2D1", "dr%6Fp-1/", "drop-1?x=y"):
        yield scene.send("there.test", HARM, list_edu(DENY, ALICE, CAROL), txn_id=txn_id)


def _stolen(scene: Scene) -> Iterator[Answer]:
    """A request seen on the wire, with something in it exchanged."""
    seen = scene.kept["drop"]
    head, _, body = seen.partition(b"\r\n\r\n")
    yield scene.ask(seen.replace(b"/send/drop-1 ", b"/send/other-1 "))
    yield scene.ask(seen.replace(b'origin="there.test"', b'origin="evil.test"'))
    yield scene.ask(head + b"\r\n\r\n" + body.replace(b"frank", b"grace"))
    yield scene.ask(head + b"\r\n\r\n" + body.replace(b"presence_drop", b"presence_deny"))


def _old(scene: Scene) -> Iterator[Answer]:
    """Days behind the newest of its origin: as if the stored answers had been forgotten meanwhile."""
    peer = scene["there.test"]
    for ago_ms in (25 * 3_600_000, 10 * 86_400_000, now_ms(), 2 * now_ms()):
        content = peer.transaction(HARM, list_edu(DENY, ALICE, CAROL), origin_server_ts=now_ms() - ago_ms)
        yield scene.ask(peer.request(HERE, content))


def _future(scene: Scene) -> Iterator[Answer]:
    """Far ahead of our clock, and then at the right time again: nobody is locked out by it."""
    peer = scene["there.test"]
    for ts in (now_ms() + 10 * 365 * 86_400_000, 2**53 - 1, now_ms()):
        yield scene.ask(peer.request(HERE, peer.transaction(origin_server_ts=ts)))


def _at_once(requests: list[bytes], scene: Scene) -> Iterator[Answer]:
    """All of these arrive while the daemon does not look, on connections that stand already."""
    version = b"GET /_matrix/federation/v1/version HTTP/1.1\r\nHost: here.test\r\n\r\n"
    wires = [scene.wire() for _ in requests]
    try:
        for wire in wires:
            assert wire.answer(version).status == 200
        scene.server.send_signal(signal.SIGSTOP)
        try:
            for wire, request in zip(wires, requests, strict=True):
                wire.send(request)
        finally:
            scene.server.send_signal(signal.SIGCONT)
        yield from [wire.answer() for wire in wires]
    finally:
        for wire in wires:
            wire.close()


def _ten_at_once(scene: Scene) -> Iterator[Answer]:
    peer = scene["evil.test"]
    edu = list_edu(ACCEPT, ALICE, MALLORY)  # what needs no disk is done before the next one is looked at
    answers = list(_at_once([peer.request(HERE, peer.transaction(edu)) for _ in range(10)], scene))
    assert sum(answer.status == 200 for answer in answers) >= 6, "one in progress and five behind it"
    yield from answers


def _twice_at_once(scene: Scene) -> Iterator[Answer]:
    peer = scene["evil.test"]
    request = peer.request(HERE, peer.transaction(list_edu(ACCEPT, ALICE, MALLORY)))
    yield from _at_once([request] * 10, scene)


def _gone_at_once(scene: Scene) -> Iterator[Answer]:
    """Fifty clients that send and hang up before an answer could come."""
    peer = scene["evil.test"]
    for _ in range(50):
        with scene.wire() as wire:
            wire.send(peer.request(HERE, peer.transaction(list_edu(ACCEPT, ALICE, MALLORY))))
        yield Answer(0)


def _flood(scene: Scene) -> Iterator[Answer]:
    """Ten thousand pushes a transaction, as fast as they go."""
    peer = scene["flood.test"]
    for m in range(8):
        users = [[online(f"@u{m}x{n}x{k}:flood.test") for k in range(100)] for n in range(100)]
        yield scene.ask(peer.request(HERE, peer.transaction(*(push(*items) for items in users))))


def _many_edus(scene: Scene) -> Iterator[Answer]:
    """Ten thousand EDUs in a hundred transactions: a lot, and allowed."""
    peer = scene["elsewhere.test"]
    with scene.wire() as wire:
        for m in range(100):
            invites = [list_edu(INVITE, OSCAR, f"@u{m}x{n}:here.test") for n in range(100)]
            yield wire.answer(peer.request(HERE, peer.transaction(*invites)))


def _bytes(scene: Scene) -> Iterator[Answer]:
    """Megabytes of one string, until it is enough for now."""
    peer = scene["bytes.test"]
    for _ in range(4):
        yield scene.ask(peer.request(HERE, peer.transaction(x="x" * (MAX_BODY - 10_000))))


def _too_large(scene: Scene) -> Iterator[Answer]:
    peer = scene["there.test"]
    yield scene.ask(peer.request(HERE, peer.transaction(HARM, x="x" * MAX_BODY)))


def _half_open(scene: Scene) -> Iterator[Answer]:
    """Two hundred connections that say nothing; the next one is served."""
    opened = [socket.create_connection(("127.0.0.1", scene.server.federation_port)) for _ in range(200)]
    yield scene.send("there.test")
    for connection in opened:
        connection.close()


def _crowd(scene: Scene) -> Iterator[Answer]:
    """Eight threads, each with requests of every kind at once; each gets the answer to its own."""
    peer = scene["there.test"]
    wrong: list[str] = []

    def run() -> None:
        for _ in range(5):
            with scene.wire() as wire:
                for request, wanted in (
                    (peer.request(HERE, peer.transaction(HARM), body=b"{"), "400 M_NOT_JSON"),
                    (peer.request(HERE, peer.transaction(HARM, pdus=1)), "400 M_BAD_JSON"),
                    (_badly_signed(peer), "401 M_UNAUTHORIZED"),
                ):
                    answer = str(wire.answer(request))
                    if answer not in (wanted, "429 M_LIMIT_EXCEEDED"):
                        wrong.append(f"{answer} instead of {wanted}")

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not wrong, wrong
    yield scene.send("there.test")


def _badly_signed(peer: Peer) -> bytes:
    content = peer.transaction(HARM)
    uri = SEND + peer.next_txn_id()
    header = x_matrix(peer.authorization(HERE, uri, peer.transaction()))
    return peer.request(HERE, content, uri=uri, authorization=[header])


AGAIN_AND_AGAIN = (
    one(
        "transactions that were taken, again byte for byte: an accept, a drop, an invite, a deny",
        "200",
        "F:R-1: the same answer, nothing done twice",
        _replayed("accept", "drop", "invite", "again", "deny", "drop"),
        6,
    ),
    one(
        "other EDUs under the ID of a transaction that was taken, in other spellings of it",
        "200",
        "F:R-1: the ID counts",
        _same_id,
        4,
    ),
    one(
        "a request from the wire with its ID, its origin, or a word of its body exchanged",
        "401 M_UNAUTHORIZED",
        "F:6.1",
        _stolen,
        4,
    ),
    one(
        "a drop and a deny dated more than 24 h behind the newest of their origin",
        "200",
        "Z-6: skipped",
        _old,
        4,
    ),
    one("transactions dated years ahead", "200", "Z-6: clamped to an hour; the next one counts", _future, 3),
    one(
        "ten transactions of one origin with list EDUs at the same moment",
        ("200", "429 M_LIMIT_EXCEEDED"),
        "F:7.1: one at a time, five wait",
        _ten_at_once,
        10,
    ),
    one(
        "one transaction ten times at the same moment",
        "200",
        "F:R-2: one is done, the others wait for it",
        _twice_at_once,
        10,
    ),
    one("fifty senders that hang up at once", "no answer", "what was begun ends", _gone_at_once, 50),
    one(
        "80 000 pushes for invented users in eight transactions",
        ("200", "429 M_LIMIT_EXCEEDED"),
        "`limits.origin_entries`; 5 000 of a transaction are looked at; decision 19",
        _flood,
        8,
    ),
    one(
        "10 000 invites for invented users in a hundred transactions",
        ("200",),
        "Z-7: quotas count attempts, silently",
        _many_edus,
        100,
    ),
    one(
        "megabytes in good order from one origin",
        ("200", "429 M_LIMIT_EXCEEDED"),
        "`limits.origin_bytes`",
        _bytes,
        4,
    ),
    one("a body one byte too large, and more", "413 M_TOO_LARGE", "F:7.1", _too_large),
    one("200 connections that say nothing", "200", "the 201st is served", _half_open),
    one(
        "broken requests on eight connections at once",
        "200",
        "each gets its own answer; the next good one is taken",
        _crowd,
    ),
)
