import base64
import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from signedjson.key import decode_signing_key_base64, generate_signing_key, get_verify_key
from signedjson.sign import sign_json, verify_signed_json
from unpaddedbase64 import decode_base64, encode_base64

from fedpresence.config import OldKey
from fedpresence.errors import BadRequest, NotAuthentic
from fedpresence.ids import KeyID, ServerName
from fedpresence.wire.json import decode_json, encode_canonical
from fedpresence.wire.signing import (
    Identity,
    SigningKey,
    VerifyKey,
    XMatrix,
    parse_x_matrix,
    verify_key_object,
    verify_request,
)
from tests.wire.strategies import json_values

SEED = "YJDBA9Xnr2sVqXD9Vj7XVUnmFZcZrlw8Md7kMW+3XA1"  # of the appendices' test vectors: nobody's secret
DOMAIN = ServerName("domain")
DESTINATION = ServerName("dest.example")
KEY_ID = KeyID("ed25519:1")
PUBLIC = "XGX0JRS2Af3be3knz2fBiRbApjm2Dh61gXDJA8kcJNI"
NOW_MS = 1_652_262_000_000
DAY_MS = 86_400_000
SIG = "K8280/U9SSy9IVtjBuVeLr+HpOB4BQFWbg+UZaADMtTdGYI7Geitb76LTrr5QV/7Xg4ahLwYGYZzuHGZKM5ZAQ"
KEY_OBJECT_SIG = "FGoX7oBz36Xr5gZoCR7HSq2FtzDErzcUj0qWuPVA6XtQjT7TFP6ASqj4RJawsHF5EaV2tLUd6bBZ+yn4qYEIDw"

PUSH_BODY: dict[str, object] = {
    "edus": [
        {
            "content": {
                "push": [
                    {
                        "currently_active": True,
                        "last_active_ago": 5000,
                        "presence": "online",
                        "status_msg": "Fika ☕",
                        "user_id": "@alice:domain",
                    }
                ]
            },
            "edu_type": "m.presence",
        }
    ],
    "origin": "domain",
    "origin_server_ts": 1456225982000,
    "pdus": [],
}
INVITE_BODY: dict[str, object] = {
    "edus": [
        {
            "content": {"observed_user": "@bob:dest.example", "observer_user": "@alice:domain"},
            "edu_type": "m.presence_invite",
        }
    ],
    "origin": "domain",
    "origin_server_ts": 1456225982000,
    "pdus": [],
}
REQUESTS = [
    (
        "GET",
        "/_matrix/federation/v1/version",
        None,
        "XOTpTXYBoHdD8HXxAZsL1wvW0g1FDWwRwGZr/r7fau61fejuE4EYHI7nTOWeotZ1FqaQlAaizTvE3ktP7lZeCg",
    ),
    (
        "GET",
        "/_matrix/federation/v1/query/profile?user_id=%40bob%3Adest.example&field=displayname",
        None,
        "+0YAGZO7Gkt5DfJ+vJRQw2uR/RzSB5RcYMhrwPBHoC+cWdflKO2ZfFpSW1XWSWdNtHq2w3+1yH8PEQ2tWYWdDw",
    ),
    (
        "POST",
        "/_matrix/key/v2/query",
        {},
        "m+7XPle7QBK7kM2DBUDxRiCr8XDPY+Y8K32GvrEavGIhnX0cT39ZQrbxtWVuzB3vO8G9Q5WRiNkb0EK+QLVrCQ",
    ),
    (
        "PUT",
        "/_matrix/federation/v1/send/1456225982000",
        PUSH_BODY,
        "EsHxQoPehmQiuljerhggS6SVxhEW3opCAdRJruxP0JWvtTEaYsXb5xh2foMSZd8PgeJkpDQMVvOx/bOfiTnUBA",
    ),
    (
        "PUT",
        "/_matrix/federation/v1/send/2",
        INVITE_BODY,
        "/YFNTxW9TBokBScSVNNOiBb4BfDREu5RVi4obEbKHi+VfUKuq/sYUt7OtazNoveLgOL+vLWN32TPKHsbzgojDQ",
    ),
]


