"""What goes wrong between servers and inside them, and what people see of it: as little as can be.

Always true: nobody repairs anything by hand; a person does at most what they would do anyway.
"""

from fedpresence.testing.homeserver import edus
from tests.stories.stage import Stage


def an_outage_of_an_hour(stage: Stage) -> None:
    """It costs nothing while it lasts, shows after half an hour, and ends with one push of what is true."""
    alice, bob, after = stage.alice, stage.bob, stage.after
    the_paths = stage.the_path(stage.there, stage.here), stage.the_path(stage.here, stage.there)
    alice.comes_to_watch(bob)
    bob.connects()
    alice.sees(bob, "online", active=True)
    for path in the_paths:
        path.goes_down()
    wire = stage.listen(stage.there, stage.here)

    for message in ("one", "two", "three", "four", "five", "six"):
        bob.says("unavailable", message)
        after(minutes=4)
    alice.sees(bob, "online", active=True)  # the last word stands while it may be true
    after(minutes=7)
    alice.sees(bob, "offline")
    after(minutes=29)
    wire.hears_nothing()  # nobody takes it, so nothing is said

    for path in the_paths:
        path.works_again()
    after(minutes=1)
    said = [each for each in wire.unheard() if str(each) != "accept"]
    assert len(said) <= 2, "one push, and one beside the accept if Alice's server asked for that: O-26a"
    assert {(str(each), each.content["status_msg"]) for each in said} == {("push unavailable", "six")}
    alice.sees(bob, "unavailable", message="six")


def an_answer_in_an_outage(stage: Stage) -> None:
    """What people say to each other is owed until it arrives, and restarts take nothing from that."""
    alice, bob = stage.alice, stage.bob
    the_way_there = stage.the_path(stage.here, stage.there)
    the_way_there.goes_down()
    alice.invites(bob)
    stage.after(minutes=10)
    stage.here.crashes()
    stage.here.starts_again()
    alice.waits_for(bob)

    the_way_there.works_again()
    stage.after(minutes=2)
    bob.sees_a_request_from(alice)
    bob.is_told("asked", about=alice)
    stage.the_path(stage.there, stage.here).goes_down()
    bob.accepts(alice)
    stage.there.stops()
    stage.the_path(stage.there, stage.here).works_again()
    stage.there.starts_again()
    alice.watches(bob)


def servers_come_and_go(stage: Stage) -> None:
    """After a crash or an update everything is as it was: grants, requests, messages, and who hides."""
    alice, bob, carol = stage.alice, stage.bob, stage.carol
    alice.comes_to_watch(bob)
    alice.invites(carol)
    carol.sees_a_request_from(alice)
    bob.says("online", "Fika")
    bob.connects()
    alice.sees(bob, "online", message="Fika", active=True)
    stage.after(minutes=1)

    stage.there.crashes()
    stage.after(minutes=1)
    stage.there.starts_again()
    stage.here.stops()
    stage.here.starts_again()

    bob.is_watched_by(alice)
    alice.watches(bob)
    carol.sees_a_request_from(alice)
    alice.waits_for(carol)
    carol.accepts(alice)
    alice.watches(carol)
    bob.says("online", "Back")
    alice.sees(bob, "online", message="Back", active=True)


def who_hides_stays_hidden(stage: Stage) -> None:
    """A restart that let hiding people appear would be the worst moment to learn that it may (P:D-8)."""
    alice, bob = stage.alice, stage.bob
    alice.comes_to_watch(bob)
    bob.connects()
    alice.sees(bob, "online", active=True)
    bob.hides()
    alice.sees(bob, "offline")

    stage.there.crashes()
    stage.there.starts_again()
    wire = stage.listen(stage.there, stage.here)
    bob.disconnects()
    bob.connects()
    bob.does_something()
    stage.after(minutes=26)
    assert {str(said) for said in wire.unheard()} <= {"push offline"}
    alice.sees(bob, "offline")


def a_revocation_in_an_outage(stage: Stage) -> None:
    """What waited for the path is not told when it comes back: the right has ended (safety invariant)."""
    alice, bob = stage.alice, stage.bob
    the_way_back = stage.the_path(stage.there, stage.here)
    alice.comes_to_watch(bob)
    bob.connects()
    alice.sees(bob, "online", active=True)
    the_way_back.goes_down()
    bob.says("unavailable", "for friends only")
    stage.after(minutes=1)
    bob.revokes(alice)
    bob.says("online", "alone at last")
    stage.after(minutes=5)
    wire = stage.listen(stage.there, stage.here)

    the_way_back.works_again()
    stage.after(minutes=2)
    wire.hears("push offline", "deny")
    alice.does_not_list(bob)
    alice.is_told("revoked", about=bob)


