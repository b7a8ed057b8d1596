import gzip
import json

import pytest

from fedpresence.clients.filled import HEAD_START_S, IDENTITY_GRACE_S
from fedpresence.engine.effects import Notice
from fedpresence.engine.events import StreamClosed, StreamOpened
from fedpresence.engine.presence import PresenceState
from fedpresence.engine.subscription import EduKind
from tests.clients.beside import KEYS, Beside
from tests.clients.world import ALICE, BOB, CAROL, DAN, IDLE, OFFLINE, ONLINE, PHONE, presence_of

INVITED = Notice(ALICE, EduKind.INVITE, observer=DAN, observed=ALICE)
ROOMS = {"join": {"!r:here.test": {"timeline": {"events": [{"n": 1.0}]}}}}


def senders(body: dict[str, dict[str, list[dict[str, str]]]]) -> list[str]:
    """Who is in the presence section."""
    return [event["sender"] for event in body.get("presence", {"events": []})["events"]]


def test_an_answer_of_the_homeserver_has_presence_in_it() -> None:
    """Form B: an unmodified client finds it where it looks; all else is the homeserver's."""
    world = Beside()
    world.show(BOB, ONLINE, ALICE)

    counts = {"signed_curve25519": 50}
    body = world.synced(rooms=ROOMS, device_one_time_keys_count=counts)

    assert senders(body) == [ALICE, BOB]
    assert body.pop("presence")
    assert body == {
        "next_batch": "h1",
        "rooms": ROOMS,
        "device_one_time_keys_count": {"signed_curve25519": 50},
    }


def test_the_query_reaches_the_homeserver_unchanged() -> None:
    """What we do not know is not ours to drop, and it judges what we know, too."""
    world = Beside()

    asked = world.sync(set_presence="unavailable", full_state="true", _cacheBuster=1, filter='{"room":{}}')

    assert asked.waits
    assert world.last.uri == (
        b"/_matrix/client/v3/sync?set_presence=unavailable&full_state=true&_cacheBuster=1"
        b"&filter=%7B%22room%22%3A%7B%7D%7D"
    )


def test_news_ends_a_long_poll_early_with_the_token_that_it_came_with() -> None:
    """Z-27: the homeserver gets its token back, and has lost nothing."""
    world = Beside()
    world.synced()
    asked = world.poll("h1")
    assert asked.waits

    world.tell(BOB, ONLINE, ALICE)

    assert presence_of(asked.answer) == {BOB: "online"}
    assert asked.answer.body["next_batch"] == "h1"
    assert asked.answer.body["device_one_time_keys_count"] == KEYS  # or a client makes new ones
    assert asked.answer.headers["access-control-allow-origin"] == "*"
    assert world.last.cancelled


def test_an_answer_that_was_begun_is_never_thrown_away() -> None:
    """The homeserver's data goes first; the news goes with it."""
    world = Beside()
    world.synced()
    asked = world.poll("h1")
    assert asked.waits
    world.store.slow_lookups = []
    world.last.respond({"next_batch": "h2"})

    world.tell(BOB, ONLINE, ALICE)

    assert (asked.answer.body["next_batch"], senders(asked.answer.body)) == ("h2", [])
    assert senders(world.synced("h2", "h3")) == [BOB]


def test_a_poll_that_ended_early_is_not_ended_by_the_same_news_again() -> None:
    """P:Y-3: the token is the same, and a client must not spin."""
    world = Beside()
    world.synced()
    first = world.poll("h1")
    world.tell(BOB, ONLINE, ALICE)
    assert not first.waits

    again = world.poll("h1")
    world.clock.advance(10)

    assert again.waits


def test_an_early_answer_that_was_lost_is_said_again_with_the_next() -> None:
    """Nobody can tell whether it arrived: a screen must not show somebody online for hours."""
    world = Beside()
    world.synced()
    first = world.poll("h1")
    world.tell(BOB, ONLINE, ALICE)
    assert not first.waits

    assert senders(world.synced("h1", "h2")) == [BOB]
    assert senders(world.synced("h2", "h3")) == []


def test_on_a_quiet_homeserver_news_is_said_twice_and_no_more() -> None:
    """Its token may stay the same for hours."""
    world = Beside()
    world.synced()
    first = world.poll("h1")
    world.tell(BOB, ONLINE, ALICE)
    assert not first.waits

    assert senders(world.synced("h1", "h1")) == [BOB]
    assert senders(world.synced("h1", "h1")) == []