def the_key() -> SigningKey:
    """The key of the specification's vectors."""
    return decode_signing_key_base64("ed25519", "1", SEED)


def an_identity(*more: SigningKey) -> Identity:
    """`domain`, with the key of the vectors first."""
    return Identity(DOMAIN, [the_key(), *more])


def header(text: str) -> XMatrix:
    """The claims of a header, with {sig} filled in."""
    return parse_x_matrix(text.replace("{sig}", SIG).encode("latin-1"))


# --- the vectors of the specification --------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "encoded"),
    [
        ("", ""),
        ("f", "Zg"),
        ("fo", "Zm8"),
        ("foo", "Zm9v"),
        ("foob", "Zm9vYg"),
        ("fooba", "Zm9vYmE"),
        ("foobar", "Zm9vYmFy"),
    ],
)
def test_unpadded_base64_is_that_of_the_appendices(text: str, encoded: str) -> None:
    """The library that we rely on does what its name says."""
    assert encode_base64(text.encode()) == encoded
    assert decode_base64(encoded) == text.encode()


@pytest.mark.parametrize(
    ("value", "signature"),
    [
        ({}, SIG),
        (
            {"one": 1, "two": "Two"},
            "KqmLSbO39/Bzb0QIYE82zqLwsA+PDzYIpIRA2sRQ4sL53+sN6/fpNSoqE7BP7vBZhG6kYdD13EIMJpvhJI+6Bw",
        ),
        (
            {"one": 1, "two": "Two", "unsigned": {"age_ts": 1}},
            "KqmLSbO39/Bzb0QIYE82zqLwsA+PDzYIpIRA2sRQ4sL53+sN6/fpNSoqE7BP7vBZhG6kYdD13EIMJpvhJI+6Bw",
        ),
    ],
)
def test_the_signatures_of_the_appendices_come_out(value: dict[str, Any], signature: str) -> None:
    """The key, the canonical form and the algorithm are those of everybody else (F:3.2)."""
    signed = sign_json(value, "domain", the_key())

    assert signed["signatures"] == {"domain": {"ed25519:1": signature}}
    assert an_identity().verify_keys[KEY_ID].encode() == decode_base64(PUBLIC)


@pytest.mark.parametrize(("method", "uri", "content", "signature"), REQUESTS)
def test_requests_are_signed_as_computed(
    method: str, uri: str, content: object | None, signature: str
) -> None:
    """Byte for byte what other homeservers rebuild (F:3.3, F:6.1)."""
    ours = an_identity()

    expected = f'X-Matrix origin="domain",destination="dest.example",key="ed25519:1",sig="{signature}"'
    assert ours.authorization(method, uri, DESTINATION, content) == expected
    body = None if content is None else encode_canonical(content)
    assert ours.authorization_of(method, uri, DESTINATION, body) == expected


@pytest.mark.parametrize(("method", "uri", "content", "signature"), REQUESTS)
def test_the_computed_requests_are_believed_padded_or_not(
    method: str, uri: str, content: object | None, signature: str
) -> None:
    """Base64 with padding is read too (F:3.1)."""
    key = an_identity().verify_keys[KEY_ID]

    for sig in (signature, signature + "=="):
        auth = header(f'X-Matrix origin="domain",destination="dest.example",key="ed25519:1",sig="{sig}"')
        verify_request(auth, key, method=method, uri=uri, destination=DESTINATION, content=content)


def test_the_key_object_is_signed_as_computed() -> None:
    """Everything else that we sign is believed because of this object (F:3.3)."""
    made = an_identity().key_object(NOW_MS - DAY_MS)

    assert made == {
        "server_name": "domain",
        "verify_keys": {"ed25519:1": {"key": PUBLIC}},
        "old_verify_keys": {},
        "valid_until_ts": NOW_MS,
        "signatures": {"domain": {"ed25519:1": KEY_OBJECT_SIG}},
    }


# --- requests --------------------------------------------------------------------------------


def a_signed_request() -> tuple[XMatrix, VerifyKey, dict[str, Any]]:
    """A request of `domain` to us, its key, and what we received."""
    ours = an_identity()
    content: dict[str, object] = {"a": [1, {"b": "ü"}]}
    uri = "/_matrix/federation/v1/send/1?x=%20y"
    auth = header(ours.authorization("PUT", uri, DESTINATION, content))
    received = {"method": "PUT", "uri": uri, "destination": DESTINATION, "content": content}
    return auth, ours.verify_keys[KEY_ID], received


