from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from signedjson.key import generate_signing_key, get_verify_key
from signedjson.sign import sign_json, verify_signed_json
from unpaddedbase64 import decode_base64, encode_base64

from fedpresence.errors import BadRequest, NotAuthentic
from fedpresence.ids import ServerName
from fedpresence.wire.json import decode_json, encode_canonical
from fedpresence.wire.signing import VerifyKey, XMatrix, verify_request
from tests.wire.strategies import json_values
from tests.wire.vectors import (
    DAY_MS,
    DESTINATION,
    DOMAIN,
    KEY_ID,
    KEY_OBJECT_SIG,
    NOW_MS,
    PUBLIC,
    REQUESTS,
    SIG,
    an_identity,
    header,
    the_key,
)

# --- the vectors of the specification -------------------------------------------------------------


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


# --- requests -------------------------------------------------------------------------------------


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
