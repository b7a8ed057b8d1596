import itertools
import statistics
import threading
import time

from fedpresence.testing.processes import LocalFederation, OpenStream, User
from tests.scenarios.conftest import HERE, THERE, LetIn, Start
from tests.scenarios.story import (
    ACCEPT,
    DENY,
    DROP,
    INVITE,
    SILENCE_S,
    Wire,
    befriend,
    eventually,
    invites_of,
    list_of,
    notice,
    observers_of,
    seen_by,
    set_room,
)

QUICK = {"presence": {"last_active_granularity": "1500ms", "idle_timeout": "3s", "sync_online_timeout": "1s"}}


def test_the_life_of_a_subscription(start: Start, let_in: LetIn) -> None:
    """The whole of it once, by the clients' eyes and by the wire: S:9 and P:8.5 between real processes."""
    federation = start(QUICK)
    alice, bob = let_in(federation, "alice@here.test", "bob@there.test")
    from_here, from_there = Wire(federation[HERE]), Wire(federation[THERE])
    alice.sync()
    bob.sync()

    # Alice invites Bob, who is asked.
    assert alice.change_list(invite=[bob.user_id]).status == 200
    from_here.expect(INVITE, observer_user=alice.user_id, observed_user=bob.user_id)
    bob.sync_until(notice(INVITE, observer_user=alice.user_id))
    assert list_of(alice) == {bob.user_id: "pending"}
    assert seen_by(alice, bob) == "M_FORBIDDEN"

    # Bob accepts: the accept and what it allows to see travel together.
    assert bob.change_list(accept=[alice.user_id]).status == 200
    accept, push = from_there.expect(ACCEPT), from_there.expect("push")
    assert accept.txn_id == push.txn_id
    alice.sync_until(notice(ACCEPT, observed_user=bob.user_id))
    assert list_of(alice) == {bob.user_id: "accepted"}
    assert observers_of(bob) == {alice.user_id}

    # Bob comes online.
    stream = OpenStream(bob)
    assert bob.put_status("online", "Fika").status == 200
    from_there.expect("push", presence="online", currently_active=True, status_msg="Fika")
    seen = alice.presence_of(bob.user_id, presence="online", status_msg="Fika")
    assert seen["currently_active"] is True

    # Activity while "currently active" is the last word is nobody's news (P:A-2).
    federation[THERE].is_active(bob.user_id)
    from_there.expect_silence()

    # The edges: no longer active, idle, back.
    from_there.expect("push", presence="online", currently_active=False)
    alice.presence_of(bob.user_id, presence="online", currently_active=False)
    push = from_there.expect("push")
    assert push.content["presence"] == "unavailable"
    assert 3000 < push.content["last_active_ago"] < 6000
    assert "currently_active" not in push.content
    alice.presence_of(bob.user_id, presence="unavailable")
    federation[THERE].is_active(bob.user_id)
    from_there.expect("push", presence="online", currently_active=True)
    alice.presence_of(bob.user_id, presence="online")

    # Bob's client goes away: its stream ends, and a second later he is offline.
    stream.close()
    from_there.expect("push", presence="offline", status_msg="Fika")
    alice.presence_of(bob.user_id, presence="offline")

    # Alice drops him: his server forgets the grant and says no more.
    assert alice.change_list(drop=[bob.user_id]).status == 200
    from_here.expect(DROP, observer_user=alice.user_id, observed_user=bob.user_id)
    bob.sync_until(notice(DROP, observer_user=alice.user_id))
    assert observers_of(bob) == set()
    assert seen_by(alice, bob) == "M_FORBIDDEN"
    from_there.rest()
    bob.put_status("unavailable")
    from_there.expect_silence()

    # She asks again, he accepts again, and this time it is he who ends it.
    befriend(alice, bob)
    bob.put_status("online")
    alice.presence_of(bob.user_id, presence="online")
    assert bob.change_list(revoke=[alice.user_id]).status == 200
    alice.sync_until(notice(DENY, reason="revoked"))
    assert list_of(alice) == {}
    assert seen_by(alice, bob) == "M_FORBIDDEN"
    from_there.expect(DENY)
    bob.put_status("unavailable")
    from_there.expect_silence()


