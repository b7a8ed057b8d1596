import itertools

from fedpresence.engine.presence import PresenceState
from fedpresence.errors import DeliveryFailed
from tests.outbound.sending import ALICE, CAROL, THERE, Rig, refusal

BESIDE_MS = 5_000  # federation.batch_window beside a homeserver


def concurrent() -> DeliveryFailed:
    """What Synapse says while it works on a transaction of the homeserver of our name (H:5)."""
    return refusal(429, errcode="M_UNKNOWN")


def change(rig: Rig, number: int) -> None:
    """Alice does something."""
    rig.engine.publish(ALICE, (PresenceState.ONLINE, PresenceState.UNAVAILABLE)[number % 2])
    rig.push()


def test_the_first_news_to_a_quiet_destination_leaves_at_once() -> None:
    """Somebody waits for it, and the homeserver is hardly sending there this very moment."""
    rig = Rig(batch_window_ms=BESIDE_MS).start()
    change(rig, 0)
    rig.wait(0.1)

    assert rig.server.pushed() == [[ALICE]]


def test_what_follows_leaves_in_one_transaction_a_window() -> None:
    """Each transaction of ours may cost the homeserver's next one four seconds (H:5, 2)."""
    rig = Rig(batch_window_ms=BESIDE_MS).start()
    for number in range(200):
        change(rig, number)
        rig.push(CAROL)
        rig.wait(0.1)

    assert 2 <= len(rig.server.sent) <= 1 + 20_000 // BESIDE_MS
    times_ms = [at_ms for _, at_ms in rig.server.opened]
    assert all(later - earlier >= BESIDE_MS for earlier, later in itertools.pairwise(times_ms))


def test_our_transaction_ids_are_never_the_homeservers() -> None:
    """Receivers know a transaction again by origin and id: H:5, 1."""
    rig = Rig().start()
    for number in range(3):
        change(rig, number)
        rig.wait(1)

    ids = [txn_id for txn_id, _ in rig.server.sent]
    assert len(set(ids)) == 3
    assert all(txn_id.startswith("fp") and not txn_id.isdigit() for txn_id in ids)


def test_where_the_homeserver_is_sending_we_give_way_and_lose_nothing() -> None:
    """429 for concurrency: the waits grow like any back-off, nobody calls it an outage (Z-20)."""
    rig = Rig(batch_window_ms=BESIDE_MS).start()
    rig.server.otherwise = lambda txn_id, content: concurrent()
    change(rig, 0)
    rig.wait(120)

    tried_ms = [at_ms for _, at_ms in rig.server.opened]
    gaps_ms = [later - earlier for earlier, later in itertools.pairwise(tried_ms)]
    assert 1_500 <= gaps_ms[0] <= 6_000
    assert gaps_ms[-1] > 10_000
    status = rig.outbound.describe(THERE)[THERE]
    assert (status.state, status.failing_since_ts) == ("waiting", None)
    assert rig.engine.events == []  # nobody was told that it is away, or back

    rig.server.otherwise = lambda txn_id, content: 200
    rig.engine.publish(ALICE, PresenceState.OFFLINE)
    rig.wait(60)

    last = rig.server.sent[-1][1]
    assert '"presence": "offline"' in str(last).replace("'", '"')
    assert rig.outbound.describe(THERE)[THERE].pending_users == 0
