"""One server of ours and the destinations that watch its users: real processes on loopback, with TLS.

Always true: what the destinations count is complaint-free, or the run ends: a signature that is wrong or a
push that violates a right makes every number worthless.
"""

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from signedjson.key import get_verify_key, read_signing_keys
from unpaddedbase64 import encode_base64

from benchmarks.children import Child
from benchmarks.clients import Crowd, put_status
from benchmarks.launch import local_federation
from benchmarks.meter import Meter, Spent
from benchmarks.population import populate, token_of
from benchmarks.report import CheckFailedError, check
from fedpresence.ids import ServerName, UserID
from fedpresence.testing.processes import ServerProcess, free_port

HERE = ServerName("here.test")
THERE_HOST = "there.test"
ARRIVE_WITHIN_S = 60.0

Rights = Mapping[str, Sequence[UserID]]  # destination to the users whom it watches


@dataclass(frozen=True)
class Watched:
    """A homeserver that runs, and the destinations that watch its users."""

    pid: int
    client_url: str
    destinations: Child
    token_of: Callable[[UserID], str]

    def counts(self) -> dict[str, int]:
        """What the destinations counted; CheckFailedError where they were told what they must not hear."""
        counts = self.destinations.ask("counts")
        if counts["refused"]:
            words = self.destinations.ask("complaint")["words"]
            raise CheckFailedError(f"{counts['refused']} transactions were not as they must be: {words}")
        check(not counts["violations"], f"{counts['violations']} pushes violated a right")
        return counts

    def wait_for(self, wanted: Mapping[UserID, Mapping[str, object]]) -> None:
        """Until every destination of these users was told so."""
        answer = self.destinations.ask("wait_for", wanted=wanted, within_s=ARRIVE_WITHIN_S)
        check(not answer["missing"], f"the last state never arrived {answer['missing']} times")

    def put_all(self, users: Sequence[UserID], updates: int, crowd: Crowd, name: str) -> None:
        """So many PUTs, users in turn; until each destination has the last of each user."""
        turns = list(islice(cycle(users), updates))
        messages = [f"{name} {number}" for number in range(updates)]
        crowd.ask_all([put_status(u, self.token_of(u), m) for u, m in zip(turns, messages, strict=True)])
        self.wait_for({u: {"status_msg": m} for u, m in zip(turns, messages, strict=True)})

    def metered(self, work: Any) -> tuple[Spent, dict[str, int]]:
        """What the server spends while `work()` is done, and what the destinations count meanwhile."""
        before = self.counts()
        meter = Meter(self.pid)
        work()
        spent = meter.spent()
        after = self.counts()
        return spent, {name: after[name] - before[name] for name in after}


@dataclass(frozen=True)
class World(Watched):
    """A server of ours."""

    server: ServerProcess


def destinations_named(number: int) -> list[str]:
    """So many server names, which one process can play."""
    return [f"{THERE_HOST}:{n}" for n in range(1, number + 1)]


@contextmanager
def watched_world(rights: Rights, config: Mapping[str, Any], users: Iterable[UserID] = ()) -> Iterator[World]:
    """All users of `rights`, and more `users` whom nobody observes, each with a token."""
    port = free_port()
    known = list(dict.fromkeys([*users, *(user for watched in rights.values() for user in watched)]))
    federation_config = {
        **config.get("federation", {}),
        "resolve": dict.fromkeys(rights, f"127.0.0.1:{port}"),
    }
    own = {**config, "log": {"level": "info"}, "federation": federation_config}
    with tempfile.TemporaryDirectory() as folder:
        federation = local_federation(Path(folder), [HERE], own)
        server = federation[HERE]
        pairs = [
            (UserID(f"@observer:{destination}"), user)
            for destination in rights
            for user in rights[destination]
        ]
        populate(server.folder / "fedpresence.db", HERE, users=known, with_tokens=known, pairs=pairs)
        private_key, certificate = federation.ca.issue(ServerName(THERE_HOST))
        specification = {
            "ports": [port],
            "certificate": str(certificate),
            "private_key": str(private_key),
            "verify_keys": verify_keys(server.folder / "signing.key"),
            "rights": rights,
        }
        with Child("benchmarks.destinations", specification) as destinations, federation:
            world = World(server.pid, server.client_url, destinations, token_of, server)
            yield world
            world.counts()


def verify_keys(key_file: Path) -> dict[str, str]:
    """The public halves of a signing key file, in Base64 by key ID."""
    with key_file.open(encoding="ascii") as stream:
        keys = read_signing_keys(stream)
    return {f"{key.alg}:{key.version}": encode_base64(get_verify_key(key).encode()) for key in keys}