def test_a_declined_request_ends_with_a_notice(shared: LocalFederation, let_in: LetIn) -> None:
    """A deny is the user's own word; the observer hears it once, and sees nothing (S:T-11)."""
    alice, bob = let_in(shared, "alice@here.test", "bob@there.test")
    alice.sync()
    bob.put_status("online")
    wire = Wire(shared[THERE], bob)

    alice.change_list(invite=[bob.user_id])
    eventually(lambda: invites_of(bob) == {alice.user_id}, "the request arrives")
    assert bob.change_list(deny=[alice.user_id]).status == 200

    alice.sync_until(notice(DENY, reason="declined", observed_user=bob.user_id))
    assert wire.rest() == [DENY]
    assert list_of(alice) == {}
    assert invites_of(bob) == observers_of(bob) == set()
    assert seen_by(alice, bob) == "M_FORBIDDEN"
    again = alice.change_list(invite=[bob.user_id])
    assert again.status == 429, "no harassment: S:O-30"


def test_a_revoke_says_offline_and_deny_in_one_transaction(shared: LocalFederation, let_in: LetIn) -> None:
    """Nobody may go on seeing a state from before the revoke (S:T-7)."""
    alice, bob = let_in(shared, "alice@here.test", "bob@there.test")
    befriend(alice, bob)
    bob.put_status("online", "at work")
    alice.sync()
    alice.presence_of(bob.user_id, presence="online")
    wire = Wire(shared[THERE], bob)

    assert bob.change_list(revoke=[alice.user_id]).status == 200

    seen = alice.presence_of(bob.user_id, presence="offline")
    last, deny = wire.expect("push", presence="offline"), wire.expect(DENY)
    assert last.txn_id == deny.txn_id
    assert last.content == {"user_id": bob.user_id, "presence": "offline", "last_active_ago": 0}
    assert "status_msg" not in seen
    bob.put_status("unavailable")
    wire.expect_silence()


def test_two_users_of_one_server_need_no_wire(shared: LocalFederation, let_in: LetIn) -> None:
    """Both tables run in one turn: nothing about it leaves the server (S:6)."""
    anna, berta = let_in(shared, "anna@here.test", "berta@here.test")
    wire = Wire(shared[HERE], anna, berta)
    anna.sync()
    berta.sync()

    anna.change_list(invite=[berta.user_id])
    berta.sync_until(notice(INVITE))
    berta.change_list(accept=[anna.user_id])
    anna.sync_until(notice(ACCEPT))
    berta.put_status("online", "hello")
    seen = anna.presence_of(berta.user_id, presence="online")
    assert seen["status_msg"] == "hello"

    berta.change_list(revoke=[anna.user_id])
    anna.presence_of(berta.user_id, presence="offline")
    assert seen_by(anna, berta) == "M_FORBIDDEN"
    assert (list_of(anna), observers_of(berta)) == ({}, set())
    wire.expect_silence()


def test_a_shared_room_shares_presence_until_it_is_left(shared: LocalFederation, let_in: LetIn) -> None:
    """Rooms told by the admin API count at once, without any list; leaving ends sight both ways (P:11)."""
    alice, bob = let_in(shared, "alice@here.test", "bob@there.test")
    alice.sync()
    bob.sync()
    bob.put_status("online", "in the room")
    wire = Wire(shared[THERE], bob)
    wire.expect_silence()

    set_room(shared, "!meeting:here.test", [alice, bob])
    seen = alice.presence_of(bob.user_id, presence="online")
    assert seen["status_msg"] == "in the room"
    alice.put_status("unavailable")
    bob.presence_of(alice.user_id, presence="unavailable")

    set_room(shared, "!meeting:here.test", [bob])
    alice.presence_of(bob.user_id, presence="offline")
    assert seen_by(alice, bob) == seen_by(bob, alice) == "M_FORBIDDEN"
    wire.rest()
    bob.put_status("unavailable")
    wire.expect_silence()
    assert "m.presence" not in str(wire.rest())