def a_revocation_of_what_may_have_arrived(stage: Stage) -> None:
    """Bytes that got no answer are not sent again once a right in them has ended: they are made anew."""
    alice, bob = stage.alice, stage.bob
    the_way_back = stage.the_path(stage.there, stage.here)
    alice.comes_to_watch(bob)
    bob.connects()
    alice.sees(bob, "online", active=True)
    the_way_back.never_answers()
    wire = stage.listen(stage.there, stage.here)
    bob.says("unavailable", "for friends only")
    wire.hears("push unavailable")
    bob.revokes(alice)

    stage.after(minutes=1)
    the_way_back.works_again()
    stage.after(minutes=3)
    wire.hears_among_others("deny")
    alice.does_not_list(bob)
    messages = [said for said in wire.unheard() if "status_msg" in said.content]
    assert messages == []


def a_backup_is_restored(stage: Stage) -> None:
    """A grant that was taken back comes back with the backup; the first push is answered, and ends it."""
    alice, bob = stage.alice, stage.bob
    alice.comes_to_watch(bob)
    stage.there.is_backed_up()
    bob.revokes(alice)
    alice.is_told("revoked", about=bob)

    stage.there.goes_back_to_its_backup()
    bob.is_watched_by(alice)
    from_here = stage.listen(stage.here, stage.there)
    bob.says("online", "Fika")
    from_here.hears_among_others("drop")  # Z-12
    bob.is_not_watched_by(alice)
    alice.does_not_list(bob)
    alice.may_not_see(bob)


def a_key_is_changed(stage: Stage) -> None:
    """Operators rotate keys; nobody who is watched may notice."""
    alice, bob = stage.alice, stage.bob
    alice.comes_to_watch(bob)
    bob.connects()
    alice.sees(bob, "online", active=True)
    stage.there.signs_with_a_new_key()
    bob.says("unavailable", "new key")
    alice.sees(bob, "unavailable", message="new key")

    stage.here.signs_with_a_new_key()
    alice.invites(stage.carol)
    stage.carol.sees_a_request_from(alice)


def a_clock_is_wrong(stage: Stage) -> None:
    """Only ages travel, never times: a server an hour off tells and shows the same as any other (P:M-2)."""
    alice, bob = stage.alice, stage.bob
    stage.there.has_its_clock_ahead(hours=-1)
    stage.here.has_its_clock_ahead(hours=2)
    alice.comes_to_watch(bob)
    bob.connects()
    alice.sees(bob, "online", active=True)
    stage.after(minutes=2)
    alice.sees(bob, "online")
    ago_ms = alice.asks_about(bob)["last_active_ago"]
    assert 120_000 <= ago_ms <= 130_000

    stage.after(minutes=4)
    alice.sees(bob, "unavailable")
    stage.after(hours=1)
    alice.sees(bob, "unavailable")  # refreshed all the time


def a_server_takes_everything_and_forgets(stage: Stage) -> None:
    """Today's homeservers: a 200 proves nothing, so Alice waits; nobody is hammered meanwhile (S:3.5)."""
    alice, erin = stage.alice, stage.erin()
    wire = stage.listen(stage.here, erin)
    alice.invites(erin)
    stage.after(days=30)
    alice.waits_for(erin)
    alice.may_not_see(erin)
    # At once, after 1 h, 6 h, each of 7 days, then on days 14, 21 and 28.
    wire.hears(*["invite"] * 13)

    stage.after(days=151)  # O-17: half a year
    alice.does_not_list(erin)
    alice.is_told("expired", about=erin)


def a_watcher_of_long_ago_gets_what_it_asked_for(stage: Stage) -> None:
    """An old homeserver that polls and unpolls is served: granted, muted, heard again (S:T-23, T-24)."""
    bob, erin = stage.bob, stage.erin()
    stage.old_server_sends(stage.there, edus.poll(bob.user_id))
    stage.old_server_sends(stage.there, edus.invite(erin.user_id, bob.user_id))
    stage.old_server_sends(stage.there, edus.poll(bob.user_id))
    wire = stage.listen(stage.there, erin)
    bob.connects()
    stage.after(seconds=20)
    wire.hears_nothing()  # neither a poll nor a request is a right: T-15, T-17

    bob.accepts(erin)
    wire.hears("accept", "push online")
    stage.old_server_sends(stage.there, edus.unpoll(bob.user_id))
    bob.is_muted_for(erin)
    bob.says("unavailable")
    stage.after(minutes=2)
    wire.hears_nothing()

    stage.old_server_sends(stage.there, edus.poll(bob.user_id))
    wire.hears("push unavailable")
    bob.is_watched_by(erin)


def everything_is_said_twice(stage: Stage) -> None:
    """A network may repeat what it likes: nobody is asked, told or shown anything twice (F:R-1)."""
    alice, bob = stage.alice, stage.bob
    stage.the_path(stage.here, stage.there).says_everything_twice()
    stage.the_path(stage.there, stage.here).says_everything_twice()
    alice.comes_to_watch(bob)
    bob.is_told("asked", about=alice, times=1)
    alice.is_told("accepted", about=bob, times=1)
    bob.connects()
    alice.sees(bob, "online", active=True)
    bob.revokes(alice)
    alice.is_told("revoked", about=bob, times=1)
    alice.does_not_list(bob)


