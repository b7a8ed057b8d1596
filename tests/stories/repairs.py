"""What heals by itself, whatever was lost: one story for each row of the table in subscriptions.md 5.

Always true: `REPAIRS` has each row's own words as its key; a story makes the fault on the wire, puts the
path right, and then nobody does anything but wait, or what a person would do anyway.
"""

from collections.abc import Callable

from fedpresence.testing.homeserver import edus
from tests.stories.stage import Stage, Story

REPAIRS: dict[str, list[Story]] = {}


def repairs(case: str) -> Callable[[Story], Story]:
    """Says which row of the table a story is about."""

    def enter(story: Story) -> Story:
        REPAIRS.setdefault(case, []).append(story)
        return story

    return enter


@repairs("invite lost")
def an_invite_is_lost(stage: Stage) -> None:
    """Most servers of today take an invite, say 200 and forget it: asking once would be asking nobody."""
    alice, bob = stage.alice, stage.bob
    the_way_there = stage.the_path(stage.here, stage.there)
    the_way_there.swallows_what_it_takes()
    alice.invites(bob)
    alice.waits_for(bob)
    bob.sees_no_request_from(alice)

    the_way_there.works_again()
    stage.after(minutes=55)
    bob.sees_no_request_from(alice)

    stage.after(minutes=10)  # O-15
    bob.sees_a_request_from(alice)
    bob.accepts(alice)
    alice.watches(bob)


@repairs("accept lost")
def an_accept_is_lost(stage: Stage) -> None:
    """Bob thinks that she watches, Alice thinks that he has not answered; both wait for the other."""
    alice, bob = stage.alice, stage.bob
    the_way_back = stage.the_path(stage.there, stage.here)
    bob.connects()
    alice.invites(bob)
    bob.sees_a_request_from(alice)
    the_way_back.swallows_what_it_takes()
    bob.accepts(alice)
    bob.is_watched_by(alice)
    alice.waits_for(bob)

    the_way_back.works_again()
    stage.after(minutes=65)  # O-15, T-9
    alice.watches(bob)
    alice.sees(bob, "unavailable")
    alice.is_told("accepted", about=bob)


@repairs("deny lost (request)")
def a_denial_is_lost(stage: Stage) -> None:
    """Who asked has a right to the answer, or waits for half a year."""
    alice, bob = stage.alice, stage.bob
    the_way_back = stage.the_path(stage.there, stage.here)
    alice.invites(bob)
    bob.sees_a_request_from(alice)
    the_way_back.swallows_what_it_takes()
    bob.denies(alice)
    alice.waits_for(bob)

    the_way_back.works_again()
    stage.after(minutes=65)  # O-15, T-31
    alice.does_not_list(bob)
    alice.is_told("declined", about=bob)
    bob.sees_no_request_from(alice)
    bob.is_told("asked", about=alice, times=1)


@repairs("deny lost (revocation)")
def a_revocation_is_lost(stage: Stage) -> None:
    """No leak meanwhile: what Alice sees grows old, then offline, and asking again brings the truth."""
    alice, bob = stage.alice, stage.bob
    the_way_back = stage.the_path(stage.there, stage.here)
    alice.comes_to_watch(bob)
    bob.connects()
    alice.sees(bob, "online", active=True)
    the_way_back.swallows_what_it_takes()
    bob.revokes(alice)
    the_way_back.works_again()

    bob.does_something()
    wire = stage.listen(stage.there, stage.here)
    stage.after(minutes=29)
    alice.watches(bob)
    stage.after(minutes=2)
    alice.sees(bob, "offline")
    wire.hears_nothing()

    stage.after(minutes=30)  # three polls met silence: O-26a, T-31
    alice.does_not_list(bob)
    alice.is_told("revoked", about=bob)
    wire.hears("deny")


@repairs("deny lost (revocation)")
def a_revocation_of_somebody_offline_is_lost(stage: Stage) -> None:
    """Nobody misses news of somebody offline: only the weekly check finds out, and Bob is asked anew."""
    alice, bob = stage.alice, stage.bob
    the_way_back = stage.the_path(stage.there, stage.here)
    alice.comes_to_watch(bob)
    the_way_back.swallows_what_it_takes()
    bob.revokes(alice)
    the_way_back.works_again()

    stage.after(days=6, hours=23)
    alice.watches(bob)
    bob.sees_no_request_from(alice)

    stage.after(hours=14)  # O-25, T-30
    bob.sees_a_request_from(alice)

    stage.after(days=1)  # O-25a
    alice.waits_for(bob)


