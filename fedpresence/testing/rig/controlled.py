"""The rig as the control API sees it."""

from collections.abc import Awaitable, Mapping
from pathlib import Path
from typing import Any, Protocol

from fedpresence.engine.presence import PresenceState
from fedpresence.ids import DeviceID, ServerName, UserID
from fedpresence.testing.homeserver import FakeHomeserver
from fedpresence.testing.rig.faults import Faults
from fedpresence.testing.rig.wirelog import WireLog


class ControlledServer(Protocol):
    """One of the rig's servers."""

    @property
    def name(self) -> ServerName:
        """Its server name."""

    @property
    def is_running(self) -> bool:
        """Whether it answers."""

    def start(self) -> Awaitable[object]:
        """Run again on the same data."""

    def stop(self) -> Awaitable[object]:
        """End cleanly."""

    def kill(self) -> Awaitable[object]:
        """End as in a crash."""

    def backup(self) -> Awaitable[object]:
        """Keep a copy of its data."""

    def restore(self) -> Awaitable[object]:
        """Go back to the copy; LookupError without one."""

    def wipe(self) -> Awaitable[object]:
        """Lose all data."""

    def set_clock(self, offset_ms: int) -> Awaitable[object]:
        """Be that far ahead of the rig's time."""

    def rotate_key(self) -> Awaitable[object]:
        """Sign with a new key."""


class Controlled(Protocol):
    """The rig: `TwistedRig`, or what stands in for it in a test."""

    @property
    def virtual(self) -> bool:
        """Whether its clock is turned by hand."""

    @property
    def now_ms(self) -> int:
        """Its time."""

    @property
    def is_stopping(self) -> bool:
        """Whether it has begun to end."""

    @property
    def wire(self) -> WireLog:
        """What was seen between its servers."""

    @property
    def servers(self) -> Mapping[ServerName, ControlledServer]:
        """Its servers."""

    @property
    def users(self) -> Mapping[UserID, object]:
        """Its users."""

    @property
    def homeservers(self) -> Mapping[ServerName, FakeHomeserver]:
        """Its scripted homeservers."""

    def server(self, name: str) -> ControlledServer:
        """The server of that name or alias; KeyError where there is none."""

    def ready(self) -> dict[str, Any]:
        """What the ready file says of it."""

    def advance(self, ms: int) -> Awaitable[int]:
        """Turn the clock on; the new time."""

    def settle(self) -> Awaitable[int]:
        """Wait until nothing is in flight or due; how much still is."""

    def set_faults(self, origin: str, destination: str, faults: Faults) -> Awaitable[object]:
        """What the path between two servers does; KeyError, at once, where there is none."""

    def set_stream(
        self,
        user_id: UserID,
        *,
        is_open: bool,
        device_id: DeviceID | None = None,
        set_presence: PresenceState | None = None,
    ) -> Awaitable[object]:
        """A user's event stream is open, or is not."""

    def add_external(self, server_name: str, address: str, ca_file: Path | None = None) -> Awaitable[object]:
        """Let the servers reach one that is not the rig's; ValueError where that cannot be."""

    def add_homeserver(self, server_name: str) -> Awaitable[FakeHomeserver]:
        """A scripted homeserver, running; ValueError where the name is taken."""