def an_accept_arrives_after_the_revocation(stage: Stage) -> None:
    """The transaction with the yes is held up and comes last; the no stands, on both sides (O-31, T-35)."""
    alice, bob = stage.alice, stage.bob
    stage.dave.comes_to_watch(stage.carol)  # so that the servers know each other's keys
    the_way_back = stage.the_path(stage.there, stage.here)
    alice.invites(bob)
    bob.sees_a_request_from(alice)
    the_way_back.holds_one_back()
    bob.accepts(alice)
    alice.waits_for(bob)
    bob.revokes(alice)

    stage.after(minutes=5)
    alice.does_not_list(bob)
    bob.is_not_watched_by(alice)
    the_way_back.works_again()
    wire = stage.listen(stage.there, stage.here)
    bob.says("online")
    stage.after(minutes=5)
    wire.hears_nothing()
    alice.does_not_list(bob)


def what_was_held_up_comes_late(stage: Stage) -> None:
    """A push that is repeated because nobody answered arrives twice, the second time too late to count."""
    alice, bob = stage.alice, stage.bob
    the_way_back = stage.the_path(stage.there, stage.here)
    alice.comes_to_watch(bob)
    bob.connects()
    alice.sees(bob, "online", active=True)
    the_way_back.holds_one_back()
    wire = stage.listen(stage.there, stage.here)
    bob.says("unavailable", "old")
    stage.after(minutes=3)
    first, again = wire.hears("push unavailable", "push unavailable")
    assert first.txn_id == again.txn_id  # F:R-1: one of them counts
    assert (first.is_taken, again.is_taken) == (False, True)
    alice.sees(bob, "unavailable", message="old")

    bob.says("unavailable", "new")
    stage.after(minutes=3)
    alice.sees(bob, "unavailable", message="new")


def one_server_hangs_and_others_do_not_wait(stage: Stage) -> None:
    """Erin's server takes transactions and never answers; Alice, elsewhere, still sees Bob at once."""
    alice, bob, erin = stage.alice, stage.bob, stage.erin()
    stage.old_server_sends(stage.there, edus.invite(erin.user_id, bob.user_id))
    bob.accepts(erin)
    alice.comes_to_watch(bob)
    stage.the_path(stage.there, erin).never_answers()
    to_erin = stage.listen(stage.there, erin)
    for message in ("one", "two", "three"):
        bob.says("online", message)
        alice.sees(bob, "online", message=message, active=True)
    assert len({said.txn_id for said in to_erin.unheard()}) == 1, "one in flight"

    stage.the_path(stage.there, erin).works_again()
    stage.after(minutes=5)
    last = to_erin.unheard()[-1]
    assert last.is_taken
    assert last.content.get("status_msg") == "three"


def a_day_of_bad_weather(stage: Stage) -> None:
    """Whatever is lost, repeated and overtaken: once the paths are whole, both servers agree (liveness)."""
    alice, bob, carol, dave = stage.alice, stage.bob, stage.carol, stage.dave
    paths = stage.the_path(stage.here, stage.there), stage.the_path(stage.there, stage.here)
    for path in paths:
        path.is_bad_weather(0.3)
    alice.invites(bob, carol)
    bob.invites(dave)
    stage.after(hours=7)
    bob.sees_a_request_from(alice)
    carol.sees_a_request_from(alice)
    dave.sees_a_request_from(bob)
    bob.accepts(alice)
    carol.denies(alice)
    dave.accepts(bob)
    dave.connects()
    stage.after(hours=2)
    dave.revokes(bob)
    dave.disconnects()
    bob.says("online", "weather")
    stage.there.crashes()
    stage.there.starts_again()
    stage.after(hours=10)

    for path in paths:
        path.works_again()
    stage.after(days=9)
    alice.watches(bob)
    bob.is_watched_by(alice)
    alice.does_not_list(carol)
    carol.is_not_watched_by(alice)
    bob.does_not_list(dave)
    dave.is_not_watched_by(bob)
    bob.says("unavailable", "sunshine")
    alice.sees(bob, "unavailable", message="sunshine")


STORIES = (
    an_outage_of_an_hour,
    an_answer_in_an_outage,
    servers_come_and_go,
    who_hides_stays_hidden,
    a_revocation_in_an_outage,
    a_revocation_of_what_may_have_arrived,
    a_backup_is_restored,
    a_key_is_changed,
    a_clock_is_wrong,
    a_server_takes_everything_and_forgets,
    a_watcher_of_long_ago_gets_what_it_asked_for,
    everything_is_said_twice,
    an_accept_arrives_after_the_revocation,
    what_was_held_up_comes_late,
    one_server_hangs_and_others_do_not_wait,
    a_day_of_bad_weather,
)