def test_a_poll_that_is_ended_early_is_answered_by_the_homeserver_all_the_same() -> None:
    """Without its counts of keys a client would upload new ones, and drop those that others have of it."""
    world = Beside()
    world.synced()
    asked = world.poll("h1", set_presence="online")

    world.tell(BOB, ONLINE, ALICE)

    assert asked.answer.body["device_one_time_keys_count"] == KEYS
    assert world.last.cancelled
    [again] = world.relay.asked_again
    assert b"since=h1" in again and b"set_presence=online" in again
    assert again == world.last.uri.replace(b"timeout=30000", b"timeout=0")


def test_an_answer_with_news_never_repeats_the_clients_token() -> None:
    """matrix-nio and matrix-rust-sdk drop an answer whose token they have, and what is in it."""
    world = Beside()
    world.synced(None, "s1_2_3")
    early = world.poll("s1_2_3")
    world.tell(BOB, ONLINE, ALICE)
    assert (early.answer.body["next_batch"], senders(early.answer.body)) == ("s1_02_3", [BOB])

    world.tell(BOB, OFFLINE, ALICE)
    beside = world.synced("s1_02_3", "s1_02_3")  # a homeserver that repeats what it was given
    assert (beside["next_batch"], senders(beside)) == ("s1_002_3", [BOB])

    quiet = world.synced("s1_002_3", "s1_2_3")
    assert (quiet["next_batch"], senders(quiet)) == ("s1_2_3", [])


def test_news_is_said_again_to_who_lost_the_answer_with_the_other_spelling() -> None:
    """Who brings a token has had the answer it came with, and no other."""
    world = Beside()
    world.synced(None, "s1_2_3")
    lost = world.poll("s1_2_3")
    world.tell(BOB, ONLINE, ALICE)
    assert not lost.waits

    assert senders(world.synced("s1_2_3", "s1_2_3")) == [BOB]
    assert senders(world.synced("s1_02_3", "s1_2_3")) == []


def test_an_answer_of_the_homeserver_that_was_lost_is_given_again() -> None:
    """Who comes back with the token before has not seen what came with the one after."""
    world = Beside()
    world.synced()
    world.tell(BOB, ONLINE, ALICE)

    assert senders(world.synced("h1", "h2")) == [BOB]
    assert senders(world.synced("h1", "h2")) == [BOB]
    assert senders(world.synced("h2", "h3")) == []


def test_a_client_from_the_bare_homeserver_gets_a_snapshot_at_once() -> None:
    """It may move between us and the homeserver as it likes; offline ones are told, too."""
    world = Beside()
    world.show(BOB, OFFLINE, ALICE)
    asked = world.poll("from-elsewhere")
    assert asked.waits

    world.clock.advance(HEAD_START_S)

    assert presence_of(asked.answer) == {ALICE: "offline", BOB: "offline"}
    assert asked.answer.body["next_batch"] == "from-elsewhere"


def test_the_homeserver_has_a_head_start_where_news_waits() -> None:
    """A message must not wait another round trip for presence."""
    world = Beside()
    world.synced()
    world.tell(BOB, ONLINE, ALICE)
    asked = world.poll("h1")
    assert asked.waits

    world.last.respond({"next_batch": "h2", "rooms": ROOMS})

    assert (asked.answer.body["rooms"], senders(asked.answer.body)) == (ROOMS, [BOB])


def test_an_initial_sync_is_never_ended_early() -> None:
    """It has no token to go on with."""
    world = Beside()
    asked = world.sync(timeout=30_000)
    assert asked.waits

    world.tell(BOB, ONLINE, ALICE)
    world.clock.advance(60)

    assert asked.waits


@pytest.mark.parametrize("params", [{"timeout": "0"}, {}, {"timeout": "30000", "full_state": "true"}])
def test_who_does_not_wait_gets_the_homeservers_answer(params: dict[str, str]) -> None:
    """A phone that looks once for messages wants them, not presence alone."""
    world = Beside()
    world.synced()
    world.tell(BOB, ONLINE, ALICE)
    asked = world.ask("GET", "sync", params={"since": "h1", **params})
    world.clock.advance(60)
    assert asked.waits

    world.last.respond({"next_batch": "h2"})

    assert BOB in senders(asked.answer.body)


def test_polls_are_ended_early_no_more_often_than_the_homeserver_bears() -> None:
    """Each costs it a sync; the last word is told all the same."""
    world = Beside()
    world.synced()
    ended, asked = 0, world.poll("h1")
    for tick in range(100):
        world.show(BOB, ONLINE if tick % 2 else IDLE, ALICE)
        world.tell(BOB, ONLINE if tick % 2 else IDLE, ALICE)
        world.clock.advance(0.1)
        if not asked.waits:
            ended, asked = ended + 1, world.poll("h1")
    world.clock.advance(5)

    assert ended <= 3 + 10 * 0.5 + 1
    assert presence_of(asked.answer) == {BOB: "online"}


