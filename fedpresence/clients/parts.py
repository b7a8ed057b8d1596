"""What the client API needs of the daemon."""

from dataclasses import dataclass

from fedpresence.clients.changes import PresenceChanges
from fedpresence.clients.feed import Feed
from fedpresence.clients.tokens import TokenChecker
from fedpresence.clients.views import Views
from fedpresence.clock import Clock
from fedpresence.hub import Hub
from fedpresence.ids import ServerName


@dataclass(frozen=True, slots=True)
class ClientSettings:
    """The client API's share of the configuration."""

    server_name: ServerName
    busy: bool = False


@dataclass(slots=True)
class ClientParts:
    """The parts that the daemon introduces to each other."""

    hub: Hub
    engine: Views
    tokens: TokenChecker
    feed: Feed
    changes: PresenceChanges
    clock: Clock
    settings: ClientSettings