@repairs("drop lost")
def a_drop_is_lost(stage: Stage) -> None:
    """Bob's server goes on pushing to somebody who left; the first push must tell it so."""
    alice, bob = stage.alice, stage.bob
    the_way_there = stage.the_path(stage.here, stage.there)
    alice.comes_to_watch(bob)
    the_way_there.swallows_what_it_takes()
    alice.drops(bob)
    alice.does_not_list(bob)
    bob.is_watched_by(alice)
    the_way_there.works_again()

    from_here = stage.listen(stage.here, stage.there)
    stage.after(days=3)
    from_here.hears_nothing()  # she left, and keeps only a note of it
    bob.says("online")
    from_here.hears("drop", "unpoll")
    bob.is_not_watched_by(alice)

    from_there = stage.listen(stage.there, stage.here)
    bob.says("unavailable")
    stage.after(minutes=5)
    from_there.hears_nothing()


@repairs("push lost")
def a_push_is_lost(stage: Stage) -> None:
    """One lost push may mislead for minutes, never for hours: every state is said again."""
    alice, bob = stage.alice, stage.bob
    the_way_back = stage.the_path(stage.there, stage.here)
    alice.comes_to_watch(bob)
    bob.connects()
    alice.sees(bob, "online", active=True)
    the_way_back.swallows_what_it_takes()
    bob.says("unavailable", "Fika")
    stage.after(seconds=1)
    the_way_back.works_again()
    alice.sees(bob, "online", active=True)

    stage.after(minutes=25)  # T-21
    alice.sees(bob, "unavailable", message="Fika")


@repairs("invite delivered twice")
def an_invite_comes_twice(stage: Stage) -> None:
    """A network may repeat, and so may a person: Bob is asked once, and has one answer to give."""
    alice, bob = stage.alice, stage.bob
    the_way_there = stage.the_path(stage.here, stage.there)
    the_way_there.says_everything_twice()  # the same transaction: F:R-1
    alice.invites(bob)
    bob.sees_a_request_from(alice)

    stage.after(minutes=11)
    alice.invites(bob)  # another transaction: T-13
    stage.after(minutes=1)
    bob.is_told("asked", about=alice, times=1)

    erin = stage.erin()
    for _ in range(2):
        stage.old_server_sends(stage.there, edus.invite(erin.user_id, bob.user_id))
    bob.is_told("asked", about=erin, times=1)
    bob.accepts(erin)
    wire = stage.listen(stage.there, erin)
    stage.old_server_sends(stage.there, edus.invite(erin.user_id, bob.user_id))
    wire.hears("accept", "push offline")  # T-9: who asks again is told again
    bob.is_told("asked", about=erin, times=1)


@repairs("accept delivered twice")
def an_accept_comes_twice(stage: Stage) -> None:
    """Alice is told once; each further accept only confirms what she has."""
    alice, bob = stage.alice, stage.bob
    stage.the_path(stage.there, stage.here).says_everything_twice()
    alice.comes_to_watch(bob)
    alice.is_told("accepted", about=bob, times=1)

    wire = stage.listen(stage.there, stage.here)
    stage.after(days=8)  # O-25
    wire.hears_among_others("accept")  # O-21
    alice.watches(bob)
    alice.is_told("accepted", about=bob, times=1)


@repairs("accept before our invite got its 200")
def an_accept_comes_before_the_200(stage: Stage) -> None:
    """Bob may be faster than the network: the row is written before the invite leaves."""
    alice, bob = stage.alice, stage.bob
    the_way_there = stage.the_path(stage.here, stage.there)
    stage.dave.comes_to_watch(stage.carol)  # so that the servers know each other's keys
    the_way_there.loses_the_answers()
    wire = stage.listen(stage.here, stage.there)
    alice.invites(bob)
    bob.sees_a_request_from(alice)
    bob.accepts(alice)
    alice.watches(bob)
    (invite,) = wire.hears("invite")
    assert not invite.is_taken

    the_way_there.works_again()
    stage.after(minutes=5)
    alice.watches(bob)
    bob.is_watched_by(alice)
    alice.is_told("accepted", about=bob, times=1)
    bob.is_told("asked", about=alice, times=1)


