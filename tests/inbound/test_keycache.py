from random import Random

from fedpresence.ids import ServerName
from fedpresence.inbound.keycache import FetchPolicy, KeyCache, KeySet, Want
from fedpresence.wire.signing import ServerKeys
from tests.inbound.servers import ELSEWHERE, NOW_MS, THERE


def a_key_set(name: ServerName) -> KeySet:
    return KeySet(ServerKeys(name, {}, NOW_MS + 1000), NOW_MS)


def test_the_least_recently_used_keys_go_first() -> None:
    """Z-4: names are cheap, so forged origins must push each other out and not the servers we talk to."""
    cache = KeyCache(max_servers=2)
    cache.put(a_key_set(THERE))
    cache.put(a_key_set(ELSEWHERE))

    cache.get(THERE, NOW_MS)
    cache.put(a_key_set(ServerName("third.test")))

    assert len(cache) == 2
    assert cache.get(THERE, NOW_MS) is not None
    assert cache.get(ELSEWHERE, NOW_MS) is None


def test_what_is_remembered_of_failures_is_bounded() -> None:
    """Z-4: the memory of who failed is fed by forged origins too."""
    policy = FetchPolicy(Random(1), max_servers=2)

    for n in range(5):
        policy.failed(ServerName(f"s{n}.test"), NOW_MS)

    policy.begin(ServerName("s0.test"), Want.KEYS, None, 0, NOW_MS)


def test_keys_that_hold_for_moments_are_not_refreshed_all_the_time() -> None:
    """A server that says `valid_until_ts` in two minutes gets one question in one, not one a request."""
    short = KeySet(ServerKeys(THERE, {}, NOW_MS + 10_000), NOW_MS)
    long = KeySet(ServerKeys(THERE, {}, NOW_MS + 1_000_000), NOW_MS)

    assert short.refresh_at_ms == NOW_MS + 60_000
    assert long.refresh_at_ms == NOW_MS + 500_000
