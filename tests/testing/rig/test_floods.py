import time

from fedpresence.testing.homeserver.edus import presence_of, push_item
from fedpresence.testing.rig.twisted import TwistedRig
from tests.testing.rig.pair import BOB, MINUTE_MS, befriend, parts_of, seen, with_rig

FLOOD = "flood.test"
PUSHES = 50  # in an EDU
EDUS = 60
TOLERABLE_S = 5.0  # real, with the whole flood in the way: it would be minutes if nobody were refused


def test_a_flood_of_unwanted_pushes_is_refused_counted_and_in_nobodys_way() -> None:
    """One server names invented users without end: others are heard at once, and nothing of it is kept."""

    async def story(rig: TwistedRig) -> None:
        await befriend(rig)
        flood = await rig.add_homeserver(FLOOD)
        here = parts_of(rig, "here.test")
        statuses = []
        for number in range(12):
            edus = [
                presence_of(*(push_item(f"@u{number}_{edu}_{n}:{FLOOD}") for n in range(PUSHES)))
                for edu in range(EDUS)
            ]
            answer = await flood.send(rig.server("here.test").name, edus)
            statuses.append(answer.status)
            if answer.status == 429:
                assert int(answer.headers["retry-after"]) >= 1
                assert isinstance(answer.body, dict) and answer.body["errcode"] == "M_LIMIT_EXCEEDED"
        taken = statuses.count(200)
        assert 0 < taken < 12 and set(statuses) == {200, 429}

        begun_s = time.monotonic()
        await rig.set_stream(BOB, is_open=False)
        await rig.advance(30_001)
        assert seen(rig) == "offline"
        assert time.monotonic() - begun_s < TOLERABLE_S

        assert here.engine.unwanted() == {FLOOD: taken * PUSHES * EDUS}
        assert here.engine.counts().remote == 1  # Bob
        await rig.advance(MINUTE_MS)
        unpolled = []
        for edu in flood.edus:
            content = edu["content"]
            assert isinstance(content, dict)
            unpolled += content.get("unpoll", ())
        assert 0 < len(unpolled) <= 100
        assert (
            await flood.send(rig.server("here.test").name, [presence_of(push_item(f"@u:{FLOOD}"))])
        ).status == 200

    with_rig(story)