@pytest.mark.parametrize(
    "change",
    [
        {"method": "POST"},
        {"uri": "/_matrix/federation/v1/send/1?x=+y"},
        {"uri": "/_matrix/federation/v1/send/1?x=%20y&z"},
        {"content": {"a": [1, {"b": "u"}]}},
        {"content": {"a": [1.0, {"b": "ü"}]}},
        {"content": {"a": [True, {"b": "ü"}]}},
        {"content": {}},
        {"content": None},
        {"destination": ServerName("other.example")},
        {"content": {"a": float("inf")}},
        {"content": {"a": "\ud800"}},
    ],
)
def test_a_request_that_was_changed_on_its_way_is_not_believed(change: dict[str, Any]) -> None:
    """Everything that we act on is under the signature (F:6.1)."""
    auth, key, received = a_signed_request()
    verify_request(auth, key, **received)

    with pytest.raises(NotAuthentic):
        verify_request(auth, key, **(received | change))


def test_a_request_is_not_believed_by_another_key_name_or_signature() -> None:
    """Somebody else's good signature proves nothing."""
    auth, key, received = a_signed_request()
    stranger = get_verify_key(generate_signing_key("1"))

    for claims, checked_with in (
        (auth, stranger),
        (XMatrix(ServerName("evil.test"), DESTINATION, KEY_ID, auth.signature), key),
        (XMatrix(DOMAIN, DESTINATION, KEY_ID, SIG), key),
        (XMatrix(DOMAIN, DESTINATION, KEY_ID, ""), key),
        (XMatrix(DOMAIN, DESTINATION, KEY_ID, auth.signature.replace(auth.signature[0], "!")), key),
    ):
        with pytest.raises(NotAuthentic) as caught:
            verify_request(claims, checked_with, **received)
        assert caught.value.status == 401
        assert auth.signature not in str(caught.value)


def test_an_old_server_that_names_no_destination_is_believed() -> None:
    """The header has it since 2022; the signature always covered our name (F:6.2)."""
    auth, key, received = a_signed_request()

    verify_request(XMatrix(auth.origin, None, auth.key_id, auth.signature), key, **received)
    with pytest.raises(NotAuthentic, match="another server"):
        verify_request(
            XMatrix(auth.origin, ServerName("other.example"), auth.key_id, auth.signature), key, **received
        )


def test_a_body_with_floats_is_checked_as_it_came() -> None:
    """Homeservers sign 1.0 as 1.0; whoever normalises it disagrees with them (Z-3)."""
    content = decode_json(b'{"pdus": [{"content": {"x": 1.0, "y": 1e10, "z": -0}}]}')
    assert isinstance(content, dict)
    request = {"method": "PUT", "uri": "/x", "origin": "domain", "destination": "dest.example"}
    signed = sign_json(request | {"content": content}, "domain", the_key())
    auth = XMatrix(DOMAIN, DESTINATION, KEY_ID, signed["signatures"]["domain"]["ed25519:1"])

    verify_request(
        auth,
        an_identity().verify_keys[KEY_ID],
        method="PUT",
        uri="/x",
        destination=DESTINATION,
        content=content,
    )


def test_a_body_is_believed_as_it_came_or_in_canonical_form() -> None:
    """Most senders send what they signed; some sign canonical JSON and send another form of it."""
    auth, verify_key, request = a_signed_request()
    canonical = encode_canonical(request["content"])

    for body in (None, canonical, b" " + canonical, canonical.replace(b":", b": ")):
        verify_request(auth, verify_key, **request, body=body)


def test_a_body_whose_keys_are_out_of_order_is_believed_too() -> None:
    """Servers that write JSON as their types stand sign the canonical form of it."""
    ours, body = an_identity(), b'{"origin":"domain","edus":[]}'
    content = decode_json(body)
    auth = header(ours.authorization("PUT", "/a", DESTINATION, content))

    verify_request(
        auth,
        ours.verify_keys[KEY_ID],
        method="PUT",
        uri="/a",
        destination=DESTINATION,
        content=content,
        body=body,
    )


