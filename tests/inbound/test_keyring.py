from collections.abc import Callable

from twisted.internet.defer import ensureDeferred

from fedpresence.errors import BadRequest, NotAuthentic
from fedpresence.ids import KeyID, ServerName
from fedpresence.inbound.keyfetch import MAX_ANSWER_BYTES
from fedpresence.wire.json import encode_canonical
from tests.asynchronous import as_deferred, failure_of, result_of
from tests.inbound.servers import (
    DAY_MS,
    ELSEWHERE,
    HERE,
    NOTARY,
    NOW_MS,
    THERE,
    Ring,
    a_key_object,
    an_identity,
    vouched,
)

KEY_1 = KeyID("ed25519:1")
KEY_2 = KeyID("ed25519:2")


def test_a_key_is_fetched_once_and_then_at_hand() -> None:
    """Every transaction needs a key; a fetch each would double the traffic (F:K-4)."""
    ring, there = Ring(), an_identity()
    ring.network.publish(there)

    first = result_of(ring.keys.verify_key(THERE, KEY_1))
    second = result_of(ring.keys.verify_key(THERE, KEY_1))

    assert first.encode() == second.encode() == there.verify_keys[KEY_1].encode()
    assert ring.keys.key_at_hand(THERE, KEY_1) is second
    assert ring.keys.key_at_hand(THERE, KEY_2) is None
    assert ring.network.asked == [(THERE, "/_matrix/key/v2/server")]


def test_our_own_keys_are_never_fetched() -> None:
    """F:K-6: a request to ourselves must not wait for ourselves."""
    ring = Ring()

    key = result_of(ring.keys.verify_key(HERE, ring.identity.key_id))
    failure_of(ring.keys.verify_key(HERE, KeyID("ed25519:other")), NotAuthentic)

    assert key == ring.identity.verify_keys[ring.identity.key_id]
    assert ring.network.asked == []


def test_a_key_object_of_another_name_is_not_believed() -> None:
    """F:K-1: a server could answer with the keys of somebody whom it would like to be."""
    ring = Ring()
    data = encode_canonical(a_key_object(an_identity(ELSEWHERE)))
    ring.network.answers[THERE] = lambda _path: data

    failure_of(ring.keys.verify_key(THERE, KEY_1), NotAuthentic)


def test_a_key_object_signed_by_another_key_is_not_believed() -> None:
    """F:K-1: whoever answers in its place has not its key."""
    ring, there = Ring(), an_identity()
    forged = a_key_object(there) | {"valid_until_ts": NOW_MS + 2 * DAY_MS}
    ring.network.answers[THERE] = lambda _path: encode_canonical(forged)

    failure_of(ring.keys.verify_key(THERE, KEY_1), NotAuthentic)


def test_keys_hold_until_they_say_and_not_a_millisecond_longer() -> None:
    """F:K-2, at both sides of the limit; the fetch at the expiry finds the server gone."""
    ring, there = Ring(), an_identity()
    ring.network.publish(there, valid_until_ts=NOW_MS + 100_000)
    result_of(ring.keys.verify_key(THERE, KEY_1))
    ring.network.answers.clear()

    ring.passes(100_000)
    result_of(ring.keys.verify_key(THERE, KEY_1))
    ring.passes(301_000)
    failure_of(ring.keys.verify_key(THERE, KEY_1), NotAuthentic)


def test_keys_hold_for_seven_days_at_most() -> None:
    """F:K-2: a stolen key that says it holds for ever must not."""
    ring, there = Ring(), an_identity()
    ring.network.publish(there, valid_until_ts=NOW_MS + 365 * DAY_MS)
    result_of(ring.keys.verify_key(THERE, KEY_1))
    ring.network.answers.clear()

    ring.passes(7 * DAY_MS)
    result_of(ring.keys.verify_key(THERE, KEY_1))
    ring.passes(301_000)
    failure_of(ring.keys.verify_key(THERE, KEY_1), NotAuthentic)


def test_keys_that_have_expired_on_arrival_are_refused() -> None:
    """F:K-2 with a broken clock on the other side."""
    ring, there = Ring(), an_identity()
    ring.network.publish(there, valid_until_ts=NOW_MS - 1)

    failure_of(ring.keys.verify_key(THERE, KEY_1), NotAuthentic)


