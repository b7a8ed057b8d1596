"""A stock client, matrix-nio, in its endless sync; where there is none, what imports this is skipped."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

nio: Any = pytest.importorskip("nio", reason="matrix-nio is not installed (pip install '.[interop]')")


class NioClient:
    """A user's device. It keeps what matrix-nio took until somebody looks for it.

    `client` is an `AsyncClient`, logged in before `running`; nothing may take longer than `patience_s`.
    """

    def __init__(self, client: Any, patience_s: float, sync_filter: dict[str, object] | None = None) -> None:
        self.client = client
        self.user_id: str = client.user
        self.texts: list[str] = []  # of messages that it could read, in the order in which they came
        self.dark: list[Any] = []  # encrypted messages that it could not
        self._patience_s = patience_s
        self._sync_filter = sync_filter
        self._presence: list[Any] = []
        self._came = asyncio.Condition()
        client.add_presence_callback(self._see_presence, nio.PresenceEvent)
        client.add_event_callback(self._see_message, (nio.RoomMessageText, nio.MegolmEvent))
        client.add_response_callback(self._see_sync, nio.SyncResponse)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """In the middle of `sync_forever`, which must not have ended by itself."""
        forever = self.client.sync_forever(timeout=5000, sync_filter=self._sync_filter, set_presence="online")
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
                is_so = all(getattr(event, name) == value for name, value in wanted.items())
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
            async with asyncio.timeout(self._patience_s), self._came:
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