def test_another_body_is_not_believed_beside_a_signed_one() -> None:
    """What is acted on is the decoded body: a signature over anything else says nothing about it."""
    auth, verify_key, request = a_signed_request()
    changed = {**request, "content": {"pdus": [], "edus": [{}]}}

    for body in (None, encode_canonical(changed["content"])):
        with pytest.raises(NotAuthentic):
            verify_request(auth, verify_key, **changed, body=body)


def test_a_body_that_would_reach_beyond_its_place_is_never_decoded() -> None:
    """Else one server's signature over a request could be read as one over another request."""
    for body in (b'{},"destination":"elsewhere.test"', b"{}}", b'{"a":1},"content":{}'):
        with pytest.raises(BadRequest):
            decode_json(body)


@given(json_values(floats=False), st.sampled_from(["GET", "PUT"]), st.text("/_abc?=&%2F:", min_size=1))
def test_what_we_sign_is_believed_by_us_and_by_signedjson(content: object, method: str, uri: str) -> None:
    """Two servers of ours agree, and the library of all homeservers agrees with both."""
    ours = an_identity()
    auth = header(ours.authorization(method, uri, DESTINATION, {"x": content}))
    key = ours.verify_keys[KEY_ID]

    verify_request(auth, key, method=method, uri=uri, destination=DESTINATION, content={"x": content})
    request = {"method": method, "uri": uri, "origin": "domain", "destination": "dest.example"}
    signatures = {"domain": {"ed25519:1": auth.signature}}
    verify_signed_json(request | {"content": {"x": content}, "signatures": signatures}, "domain", key)


def test_we_do_not_sign_floats() -> None:
    """Others could read them differently; presence has none."""
    with pytest.raises(ValueError, match="float"):
        an_identity().authorization("PUT", "/x", DESTINATION, {"a": 1.5})


# --- the header ------------------------------------------------------------------------------

ALL = XMatrix(ServerName("a.test"), ServerName("b.test:8448"), KeyID("ed25519:a_x"), SIG)


@pytest.mark.parametrize(
    "text",
    [
        'X-Matrix origin="a.test",destination="b.test:8448",key="ed25519:a_x",sig="{sig}"',
        'X-Matrix origin=a.test,destination=b.test:8448,key=ed25519:a_x,sig="{sig}"',
        "X-Matrix origin=a.test,destination=b.test:8448,key=ed25519:a_x,sig={sig}",
        'x-matrix    ORIGIN="a.test" ,\tDestination="b.test:8448"\t , Key="ed25519:a_x",SIG="{sig}" ',
        'X-MATRIX sig="{sig}",key="ed25519:a_x",destination="b.test:8448",origin="a.test"',
        'X-Matrix origin="a\\.te\\st",destination="b.test:8448",key="ed25519:a_x",sig="{sig}"',
        'X-Matrix x="a,origin=\\"c.test\\",b",origin="a.test",destination="b.test:8448",key="ed25519:a_x",'
        'sig="{sig}",y=z,signature="no",z="\xe9"',
        'X-Matrix ,origin="a.test",,destination="b.test:8448", ,key="ed25519:a_x",sig="{sig}",',
        'X-Matrix origin = "a.test",destination= "b.test:8448",key ="ed25519:a_x",sig="{sig}"',
    ],
)
def test_every_form_of_the_header_that_the_specification_allows_is_read(text: str) -> None:
    """Old senders quote nothing, new ones may write it in any order and case (F:6.2)."""
    assert header(text) == ALL