@repairs("push before accept")
def a_push_comes_before_its_accept(stage: Stage) -> None:
    """Receivers run the EDUs of a transaction at once: the state must not be lost, nor shown too early."""
    alice, erin = stage.alice, stage.erin()
    alice.invites(erin)
    wire = stage.listen(stage.here, erin)
    stage.old_server_sends(stage.here, edus.push(erin.user_id, status_msg="Fika"))
    alice.waits_for(erin)
    alice.sees(erin, "offline")
    alice.may_not_see(erin)

    stage.after(seconds=30)
    stage.old_server_sends(stage.here, edus.accept(alice.user_id, erin.user_id))
    alice.sees(erin, "online", message="Fika", active=True)  # O-14
    stage.after(minutes=1)
    wire.hears_nothing()  # there is nothing to poll for


@repairs("push before accept")
def a_push_comes_long_before_its_accept(stage: Stage) -> None:
    """After a minute it is no longer worth showing: what is true now is asked for."""
    alice, erin = stage.alice, stage.erin()
    alice.invites(erin)
    wire = stage.listen(stage.here, erin)
    stage.old_server_sends(stage.here, edus.push(erin.user_id))
    stage.after(seconds=90)
    stage.old_server_sends(stage.here, edus.accept(alice.user_id, erin.user_id))
    alice.sees(erin, "offline")
    stage.after(seconds=10)  # O-9
    wire.hears("poll")


@repairs("deny overtakes accept (broken peer)")
def a_denial_overtakes_an_accept(stage: Stage) -> None:
    """An accept that comes too late would let Erin's server push for ever: it is told that nobody watches."""
    alice, erin = stage.alice, stage.erin()
    alice.invites(erin)
    wire = stage.listen(stage.here, erin)
    stage.old_server_sends(stage.here, edus.deny(alice.user_id, erin.user_id))
    alice.does_not_list(erin)
    alice.is_told("declined", about=erin)

    stage.old_server_sends(stage.here, edus.accept(alice.user_id, erin.user_id))
    wire.hears("drop")  # O-31
    alice.does_not_list(erin)

    stage.after(minutes=59)
    assert alice.asks_to_watch(erin) == 429  # O-30
    stage.after(minutes=2)
    alice.invites(erin)
    stage.old_server_sends(stage.here, edus.accept(alice.user_id, erin.user_id))
    alice.watches(erin)


@repairs("drop and accept cross on the wire")
def a_drop_and_an_accept_cross(stage: Stage) -> None:
    """She gives up in the second in which he says yes: both must end up knowing that nobody watches."""
    alice, bob = stage.alice, stage.bob
    alice.invites(bob)
    bob.sees_a_request_from(alice)
    stage.the_path(stage.here, stage.there).is_slow(seconds=5)
    stage.the_path(stage.there, stage.here).is_slow(seconds=5)
    bob.accepts(alice)
    alice.drops(bob)
    bob.is_watched_by(alice)

    stage.after(seconds=30)
    alice.does_not_list(bob)
    bob.is_not_watched_by(alice)
    wire = stage.listen(stage.there, stage.here)
    bob.says("online")
    stage.after(minutes=1)
    wire.hears_nothing()


@repairs("drop, then new invite at once")
def a_drop_and_a_new_invite(stage: Stage) -> None:
    """A drop ends the grant: Bob must say yes again, and is not watched before he does."""
    alice, bob = stage.alice, stage.bob
    alice.comes_to_watch(bob)
    bob.says("online")
    alice.drops(bob)
    alice.invites(bob)
    bob.sees_a_request_from(alice)
    bob.is_not_watched_by(alice)
    alice.waits_for(bob)
    alice.may_not_see(bob)

    bob.accepts(alice)
    alice.watches(bob)
    bob.connects()
    alice.sees(bob, "online", active=True)


@repairs("local deny and incoming drop cross")
def a_revocation_and_a_drop_cross(stage: Stage) -> None:
    """Both end it in the same second: it is over on both sides, and nobody is asked anything."""
    alice, bob = stage.alice, stage.bob
    alice.comes_to_watch(bob)
    stage.the_path(stage.here, stage.there).is_slow(seconds=5)
    stage.the_path(stage.there, stage.here).is_slow(seconds=5)
    bob.revokes(alice)
    alice.drops(bob)

    stage.after(seconds=30)
    alice.does_not_list(bob)
    bob.is_not_watched_by(alice)
    bob.sees_no_request_from(alice)
    stage.after(days=9)
    alice.does_not_list(bob)
    bob.is_not_watched_by(alice)


