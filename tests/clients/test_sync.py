import json

import pytest

from fedpresence.clients.feed import MAX_WAITING_PER_USER, SURPLUS_WAIT_S
from fedpresence.engine.effects import Effect, Notice, SaveUser, TellObservers
from fedpresence.engine.events import Activity, Event, StreamClosed, StreamOpened
from fedpresence.engine.presence import PresenceState, View
from fedpresence.engine.subscription import EduKind
from tests.clients.world import (
    ALICE,
    BOB,
    CAROL,
    DAN,
    IDLE,
    LAPTOP,
    OFFLINE,
    ONLINE,
    PHONE,
    Pair,
    World,
    presence_of,
)

LONG = 30_000
ACCEPTED = Notice(ALICE, EduKind.ACCEPT, observer=ALICE, observed=BOB)
INVITED = Notice(ALICE, EduKind.INVITE, observer=DAN, observed=ALICE)


def test_an_answer_has_every_section_a_stock_client_looks_for() -> None:
    """clients.md: sections stand there even when empty."""
    body = World().sync().answer.body

    assert isinstance(body["next_batch"], str)
    assert body["account_data"] == {"events": []}
    assert body["rooms"] == {"join": {}, "invite": {}, "leave": {}}
    assert body["to_device"] == {"events": []}
    assert body["presence"]["events"][0]["sender"] == ALICE


def test_the_first_sync_shows_who_is_not_offline_at_once() -> None:
    """P:13: whatever the timeout; the own user always."""
    world = World()
    world.show(BOB, ONLINE, ALICE)
    world.show(DAN, OFFLINE, ALICE)
    world.show(CAROL, IDLE, ALICE)

    answer = world.sync(timeout=LONG).answer

    assert presence_of(answer) == {ALICE: "offline", BOB: "online", CAROL: "unavailable"}


def test_an_event_has_the_current_form_and_always_an_age() -> None:
    """P:12, E:P-3: strict clients want `sender`, `type` and whole numbers, and no nulls."""
    world = World()
    world.clock.advance(7)
    world.show(BOB, View(PresenceState.ONLINE), ALICE)

    event = world.sync().answer.body["presence"]["events"][1]

    assert event == {
        "type": "m.presence",
        "sender": BOB,
        "content": {"presence": "online", "last_active_ago": 7_000, "currently_active": False},
    }


def test_a_user_who_comes_online_by_the_sync_sees_it_there() -> None:
    """P:15: the stream counts before its first answer is made."""
    world = World()

    def comes_online(event: StreamOpened) -> list[Effect]:
        world.show(ALICE, ONLINE, ALICE)
        return [TellObservers(ALICE, (ALICE,))]

    world.engine.does[StreamOpened] = comes_online

    first = world.sync().answer
    again = world.sync(since=first.body["next_batch"], timeout=0).answer

    assert presence_of(first) == {ALICE: "online"}
    assert presence_of(again) == {ALICE: "online"}  # this engine tells it at every opening


def test_a_waiting_sync_is_answered_by_news() -> None:
    """P:13: the long poll, in the turn that brings the news."""
    world = World()
    since = world.sync().answer.body["next_batch"]
    asked = world.sync(since=since, timeout=LONG)
    waited = asked.waits

    world.tell(BOB, ONLINE, ALICE)

    assert waited
    assert presence_of(asked.answer) == {BOB: "online"}
    assert asked.answer.body["next_batch"] != since
    assert world.clock.getDelayedCalls() == []


def test_news_that_comes_between_two_syncs_is_not_lost() -> None:
    """The token knows what its holder has seen, not who was connected."""
    world = World()
    since = world.sync().answer.body["next_batch"]
    world.tell(BOB, ONLINE, ALICE)
    world.tell(BOB, OFFLINE, ALICE)
    world.tell(DAN, IDLE, ALICE)

    answer = world.sync(since=since, timeout=LONG).answer

    assert presence_of(answer) == {BOB: "offline", DAN: "unavailable"}
    assert len(answer.body["presence"]["events"]) == 2  # P:Y-1


def test_a_token_is_not_answered_with_the_same_data_for_ever() -> None:
    """P:Y-3: otherwise a client spins."""
    world = World()
    since = world.sync().answer.body["next_batch"]
    world.tell(BOB, ONLINE, ALICE)
    after = world.sync(since=since).answer.body["next_batch"]

    assert after != since
    assert presence_of(world.sync(since=after).answer) == {}
    assert presence_of(world.sync(since=since).answer) == {BOB: "online"}  # a lost answer is given again


