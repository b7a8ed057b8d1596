from collections.abc import Callable
from itertools import pairwise

import pytest

from fedpresence.engine.effects import Durable, SaveObservedRow, SaveObserverRow, SaveUser
from fedpresence.engine.events import ListChanged, StreamOpened
from fedpresence.engine.presence import OFFLINE, ONLINE, UNAVAILABLE, PresenceRecord
from fedpresence.engine.settings import DAY_MS, HOUR_MS, MINUTE_MS, EngineSettings
from fedpresence.engine.subscription import ObservedRow, ObservedStage, ObserverRow, ObserverStage
from fedpresence.ids import UserID
from fedpresence.storage.memory import MemoryStore
from fedpresence.testing.builders import (
    ALICE,
    HERE,
    LAPTOP,
    NOW_MS,
    PHONE,
    a_put,
    a_stream,
    a_transaction,
    an_end,
    an_invite,
)
from tests.asynchronous import result_of
from tests.sending_server import SendingServer, destination

S = 1000
SERVERS = 3
BURST = 30  # far less than an operator's, so that it is soon used up


def watched() -> SendingServer:
    """Alice, whom one user of each of three servers may see, long after anything was sent."""
    server = SendingServer(users=(ALICE,), settings=EngineSettings(HERE, news_burst=BURST))
    for number in range(SERVERS):
        name = destination(number)
        observer = UserID(f"@o:{name}")
        server.do(a_transaction(an_invite(name, observer, ALICE), origin=name))
        server.wait(100)
        server.do(ListChanged(ALICE, accept=(observer,)))
    server.wait(MINUTE_MS)
    server.net.sent.clear()
    return server


# --- one user who flaps (Z-18, decision 13) -----------------------------------------------------------

Flap = Callable[[SendingServer, int], None]


def comes_and_goes(server: SendingServer, second: int) -> None:
    """A phone that says so each time."""
    server.do(a_put(OFFLINE if second % 2 else ONLINE))


def reconnects(server: SendingServer, second: int) -> None:
    """A sync that is cut and begun anew."""
    server.do(a_stream(ONLINE), an_end())


def two_disagree(server: SendingServer, second: int) -> None:
    """Each says its own, over and over."""
    phone, laptop = a_put(ONLINE, device_id=PHONE), a_put(UNAVAILABLE, device_id=LAPTOP)
    server.do(laptop if second % 2 else phone)


def two_say_different_things(server: SendingServer, second: int) -> None:
    """The last writer's message counts (P:D-4), and each thinks that it is the last."""
    home, work = a_put(ONLINE, "home", device_id=PHONE), a_put(ONLINE, "work", device_id=LAPTOP)
    server.do(work if second % 2 else home)


def syncs_differ(server: SendingServer, second: int) -> None:
    """One device, whose clients declare different things on every sync."""
    server.do(a_stream(UNAVAILABLE if second % 2 else ONLINE), an_end())


@pytest.mark.parametrize(
    ("flap", "most"),
    [
        (comes_and_goes, BURST + 240),
        (two_say_different_things, BURST + 240),
        (syncs_differ, BURST + 240),
        (two_disagree, 8),
        (reconnects, 8),
    ],
)
def test_an_hour_of_flapping_costs_a_bounded_number_of_pushes_and_ends_with_the_truth(
    flap: Flap, most: int
) -> None:
    """A burst and then one in 15 s, to each server; not 3,600 because a phone is broken."""
    server = watched()

    for second in range(3600):
        flap(server, second)
        server.wait(S, step_ms=250)
    an_hour = len(server.pushes_of(ALICE))
    server.wait(2 * MINUTE_MS)

    said = server.pushes_of(ALICE)
    assert an_hour <= most * SERVERS
    assert len(said) - an_hour <= 3 * SERVERS
    assert [push["presence"] for push in said[-SERVERS:]] == ["offline"] * SERVERS


def test_news_that_is_held_back_is_the_newest_when_it_leaves() -> None:
    """Whoever flapped and then came to rest is seen as they are within a quarter of a minute."""
    server = watched()
    for number in range(100):
        server.do(a_put(ONLINE, f"message {number}"))
        server.wait(300)
    told = len(server.pushes_of(ALICE))

    server.wait(15 * S)

    said = server.pushes_of(ALICE)[told:]
    assert [push["status_msg"] for push in said] == ["message 99"] * SERVERS


def test_a_change_that_is_taken_back_while_it_is_held_back_is_not_told() -> None:
    """Cancelling pairs send nothing, however long they waited."""
    server = watched()
    for number in range(100):
        server.do(a_put(ONLINE, "odd" if number % 2 else "even"))
        server.wait(250)
    told = server.pushes_of(ALICE)

    server.do(a_put(ONLINE, "other"), a_put(ONLINE, str(told[-1]["status_msg"])))
    server.wait(20 * S)

    assert server.pushes_of(ALICE) == told


def test_a_pair_of_changes_within_the_window_sends_nothing() -> None:
    """Decision 13: mobile clients drop out and come back."""
    server = watched()
    server.do(a_stream(ONLINE))
    server.wait(MINUTE_MS - 1)
    told = server.pushes_of(ALICE)

    for _ in range(20):
        server.do(a_put(OFFLINE), a_put(ONLINE))
        server.wait(100)

    assert server.pushes_of(ALICE) == told


def test_a_clean_stop_keeps_no_last_word_back() -> None:
    """Who flapped and then went must not be shown online for half an hour."""
    server = watched()
    for second in range(40):
        comes_and_goes(server, second)
        server.wait(300)
    server.do(a_put(ONLINE, "bye"))
    server.wait(S)
    assert server.pushes_of(ALICE)[-1].get("status_msg") is None

    server.stop()

    assert server.pushes_of(ALICE)[-1]["status_msg"] == "bye"


