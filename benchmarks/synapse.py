"""A real Synapse under the same load, in the same run: so that a ratio is honest.

It is installed from its package into an environment of its own, once. SQLite, presence on, its limits on
clients raised; users share one public room with a member of each destination, which joins it as servers do.
All destinations are ports of `localhost`, which is how Synapse finds them without a name server.
"""

import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.children import Child
from benchmarks.joining import ROOM_VERSION
from benchmarks.report import CheckFailedError
from benchmarks.world import Watched, verify_keys
from fedpresence.ids import ServerName, UserID, parse_server_name
from fedpresence.ops.keys import generate_key_file
from fedpresence.testing.certificates import ThrowawayCA
from fedpresence.testing.processes import free_port
from fedpresence.testing.synapse import NoSynapse, Synapse, Tls, install_synapse, quoted

HOST = ServerName("localhost")
INSTALL_WITHIN_S = 900.0
JOIN_WITHIN_S = 300.0
SETTLE_S = 5.0  # it sends what the joins caused
CONFIG = {"presence": {"enabled": True}, "bcrypt_rounds": 4}


@contextmanager
def synapse_world(environment: Path, users: int, destinations: int) -> Iterator[tuple[Watched, list[UserID]]]:
    """A Synapse with so many users, all of whom every destination may see."""
    print(f"Synapse is in {environment}, or is installed there now", file=sys.stderr)
    try:
        python = install_synapse(environment, INSTALL_WITHIN_S)
    except NoSynapse as error:
        raise CheckFailedError(str(error)) from error
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ca = ThrowawayCA(folder)
        federation_port = free_port()
        server_name = parse_server_name(f"{HOST}:{federation_port}")
        user_ids = [UserID(f"@user{number}:{server_name}") for number in range(users)]
        private_key, certificate = ca.issue(HOST)
        signing_key = folder / "signing.key"
        generate_key_file(signing_key)
        synapse = Synapse(
            python,
            folder / "synapse",
            server_name,
            free_port(),
            signing_key_path=signing_key,
            ca_file=ca.ca_file,
            tls=Tls(federation_port, private_key, certificate),
            config=CONFIG,
            log_level="WARNING",
        )
        ports = [free_port() for _ in range(destinations)]
        specification = {
            "ports": ports,
            "certificate": str(certificate),
            "private_key": str(private_key),
            "verify_keys": verify_keys(signing_key),
            "rights": {f"{HOST}:{port}": user_ids for port in ports},
        }
        synapse.begin()
        try:
            with Child("benchmarks.destinations", specification) as child:
                synapse.wait_until_ready()
                tokens = {u: synapse.register(u[1:].partition(":")[0]) for u in user_ids}
                child.ask(
                    "join",
                    timeout_s=JOIN_WITHIN_S,
                    room_id=_make_room(synapse, list(tokens.values())),
                    server_name=server_name,
                    port=federation_port,
                    ca_file=str(ca.ca_file),
                )
                time.sleep(SETTLE_S)  # there is nothing to ask whether it has done with the joins
                world = Watched(synapse.pid, synapse.url, child, tokens.__getitem__)
                yield world, user_ids
                world.counts()
        finally:
            synapse.stop()


def _make_room(synapse: Synapse, tokens: list[str]) -> str:
    """A public room that everybody is in."""
    first, *others = tokens
    content = {"preset": "public_chat", "room_version": ROOM_VERSION}
    made = synapse.call(first, "POST", "/createRoom", content)
    if made.status != 200:
        raise CheckFailedError(f"no room: {made}")
    room_id: str = made.body["room_id"]
    for token in others:
        joined = synapse.call(token, "POST", f"/join/{quoted(room_id)}", {})
        if joined.status != 200:
            raise CheckFailedError(f"not joined: {joined}")
    return room_id