def test_a_quiet_sync_ends_with_its_timeout() -> None:
    """P:13: an empty answer with a token to go on with."""
    world = World()
    since = world.sync().answer.body["next_batch"]

    asked = world.sync(since=since, timeout=10_000)
    world.clock.advance(9.9)
    waited = asked.waits
    world.clock.advance(0.2)

    assert waited
    assert presence_of(asked.answer) == {}
    assert asked.answer.body["next_batch"] == since


def test_no_sync_waits_longer_than_five_minutes() -> None:
    """A wait has a bound, whatever a client asks."""
    world = World()
    since = world.sync().answer.body["next_batch"]

    asked = world.sync(since=since, timeout=999_999_999_999)
    world.clock.advance(300.1)

    assert not asked.waits


def test_without_a_timeout_nothing_is_waited_for() -> None:
    """P:13: the default is 0."""
    world = World()
    since = world.sync().answer.body["next_batch"]

    assert presence_of(world.sync(since=since).answer) == {}


def test_full_state_is_answered_at_once_with_everybody() -> None:
    """P:13; who went offline since the token is in it, so that nothing stale remains."""
    world = World()
    world.show(BOB, ONLINE, ALICE)
    world.show(CAROL, OFFLINE, ALICE)
    since = world.sync().answer.body["next_batch"]
    world.tell(DAN, OFFLINE, ALICE)

    answer = world.sync(since=since, full_state="true", timeout=LONG).answer

    assert presence_of(answer) == {ALICE: "offline", BOB: "online", DAN: "offline"}


def test_full_state_false_waits() -> None:
    """clients.md: the bot-sdk sends it with every sync."""
    world = World()
    since = world.sync().answer.body["next_batch"]

    assert world.sync(since=since, full_state="false", timeout=LONG, presence="online").waits


def test_a_token_of_an_earlier_run_gets_everybody_offline_ones_too() -> None:
    """A restart must leave nobody online on a screen who went offline meanwhile."""
    world = World()
    since = world.sync().answer.body["next_batch"]
    world.restart("run2")
    world.show(BOB, OFFLINE, ALICE)

    answer = world.sync(since=since, timeout=LONG).answer

    assert presence_of(answer) == {ALICE: "offline", BOB: "offline"}
    assert presence_of(world.sync(since=answer.body["next_batch"]).answer) == {}


def test_a_token_of_another_user_shows_nothing_of_them() -> None:
    """Tokens are no capability: the mailbox is that of the access token."""
    world = World()
    theirs = world.sync(token="carol").answer.body["next_batch"]
    world.tell(BOB, ONLINE, CAROL)

    assert presence_of(world.sync(since=theirs).answer) == {ALICE: "offline"}


@pytest.mark.parametrize("since", ["x", "s1", "s_run1.1", "s-1_run1.1", "s1_run1.1 ", "s" + "9" * 99 + "_a"])
def test_what_is_no_token_is_refused(since: str) -> None:
    """clients.md: 400, and the stream does not count."""
    world = World()

    answer = world.sync(since=since).answer

    assert (answer.status, answer.errcode) == (400, "M_INVALID_PARAM")
    assert world.engine.events == []


@pytest.mark.parametrize(
    "params",
    [
        {"timeout": "soon"},
        {"timeout": "-1"},
        {"timeout": "1.5"},
        {"timeout": "9" * 5000},
        {"set_presence": "busy"},
        {"set_presence": "org.matrix.msc3026.busy"},
        {"set_presence": "away"},
        {"set_presence": ""},
    ],
)
def test_a_bad_parameter_is_refused(params: dict[str, str]) -> None:
    """P:13: 400 `M_INVALID_PARAM`, busy included; nothing is told to the engine."""
    world = World(busy=True)

    answer = world.sync(**params).answer

    assert (answer.status, answer.errcode) == (400, "M_INVALID_PARAM")
    assert world.engine.events == []


@pytest.mark.parametrize(
    ("params", "set_presence"),
    [
        ({}, None),
        ({"set_presence": "online"}, PresenceState.ONLINE),
        ({"set_presence": "unavailable"}, PresenceState.UNAVAILABLE),
        ({"presence": "online", "_cacheBuster": "7", "org.matrix.msc4222.use_state_after": "true"}, None),
    ],
)
def test_a_stream_is_told_as_opened_and_as_closed(
    params: dict[str, str], set_presence: PresenceState | None
) -> None:
    """P:13, I-7: absent declares nothing; P:Y-5: the device is held while the stream is open."""
    world = World()
    world.sync(**params)

    assert world.engine.events == [
        StreamOpened(ALICE, PHONE, set_presence),
        StreamClosed(ALICE, PHONE),
    ]