def test_after_half_their_life_keys_are_refreshed_while_nobody_waits() -> None:
    """F:K-4: a key that expires in the middle of traffic would stop it."""
    ring, there = Ring(), an_identity()
    ring.network.publish(there, valid_until_ts=NOW_MS + DAY_MS)
    result_of(ring.keys.verify_key(THERE, KEY_1))

    ring.passes(DAY_MS / 2 - 1)
    result_of(ring.keys.verify_key(THERE, KEY_1))
    before = len(ring.network.asked)
    ring.network.slow = True
    assert ring.keys.key_at_hand(THERE, KEY_1) is not None
    ring.passes(1)
    assert ring.keys.key_at_hand(THERE, KEY_1) is None
    result_of(ring.keys.verify_key(THERE, KEY_1))
    result_of(ring.keys.verify_key(THERE, KEY_1))

    assert before == 1
    assert len(ring.network.asked) == 2


def test_a_refresh_replaces_the_whole_set() -> None:
    """Z-4: a key that the server has withdrawn must not live on here."""
    ring, old, new = Ring(), an_identity(), an_identity(version="2")
    ring.network.publish(old)
    result_of(ring.keys.verify_key(THERE, KEY_1))
    ring.network.publish(new)

    result_of(ring.keys.verify_key(THERE, KEY_2))
    failure_of(ring.keys.verify_key(THERE, KEY_1), NotAuthentic)


def test_an_unknown_key_id_makes_one_fetch_in_five_minutes() -> None:
    """Z-4: forged key IDs must not make us hammer the server whose name they carry."""
    ring = Ring()
    ring.network.publish(an_identity())
    result_of(ring.keys.verify_key(THERE, KEY_1))

    failure_of(ring.keys.verify_key(THERE, KEY_2), NotAuthentic)
    failure_of(ring.keys.verify_key(THERE, KeyID("ed25519:3")), NotAuthentic)
    asked_at_once = len(ring.network.asked)
    ring.passes(300_000)
    failure_of(ring.keys.verify_key(THERE, KEY_2), NotAuthentic)

    assert asked_at_once == 2
    assert len(ring.network.asked) == 3


def test_a_key_id_that_the_newest_keys_lack_is_not_fetched_again() -> None:
    """Z-4: the first fetch of all has answered the question already."""
    ring = Ring()
    ring.network.publish(an_identity())

    failure_of(ring.keys.verify_key(THERE, KEY_2), NotAuthentic)
    failure_of(ring.keys.verify_key(THERE, KEY_2), NotAuthentic)

    assert len(ring.network.asked) == 1


def test_everybody_waits_for_the_same_fetch() -> None:
    """Z-4: one in flight per origin, however many of its transactions come at once."""
    ring = Ring()
    ring.network.publish(an_identity())
    ring.network.slow = True

    waiting = [as_deferred(ring.keys.verify_key(THERE, KEY_1)) for _ in range(10)]
    waiting[0].addErrback(lambda _: None)
    waiting[0].cancel()
    ring.network.answer(THERE).chainDeferred(ring.network.pending[0])

    assert len(ring.network.asked) == 1
    assert len({result_of(waiter).encode() for waiter in waiting[1:]}) == 1


def test_only_so_many_wait_for_one_server() -> None:
    """Every queue has a bound; the next one is told to come again."""
    ring = Ring()
    ring.network.slow = True

    for _ in range(100):
        as_deferred(ring.keys.verify_key(THERE, KEY_1)).addErrback(lambda _: None)
    refused = failure_of(ring.keys.verify_key(THERE, KEY_1), BadRequest)

    assert refused.status == 429


def test_a_failure_is_not_repeated_at_once_but_soon() -> None:
    """Z-4: backing off must not lock a server out that has just come back."""
    ring = Ring()
    failure_of(ring.keys.verify_key(THERE, KEY_1), NotAuthentic)
    ring.network.publish(an_identity())

    failure_of(ring.keys.verify_key(THERE, KEY_1), NotAuthentic)
    asked_early = len(ring.network.asked)
    ring.passes(1_000)
    result_of(ring.keys.verify_key(THERE, KEY_1))

    assert asked_early == 1


def test_failures_back_off_to_five_minutes_and_no_further() -> None:
    """Z-4, over a day of being away."""
    ring = Ring()

    for _ in range(24 * 60):
        failure_of(ring.keys.verify_key(THERE, KEY_1), NotAuthentic)
        ring.passes(60_000)
    asked_while_away = len(ring.network.asked)
    ring.network.publish(an_identity(), valid_until_ts=NOW_MS + 3 * DAY_MS)
    ring.passes(300_000)
    result_of(ring.keys.verify_key(THERE, KEY_1))

    assert 24 * 12 <= asked_while_away <= 24 * 12 * 4 // 3 + 12


