from typing import Any

from tests.stories.rights import DataLost, Ended, Event, Granted, PathLies, RoomHas, leaks

ALICE, BOB = "@alice:here.test", "@bob:there.test"
HERE, THERE = "here.test", "there.test"
GRANT, END = Granted(BOB, ALICE), Ended(BOB, ALICE)
Entry = Event | dict[str, Any]


def a_push(presence: str = "online", txn_id: str = "t", **more: object) -> dict[str, Any]:
    item = {"user_id": BOB, "presence": presence, "last_active_ago": 0} | more
    return a_transaction(THERE, HERE, "m.presence", {"push": [item]}, txn_id)


def a_word_of_here(edu_type: str) -> dict[str, Any]:
    if edu_type in ("poll", "unpoll"):
        return a_transaction(HERE, THERE, "m.presence", {"push": [], edu_type: [BOB]})
    return a_transaction(HERE, THERE, edu_type, {"observer_user": ALICE, "observed_user": BOB})


def a_transaction(
    origin: str, destination: str, edu_type: str, content: dict[str, Any], txn_id: str = "t"
) -> dict[str, Any]:
    edus = [{"edu_type": edu_type, "content": content}]
    return {"from": origin, "to": destination, "txn_id": txn_id, "status": 200, "body": {"edus": edus}}


def leaks_of(*story: Entry) -> int:
    """How many leaks, where things happen in this order and ten seconds apart."""
    events = [(at, entry) for at, entry in enumerate(story) if not isinstance(entry, dict)]
    seen: list[tuple[float, dict[str, Any]]] = [
        (at, entry | {"sent_ms": at * 10_000, "answered_ms": at * 10_000})
        for at, entry in enumerate(story)
        if isinstance(entry, dict)
    ]
    return len(leaks(events, seen, (HERE, THERE)))


def test_a_push_needs_a_right() -> None:
    """A check that never fails checks nothing: this is the leak that every story looks for."""
    assert leaks_of(a_push()) == 1
    assert leaks_of(GRANT, a_push()) == 0
    assert leaks_of(Granted(BOB, "@x:other.test"), a_push()) == 1
    assert leaks_of(GRANT, DataLost(THERE), a_push()) == 1


def test_what_ends_a_right_ends_pushes() -> None:
    """One last push may say offline and nothing else (E:P-11); its repetition under its own id may too."""
    goodbye = a_push("offline", txn_id="bye")
    assert leaks_of(GRANT, END, a_push()) == 1
    assert leaks_of(GRANT, END, goodbye, goodbye) == 0
    assert leaks_of(GRANT, END, goodbye, a_push("offline", txn_id="again")) == 1
    assert leaks_of(GRANT, END, a_push("offline", status_msg="Fika")) == 1
    assert leaks_of(GRANT, Granted(BOB, "@dave:here.test"), END, a_push()) == 0


def test_what_the_observer_says_ends_it_too() -> None:
    """A drop and an unpoll that arrived; not those that a path took and threw away."""
    drop, unpoll = a_word_of_here("org.fedpresence.presence_drop"), a_word_of_here("unpoll")
    lies = PathLies(HERE, THERE, True)
    assert leaks_of(GRANT, drop, a_push()) == 1
    assert leaks_of(GRANT, unpoll, a_push()) == 1
    assert leaks_of(GRANT, unpoll, a_word_of_here("poll"), a_push()) == 0
    assert leaks_of(GRANT, unpoll, a_word_of_here("m.presence_invite"), a_push()) == 0
    assert leaks_of(GRANT, lies, drop, a_push()) == 0


def test_a_room_is_a_right_while_it_lasts() -> None:
    """For every server with a member, and for members only."""
    both, left = RoomHas(THERE, "!r", frozenset((ALICE, BOB))), RoomHas(THERE, "!r", frozenset((BOB,)))
    assert leaks_of(both, a_push()) == 0
    assert leaks_of(both, left, a_push()) == 1
    assert leaks_of(RoomHas(HERE, "!r", frozenset((ALICE, BOB))), a_push()) == 1


def test_nobody_speaks_for_the_users_of_others() -> None:
    """A push comes from the user's own server (E:P-1)."""
    content = a_push()["body"]["edus"][0]["content"]
    assert leaks_of(GRANT, a_transaction(HERE, THERE, "m.presence", content)) == 1