def test_a_stream_that_hides_is_not_told() -> None:
    """P:O-4: `set_presence=offline` leaves the state alone."""
    world = World()

    assert world.sync(set_presence="offline").answer.status == 200
    assert world.engine.events == []


def test_a_waiting_stream_is_open_until_it_is_answered() -> None:
    """P:O-2: a device cannot time out while its sync waits."""
    world = World()
    since = world.sync().answer.body["next_batch"]
    asked = world.sync(since=since, timeout=LONG)
    while_waiting = list(world.engine.of_type(StreamClosed))

    world.clock.advance(31)

    assert len(while_waiting) == 1
    assert asked.answer.status == 200
    assert len(world.engine.of_type(StreamClosed)) == len(world.engine.of_type(StreamOpened)) == 2


def test_a_client_that_hangs_up_closes_its_stream() -> None:
    """P:O-1 counts from there, not from the timeout."""
    world = World()
    since = world.sync().answer.body["next_batch"]
    asked = world.sync(since=since, timeout=LONG)
    assert asked.waits

    asked.hang_up()

    assert len(world.engine.of_type(StreamClosed)) == 2
    assert world.clock.getDelayedCalls() == []


def test_a_client_that_hangs_up_while_its_stream_is_being_opened_closes_it_too() -> None:
    """A commit takes a moment, and nobody may stay online because of it."""
    world = World()
    world.store.held = []
    world.engine.does[StreamOpened] = lambda event: [SaveUser(ALICE, False)]
    asked = world.sync()
    assert asked.waits

    asked.hang_up()
    world.store.held[0].callback(None)

    assert [type(event) for event in world.engine.events] == [StreamOpened, StreamClosed]


def test_what_one_turn_brings_is_in_one_answer() -> None:
    """A transaction with many pushes must not cost a client many rounds."""
    world = World()
    since = world.sync().answer.body["next_batch"]

    def many(event: Event) -> list[Effect]:
        world.show(BOB, ONLINE, ALICE)
        world.show(DAN, IDLE, ALICE)
        return [TellObservers(BOB, (ALICE,)), TellObservers(DAN, (ALICE,)), INVITED]

    world.engine.does[Activity] = many
    asked = world.sync(since=since, timeout=LONG)
    assert asked.waits

    world.hub.submit(Activity(ALICE))

    assert presence_of(asked.answer) == {BOB: "online", DAN: "unavailable"}
    assert len(asked.answer.body["to_device"]["events"]) == 1


def test_who_may_be_seen_no_more_is_shown_offline_once() -> None:
    """S:O-22: nobody stays online on a screen because a grant was taken back."""
    world = World()
    world.show(BOB, ONLINE, ALICE)
    since = world.sync().answer.body["next_batch"]
    world.tell(BOB, None, ALICE, gone=True)

    answer = world.sync(since=since).answer
    event = answer.body["presence"]["events"][0]

    assert (event["sender"], event["content"]["presence"]) == (BOB, "offline")
    assert isinstance(event["content"]["last_active_ago"], int)
    assert presence_of(world.sync(since=answer.body["next_batch"]).answer) == {}


def test_who_may_be_seen_again_is_shown_as_they_are() -> None:
    """The newest word counts, and it is read when the answer is made."""
    world = World()
    since = world.sync().answer.body["next_batch"]
    world.tell(BOB, None, ALICE, gone=True)
    world.tell(BOB, ONLINE, ALICE)

    assert presence_of(world.sync(since=since).answer) == {BOB: "online"}


def test_news_of_somebody_who_may_not_be_seen_is_not_told() -> None:
    """The view is asked at the moment of the answer: rights may have ended since."""
    world = World()
    since = world.sync().answer.body["next_batch"]
    world.tell(BOB, ONLINE, ALICE)
    world.show(BOB, None, ALICE)

    assert presence_of(world.sync(since=since).answer) == {}