def test_the_header_of_the_seed_has_no_destination() -> None:
    """Servers before 2022 (F:9, row 5)."""
    auth = header('X-Matrix origin=[::1]:8448,key="ed25519:1",sig="{sig}=="')

    assert auth == XMatrix(ServerName("[::1]:8448"), None, KEY_ID, SIG + "==")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "X-Matrix",
        "X-Matrix ",
        "Bearer abc",
        'X-Matrixorigin="a.test",key="ed25519:1",sig="{sig}"',
        'X-Matrix\torigin="a.test",key="ed25519:1",sig="{sig}"',
        'X-Matrix key="ed25519:1",sig="{sig}"',
        'X-Matrix origin="a.test",sig="{sig}"',
        'X-Matrix origin="a.test",key="ed25519:1"',
        'X-Matrix origin="a.test",key="ed25519:1",signature="{sig}"',
        'X-Matrix origin="",key="ed25519:1",sig="{sig}"',
        'X-Matrix origin="a_b.test",key="ed25519:1",sig="{sig}"',
        'X-Matrix origin="a.test:99999",key="ed25519:1",sig="{sig}"',
        'X-Matrix origin="a.test",destination="",key="ed25519:1",sig="{sig}"',
        'X-Matrix origin="a.test",key="rsa:1",sig="{sig}"',
        'X-Matrix origin="a.test",key="ed25519",sig="{sig}"',
        'X-Matrix origin="a.test",key="ed25519:",sig="{sig}"',
        'X-Matrix origin="a.test",key="ed25519:a b",sig="{sig}"',
        'X-Matrix origin="a.test",key="ed25519:1",sig="abc"',
        'X-Matrix origin="a.test",key="ed25519:1",sig="{sig}="',
        'X-Matrix origin="a.test",key="ed25519:1",sig="{sig}\\\n"',
        'X-Matrix origin="a.test" key="ed25519:1",sig="{sig}"',
        'X-Matrix origin="a.test"key="ed25519:1",sig="{sig}"',
        'X-Matrix origin="a.test;key="ed25519:1",sig="{sig}"',
        'X-Matrix origin="a.test",key="ed25519:1",sig="{sig}',
        'X-Matrix origin,key="ed25519:1",sig="{sig}"',
        'X-Matrix origin="a.test",key="ed25519:1",sig="{sig}",x=',
        'X-Matrix origin="\xe9.test",key="ed25519:1",sig="{sig}"',
    ],
)
def test_a_header_that_cannot_be_read_is_not_believed(text: str) -> None:
    """401, and nothing of what was sent in the answer (F:6.3)."""
    with pytest.raises(NotAuthentic) as caught:
        header(text)
    assert caught.value.status == 401
    assert SIG not in str(caught.value)


@pytest.mark.parametrize("more", ['origin="b.test"', "ORIGIN=a.test", 'sig="x"', "x=1,X=2"])
def test_a_parameter_that_stands_twice_is_refused(more: str) -> None:
    """Two readers could believe two different things (F:6.2)."""
    with pytest.raises(BadRequest) as caught:
        header(f'X-Matrix origin="a.test",key="ed25519:1",sig="{{sig}}",{more}')
    assert caught.value.status == 400


@pytest.mark.parametrize("tail", ["", ',destination="b.test"'])
def test_headers_that_differ_in_their_signatures_alone_keep_each_its_own(tail: str) -> None:
    """The rest is read once: what is remembered of one request must not pass for another's proof."""
    other = "B" * 86

    for signature in (SIG, other, "A" * 86, SIG + "=="):
        text = f'X-Matrix origin="a.test",key="ed25519:1",sig="{signature}"{tail}'
        assert parse_x_matrix(text.encode()).signature == signature


@pytest.mark.parametrize(
    "text",
    [
        'X-Matrix x="a,sig="{sig}"",origin="a.test",key="ed25519:1",sig="{other}"',
        'X-Matrix x="a",xsig="{sig}",origin="a.test",key="ed25519:1",sig="\\A' + "A" * 85 + '"',
        'X-Matrix xsig="{sig}",origin="a.test",key="ed25519:1",sig="{other}"',
        'X-Matrix origin="a.test",key="ed25519:1",sig="{other}",x="sig=\\"{sig}\\""',
    ],
)
def test_what_only_looks_like_the_signature_is_not_taken_for_it(text: str) -> None:
    """A header is believed for its `sig` alone, wherever 86 such characters stand besides."""
    try:
        found = parse_x_matrix(text.format(sig=SIG, other="A" * 86).encode())
    except NotAuthentic:
        return
    assert found.signature == "A" * 86


