"""Which verify keys are at hand, and when another server may be asked for its own (pure).

Always true:
- keys of a server are one set, replaced as a whole; they hold until `valid_until_ts`, and never longer
  than 7 days after they were fetched (F:K-2);
- one fetch for an unknown key ID per server in 5 minutes, 20 fetches at a time, 2 per second and source
  address; a server that failed is left alone for a while that grows to 5 minutes (Z-4);
- everything remembered is bounded, the least recently used goes first.

Source: F:K-2, F:K-4; Z-4.
"""

from collections import OrderedDict
from dataclasses import dataclass, field, replace
from enum import Enum
from random import Random

from fedpresence.config import Rate
from fedpresence.errors import BadRequest, NotAuthentic
from fedpresence.ids import ServerName
from fedpresence.inbound.limiter import Limiter
from fedpresence.wire.signing import ServerKeys

MAX_SERVERS = 10_000  # key sets, and memories of failures: some 100 bytes each, up to 64 keys
MAX_LIFE_MS = 7 * 86_400_000  # F:K-2: a MUST of the specification
UNKNOWN_KEY_MS = 5 * 60_000  # Z-4
MAX_IN_FLIGHT = 20  # Z-4
SOURCE_RATE = Rate(2, 2)  # Z-4
FIRST_BACKOFF_MS = 1_000  # a server that starts sends before it listens: soon enough for its second try
MAX_BACKOFF_MS = 5 * 60_000  # Z-4
LEAST_REFRESH_MS = 60_000  # keys that are said to hold for a minute are not asked for all the time


@dataclass(frozen=True, slots=True)
class KeySet:
    """One server's keys, and when we got them."""

    keys: ServerKeys
    fetched_ms: int
    valid_until_ms: int = field(init=False)
    """The last moment at which these keys count (F:K-2)."""
    refresh_at_ms: int = field(init=False)
    """From half of their life on they should be fetched again (F:K-4)."""

    def __post_init__(self) -> None:
        valid_until_ms = min(self.keys.valid_until_ts, self.fetched_ms + MAX_LIFE_MS)
        half = (valid_until_ms - self.fetched_ms) // 2
        object.__setattr__(self, "valid_until_ms", valid_until_ms)
        object.__setattr__(self, "refresh_at_ms", self.fetched_ms + max(half, LEAST_REFRESH_MS))

    def holds(self, now_ms: int) -> bool:
        """Whether a request made now may be checked with these keys."""
        return now_ms <= self.valid_until_ms


class KeyCache:
    """Key sets by server, least recently used first."""

    def __init__(self, max_servers: int = MAX_SERVERS) -> None:
        self._max_servers = max_servers
        self._sets: OrderedDict[ServerName, KeySet] = OrderedDict()

    def __len__(self) -> int:
        return len(self._sets)

    def get(self, server_name: ServerName, now_ms: int) -> KeySet | None:
        """The keys of `server_name` that hold now."""
        found = self._sets.get(server_name)
        if found is None or not found.holds(now_ms):
            return None
        self._sets.move_to_end(server_name)
        return found

    def put(self, key_set: KeySet) -> None:
        """The new keys of a server, instead of all the old ones."""
        name = key_set.keys.server_name
        self._sets[name] = key_set
        self._sets.move_to_end(name)
        if len(self._sets) > self._max_servers:
            self._sets.popitem(last=False)


class Want(Enum):
    """Why keys are to be fetched."""

    KEYS = "nothing valid is at hand"
    UNKNOWN_KEY = "a key ID that the valid set does not have"
    REFRESH = "half of their life is over"


@dataclass(frozen=True, slots=True)
class _Record:
    failures: int = 0
    not_before_ms: int = 0
    unknown_key_ms: int | None = None  # when an unknown key ID was last asked for


class FetchPolicy:
    """Whether a server may be asked for its keys now."""

    def __init__(self, random: Random, max_servers: int = MAX_SERVERS) -> None:
        self._random = random
        self._max_servers = max_servers
        self._records: OrderedDict[ServerName, _Record] = OrderedDict()
        self._sources: Limiter[str] = Limiter(SOURCE_RATE)

    def begin(
        self, server_name: ServerName, want: Want, source: str | None, in_flight: int, now_ms: int
    ) -> None:
        """Return where a fetch may begin, and count it.

        NotAuthentic where asking again is known to be useless for now, BadRequest 429 where too much is
        asked of us. `source` is the address that makes us fetch; None: our own need.
        """
        record = self._records.get(server_name, _Record())
        if now_ms < record.not_before_ms:
            raise NotAuthentic(f"The keys of {server_name} could not be fetched a moment ago")
        if want is Want.UNKNOWN_KEY:
            last_ms = record.unknown_key_ms
            if last_ms is not None and now_ms - last_ms < UNKNOWN_KEY_MS:
                raise NotAuthentic(f"{server_name} has no such key")
        if in_flight >= MAX_IN_FLIGHT:
            raise _limited(1_000)
        wait_ms = self._sources.take(source, 1, now_ms) if source is not None else 0
        if wait_ms:
            raise _limited(wait_ms)
        if want is Want.UNKNOWN_KEY:
            self._keep(server_name, replace(record, unknown_key_ms=now_ms))

    def succeeded(self, server_name: ServerName) -> None:
        """The keys came."""
        record = self._records.get(server_name)
        if record is not None:
            self._keep(server_name, replace(record, failures=0, not_before_ms=0))

    def failed(self, server_name: ServerName, now_ms: int) -> None:
        """No believable answer: wait longer each time, jittered, at most 5 minutes."""
        record = self._records.get(server_name, _Record())
        backoff_ms = min(MAX_BACKOFF_MS, FIRST_BACKOFF_MS * 2 ** min(record.failures, 20))
        backoff_ms = int(backoff_ms * self._random.uniform(0.75, 1.0))
        self._keep(
            server_name, replace(record, failures=record.failures + 1, not_before_ms=now_ms + backoff_ms)
        )

    def missed(self, server_name: ServerName, now_ms: int) -> None:
        """The newest keys came without the key ID that was wanted: as good as asked for."""
        record = self._records.get(server_name, _Record())
        if record.unknown_key_ms is None or now_ms - record.unknown_key_ms >= UNKNOWN_KEY_MS:
            self._keep(server_name, replace(record, unknown_key_ms=now_ms))

    def _keep(self, server_name: ServerName, record: _Record) -> None:
        self._records[server_name] = record
        self._records.move_to_end(server_name)
        if len(self._records) > self._max_servers:
            self._records.popitem(last=False)


def _limited(wait_ms: int) -> BadRequest:
    return BadRequest(
        "M_LIMIT_EXCEEDED", "Too many keys are being fetched", status=429, retry_after_ms=wait_ms
    )