@repairs("O's server lost its database")
def the_observers_server_forgets_everything(stage: Stage) -> None:
    """It is sent news that nobody there wants any more, says so, and hears no more until Alice asks anew."""
    alice, bob = stage.alice, stage.bob
    alice.comes_to_watch(bob)
    stage.here.loses_its_database()
    alice.does_not_list(bob)

    from_here = stage.listen(stage.here, stage.there)
    bob.says("online")
    from_here.hears("unpoll")  # no drop: it knows nothing of the pair
    bob.is_muted_for(alice)  # T-24
    from_there = stage.listen(stage.there, stage.here)
    bob.says("unavailable", "Fika")
    stage.after(minutes=10)
    from_there.hears_nothing()

    bob.connects()
    alice.invites(bob)  # T-9: the grant stands, Bob is not asked
    alice.watches(bob)
    alice.sees(bob, "online", message="Fika", active=True)
    bob.is_watched_by(alice)
    bob.is_told("asked", about=alice, times=1)


@repairs("T's server lost its database")
def the_observed_users_server_forgets_everything(stage: Stage) -> None:
    """Alice holds a yes that nobody remembers: Bob is asked again, and she is shown the truth in a day."""
    alice, bob = stage.alice, stage.bob
    alice.comes_to_watch(bob)
    bob.connects()
    alice.sees(bob, "online", active=True)
    stage.there.loses_its_database()
    bob.sees_no_request_from(alice)

    stage.after(minutes=31)
    alice.sees(bob, "offline")
    stage.after(minutes=30)  # three polls met silence: O-26a, T-1
    bob.sees_a_request_from(alice)
    alice.watches(bob)
    bob.is_not_watched_by(alice)

    stage.after(days=1)  # O-25a
    alice.waits_for(bob)
    alice.may_not_see(bob)
    bob.accepts(alice)
    alice.watches(bob)


@repairs("T's server lost its database")
def the_server_of_somebody_offline_forgets_everything(stage: Stage) -> None:
    """Without news to miss, the weekly check asks: the same end, a week later."""
    alice, bob = stage.alice, stage.bob
    alice.comes_to_watch(bob)
    stage.there.loses_its_database()
    stage.after(days=6, hours=23)
    bob.sees_no_request_from(alice)

    stage.after(hours=14)  # O-25
    bob.sees_a_request_from(alice)
    alice.watches(bob)
    stage.after(days=1)  # O-25a
    alice.waits_for(bob)


@repairs("clock jumps")
def a_clock_jumps_ahead(stage: Stage) -> None:
    """A clock that is wrong for half an hour must not empty anybody's list: only timers may notice."""
    alice, bob, carol = stage.alice, stage.bob, stage.carol
    alice.comes_to_watch(bob)
    alice.invites(carol)
    carol.sees_a_request_from(alice)

    for house in (stage.here, stage.there):
        house.has_its_clock_ahead(days=200)  # longer than a request lives: O-17, T-18
    stage.after(minutes=30)
    alice.waits_for(carol)
    alice.watches(bob)

    for house in (stage.here, stage.there):
        house.has_its_clock_ahead(days=0)
    stage.after(hours=2)
    alice.waits_for(carol)
    carol.accepts(alice)
    carol.connects()
    alice.sees(carol, "online", active=True)
    bob.connects()
    alice.sees(bob, "online", active=True)


@repairs("clock jumps")
def a_clock_jumps_back(stage: Stage) -> None:
    """Moments in the future are taken as now: nothing waits for a year that has to come again."""
    alice, bob = stage.alice, stage.bob
    alice.comes_to_watch(bob)
    bob.connects()
    alice.sees(bob, "online", active=True)
    for house in (stage.here, stage.there):
        house.has_its_clock_ahead(days=-300)

    alice.sees(bob, "online", active=True)
    stage.after(minutes=6)
    alice.sees(bob, "unavailable")
    bob.does_something()
    alice.sees(bob, "online", active=True)
    bob.revokes(alice)
    alice.is_told("revoked", about=bob)