def test_a_header_of_four_kibibytes_is_read_and_a_longer_one_is_not() -> None:
    """It is read before anybody is known."""
    start = f'X-Matrix origin="a.test",key="ed25519:1",sig="{SIG}",x="'.encode()

    assert parse_x_matrix(start + b"x" * (4096 - len(start) - 1) + b'"').origin == "a.test"
    with pytest.raises(NotAuthentic, match="too long"):
        parse_x_matrix(start + b"x" * (4096 - len(start)) + b'"')


@given(st.binary(max_size=80) | st.text('origin,="\\ \tkeysig:X-Matrix', max_size=80).map(str.encode))
def test_whatever_the_header_only_bad_request_is_raised(data: bytes) -> None:
    """Anybody on the internet can send it."""
    for text in (data, b"X-Matrix " + data):
        try:
            parse_x_matrix(text)
        except BadRequest as error:
            assert error.status in (400, 401)


# --- key objects -----------------------------------------------------------------------------


def test_the_key_object_is_made_again_after_half_of_its_life() -> None:
    """Signing costs little, but not on every request of a stranger; and it never expires within 1 h."""
    ours = an_identity()
    first = ours.key_object(NOW_MS)

    assert first["valid_until_ts"] == NOW_MS + DAY_MS
    assert ours.key_object(NOW_MS + DAY_MS // 2 - 1) is first
    assert ours.key_object(NOW_MS + DAY_MS // 2)["valid_until_ts"] == NOW_MS + DAY_MS * 3 // 2
    assert ours.key_object(NOW_MS - 1)["valid_until_ts"] == NOW_MS - 1 + DAY_MS


def test_the_key_object_is_signed_by_every_key_and_names_the_old_ones() -> None:
    """A reader that knows any of them believes the object (F:4.1)."""
    second = generate_signing_key("b_2")
    old = OldKey("Zm9v", 5)
    ours = Identity(DOMAIN, [the_key(), second], {KeyID("ed25519:0"): old, KEY_ID: old})

    made: dict[str, Any] = ours.key_object(NOW_MS)

    assert ours.key_id == KEY_ID
    assert set(made["verify_keys"]) == set(made["signatures"]["domain"]) == {"ed25519:1", "ed25519:b_2"}
    assert made["old_verify_keys"] == {"ed25519:0": {"key": "Zm9v", "expired_ts": 5}}
    for key in ours.verify_keys.values():
        verify_signed_json(copy.deepcopy(made), "domain", key)


def test_an_identity_without_a_key_cannot_be() -> None:
    """An object is complete once constructed."""
    with pytest.raises(ValueError, match="signing key"):
        Identity(DOMAIN, [])


def test_our_own_key_object_is_believed() -> None:
    """Two servers of ours can talk."""
    ours = an_identity(generate_signing_key("b_2"))

    keys = verify_key_object(decode_json(encode_canonical(ours.key_object(NOW_MS))), DOMAIN)

    assert keys.server_name == DOMAIN
    assert keys.valid_until_ts == NOW_MS + DAY_MS
    assert {k: v.encode() for k, v in keys.verify_keys.items()} == {
        k: v.encode() for k, v in ours.verify_keys.items()
    }


def a_key_object(**changes: object) -> dict[str, Any]:
    """A key object of `domain`, changed and then signed with its key."""
    value = {
        "server_name": "domain",
        "verify_keys": {"ed25519:1": {"key": PUBLIC}},
        "valid_until_ts": NOW_MS,
    }
    return sign_json(value | changes, "domain", the_key())


@pytest.mark.parametrize(
    "changes",
    [
        {"server_name": "other.example"},
        {"server_name": None},
        {"verify_keys": None},
        {"verify_keys": {}},
        {"verify_keys": []},
        {"verify_keys": {"ed25519:2": {"key": PUBLIC}}},
        {"verify_keys": {"ed25519:1": PUBLIC}},
        {"verify_keys": {"ed25519:1": {"key": PUBLIC[:-1]}}},
        {"verify_keys": {}, "old_verify_keys": {"ed25519:1": {"key": PUBLIC, "expired_ts": 2**50}}},
        {"valid_until_ts": None},
        {"valid_until_ts": True},
        {"valid_until_ts": 1.0},
        {"valid_until_ts": "1652262000000"},
    ],
)
def test_a_key_object_that_does_not_prove_itself_is_not_believed(changes: dict[str, object]) -> None:
    """It must be of the server we asked for, signed with a key that it says is valid (F:K-1, K-3)."""
    assert verify_key_object(a_key_object(), DOMAIN)

    with pytest.raises(NotAuthentic):
        verify_key_object(a_key_object(**changes), DOMAIN)


@pytest.mark.parametrize(
    "signatures",
    [
        None,
        [],
        {},
        {"domain": None},
        {"domain": {}},
        {"domain": {"ed25519:1": 5}},
        {"domain": {"ed25519:1": SIG}},
        {"other.example": {"ed25519:1": SIG}},
    ],
)
def test_a_key_object_without_a_good_signature_is_not_believed(signatures: object) -> None:
    """Otherwise whoever answers for a name would own it."""
    with pytest.raises(NotAuthentic):
        verify_key_object(a_key_object() | {"signatures": signatures}, DOMAIN)


@pytest.mark.parametrize("value", [None, [], "x", 5, {}, {"server_name": "domain"}])
def test_what_is_no_key_object_is_not_believed(value: object) -> None:
    """The answer of a web server that knows nothing of Matrix."""
    with pytest.raises(NotAuthentic):
        verify_key_object(value, DOMAIN)


def test_keys_that_we_cannot_use_are_passed_over() -> None:
    """Another algorithm tomorrow must not cost us the keys of today (F:3.1)."""
    odd = {
        "rsa:1": {"key": PUBLIC},
        "ed25519:bad id": {"key": PUBLIC},
        "ed25519:2": {"key": 5},
        "ed25519:3": None,
        "ed25519:4": {"key": PUBLIC + "="},
        "ed25519:5": {"key": "not base64 at all, but forty-three characters"[:43]},
        "ed25519:1": {"key": PUBLIC},
    }

    keys = verify_key_object(a_key_object(verify_keys=odd, extra=1.5, tls_fingerprints=[]), DOMAIN)

    assert set(keys.verify_keys) == {"ed25519:1", "ed25519:4"}


def test_sixty_four_keys_are_taken_and_one_more_is_not() -> None:
    """Each may cost a signature check (Z-4)."""
    many = {f"ed25519:x{n}": {"key": PUBLIC} for n in range(63)} | {"ed25519:1": {"key": PUBLIC}}

    assert len(verify_key_object(a_key_object(verify_keys=many), DOMAIN).verify_keys) == 64
    with pytest.raises(NotAuthentic, match="at most 64"):
        verify_key_object(a_key_object(verify_keys=many | {"ed25519:y": {"key": PUBLIC}}), DOMAIN)


def test_a_far_future_stays_a_number_that_can_be_stored() -> None:
    """How long a key really holds is capped later, at a week (F:K-2)."""
    assert verify_key_object(a_key_object(valid_until_ts=10**30), DOMAIN).valid_until_ts == 2**53 - 1


def test_a_key_that_fits_every_message_is_not_a_key() -> None:
    """A public key of small order would make one signature good for anything; libsodium refuses it."""
    weak = base64.b64encode(b"\x01" + b"\0" * 31).decode().rstrip("=")
    forged = base64.b64encode(b"\x01" + b"\0" * 63).decode().rstrip("=")
    value = {"server_name": "domain", "verify_keys": {"ed25519:1": {"key": weak}}, "valid_until_ts": NOW_MS}

    with pytest.raises(NotAuthentic):
        verify_key_object(value | {"signatures": {"domain": {"ed25519:1": forged}}}, DOMAIN)


@given(json_values(leaves=10), json_values(leaves=10), json_values(leaves=10))
def test_whatever_the_key_object_only_not_authentic_is_raised(a: object, b: object, c: object) -> None:
    """The answer comes from whoever has the name today."""
    for value in (a, {"server_name": "domain", "verify_keys": a, "valid_until_ts": NOW_MS, "signatures": b}):
        with pytest.raises(NotAuthentic):
            verify_key_object(value, DOMAIN)
    with pytest.raises(NotAuthentic):
        verify_key_object(a_key_object() | {"signatures": {"domain": {"ed25519:1": c}}}, DOMAIN)
