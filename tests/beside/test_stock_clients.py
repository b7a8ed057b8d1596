import asyncio
import contextlib
from collections.abc import AsyncIterator
from itertools import count
from pathlib import Path

import pytest

from fedpresence.testing.crowds import people, presence_load, share_a_room
from fedpresence.testing.domains import Domain, Person
from tests.nio_client import NioClient, nio
from tests.scenarios.story import eventually

ALGORITHM = "m.megolm.v1.aes-sha2"
PASSWORD = "correct horse battery staple"
SEEN_S = 30.0
MESSAGES = 30
WITHOUT_GAPS: dict[str, object] = {"room": {"timeline": {"limit": 1000}}}

_numbers = count(1)

needs_encryption = pytest.mark.skipif(
    not nio.crypto.ENCRYPTION_ENABLED, reason="matrix-nio has no encryption (pip install 'matrix-nio[e2e]')"
)


class Device(NioClient):
    """A client that was told fedpresence's address, and nothing else.

    It shares no key with a device of its own name, whoever's that is.
    """

    def __init__(self, domain: Domain, user_id: str, device_id: str, folder: Path) -> None:
        store = folder / f"{user_id[1:].partition(':')[0]}-{device_id}"
        store.mkdir()
        address = domain.daemon.client_url if domain.daemon is not None else domain.synapse.url
        client = nio.AsyncClient(address, user_id, device_id, store_path=str(store))
        super().__init__(client, SEEN_S, WITHOUT_GAPS)
        self._domain = domain

    @property
    def person(self) -> Person:
        """The same device, for what matrix-nio has no words for."""
        return Person(self._domain, self.user_id, self.client.access_token)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Logged in, and in the middle of its syncs."""
        answer = await self.client.login(PASSWORD)
        assert isinstance(answer, nio.LoginResponse), answer
        async with super().running():
            yield


def registered(domain: Domain, name: str) -> str:
    """A new user with the password; their ID."""
    localpart = f"{name}-nio{next(_numbers)}"
    domain.synapse.register(localpart, password=PASSWORD)
    return f"@{localpart}:{domain.name}"


async def share_an_encrypted_room(first: Device, *others: Device) -> str:
    """Made by the first, joined by the others by invite, known as encrypted to all."""
    encryption = {"type": "m.room.encryption", "state_key": "", "content": {"algorithm": ALGORITHM}}
    members = {client.user_id for client in (first, *others)}
    made = await first.client.room_create(initial_state=[encryption], invite=members - {first.user_id})
    room_id: str = made.room_id
    for other in others:
        await other.is_invited(room_id)
        assert isinstance(await other.client.join(room_id), nio.JoinResponse)
    for client in (first, *others):
        await client.knows_room(room_id, members)
    return room_id


async def greet(room_id: str, first: Device, second: Device) -> None:
    """Both know each other's device, and have had a session from it: matrix-nio asks for no key it missed."""
    await first.knows_device(second)
    await second.knows_device(first)
    await first.say(room_id, f"good morning, {second.client.device_id}")
    await second.reads(f"good morning, {second.client.device_id}")
    await second.say(room_id, f"this is my {second.client.device_id}")
    await first.reads(f"this is my {second.client.device_id}")


def test_matrix_nio_sees_friends_and_room_mates_of_the_other_domain(
    two: list[Domain], tmp_path: Path
) -> None:
    """A stock client that is told another address: its friends are there, a restart of Synapse is a pause."""
    here, there = two
    names = (here, "alice"), (there, "bob"), (there, "carol")
    alice, bob, carol = (Device(d, registered(d, name), name.upper(), tmp_path) for d, name in names)

    async def befriend() -> None:
        invited = await asyncio.to_thread(alice.person.change_list, invite=[carol.user_id])
        assert invited.status == 200

        def is_accepted() -> bool:
            carol.person.change_list(accept=[alice.user_id])
            return bool(alice.person.status_of(carol.user_id).status == 200)

        await asyncio.to_thread(eventually, is_accepted, "a friend")

    async def story() -> None:
        async with alice.running(), carol.running():
            await befriend()
            await carol.client.set_presence("online", "by list alone")
            await alice.sees(carol.user_id, presence="online", status_msg="by list alone")

            # A room mate's day: comes, falls silent, goes idle, speaks, leaves.
            made = await alice.client.room_create(preset=nio.RoomPreset.public_chat)
            async with bob.running():
                await asyncio.to_thread(bob.person.join, made.room_id, here.name)
                await bob.client.set_presence("online", "Fika")
                await alice.sees(bob.user_id, presence="online", status_msg="Fika", currently_active=True)
                await alice.sees(bob.user_id, presence="online", currently_active=False)
                idle = await alice.sees(bob.user_id, presence="unavailable")
                assert idle.last_active_ago >= 6_000
                await bob.say(made.room_id, "hello")
                await alice.sees(bob.user_id, presence="online", currently_active=True)
                await alice.reads("hello")

                here.synapse.kill()  # nobody is asked before
                await asyncio.to_thread(here.synapse.start)
                await bob.say(made.room_id, "are you there?")
                await alice.reads("are you there?")
                await bob.client.set_presence("online", "after the storm")
                await alice.sees(bob.user_id, status_msg="after the storm")
                await alice.say(made.room_id, "here I am")
                await bob.reads("here I am")
            await alice.sees(bob.user_id, presence="offline")

    asyncio.run(story())


@needs_encryption
def test_every_encrypted_message_is_read_under_presence_load(two: list[Domain], tmp_path: Path) -> None:
    """Keys travel as to-device messages, devices in lists: where one is lost, a message stays dark."""
    here, there = two
    alice = Device(here, registered(here, "alice"), "TABLET", tmp_path)
    bobs_id = registered(there, "bob")
    bob, laptop = (Device(there, bobs_id, device_id, tmp_path) for device_id in ("PHONE", "LAPTOP"))
    crowd = people(*[(here, f"noise{n}") for n in range(5)], *[(there, f"noise{n}") for n in range(5)])
    share_a_room(*crowd)

    def messages(words: str) -> list[str]:
        return [f"{words} {number}" for number in range(MESSAGES)]

    async def talk(room_id: str, first: Device, second: Device, words: str) -> None:
        for text in messages(words):
            await first.say(room_id, text)
            await second.say(room_id, f"{text}?")

    async def story() -> None:
        async with alice.running(), bob.running():
            room_id = await share_an_encrypted_room(alice, bob)
            await greet(room_id, alice, bob)
            await talk(room_id, alice, bob, "phones")
            async with laptop.running():  # a device list changes
                await greet(room_id, alice, laptop)
                await talk(room_id, alice, laptop, "laptop")
                await laptop.reads(*messages("laptop"))
                await bob.reads(*messages("phones"), *messages("laptop"))
                questions = [f"{text}?" for text in (*messages("phones"), *messages("laptop"))]
                await alice.reads(*questions)

    with presence_load(crowd):
        asyncio.run(story())
    assert alice.dark == bob.dark == []