def test_the_homeservers_own_presence_gives_way() -> None:
    """Switched off, it tells everybody offline once more; that is not so."""
    world = Beside()
    stale = {"events": [{"type": "m.presence", "sender": CAROL, "content": {"presence": "offline"}}]}

    assert senders(world.synced(presence=stale)) == [ALICE]
    assert world.synced("h1", "h2", presence=stale)["presence"] == {"events": []}


def test_notices_join_the_homeservers_to_device_messages() -> None:
    """Theirs carry keys and stay as they are; ours are told once."""
    world = Beside()
    world.synced()
    world.feed.notice(INVITED)
    theirs = {"type": "m.room.encrypted", "sender": BOB, "content": {}}

    body = world.synced("h1", "h2", to_device={"events": [theirs]})

    assert [event["type"] for event in body["to_device"]["events"]] == [
        "m.presence_invite",
        "m.room.encrypted",
    ]
    assert "to_device" not in world.synced("h2", "h3")


def test_a_notice_ends_a_poll_and_is_not_told_twice() -> None:
    """Presence may be said again; an invite would ring again."""
    world = Beside()
    world.synced()
    asked = world.poll("h1")
    assert asked.waits
    world.feed.notice(INVITED)

    assert [event["type"] for event in asked.answer.body["to_device"]["events"]] == ["m.presence_invite"]
    assert "to_device" not in world.synced("h1", "h2")


def test_the_stream_counts_while_the_request_lasts() -> None:
    """P:O-2: as with any sync, whatever the homeserver makes of the parameter."""
    world = Beside()
    asked = world.sync(set_presence="unavailable")
    assert asked.waits
    opened = list(world.engine.events)
    world.last.respond({"next_batch": "h1"})
    assert not asked.waits

    assert opened == [StreamOpened(ALICE, PHONE, PresenceState.UNAVAILABLE)]
    assert world.engine.events[1:] == [StreamClosed(ALICE, PHONE)]


def test_a_client_that_leaves_ends_its_request_at_the_homeserver() -> None:
    """And its stream with it."""
    world = Beside()
    asked = world.sync()
    assert asked.waits

    asked.hang_up()

    assert world.last.cancelled
    assert world.engine.events[-1] == StreamClosed(ALICE, PHONE)
    assert world.clock.getDelayedCalls() == []


def test_sync_offline_is_no_stream_but_gets_presence() -> None:
    """P:O-4."""
    world = Beside()
    asked = world.sync(set_presence="offline")
    assert asked.waits
    world.last.respond({"next_batch": "h1"})

    assert senders(asked.answer.body) == [ALICE]
    assert world.engine.events == []


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (401, {"errcode": "M_UNKNOWN_TOKEN", "error": "x", "soft_logout": True}),
        (429, {"errcode": "M_LIMIT_EXCEEDED", "error": "x", "retry_after_ms": 5}),
        (400, {"errcode": "M_UNKNOWN", "error": "x"}),
        (500, {"errcode": "M_UNKNOWN", "error": "x"}),
        (404, {"errcode": "M_NOT_FOUND", "error": "x"}),
    ],
)
@pytest.mark.parametrize("token", ["alice-phone", "unknown"])
def test_what_the_homeserver_refuses_is_refused_in_its_words(status: int, body: object, token: str) -> None:
    """Its clients know what to make of it."""
    world = Beside()
    asked = world.sync(token)
    assert asked.waits

    world.last.respond(body, status)

    assert (asked.answer.status, asked.answer.body) == (status, body)


def test_a_homeserver_that_is_away_is_502_for_the_client_too() -> None:
    """A restart in the middle of a poll; with CORS, or a browser sees nothing at all."""
    world = Beside()
    asked = world.poll("h1")
    assert asked.waits
    world.last.fail()

    assert (asked.answer.status, asked.answer.errcode) == (502, "M_UNKNOWN")
    assert asked.answer.headers["access-control-allow-origin"] == "*"
    assert world.engine.events[-1] == StreamClosed(ALICE, PHONE)


@pytest.mark.parametrize("token", ["unknown", None])
def test_whose_it_is_not_known_gets_the_homeservers_answer_as_it_is(token: str | None) -> None:
    """The homeserver judges tokens."""
    world = Beside()
    asked = world.ask("GET", "sync", token=token)
    assert asked.waits
    world.last.respond({"next_batch": "h1"})

    assert asked.answer.body == {"next_batch": "h1"}
    assert world.engine.events == []


