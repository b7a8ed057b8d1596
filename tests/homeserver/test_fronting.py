import pytest

from fedpresence.homeserver import fronting
from fedpresence.homeserver.fronting import SAMPLE_MS, Samples, Share, must_last, share_of
from fedpresence.ids import ServerName

THERE, ELSEWHERE = ServerName("there.test"), ServerName("elsewhere.test")
PUSH = {"edu_type": "m.presence", "content": {"push": []}}
INVITE = {"edu_type": "m.presence_invite", "content": {}}
DROP = {"edu_type": "org.fedpresence.presence_drop", "content": {}}
TYPING = {"edu_type": "m.typing", "content": {}}


@pytest.mark.parametrize(
    ("content", "share"),
    [
        ({"pdus": [], "edus": [PUSH, INVITE, DROP]}, Share.ALL),
        ({"origin": "x", "origin_server_ts": 1, "pdus": [], "edus": [PUSH]}, Share.ALL),
        ({"pdus": [{}], "edus": [PUSH]}, Share.SOME),
        ({"pdus": [], "edus": [PUSH, TYPING]}, Share.SOME),
        ({"pdus": [], "edus": [PUSH, None]}, Share.SOME),
        ({"edus": [PUSH]}, Share.SOME),
        ({"pdus": [], "edus": [PUSH], "org.future.thing": []}, Share.SOME),
        ({"pdus": [], "edus": [TYPING]}, Share.NONE),
        ({"pdus": [], "edus": []}, Share.NONE),
        ({"pdus": []}, Share.NONE),
        ({"pdus": [], "edus": {"edu_type": "m.presence"}}, Share.NONE),
        ([PUSH], Share.NONE),
        (None, Share.NONE),
    ],
)
def test_presence_alone_is_what_has_nothing_else_in_it(content: object, share: Share) -> None:
    """What we answer alone the homeserver never sees: a device list among it would be lost."""
    assert share_of(content) is share


def test_list_edus_must_last_and_pushes_need_not() -> None:
    """A push comes again by itself; a 200 for an accept that a crash took back would last."""
    assert must_last({"edus": [PUSH, TYPING, INVITE]}) and must_last({"edus": [DROP]})
    assert not must_last({"edus": [PUSH, TYPING, None]})
    assert not must_last({"edus": None}) and not must_last([])


def test_an_origin_is_answered_alone_for_ten_minutes_after_its_sample_was_taken() -> None:
    """H:6.2, step 5: the homeserver must see that it is alive."""
    samples = Samples()
    assert not samples.may_answer(THERE, 0)

    samples.forwarded(THERE, 200, 1000)

    assert samples.may_answer(THERE, 1000 + SAMPLE_MS - 1)
    assert not samples.may_answer(THERE, 1000 + SAMPLE_MS)
    assert not samples.may_answer(ELSEWHERE, 1000)


@pytest.mark.parametrize("status", [403, 401, 429, 500, None])
def test_an_origin_whose_last_sample_was_not_taken_is_not(status: int | None) -> None:
    """Z-26: the homeserver's own server lists must not be got around."""
    samples = Samples()
    samples.forwarded(THERE, 200, 0)
    samples.forwarded(THERE, status, 1)

    assert not samples.may_answer(THERE, 2)


def test_no_more_origins_are_remembered_than_so_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wildcard DNS gives anybody as many names as he likes."""
    monkeypatch.setattr(fronting, "MAX_ORIGINS", 3)
    samples = Samples()
    for number in range(5):
        samples.forwarded(ServerName(f"s{number}.test"), 200, 0)

    assert len(samples) == 3
    assert samples.may_answer(ServerName("s4.test"), 0)
    assert not samples.may_answer(ServerName("s0.test"), 0)
