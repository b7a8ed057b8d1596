import threading
import time
from typing import Any

from fedpresence.testing.crowds import people, presence_load, share_a_room
from fedpresence.testing.domains import Domain, Person
from fedpresence.testing.processes import ServerProcess
from fedpresence.testing.synapse import Synapse
from fedpresence.testing.users import OpenStream
from tests.beside.conftest import Town
from tests.scenarios.story import eventually


def test_room_mates_of_two_domains_see_each_other_in_their_ordinary_syncs(two: list[Domain]) -> None:
    """The mission: presence is off in both Synapses, and whoever shares a room sees it all the same."""
    here, there = two
    alice, bob = people((here, "alice"), (there, "bob"))

    share_a_room(alice, bob)
    alice.put_status("online", "Fika")

    assert bob.presence_of(alice.user_id, 20, presence="online", status_msg="Fika")["currently_active"]
    bob.put_status("unavailable", "away")
    alice.presence_of(bob.user_id, 20, presence="unavailable", status_msg="away")
    assert bob.status_of(alice.user_id).body["status_msg"] == "Fika"


def test_the_doctor_finds_nothing_to_mend(two: list[Domain]) -> None:
    """What an operator sees who has followed the guide: one good line for each thing that must hold."""
    here, _ = two
    assert here.daemon is not None

    done = here.daemon.attempt("doctor")

    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == 7
    assert all(line.startswith("ok ") for line in done.stdout.splitlines()), done.stdout


def test_a_poll_that_ends_early_says_how_many_keys_are_left(two: list[Domain]) -> None:
    """Or a client takes it that none are, and uploads new ones with each change of somebody's presence."""
    here, there = two
    alice, bob = people((here, "alice"), (there, "bob"))
    share_a_room(alice, bob)
    alice.put_status("online", "first")
    bob.presence_of(alice.user_id, 20, presence="offline")  # she has no stream: nothing more comes by itself

    saying = threading.Timer(1.0, alice.put_status, ("online", "second"))
    saying.start()
    begun_s = time.monotonic()
    answer = bob.sync_until(lambda answer: "second" in status_messages(answer), 25)
    took_s = time.monotonic() - begun_s
    saying.join()

    assert took_s < 10  # and not when the poll would have ended
    assert answer["device_one_time_keys_count"] == {"signed_curve25519": 0}


def status_messages(answer: Any) -> list[object]:
    """What everybody in the presence section of a sync says."""
    events = answer.get("presence", {}).get("events", ())
    return [event["content"].get("status_msg") for event in events]


def test_a_list_entry_is_seen_without_any_room(two: list[Domain]) -> None:
    """Lists ask before they share, and go on working beside a homeserver."""
    here, there = two
    alice, bob = people((here, "alice"), (there, "bob"))

    assert alice.status_of(bob.user_id).status == 403
    assert alice.change_list(invite=[bob.user_id]).status == 200
    bob.sync_until(lambda answer: answer.get("to_device", {}).get("events"), 20)
    assert bob.change_list(accept=[alice.user_id]).status == 200
    bob.put_status("online", "by list alone")

    alice.presence_of(bob.user_id, 20, presence="online", status_msg="by list alone")


def test_the_edges_of_activity_and_idleness_come_from_what_the_user_does(two: list[Domain]) -> None:
    """A message is what makes somebody active; silence, idle; a second message, online again."""
    here, there = two
    alice, bob = people((here, "alice"), (there, "bob"))
    room_id = share_a_room(alice, bob)
    stream = OpenStream(bob)
    try:
        bob.say(room_id, "hello")
        assert alice.presence_of(bob.user_id, 20, presence="online", currently_active=True)
        alice.presence_of(bob.user_id, 20, presence="online", currently_active=False)
        idle = alice.presence_of(bob.user_id, 20, presence="unavailable")
        assert idle["last_active_ago"] >= 6_000
        bob.say(room_id, "hello again")
        alice.presence_of(bob.user_id, 20, presence="online", currently_active=True)
    finally:
        stream.close()
    alice.presence_of(bob.user_id, 20, presence="offline")


def test_who_appears_offline_before_their_first_sync_does_so_whatever_they_write(two: list[Domain]) -> None:
    """The homeserver tells of what they do before any client of theirs has said how they want to be seen."""
    here, _ = two
    (alice,) = people((here, "alice"))
    bob = here.user("bob-who-never-synced")
    room_id = share_a_room(alice, bob)
    eventually(lambda: alice.status_of(bob.user_id).body.get("presence") == "online", "seen, for he came")

    assert bob.put_status("offline").status == 200
    bob.say(room_id, "hello")
    alice.reads("hello")

    assert alice.status_of(bob.user_id).body["presence"] == "offline"


def test_who_leaves_the_last_shared_room_is_told_nothing_more(two: list[Domain]) -> None:
    """Membership is the right: when it ends, the next change stays here, at once."""
    here, there = two
    alice, bob = people((here, "alice"), (there, "bob"))
    room_id = share_a_room(alice, bob)
    alice.put_status("online", "before")
    bob.presence_of(alice.user_id, 20, status_msg="before")

    bob.leave(room_id)
    eventually(lambda: bob.status_of(alice.user_id).status == 403, "the right has ended there")
    eventually(lambda: alice.status_of(bob.user_id).status == 403, "and here")