def test_an_answer_does_not_wait_long_for_the_word_whose_it_is() -> None:
    """A slow look-up of ours costs presence, and not the sync."""
    world = Beside()
    world.store.slow_lookups = []
    asked = world.sync()
    assert asked.waits
    world.last.respond({"next_batch": "h1"})
    assert asked.waits

    world.clock.advance(IDENTITY_GRACE_S)

    assert asked.answer.body == {"next_batch": "h1"}


def test_a_poll_whose_token_was_revoked_meanwhile_gets_nothing_more_of_us() -> None:
    """As with a sync of our own."""
    world = Beside()
    world.synced()
    asked = world.poll("h1")
    assert asked.waits
    del world.store.tokens["alice-phone"]
    world.tokens.forget()

    world.tell(BOB, ONLINE, ALICE)
    assert asked.waits
    world.last.respond({"next_batch": "h2"})

    assert asked.answer.body == {"next_batch": "h2"}


def test_an_inline_filter_is_obeyed() -> None:
    """P:13: the presence part; news of others wakes nobody."""
    world = Beside()
    world.synced()
    asked = world.poll("h1", filter=json.dumps({"presence": {"not_senders": [BOB]}}))
    assert asked.waits
    world.tell(BOB, ONLINE, ALICE)
    assert asked.waits

    world.tell(DAN, ONLINE, ALICE)

    assert presence_of(asked.answer) == {DAN: "online"}


def test_a_filter_that_the_homeserver_keeps_is_fetched_once() -> None:
    """With the client's own token, and remembered: it never changes."""
    world = Beside()
    world.relay.filters[b"7"] = {"presence": {"types": []}}

    for given in ("h1", "h2"):
        asked = world.sync(filter="7")
        assert asked.waits
        world.last.respond({"next_batch": given})
        assert asked.answer.body == {"next_batch": given}

    assert world.relay.passed == [b"/_matrix/client/v3/user/%40alice%3Ahere.test/filter/7"]


@pytest.mark.parametrize("filter", ["8", '{"presence":7}', "{", ""])
def test_a_filter_that_cannot_be_read_is_the_homeservers_to_judge(filter: str) -> None:
    """It may know it; presence comes or does not, the sync does."""
    world = Beside()
    asked = world.sync(filter=filter)
    assert asked.waits
    world.last.respond({"next_batch": "h1"})

    assert asked.answer.body["next_batch"] == "h1"


@pytest.mark.parametrize("query", ["since=%ff", "timeout=%ff", "filter=%ff", "set_presence=%ff"])
def test_a_query_that_cannot_be_read_is_the_homeservers_to_judge(query: str) -> None:
    """In its words, and its answer is not left hanging."""
    world = Beside()
    asked = world.ask("GET", f"/_matrix/client/v3/sync?{query}")
    assert asked.waits
    world.last.respond({"errcode": "M_INVALID_PARAM", "error": "theirs"}, 400)

    assert (asked.answer.status, asked.answer.body["error"]) == (400, "theirs")


def test_a_compressed_answer_is_compressed_again() -> None:
    """As the client would get it without us."""
    world = Beside()
    asked = world.sync()
    assert asked.waits
    packed = gzip.compress(json.dumps({"next_batch": "h1", "rooms": ROOMS}).encode())
    world.last.respond(None, data=packed, content_encoding="gzip")

    assert world.last.headers == {b"Accept-Encoding": b"gzip"}
    assert (asked.answer.body["rooms"], senders(asked.answer.body)) == (ROOMS, [ALICE])


@pytest.mark.parametrize(("header", "value"), [("content_encoding", "br"), ("content_type", "text/html")])
def test_what_we_cannot_read_passes_untouched(header: str, value: str) -> None:
    """And nothing counts as told."""
    world = Beside()
    asked = world.sync()
    assert asked.waits
    world.last.respond({"next_batch": "h1"}, 200, data=None, **{header: value})

    assert asked.answer.body == {"next_batch": "h1"}
    assert senders(world.synced("h1", "h2")) == [ALICE]


def test_an_answer_that_breaks_off_was_not_told() -> None:
    """The client will come back with the token that it had."""
    world = Beside()
    world.synced()
    world.tell(BOB, ONLINE, ALICE)
    world.relay.breaks_off = True
    asked = world.poll("h1")
    assert asked.waits
    world.last.respond({"next_batch": "h2"})
    asked.hang_up()
    world.relay.breaks_off = False

    assert senders(world.synced("h1", "h2")) == [BOB]