@pytest.mark.parametrize(
    ("presence_filter", "seen"),
    [
        ({}, {BOB, DAN}),
        ({"senders": [BOB]}, {BOB}),
        ({"senders": []}, set()),
        ({"not_senders": [BOB]}, {DAN}),
        ({"senders": [BOB], "not_senders": [BOB]}, set()),
        ({"types": ["m.*"]}, {BOB, DAN}),
        ({"types": ["m.room.*"]}, set()),
        ({"not_types": ["*"]}, set()),
        ({"limit": 1}, {BOB}),
        ({"limit": 0}, set()),
        ({"unknown": 1}, {BOB, DAN}),
    ],
)
@pytest.mark.parametrize("by_id", [True, False])
def test_a_filter_is_obeyed_by_id_and_inline(
    presence_filter: dict[str, object], seen: set[str], by_id: bool
) -> None:
    """P:13: clients send both forms."""
    world = World()
    definition = {"presence": presence_filter}
    wanted = json.dumps(definition)
    if by_id:
        wanted = world.answer("POST", f"user/{ALICE}/filter", body=definition).body["filter_id"]
    since = world.sync().answer.body["next_batch"]
    world.tell(BOB, ONLINE, ALICE)
    world.tell(DAN, IDLE, ALICE)

    answer = world.sync(since=since, filter=wanted).answer

    assert set(presence_of(answer)) == seen


def test_where_a_limit_cuts_the_rest_comes_next() -> None:
    """A limit must not lose news."""
    world = World()
    since = world.sync().answer.body["next_batch"]
    world.tell(BOB, ONLINE, ALICE)
    world.tell(DAN, IDLE, ALICE)
    limit = '{"presence": {"limit": 1}}'

    first = world.sync(since=since, filter=limit).answer
    second = world.sync(since=first.body["next_batch"], filter=limit).answer
    third = world.sync(since=second.body["next_batch"], filter=limit).answer

    assert [presence_of(answer) for answer in (first, second, third)] == [
        {BOB: "online"},
        {DAN: "unavailable"},
        {},
    ]


def test_news_that_the_filter_leaves_out_wakes_nobody() -> None:
    """A client that asked for one person must not be woken by a thousand."""
    world = World()
    since = world.sync().answer.body["next_batch"]
    asked = world.sync(since=since, timeout=LONG, filter=json.dumps({"presence": {"senders": [DAN]}}))

    world.tell(BOB, ONLINE, ALICE)
    waited = asked.waits
    world.tell(DAN, ONLINE, ALICE)

    assert waited
    assert presence_of(asked.answer) == {DAN: "online"}


@pytest.mark.parametrize("wanted", ["0", "7", "nonsense", "f", "f!!!", "fAAAA"])
def test_a_filter_id_of_another_server_filters_nothing(wanted: str) -> None:
    """clients.md: old clients carry IDs over."""
    answer = World().sync(filter=wanted).answer

    assert presence_of(answer) == {ALICE: "offline"}


@pytest.mark.parametrize("wanted", ["{", '{"presence": []}', '{"presence": {"senders": "x"}}'])
def test_a_broken_inline_filter_is_refused(wanted: str) -> None:
    """Guessing would show what the client does not want."""
    assert World().sync(filter=wanted).answer.status == 400


def test_a_notice_wakes_and_names_who_caused_it() -> None:
    """S:8: an answer to an invite is the observed user's, an invite the observer's."""
    world = World()
    since = world.sync().answer.body["next_batch"]
    asked = world.sync(since=since, timeout=LONG)
    world.feed.notice(ACCEPTED)
    revoked = Notice(ALICE, EduKind.DENY, observer=ALICE, observed=BOB, reason="revoked")
    world.feed.notice(revoked)
    world.feed.notice(INVITED)

    first = asked.answer
    second = world.sync(since=first.body["next_batch"]).answer

    assert first.body["to_device"]["events"] == [
        {
            "type": "m.presence_accept",
            "sender": BOB,
            "content": {"observer_user": ALICE, "observed_user": BOB},
        }
    ]
    assert second.body["to_device"]["events"] == [
        {
            "type": "m.presence_deny",
            "sender": BOB,
            "content": {"observer_user": ALICE, "observed_user": BOB, "reason": "revoked"},
        },
        {
            "type": "m.presence_invite",
            "sender": DAN,
            "content": {"observer_user": DAN, "observed_user": ALICE},
        },
    ]


def test_every_device_gets_a_notice_by_its_own_token() -> None:
    """S:8: the phone must not take it from the laptop."""
    world = World()
    phone = world.sync().answer.body["next_batch"]
    laptop = world.sync(token="alice-laptop").answer.body["next_batch"]
    world.feed.notice(ACCEPTED)

    answers = [world.sync(since=phone).answer, world.sync(token="alice-laptop", since=laptop).answer]

    assert [len(answer.body["to_device"]["events"]) for answer in answers] == [1, 1]
    assert StreamOpened(ALICE, LAPTOP, None) in world.engine.events


