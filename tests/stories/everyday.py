"""What people do: ask, watch, come and go, hide, and change their minds.

Always true: none of these breaks anything; they are played on whole paths between sound servers.
"""

from tests.stories.stage import Stage


def somebody_is_asked_and_watched(stage: Stage) -> None:
    """The whole life of a subscription, as the two of them see it (S:9)."""
    alice, bob = stage.alice, stage.bob
    alice.invites(bob)
    bob.sees_a_request_from(alice)
    bob.is_told("asked", about=alice)
    alice.waits_for(bob)
    alice.may_not_see(bob)

    bob.accepts(alice)
    alice.watches(bob)
    alice.is_told("accepted", about=bob)
    bob.is_watched_by(alice)

    bob.connects()
    bob.says("online", "Fika")
    alice.sees(bob, "online", message="Fika", active=True)

    alice.drops(bob)
    alice.does_not_list(bob)
    alice.may_not_see(bob)
    bob.is_not_watched_by(alice)
    bob.is_told("withdrawn", about=alice)


def somebody_says_no(stage: Stage) -> None:
    """No is a word of its own: Alice hears it once, may not insist, and may ask again another day."""
    alice, bob = stage.alice, stage.bob
    alice.invites(bob)
    bob.sees_a_request_from(alice)
    bob.denies(alice)
    alice.does_not_list(bob)
    alice.is_told("declined", about=bob)
    assert alice.asks_to_watch(bob) == 429  # O-30

    stage.after(hours=25)
    alice.invites(bob)
    bob.sees_a_request_from(alice)  # T-30
    bob.denies(alice)  # the second time is for good: T-11
    alice.is_told("declined", about=bob, times=2)

    stage.after(hours=25)
    alice.invites(bob)
    alice.waits_for(bob)
    bob.sees_no_request_from(alice)  # T-32: silence, as if he did not exist
    alice.waits_for(bob)


def somebody_takes_it_back(stage: Stage) -> None:
    """A revocation sends by itself, says offline once, and then nothing ever again (S:T-7, E:P-11)."""
    alice, bob = stage.alice, stage.bob
    alice.comes_to_watch(bob)
    bob.connects()
    bob.says("online", "Fika")
    alice.sees(bob, "online", message="Fika", active=True)
    wire = stage.listen(stage.there, stage.here)

    bob.revokes(alice)
    goodbye, deny = wire.hears("push offline", "deny")
    assert goodbye.txn_id == deny.txn_id
    assert not goodbye.content.keys() & {"status_msg", "currently_active"}
    alice.does_not_list(bob)
    alice.is_told("revoked", about=bob)
    alice.may_not_see(bob)

    bob.says("unavailable", "still here")
    bob.does_something()
    stage.after(minutes=3)
    wire.hears_nothing()


def the_best_device_speaks(stage: Stage) -> None:
    """A phone in a pocket idles; that is no news while its owner types at the laptop (P:6)."""
    alice, bob = stage.alice, stage.bob
    alice.comes_to_watch(bob)
    bob.connects("PHONE")
    bob.connects("LAPTOP")
    alice.sees(bob, "online", active=True)

    for _ in range(10):
        stage.after(seconds=50)
        bob.does_something("LAPTOP")
    alice.sees(bob, "online", active=True)

    wire = stage.listen(stage.there, stage.here)
    bob.disconnects("PHONE")
    stage.after(seconds=40)
    alice.sees(bob, "online", active=True)
    wire.hears_nothing()

    stage.after(minutes=5)
    alice.sees(bob, "unavailable")
    bob.connects("PHONE")
    bob.does_something("PHONE")
    alice.sees(bob, "online", active=True)
    bob.disconnects("PHONE")
    stage.after(seconds=40)
    alice.sees(bob, "unavailable")  # the laptop, idle since


def somebody_hides(stage: Stage) -> None:
    """Who appears offline shows no typing, no age, no stream, until they say otherwise (P:D-8, D-9, Z-8)."""
    alice, bob = stage.alice, stage.bob
    alice.comes_to_watch(bob)
    bob.connects()
    alice.sees(bob, "online", active=True)
    bob.hides()
    alice.sees(bob, "offline")
    since = alice.asks_about(bob)["last_active_ago"]
    wire = stage.listen(stage.there, stage.here)

    for _ in range(3):
        stage.after(minutes=1)
        bob.does_something()
    bob.disconnects()
    bob.connects()
    stage.after(minutes=1)
    assert {str(said) for said in wire.unheard()} <= {"push offline"}
    alice.sees(bob, "offline")
    assert alice.asks_about(bob)["last_active_ago"] >= since + 4 * 60_000 / stage.stretch

    bob.says("online")
    alice.sees(bob, "online", active=True)


def two_watch_and_one_push_goes(stage: Stage) -> None:
    """A push goes to a server once, however many watch there; one drop is not the other's (S:T-20, O-23)."""
    alice, bob, dave = stage.alice, stage.bob, stage.dave
    alice.comes_to_watch(bob)
    dave.comes_to_watch(bob)
    wire = stage.listen(stage.there, stage.here)
    bob.says("online")
    wire.hears("push online")
    alice.sees(bob, "online", active=True)
    dave.sees(bob, "online", active=True)

    dave.drops(bob)
    bob.is_not_watched_by(dave)
    bob.says("unavailable")
    wire.hears("push unavailable")
    alice.sees(bob, "unavailable")
    dave.may_not_see(bob)

    bob.revokes(alice)
    wire.hears("push offline", "deny")


def a_room_is_shared_and_left(stage: Stage) -> None:
    """A shared room is a right of its own: it needs no list, and ends with the room (P:11)."""
    alice, bob = stage.alice, stage.bob
    bob.connects()
    for house in (stage.here, stage.there):
        house.knows_a_room(alice, bob)
    stage.after(seconds=5)
    assert alice.asks_about(bob)["presence"] == "online"

    for house in (stage.here, stage.there):
        house.knows_a_room(bob)
    alice.may_not_see(bob)
    wire = stage.listen(stage.there, stage.here)
    bob.says("unavailable")
    stage.after(minutes=1)
    wire.hears_nothing()


def a_list_outlives_a_room(stage: Stage) -> None:
    """Two reasons are two: the room that ends takes nothing from the list, and the other way round."""
    alice, bob = stage.alice, stage.bob
    alice.comes_to_watch(bob)
    for house in (stage.here, stage.there):
        house.knows_a_room(alice, bob)
    bob.connects()
    alice.sees(bob, "online", active=True)
    for house in (stage.here, stage.there):
        house.knows_a_room(bob)
    bob.says("unavailable")
    alice.sees(bob, "unavailable")

    for house in (stage.here, stage.there):
        house.knows_a_room(alice, bob)
    wire = stage.listen(stage.there, stage.here)
    bob.revokes(alice)
    wire.hears_among_others("deny")
    alice.does_not_list(bob)
    bob.says("online")
    wire.hears_among_others("push online")
    assert alice.asks_about(bob)["presence"] == "online"


STORIES = (
    somebody_is_asked_and_watched,
    somebody_says_no,
    somebody_takes_it_back,
    the_best_device_speaks,
    somebody_hides,
    two_watch_and_one_push_goes,
    a_room_is_shared_and_left,
    a_list_outlives_a_room,
)