def test_one_address_makes_us_fetch_twice_a_second() -> None:
    """Z-4: whoever invents origins would use us as a reflector."""
    ring = Ring()
    names = [ServerName(f"s{n}.test") for n in range(4)]

    for name in names[:2]:
        failure_of(ring.keys.verify_key(name, KEY_1, "192.0.2.1"), NotAuthentic)
    refused = failure_of(ring.keys.verify_key(names[2], KEY_1, "192.0.2.1"), BadRequest)
    failure_of(ring.keys.verify_key(names[2], KEY_1, "192.0.2.2"), NotAuthentic)
    ring.passes(501)
    failure_of(ring.keys.verify_key(names[3], KEY_1, "192.0.2.1"), NotAuthentic)

    assert (refused.status, refused.errcode) == (429, "M_LIMIT_EXCEEDED")
    assert refused.retry_after_ms is not None and refused.retry_after_ms <= 501
    assert [name for name, _ in ring.network.asked] == names


def test_twenty_fetches_are_in_flight_at_most() -> None:
    """Z-4: the bound that holds when addresses and names are cheap."""
    ring = Ring()
    ring.network.slow = True

    for n in range(20):
        as_deferred(ring.keys.verify_key(ServerName(f"s{n}.test"), KEY_1, f"192.0.2.{n}"))
    refused = failure_of(ring.keys.verify_key(THERE, KEY_1, "198.51.100.1"), BadRequest)

    assert refused.status == 429
    assert len(ring.network.asked) == 20


def test_one_address_holds_a_quarter_of_all_fetches_at_most() -> None:
    """Z-4: twice a second a name that never answers, and nobody else's keys would be fetched any more."""
    ring = Ring()
    ring.network.slow = True

    asking = []
    for n in range(6):
        asking.append(as_deferred(ring.keys.verify_key(ServerName(f"s{n}.test"), KEY_1, "192.0.2.1")))
        ring.passes(501)
    refused = failure_of(asking.pop(), BadRequest)
    other = as_deferred(ring.keys.verify_key(THERE, KEY_1, "198.51.100.1"))

    assert refused.status == 429
    assert not any(each.called for each in [*asking, other])


def test_a_server_that_does_not_answer_is_given_up() -> None:
    """Every wait on another machine has a timeout."""
    ring = Ring()
    ring.network.slow = True
    waiting = as_deferred(ring.keys.verify_key(THERE, KEY_1))

    ring.passes(10_000)

    failure_of(waiting, NotAuthentic)


def test_an_endless_answer_is_no_answer() -> None:
    """Z-4: 64 KiB, on both sides of the limit; and JSON bombs are the decoder's."""
    ring, there = Ring(), an_identity()
    room = MAX_ANSWER_BYTES - len(encode_canonical(a_key_object(there, padding="")))
    ring.network.publish(there, padding="x" * room)
    result_of(ring.keys.verify_key(THERE, KEY_1))

    ring = Ring()
    ring.network.publish(there, padding="x" * (room + 1))
    failure_of(ring.keys.verify_key(THERE, KEY_1), NotAuthentic)


def test_answers_that_are_no_key_objects_are_no_fault_of_ours() -> None:
    """Whatever bytes another server sends, we answer 401 and log no traceback."""
    for data in (b"", b"[]", b"null", b"\xff", b'{"server_name":', b"[" * 60_000, b'{"verify_keys": 3}'):
        ring = Ring()
        ring.network.answers[THERE] = _saying(data)

        failure_of(ring.keys.verify_key(THERE, KEY_1), NotAuthentic)


def test_keys_survive_a_restart_with_their_age() -> None:
    """After a restart nobody must wait for hundreds of fetches, nor get seven more days."""
    ring, there = Ring(), an_identity()
    ring.network.publish(there, valid_until_ts=NOW_MS + 365 * DAY_MS)
    result_of(ring.keys.verify_key(THERE, KEY_1))
    ring.passes(7 * DAY_MS)

    again = Ring(shelf=ring.shelf, clock=ring.clock)
    result_of(again.keys.load())
    result_of(again.keys.verify_key(THERE, KEY_1))
    again.passes(301_000)
    failure_of(again.keys.verify_key(THERE, KEY_1), NotAuthentic)

    assert len(again.network.asked) >= 1


def test_stored_rubbish_and_stored_futures_do_not_count() -> None:
    """Z-21: a clock that was wrong once must not make keys eternal; a bad row is fetched again."""
    ring, there = Ring(), an_identity()
    ring.shelf.rows[ELSEWHERE] = (b"rubbish", NOW_MS)
    proof = encode_canonical(a_key_object(there, valid_until_ts=NOW_MS + 900 * DAY_MS))
    ring.shelf.rows[THERE] = (proof, NOW_MS + 800 * DAY_MS)
    result_of(ring.keys.load())

    result_of(ring.keys.verify_key(THERE, KEY_1))
    asked_at_once = list(ring.network.asked)
    ring.passes(7 * DAY_MS + 1)

    failure_of(ring.keys.verify_key(THERE, KEY_1), NotAuthentic)
    failure_of(ring.keys.verify_key(ELSEWHERE, KEY_1), NotAuthentic)
    assert asked_at_once == []