def test_a_server_banned_while_we_are_down_hears_nothing_more(town: Town, two: list[Domain]) -> None:
    """Presence is among the first that leaves after a start: by then it is known who is there (Z-11)."""
    (here, there), (banned,) = two, town.build(False)
    alice, bob, erin = people((here, "alice"), (there, "bob"), (banned, "erin"))
    room_id = share_a_room(alice, bob, erin)
    alice.put_status("online", "before")
    for observer in (bob, erin):
        observer.presence_of(alice.user_id, 30, status_msg="before")
    assert here.daemon is not None

    here.daemon.stop()
    ban = here.synapse.call(alice.token, "POST", f"/rooms/{room_id}/ban", {"user_id": erin.user_id})
    here.daemon.start()
    eventually(lambda: alice.put_status("online", "after").status == 200, "a PUT")

    assert ban.status == 200
    bob.presence_of(alice.user_id, 30, status_msg="after")
    told = alice.server.admin("GET", "/destinations").body["destinations"]
    assert there.name in told and banned.name not in told


def test_messages_invites_and_devices_pass_under_load(two: list[Domain]) -> None:
    """Losing a device list or a to-device message breaks encryption: the one thing that must never happen."""
    here, there = two
    alice, bob, carol = people((here, "alice"), (there, "bob"), (there, "carol"))
    room_id = share_a_room(alice, bob)
    crowd = people(*[(here, f"noise{n}") for n in range(5)], *[(there, f"noise{n}") for n in range(5)])
    share_a_room(*crowd)

    with presence_load(crowd):
        for number in range(30):
            alice.say(room_id, f"message {number}")
            bob.send_to_device(alice.user_id, {"number": number})
        alice.ask("POST", f"/rooms/{room_id}/invite", {"user_id": carol.user_id})
        texts: set[str] = set()
        numbers: set[int] = set()

        def read(person: Person) -> Any:
            return person.sync(timeout_ms=500)

        def has_all_texts() -> bool:
            rooms = read(bob).get("rooms", {}).get("join", {})
            events = [event for room in rooms.values() for event in room["timeline"]["events"]]
            texts.update(event["content"].get("body") for event in events)
            return {f"message {number}" for number in range(20, 30)} <= texts

        def has_all_numbers() -> bool:
            events = read(alice).get("to_device", {}).get("events", ())
            numbers.update(event["content"].get("number") for event in events)
            return set(range(30)) <= numbers

        eventually(has_all_texts, "the messages")
        eventually(has_all_numbers, "every to-device message")
        eventually(lambda: room_id in read(carol).get("rooms", {}).get("invite", {}), "the invite")
        carol.join(room_id, here.name)
        carol.say(room_id, "thanks")
        alice.reads("thanks")


def test_after_any_of_the_four_processes_is_killed_all_is_well_again(two: list[Domain]) -> None:
    """A machine loses power; nobody should have to mend presence, or messages, after it."""
    here, there = two
    alice, bob = people((here, "alice"), (there, "bob"))
    room_id = share_a_room(alice, bob)
    assert here.daemon is not None and there.daemon is not None
    processes: list[ServerProcess | Synapse] = [here.daemon, there.daemon, here.synapse, there.synapse]
    for number, process in enumerate(processes):
        process.kill()
        process.start()
        all_is_well(alice, bob, room_id, f"life {number}")


def all_is_well(alice: Person, bob: Person, room_id: str, words: str) -> None:
    """Presence and messages arrive, once both servers have found their feet."""
    eventually(lambda: alice.put_status("online", words).status == 200, "a PUT")
    eventually(lambda: status_msg(bob, alice) == words, f"presence: {words}", 60)
    eventually(lambda: say(alice, room_id, words), "a message leaves")
    bob.reads(words, 60)


def status_msg(observer: Person, observed: Person) -> object:
    """What the observer is shown now, None where nothing."""
    return observer.status_of(observed.user_id).body.get("status_msg")


def test_a_synapse_that_carries_presence_itself_is_a_peer_like_any_other(town: Town) -> None:
    """Most of the world has no fedpresence: both directions work through a shared room."""
    (here,), (alone,) = town.build(True), town.build(False)
    alice, bob = people((here, "alice"), (alone, "bob"))
    room_id = share_a_room(alice, bob)

    alice.put_status("online", "to Synapse")
    bob.presence_of(alice.user_id, 30, status_msg="to Synapse")
    bob.put_status("online", "from Synapse")
    alice.presence_of(bob.user_id, 30, status_msg="from Synapse")
    bob.say(room_id, "hello")
    alice.reads("hello")


def say(person: Person, room_id: str, text: str) -> bool:
    """Whether a message was taken: its server may be starting."""
    try:
        person.say(room_id, text)
    except (AssertionError, OSError):
        return False
    return True
