import asyncio
from urllib.parse import quote

import pytest

from fedpresence.testing.processes import User
from tests.nio_client import NioClient, nio
from tests.scenarios.conftest import HERE, THERE, LetIn, Start

# News of a timer may wait 2 s where a destination is busy (decision 12): its edges lie further apart.
QUICK = {"presence": {"last_active_granularity": "1s", "idle_timeout": "4s", "sync_online_timeout": "1s"}}
SEEN_S = 10.0


def a_client(user: User) -> NioClient:
    """A device that has a token already."""
    client = nio.AsyncClient(user.server.client_url, user.user_id)
    client.restore_login(user.user_id, "DEVICE", user.token)
    return NioClient(client, SEEN_S)


def test_matrix_nio_lives_with_a_friend_and_a_room_mate_elsewhere(
    start: Start, let_in: LetIn, caplog: pytest.LogCaptureFixture
) -> None:
    """clients.md: a stock client that validates every answer, unchanged, through everything it can see."""
    federation = start(QUICK)
    alice, bob, carol = let_in(federation, "alice@here.test", "bob@there.test", "carol@there.test")

    async def befriend() -> None:
        assert (await asyncio.to_thread(alice.change_list, invite=[bob.user_id])).status == 200
        await asyncio.to_thread(bob.sync_until, lambda answer: answer["to_device"]["events"])
        assert (await asyncio.to_thread(bob.change_list, accept=[alice.user_id])).status == 200

    async def share_a_room() -> None:
        members = {"members": [alice.user_id, carol.user_id]}
        for name in (HERE, THERE):
            path = f"/rooms/{quote('!kitchen:here.test')}/members"
            assert (await asyncio.to_thread(federation[name].admin, "PUT", path, members)).status == 200

    async def story() -> None:
        here, there = a_client(alice), a_client(bob)
        assert isinstance(await here.client.whoami(), nio.WhoamiResponse)
        refused = await here.client.get_presence(bob.user_id)
        assert (type(refused), refused.status_code) == (nio.PresenceGetError, "M_FORBIDDEN")
        caplog.clear()  # a refusal is no answer that the client's schema knows, and it says so
        async with here.running():
            assert isinstance(await here.client.set_presence("online", "reading"), nio.PresenceSetResponse)
            await here.sees(alice.user_id, status_msg="reading", currently_active=True)

            # A friend's day: comes, falls silent, goes idle, leaves.
            await befriend()
            async with there.running():
                await there.client.set_presence("online", "Fika ☕")
                await here.sees(bob.user_id, presence="online", status_msg="Fika ☕", currently_active=True)
                got = await here.client.get_presence(bob.user_id)
                assert (got.presence, got.status_msg, got.currently_active) == ("online", "Fika ☕", True)
                await here.sees(bob.user_id, presence="online", currently_active=False)
                idle = await here.sees(bob.user_id, presence="unavailable")
                assert idle.last_active_ago >= 4000
            await here.sees(bob.user_id, presence="offline")

            # A room mate, who is seen without any change.
            await asyncio.to_thread(carol.put_status, "unavailable", "cooking")
            await share_a_room()
            await here.sees(carol.user_id, presence="unavailable", status_msg="cooking")

    asyncio.run(story())

    assert [r.getMessage() for r in caplog.records if r.name.startswith("nio") and r.levelno >= 30] == []