def test_a_notary_is_asked_first_and_both_signatures_count() -> None:
    """F:K-5: the origin may be down; the notary alone must not be able to invent keys."""
    there, notary = an_identity(), an_identity(NOTARY)
    ring = Ring(notaries=(NOTARY,))
    ring.network.publish(notary)
    own = ring.network.answers[NOTARY]
    answer = vouched(a_key_object(there), notary)
    ring.network.answers[NOTARY] = lambda path: answer if "/query/" in path else own(path)

    key = result_of(ring.keys.verify_key(THERE, KEY_1))

    assert key.encode() == there.verify_keys[KEY_1].encode()
    assert [name for name, _ in ring.network.asked] == [NOTARY, NOTARY]
    assert ring.network.asked[0][1].startswith(
        "/_matrix/key/v2/query/there.test?minimum_valid_until_ts="
    ) or (ring.network.asked[1][1].startswith("/_matrix/key/v2/query/there.test?minimum_valid_until_ts="))


def test_an_answer_that_the_notary_did_not_sign_is_asked_of_the_origin() -> None:
    """F:4.3: somebody on the way to the notary could replay old keys."""
    there, notary, stranger = an_identity(), an_identity(NOTARY), an_identity(NOTARY)
    ring = Ring(notaries=(NOTARY,))
    ring.network.publish(notary)
    own = ring.network.answers[NOTARY]
    answer = vouched(a_key_object(there), stranger)
    ring.network.answers[NOTARY] = lambda path: answer if "/query/" in path else own(path)
    ring.network.publish(there)

    result_of(ring.keys.verify_key(THERE, KEY_1))

    assert [name for name, _ in ring.network.asked] == [NOTARY, NOTARY, THERE]


def test_keys_that_only_the_notary_signed_are_not_believed() -> None:
    """F:K-1 holds for notaries too."""
    there, notary = an_identity(), an_identity(NOTARY)
    ring = Ring(notaries=(NOTARY,))
    ring.network.publish(notary)
    own = ring.network.answers[NOTARY]
    answer = vouched(a_key_object(there) | {"signatures": {}}, notary)
    ring.network.answers[NOTARY] = lambda path: answer if "/query/" in path else own(path)

    failure_of(ring.keys.verify_key(THERE, KEY_1), NotAuthentic)


def test_a_notary_that_is_down_or_behind_does_not_stop_us() -> None:
    """F:K-5: notaries are optional; one that lacks a new key must not hide it."""
    old, new, notary = an_identity(), an_identity(version="2"), an_identity(NOTARY)
    ring = Ring(notaries=(ServerName("down.test"), NOTARY))
    ring.network.publish(notary)
    own = ring.network.answers[NOTARY]
    answer = vouched(a_key_object(old), notary)
    ring.network.answers[NOTARY] = lambda path: answer if "/query/" in path else own(path)
    ring.network.publish(new)

    key = result_of(ring.keys.verify_key(THERE, KEY_2))

    assert key.encode() == new.verify_keys[KEY_2].encode()


def test_a_notary_cannot_bring_back_a_key_that_was_withdrawn() -> None:
    """Whoever has the leaked key asks for it by its ID; the notary's older copy must not win (F:K-2)."""
    old, new, notary = an_identity(), an_identity(version="2"), an_identity(NOTARY)
    ring = Ring(notaries=(NOTARY,))
    ring.network.publish(notary)
    own = ring.network.answers[NOTARY]
    answer = vouched(a_key_object(old, valid_until_ts=NOW_MS + 3_600_000), notary)
    ring.network.answers[NOTARY] = lambda path: answer if "/query/" in path else own(path)
    ring.network.publish(new)
    result_of(ring.keys.verify_key(THERE, KEY_2))

    failure_of(ensureDeferred(ring.keys.verify_key(THERE, KEY_1)), NotAuthentic)

    assert result_of(ring.keys.verify_key(THERE, KEY_2)).encode() == new.verify_keys[KEY_2].encode()


def test_a_stop_ends_every_fetch() -> None:
    """What a service started has ended when it says that it stopped."""
    ring = Ring()
    ring.network.slow = True
    waiting = as_deferred(ring.keys.verify_key(THERE, KEY_1))
    waiting.addErrback(lambda _: None)

    result_of(ring.keys.stop())

    assert waiting.called
    failure_of(ensureDeferred(ring.keys.verify_key(ELSEWHERE, KEY_1)), NotAuthentic)


def _saying(data: bytes) -> Callable[[str], bytes]:
    return lambda _path: data
