"""The frozen Config: what every part of the daemon may know of the operator's wishes.

Always true: a Config that the loader made is complete and possible. Lengths of time are whole
milliseconds, sizes are bytes, paths are absolute. The defaults here are those of `config_keys.py`.

Source: contract.md, "Config".
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from fedpresence.engine.settings import InvitePolicy
from fedpresence.ids import KeyID, ServerName

RESOURCES = ("client", "federation", "admin", "metrics", "appservice", "sync_tap")

# Synapse's default list of blocked ranges, and this host's own spellings of "here": 0.0.0.0 and ::
# reach the loopback interface on Linux (Z-5).
DEFAULT_BLOCKED_NETWORKS = (
    "127.0.0.0/8",  # loopback
    "0.0.0.0/8",  # this host
    "10.0.0.0/8",  # private
    "172.16.0.0/12",  # private
    "192.168.0.0/16",  # private
    "100.64.0.0/10",  # carrier-grade NAT
    "192.0.0.0/24",  # address registry
    "169.254.0.0/16",  # link-local
    "192.88.99.0/24",  # formerly 6to4 relay
    "198.18.0.0/15",  # testing
    "192.0.2.0/24",  # testing
    "198.51.100.0/24",  # testing
    "203.0.113.0/24",  # testing
    "224.0.0.0/4",  # multicast
    "::1/128",  # loopback
    "::/128",  # this host
    "fe80::/10",  # link-local
    "fc00::/7",  # unique local
    "2001:db8::/32",  # testing
    "ff00::/8",  # multicast
    "fec0::/10",  # site-local
)


@dataclass(frozen=True, slots=True)
class ListenerConfig:
    """A Twisted server endpoint string and the resources served there."""

    endpoint: str
    resources: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class OldKey:
    """A retired verify key: unpadded Base64, and when it ceased to be used."""

    key: str
    expired_ts: int


@dataclass(frozen=True, slots=True)
class PresenceConfig:
    """`presence.*`."""

    idle_timeout_ms: int = 300_000
    last_active_granularity_ms: int = 60_000
    sync_online_timeout_ms: int = 30_000
    remote_timeout_ms: int = 1_800_000
    refresh_interval_ms: int = 1_500_000
    offline_on_stop: bool = False
    busy: bool = False


@dataclass(frozen=True, slots=True)
class ListsConfig:
    """`lists.*`."""

    invite_policy: InvitePolicy = InvitePolicy.ASK
    max_entries: int = 1000


@dataclass(frozen=True, slots=True)
class RoomsConfig:
    """`rooms.*`; None in place of a list means all."""

    share_presence: bool = True
    max_members: int = 500
    allow: tuple[str, ...] | None = None
    deny: tuple[str, ...] = ()
    join_rules: tuple[str, ...] | None = None
    allow_servers: tuple[str, ...] | None = None
    deny_servers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class FederationConfig:
    """`federation.*`; `allow` None means all, `resolve` maps a server name to (host, port)."""

    allow: tuple[str, ...] | None = None
    deny: tuple[str, ...] = ()
    verify_certificates: bool = True
    ca_file: Path | None = None
    resolve: Mapping[ServerName, tuple[str, int]] = field(default_factory=lambda: MappingProxyType({}))
    blocked_networks: tuple[str, ...] = DEFAULT_BLOCKED_NETWORKS
    batch_window_ms: int = 200
    keep_connections_ms: int = 55_000  # idle; below the 60 s after which Twisted servers, Synapse too, close
    max_transactions_per_second: int = 50
    notaries: tuple[ServerName, ...] = ()
    serve_well_known: str | None = None


@dataclass(frozen=True, slots=True)
class Rate:
    """So many a second, and how many at once."""

    per_second: float
    burst: int


@dataclass(frozen=True, slots=True)
class LimitsConfig:
    """`limits.*`."""

    client_changes: Rate = Rate(5, 10)  # presence changes per user: more are merged
    client_changes_refused: Rate = Rate(50, 100)  # far more get 429
    origin_bytes: Rate = Rate(1_048_576, 16_777_216)  # bytes of transactions per origin
    origin_entries: Rate = Rate(2_000, 20_000)  # pushes, polls and list EDUs per origin
    client_body: int = 65_536  # bytes
    transaction_body: int = 13_107_200  # bytes: 200 x 65536 (F:7.1)
    bodies_in_flight: int = 67_108_864  # bytes of all bodies being received (Z-2)
    connections: int = 10_000  # open connections per listener
    idle_connection_ms: int = 60_000  # after an answer, without a next request


@dataclass(frozen=True, slots=True)
class LogConfig:
    """`log.*`; `levels` maps a namespace (`fedpresence.outbound`) to a level name."""

    format: str = "text"
    level: str = "info"
    levels: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True, slots=True)
class Config:
    """The whole configuration. `folder` is where the file lies; relative paths count from there."""

    folder: Path
    server_name: ServerName
    signing_key_path: Path
    listeners: tuple[ListenerConfig, ...]
    old_signing_keys: Mapping[KeyID, OldKey] = field(default_factory=lambda: MappingProxyType({}))
    database_path: Path = Path("fedpresence.db")
    presence: PresenceConfig = PresenceConfig()
    lists: ListsConfig = ListsConfig()
    rooms: RoomsConfig = RoomsConfig()
    federation: FederationConfig = FederationConfig()
    limits: LimitsConfig = LimitsConfig()
    log: LogConfig = LogConfig()
    auth_mode: str = "tokens"
    homeserver_url: str | None = None
    appservice_registration: Path | None = None
    appservice_scan_rate: int = 20  # requests a second
    admin_token: str | None = field(default=None, repr=False)