def test_a_room_and_a_list_are_two_reasons(shared: LocalFederation, let_in: LetIn) -> None:
    """One ground that ends must not take the other with it (decision 1)."""
    alice, bob = let_in(shared, "alice@here.test", "bob@there.test")
    befriend(alice, bob)
    set_room(shared, "!both:there.test", [alice, bob])
    alice.sync()
    bob.put_status("online")
    alice.presence_of(bob.user_id, presence="online")

    set_room(shared, "!both:there.test", [])
    bob.put_status("unavailable")
    alice.presence_of(bob.user_id, presence="unavailable")

    set_room(shared, "!both:there.test", [alice, bob])
    wire = Wire(shared[THERE], bob)
    bob.change_list(revoke=[alice.user_id])
    alice.sync_until(notice(DENY, reason="revoked"))
    bob.put_status("online")
    alice.presence_of(bob.user_id, presence="online")
    assert "push offline" not in wire.rest(), "a right remained: no last offline push (S:T-7)"

    set_room(shared, "!both:there.test", [])
    alice.presence_of(bob.user_id, presence="offline")
    assert seen_by(alice, bob) == "M_FORBIDDEN"


def test_a_status_message_is_news_by_itself(shared: LocalFederation, let_in: LetIn) -> None:
    """It is set, changed, kept while offline, cleared by its absence (P:S-1 to S-4), and never logged."""
    alice, bob = let_in(shared, "alice@here.test", "bob@there.test")
    befriend(alice, bob)
    alice.sync()

    bob.put_status("online", "Blåbärspaj 🥧")
    alice.presence_of(bob.user_id, presence="online", status_msg="Blåbärspaj 🥧")
    bob.put_status("online", "Semmeldagen")
    alice.presence_of(bob.user_id, presence="online", status_msg="Semmeldagen")
    bob.put_status("offline", "Semmeldagen")
    alice.presence_of(bob.user_id, presence="offline", status_msg="Semmeldagen")
    bob.put_status("online")
    seen = alice.presence_of(bob.user_id, presence="online")
    assert "status_msg" not in seen

    for server, user in ((shared[HERE], alice), (shared[THERE], bob)):
        log = server.log(last=10_000_000)
        assert "Semmeldagen" not in log
        assert user.token not in log


def test_the_best_device_speaks_for_the_user(shared: LocalFederation, let_in: LetIn) -> None:
    """A phone that idles says nothing while the laptop is online (P:6)."""
    alice, laptop, phone = let_in(shared, "alice@here.test", "bob@there.test/LAPTOP", "bob@there.test/PHONE")
    befriend(alice, laptop)
    alice.sync()
    laptop.put_status("online")
    alice.presence_of(laptop.user_id, presence="online")
    wire = Wire(shared[THERE], laptop)

    phone.put_status("unavailable")
    wire.expect_silence()
    assert phone.status_of(laptop.user_id).body["presence"] == "online"
    laptop.put_status("offline")
    alice.presence_of(laptop.user_id, presence="unavailable")
    phone.put_status("offline")
    alice.presence_of(laptop.user_id, presence="offline")
    laptop.put_status("online")
    alice.presence_of(laptop.user_id, presence="online")


def test_who_is_declared_offline_shows_nothing(shared: LocalFederation, let_in: LetIn) -> None:
    """Who appears offline must not show typing, nor a stream, nor a sync's default (P:D-8, D-9, Z-8)."""
    alice, bob = let_in(shared, "alice@here.test", "bob@there.test")
    befriend(alice, bob)
    alice.sync()
    bob.put_status("online")
    alice.presence_of(bob.user_id, presence="online")
    bob.put_status("offline")
    alice.presence_of(bob.user_id, presence="offline")
    wire = Wire(shared[THERE], bob)

    shared[THERE].is_active(bob.user_id)
    bob.sync(set_presence="online")
    stream = OpenStream(bob)
    wire.expect_silence()
    assert seen_by(alice, bob) == seen_by(bob, bob) == "offline"

    bob.put_status("online")
    alice.presence_of(bob.user_id, presence="online")
    stream.close()