def test_after_a_restart_of_ours_everybody_gets_a_snapshot() -> None:
    """The homeserver's tokens are as good as before."""
    world = Beside()
    world.synced()
    world.restart("run2")
    world.show(BOB, OFFLINE, ALICE)

    assert senders(world.synced("h1", "h2")) == [ALICE, BOB]


def test_at_the_end_of_the_run_long_polls_are_answered() -> None:
    """A clean stop is quick; the client comes back with the token that it had."""
    world = Beside()
    world.synced()
    asked = world.poll("h1")
    assert asked.waits

    world.feed.close()

    assert (asked.answer.body["next_batch"], senders(asked.answer.body)) == ("h1", [])


def test_devices_have_positions_of_their_own() -> None:
    """Both may hold the same token of the homeserver's."""
    world = Beside()
    world.synced()
    world.synced(token="alice-laptop")
    world.tell(BOB, ONLINE, ALICE)

    assert senders(world.synced("h1", "h2")) == [BOB]
    assert senders(world.synced("h1", "h2", token="alice-laptop")) == [BOB]


@pytest.mark.parametrize("body", [{"errcode": "M_UNRECOGNIZED", "error": "x"}, "Not found", [], {}])
def test_a_homeserver_without_sync_leaves_it_to_us(body: object) -> None:
    """One that knows tokens alone."""
    world = Beside()
    asked = world.sync()
    assert asked.waits
    world.last.respond(body, 404)

    assert presence_of(asked.answer) == {ALICE: "offline"}
    assert asked.answer.body["next_batch"].startswith("s")


@pytest.mark.parametrize("body", [{"errcode": "M_UNRECOGNIZED", "error": "x"}, "404 page not found"])
def test_a_homeserver_that_had_sync_is_not_believed_to_have_none(body: object) -> None:
    """While it restarts the proxy before it says so; a token of ours would lock the client out later."""
    world = Beside()
    world.synced()
    asked = world.sync()
    assert asked.waits
    world.last.respond(body, 404)

    assert (asked.answer.status, asked.answer.body) == (404, body)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/_matrix/client/versions"),
        ("GET", "/_matrix/client/v3/capabilities"),
        ("GET", "/_matrix/client/v3/events?from=1"),
        ("GET", "/_matrix/client/api/v1/initialSync"),
        ("POST", "/_matrix/client/v3/user/%40a%3Ab/filter"),
        ("PUT", "/_matrix/client/v3/rooms/%21r/send/m.room.message/1"),
        ("OPTIONS", "/_matrix/client/v3/sync"),
        ("POST", "/_matrix/client/v3/sync"),
        ("GET", "/_matrix/client/v3/sync/"),
        ("GET", "/_matrix/client/unstable/sync"),
        ("GET", "/_matrix/media/v3/download/a/b"),
        ("GET", "/.well-known/matrix/client"),
        ("POST", "/_synapse/client/x"),
    ],
)
def test_all_that_is_not_presence_is_the_homeservers(method: str, path: str) -> None:
    """So an operator may point everything at us."""
    world = Beside()

    answer = world.answer(method, path, body={} if method in ("PUT", "POST") else None)

    assert answer.body == {"from": "homeserver"}
    assert world.relay.passed == [f"{method} {path}".encode()]


@pytest.mark.parametrize(
    "path",
    [
        f"/_matrix/client/r0/presence/{ALICE}/status",
        f"/_matrix/client/unstable/presence/list/{ALICE}",
        f"/_fedpresence/client/v1/subscriptions/{ALICE}",
    ],
)
def test_presence_is_ours_alone(path: str) -> None:
    """The homeserver's is off."""
    world = Beside()

    assert world.answer("GET", path).status == 200
    assert world.relay.passed == []


@pytest.mark.parametrize("path", ["org.matrix.simplified_msc3575", "org.matrix.msc3575"])
def test_a_sliding_sync_holds_its_device_connected(path: str) -> None:
    """It has no place for presence, but whoever uses it is there."""
    world = Beside()
    world.relay.holds = True

    asked = world.ask("POST", f"/_matrix/client/unstable/{path}/sync?timeout=30000", body={})
    assert asked.waits
    opened = list(world.engine.events)
    world.relay.passing[0].callback(None)

    assert opened == [StreamOpened(ALICE, PHONE, None)]
    assert asked.answer.body == {"from": "homeserver"}
    assert world.engine.events[1:] == [StreamClosed(ALICE, PHONE)]