def test_an_open_invite_is_repeated_at_each_sync_without_a_token() -> None:
    """S:T-1: until it is answered; and once in an answer."""
    world = World()
    world.engine.invites[ALICE] = [Pair(DAN)]
    world.feed.notice(INVITED)

    first, again = world.sync().answer, world.sync().answer
    after = world.sync(since=again.body["next_batch"]).answer
    world.engine.invites[ALICE] = []
    answered = world.sync().answer

    counts = [len(answer.body["to_device"]["events"]) for answer in (first, again, after, answered)]
    assert counts == [1, 1, 0, 0]


def test_a_notice_waits_for_a_user_who_has_not_synced_yet() -> None:
    """S:8: an accept that comes while nobody is there reaches the next client."""
    world = World()
    world.feed.notice(ACCEPTED)

    first = world.sync().answer
    lost = world.sync().answer
    acknowledged = world.sync(since=lost.body["next_batch"]).answer
    fresh = world.sync().answer

    counts = [len(a.body["to_device"]["events"]) for a in (first, lost, acknowledged, fresh)]
    assert counts == [1, 1, 0, 0]


def test_a_token_revoked_while_its_sync_waits_gets_nothing_more() -> None:
    """contract.md, `token revoke`: presence is not for whoever held a token once."""
    world = World()
    since = world.sync().answer.body["next_batch"]
    asked = world.sync(since=since, timeout=LONG)
    assert asked.waits
    del world.store.tokens["alice-phone"]
    world.tokens.forget()

    world.tell(BOB, ONLINE, ALICE)

    assert (asked.answer.status, asked.answer.errcode) == (401, "M_UNKNOWN_TOKEN")
    assert len(world.engine.of_type(StreamClosed)) == 2


def test_one_sync_too_many_waits_for_a_moment_only() -> None:
    """Clients that leak connections hold few of ours for long, and as many live ones do not ask in a circle.

    A sync that is answered at once is followed by the next: 21 clients of one user took all of the daemon.
    """
    world = World()
    since = world.sync().answer.body["next_batch"]

    asked = [world.sync(since=since, timeout=LONG) for _ in range(MAX_WAITING_PER_USER + 1)]
    at_once = [one.waits for one in asked]
    world.clock.advance(SURPLUS_WAIT_S)

    assert all(at_once)
    assert [one.waits for one in asked] == [True] * MAX_WAITING_PER_USER + [False]
    assert asked[-1].answer.status == 200


def test_one_sync_too_many_hears_of_news_as_the_others_do() -> None:
    """It is as good a client as they are."""
    world = World()
    since = world.sync().answer.body["next_batch"]
    asked = [world.sync(since=since, timeout=LONG) for _ in range(MAX_WAITING_PER_USER + 1)]

    world.tell(BOB, ONLINE, ALICE)

    assert [presence_of(one.answer) for one in asked] == [{BOB: "online"}] * len(asked)


def test_the_end_of_the_run_answers_who_waits() -> None:
    """A clean stop leaves no client hanging."""
    world = World()
    since = world.sync().answer.body["next_batch"]
    asked = world.sync(since=since, timeout=LONG)
    assert asked.waits

    world.feed.close()

    assert asked.answer.body["next_batch"] == since
    assert not world.sync(since=since, timeout=LONG).waits


def test_the_old_event_stream_has_the_historic_form() -> None:
    """P:12, P:13: `user_id` inside the content, `start` and `end` around."""
    world = World()
    begun = world.answer("GET", "/_matrix/client/api/v1/events").body
    world.tell(BOB, IDLE, ALICE)

    body = world.answer("GET", "/_matrix/client/api/v1/events", params={"from": begun["end"]}).body

    assert begun["chunk"] == []
    assert body["start"] == begun["end"]
    assert body["chunk"] == [
        {
            "type": "m.presence",
            "content": {"user_id": BOB, "presence": "unavailable", "last_active_ago": 400_000},
        }
    ]


def test_the_old_snapshot_leads_to_the_old_stream() -> None:
    """P:12: `/initialSync`, then `/events` from its `end`."""
    world = World()
    world.show(BOB, IDLE, ALICE)

    snapshot = world.answer("GET", "initialSync").body
    asked = world.ask("GET", "events", params={"from": snapshot["end"], "timeout": "5000"})

    assert [event["content"]["user_id"] for event in snapshot["presence"]] == [ALICE, BOB]
    assert asked.waits
