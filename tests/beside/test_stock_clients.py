import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from fedpresence.testing.crowds import people, presence_load, share_a_room
from fedpresence.testing.domains import Domain, Person
from tests.scenarios.story import eventually

nio: Any = pytest.importorskip("nio", reason="matrix-nio is not installed (pip install 'matrix-nio[e2e]')")

ALGORITHM = "m.megolm.v1.aes-sha2"
PASSWORD = "correct horse battery staple"
SEEN_S = 30.0
MESSAGES = 30
WITHOUT_GAPS = {"room": {"timeline": {"limit": 1000}}}

_numbers = count(1)

needs_encryption = pytest.mark.skipif(
    not nio.crypto.ENCRYPTION_ENABLED, reason="matrix-nio has no encryption (pip install 'matrix-nio[e2e]')"
)


class NioClient:
    """A user's device: a matrix-nio client that was told fedpresence's address, and nothing else.

    It shares no key with a device of its own name, whoever's that is.
    """

    def __init__(self, domain: Domain, user_id: str, device_id: str, folder: Path) -> None:
        self.user_id = user_id
        self.texts: list[str] = []  # of messages that it could read, in the order in which they came
        self.dark: list[Any] = []  # encrypted messages that it could not
        self._domain = domain
        self._presence: list[Any] = []
        self._came = asyncio.Condition()
        store = folder / f"{user_id[1:].partition(':')[0]}-{device_id}"
        store.mkdir()
        address = domain.daemon.client_url if domain.daemon is not None else domain.synapse.url
        self.client = nio.AsyncClient(address, user_id, device_id, store_path=str(store))
        self.client.add_presence_callback(self._see_presence, nio.PresenceEvent)
        self.client.add_event_callback(self._see_message, (nio.RoomMessageText, nio.MegolmEvent))
        self.client.add_response_callback(self._see_sync, nio.SyncResponse)

    @property
    def person(self) -> Person:
        """The same device, for what matrix-nio has no words for."""
        return Person(self._domain, self.user_id, self.client.access_token)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Logged in and in the middle of `sync_forever`, which must not have ended by itself."""
        answer = await self.client.login(PASSWORD)
        assert isinstance(answer, nio.LoginResponse), answer
        forever = self.client.sync_forever(timeout=5000, sync_filter=WITHOUT_GAPS, set_presence="online")
        syncing = asyncio.create_task(forever)
        try:
            await self.sees(self.user_id, presence="online")
            yield
            assert not syncing.done(), "the client gave up"
        finally:
            syncing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await syncing
            await self.client.close()

    async def say(self, room_id: str, text: str) -> None:
        """A message, encrypted where the room is."""
        content = {"msgtype": "m.text", "body": text}
        said = await self.client.room_send(room_id, "m.room.message", content, ignore_unverified_devices=True)
        assert isinstance(said, nio.RoomSendResponse), said

    async def sees(self, user_id: str, **wanted: object) -> Any:
        """The next presence of a user that is as wanted; what came before it is forgotten."""

        def position() -> int | None:
            for number, event in enumerate(self._presence, 1):
                is_so = all(getattr(event, name, None) == value for name, value in wanted.items())
                if event.user_id == user_id and is_so:
                    return number
            return None

        await self.until(lambda: position() is not None, f"never saw {user_id}: {wanted}")
        end = position()
        assert end is not None
        event = self._presence[end - 1]
        del self._presence[:end]
        return event

    async def reads(self, *texts: str) -> None:
        """Wait until it has read each of these messages."""
        missing = set(texts)

        def are_read() -> bool:
            missing.difference_update(self.texts)
            return not missing

        try:
            await self.until(are_read, "did not read all")
        except AssertionError as error:
            error.add_note(f"missing: {sorted(missing)}")
            raise

    async def is_invited(self, room_id: str) -> None:
        """Wait for the invite."""
        await self.until(lambda: room_id in self.client.invited_rooms, "was never invited")

    async def knows_room(self, room_id: str, members: set[str]) -> None:
        """Wait until it knows an encrypted room with these members."""

        def is_known() -> bool:
            room = self.client.rooms.get(room_id)
            return room is not None and room.encrypted and members <= room.users.keys()

        await self.until(is_known, "does not know the room")

    async def knows_device(self, device: "NioClient") -> None:
        """Wait until it knows somebody's device."""
        name, devices = device.client.device_id, self.client.device_store
        await self.until(lambda: name in devices[device.user_id], f"does not know {name}")

    async def until(self, holds: Callable[[], bool], what: str) -> None:
        """Wait until something holds of the client after a sync."""
        try:
            async with asyncio.timeout(SEEN_S), self._came:
                await self._came.wait_for(holds)
        except TimeoutError:
            last = self._presence[-3:], self.texts[-3:], self.dark[-3:]
            raise AssertionError(f"{self.user_id}: {what}; last: {last}") from None

    async def _see_presence(self, event: Any) -> None:
        self._presence.append(event)

    async def _see_message(self, _: Any, event: Any) -> None:
        if isinstance(event, nio.MegolmEvent):
            self.dark.append(event)
        else:
            self.texts.append(event.body)

    async def _see_sync(self, _: Any) -> None:
        async with self._came:
            self._came.notify_all()


def registered(domain: Domain, name: str) -> str:
    """A new user with the password; their ID."""
    localpart = f"{name}-nio{next(_numbers)}"
    domain.synapse.register(localpart, password=PASSWORD)
    return f"@{localpart}:{domain.name}"


async def share_an_encrypted_room(first: NioClient, *others: NioClient) -> str:
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


async def greet(room_id: str, first: NioClient, second: NioClient) -> None:
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
    alice, bob, carol = (NioClient(d, registered(d, name), name.upper(), tmp_path) for d, name in names)

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
    alice = NioClient(here, registered(here, "alice"), "TABLET", tmp_path)
    bobs_id = registered(there, "bob")
    bob, laptop = (NioClient(there, bobs_id, device_id, tmp_path) for device_id in ("PHONE", "LAPTOP"))
    crowd = people(*[(here, f"noise{n}") for n in range(5)], *[(there, f"noise{n}") for n in range(5)])
    share_a_room(*crowd)

    def messages(words: str) -> list[str]:
        return [f"{words} {number}" for number in range(MESSAGES)]

    async def talk(room_id: str, first: NioClient, second: NioClient, words: str) -> None:
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
