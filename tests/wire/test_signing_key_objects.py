import base64
import copy
from typing import Any

import pytest
from hypothesis import given
from signedjson.key import generate_signing_key
from signedjson.sign import sign_json, verify_signed_json

from fedpresence.config import OldKey
from fedpresence.errors import NotAuthentic
from fedpresence.ids import KeyID
from fedpresence.wire.json import decode_json, encode_canonical
from fedpresence.wire.signing import Identity, verify_key_object
from tests.wire.strategies import json_values
from tests.wire.vectors import DAY_MS, DOMAIN, KEY_ID, NOW_MS, PUBLIC, SIG, an_identity, the_key


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