def test_two_observers_on_one_server_cost_one_push(shared: LocalFederation, let_in: LetIn) -> None:
    """A push goes to a server once, however many watch there (S:T-20); one drop is not the other's."""
    alice, carol, bob = let_in(shared, "alice@here.test", "carol@here.test", "bob@there.test")
    befriend(alice, bob)
    befriend(carol, bob)
    alice.sync()
    carol.sync()
    wire = Wire(shared[THERE], bob)

    bob.put_status("online")
    alice.presence_of(bob.user_id, presence="online")
    carol.presence_of(bob.user_id, presence="online")
    assert wire.rest() == ["push online"]

    alice.change_list(drop=[bob.user_id])
    eventually(lambda: observers_of(bob) == {carol.user_id}, "the drop arrives")
    bob.put_status("unavailable")
    carol.presence_of(bob.user_id, presence="unavailable")
    assert seen_by(alice, bob) == "M_FORBIDDEN"


def test_nobody_home_looks_like_nobody_answering(shared: LocalFederation, let_in: LetIn) -> None:
    """An invite must not tell who has an account elsewhere (decision 4, Z-7)."""
    alice, bob = let_in(shared, "alice@here.test", "bob@there.test")
    nobody = f"@nobody-{bob.user_id[1:]}"
    wire = Wire(shared[THERE])

    assert alice.change_list(invite=[bob.user_id, nobody]).status == 200
    eventually(lambda: invites_of(bob) == {alice.user_id}, "the request arrives")

    assert list_of(alice) == {bob.user_id: "pending", nobody: "pending"}
    assert alice.status_of(nobody).status == seen_status(alice, bob) == 403
    assert not [said for said in wire.rest() if said in (ACCEPT, DENY)]


def test_repeats_and_strays_are_harmless(shared: LocalFederation, let_in: LetIn) -> None:
    """Clients invite twice, drop what is not listed and accept what was not asked; nothing may break."""
    alice, bob = let_in(shared, "alice@here.test", "bob@there.test")

    assert alice.change_list(drop=[bob.user_id]).status == 200
    assert bob.change_list(revoke=[alice.user_id]).status == 200
    assert bob.change_list(accept=[alice.user_id]).status == 404
    assert alice.change_list(invite=[bob.user_id]).status == 200
    assert alice.change_list(invite=[bob.user_id]).status == 200
    eventually(lambda: invites_of(bob) == {alice.user_id}, "the request arrives")
    assert bob.change_list(accept=[alice.user_id]).status == 200
    assert bob.change_list(accept=[alice.user_id]).status == 200
    eventually(lambda: list_of(alice) == {bob.user_id: "accepted"}, "the accept arrives")
    assert alice.change_list(drop=[bob.user_id]).status == 200
    assert alice.change_list(drop=[bob.user_id]).status == 200
    eventually(lambda: observers_of(bob) == set(), "the drop arrives")
    assert list_of(alice) == {}


def test_a_long_poll_is_answered_within_milliseconds_of_the_news(
    shared: LocalFederation, let_in: LetIn
) -> None:
    """Presence that comes late is wrong: no polling interval may hide between a change and its observers."""
    alice, neighbour, bob = let_in(shared, "alice@here.test", "neighbour@there.test", "bob@there.test")
    befriend(alice, bob)
    befriend(neighbour, bob)
    alice.sync()
    neighbour.sync()

    delays: dict[str, list[float]] = {"over there": [], "next door": []}
    states = itertools.cycle(["online", "unavailable"])
    for where, observer in [("over there", alice), ("next door", neighbour)] * 3:
        observer.sync()
        delays[where].append(_delay_ms(observer, bob, next(states)))
        time.sleep(SILENCE_S)  # the destination is quiet again: the next news leaves at once

    for where, times in delays.items():
        print(f"news to a long poll {where}: median {statistics.median(times):.0f} ms of {times}")
        assert statistics.median(times) < 250


def _delay_ms(observer: User, observed: User, state: str) -> float:
    """From the change's request to the observer's answer."""
    answered: list[float] = []

    def wait() -> None:
        observer.presence_of(observed.user_id, presence=state)
        answered.append(time.monotonic())

    waiting = threading.Thread(target=wait)
    waiting.start()
    time.sleep(0.1)  # the poll is open; if it is not yet, that is only slower
    changed = time.monotonic()
    assert observed.put_status(state).status == 200
    waiting.join(30)
    return round((answered[0] - changed) * 1000, 1)


def seen_status(observer: User, observed: User) -> int:
    """The HTTP status of a GET of the presence."""
    return observer.status_of(observed.user_id).status