# --- everybody idle (decision 14) ---------------------------------------------------------------------


def idle_for_long(servers: int, users: int, each: int) -> SendingServer:
    """Connected and idle since a restart an hour ago; each is watched by some of the servers."""
    names = [UserID(f"@u{number}:here.test") for number in range(users)]
    effects: list[Durable] = [SaveUser(user_id, deactivated=False) for user_id in names]
    for number in range(users * each):
        observer = UserID(f"@r{number}:{destination(number % servers)}")
        row = ObservedRow(observer, names[number % users], ObservedStage.GRANTED, NOW_MS, NOW_MS)
        effects.append(SaveObservedRow(row))
    store = MemoryStore()
    result_of(store.commit(effects, NOW_MS))
    records = [PresenceRecord(user_id, UNAVAILABLE, NOW_MS - HOUR_MS, None, False, 0) for user_id in names]
    result_of(store.save_presence(records, NOW_MS))
    server = SendingServer(store, NOW_MS)
    server.do(*(StreamOpened(user_id, PHONE, None) for user_id in names))
    server.wait(HOUR_MS, step_ms=250)
    return server


def test_a_thousand_servers_are_refreshed_one_after_the_other() -> None:
    """No second has more than twice the mean; peers have a herd of all, every 25 minutes."""
    servers, seconds = 1000, 25 * 60
    server = idle_for_long(servers, users=110, each=10)
    before = len(server.net.opened)

    server.wait(seconds * S, step_ms=50)

    opened = server.net.opened[before:]
    moments = [at_ms for _, at_ms in opened]
    most = max(sum(0 <= other - one < S for other in moments[n : n + 50]) for n, one in enumerate(moments))
    assert {name for name, _ in opened} == {destination(number) for number in range(servers)}
    assert most <= 2 * len(moments) / seconds
    assert len(moments) <= 1.4 * servers


# --- everybody at once: a restart (S:O-15, O-18, O-25, O-27, T-28) ------------------------------------


def a_crowd(servers: int, *, stopped_ms: int) -> MemoryStore:
    """1,000 users with ten subscriptions each way, overdue for their check, and ten unanswered requests."""
    users = [UserID(f"@u{number}:here.test") for number in range(1000)]
    effects: list[Durable] = [SaveUser(user_id, deactivated=False) for user_id in users]
    for number in range(10_000):
        user_id, name = users[number % 1000], destination(number % servers)
        other, asked = UserID(f"@r{number}:{name}"), UserID(f"@p{number}:{name}")
        ago = NOW_MS - 20 * DAY_MS
        accepted = ObserverRow(user_id, other, ObserverStage.ACCEPTED, ago, ago, ago, NOW_MS - 8 * DAY_MS)
        effects.append(SaveObserverRow(accepted))
        effects.append(SaveObservedRow(ObservedRow(other, user_id, ObservedStage.GRANTED, ago, ago)))
        effects.append(
            SaveObserverRow(ObserverRow(user_id, asked, ObserverStage.PENDING, ago, ago, NOW_MS - 2 * DAY_MS))
        )
    store = MemoryStore()
    result_of(store.commit(effects, stopped_ms))
    records = [PresenceRecord(user_id, ONLINE, stopped_ms - 1, None, True, 0) for user_id in users]
    result_of(store.save_presence(records, stopped_ms))
    return store


@pytest.mark.parametrize(("servers", "clients_return"), [(1000, True), (10, False)])
def test_a_restart_with_thousands_of_subscriptions_is_no_storm(servers: int, clients_return: bool) -> None:
    """All polls, pushes, checks and invites fall due together; what leaves stays within the budget.

    50 a second on average and another 50 at once (`federation.max_transactions_per_second`), and from the
    second minute on far below it: repair has an hour.
    """
    server = SendingServer(a_crowd(servers, stopped_ms=NOW_MS - 5 * S), NOW_MS)
    if clients_return:
        for number in range(1000):
            server.do(StreamOpened(UserID(f"@u{number}:here.test"), PHONE, None))

    server.wait(7 * MINUTE_MS, step_ms=250)

    counts = server.transactions_a_second()
    seconds = [counts[NOW_MS // 1000 + second] for second in range(420)]
    assert max(seconds) <= 100
    assert all(one + two <= 150 for one, two in pairwise(seconds))
    calm = seconds[330:]
    assert sum(calm) / len(calm) <= 20


def test_who_was_here_when_a_long_outage_began_is_announced_to_nobody() -> None:
    """Everybody else took them for gone long ago: no `offline` about people of last week, nor `online`."""
    server = SendingServer(a_crowd(10, stopped_ms=NOW_MS - 8 * DAY_MS), NOW_MS)

    server.wait(2 * MINUTE_MS, step_ms=500)

    assert [
        push for number in range(1000) for push in server.pushes_of(UserID(f"@u{number}:here.test"))
    ] == []


def test_who_is_back_after_a_long_outage_is_announced_at_once() -> None:
    """Others show them offline; waiting for the refresh of the boot would keep them so for minutes."""
    server = watched()
    server.do(a_stream(ONLINE))
    server.wait(6 * MINUTE_MS)
    again = server.reopened(HOUR_MS)

    again.do(a_stream(ONLINE))
    again.wait(S)

    said = again.pushes_of(ALICE)
    assert [push["presence"] for push in said] == ["unavailable"] * SERVERS
    assert all(int(str(push["last_active_ago"])) > HOUR_MS for push in said)
