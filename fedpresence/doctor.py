"""The start-up checks on demand: Config and reactor to findings, with or without a daemon that runs.

Source: contract.md, `fedpresence doctor`; H:9.
"""

from random import SystemRandom
from typing import Any

from treq.client import HTTPClient
from twisted.web.client import Agent

from fedpresence.clock import MonotonicClock
from fedpresence.config import Config
from fedpresence.homeserver.api import HomeserverApi
from fedpresence.homeserver.checks import Checks, Finding
from fedpresence.homeserver.registration import load_registration
from fedpresence.ids import ServerName
from fedpresence.inbound.keyfetch import KeyFetcher
from fedpresence.ops.keys import load_signing_keys
from fedpresence.outbound.client import build_client
from fedpresence.parts import CONNECT_TIMEOUT_S, tls_policy
from fedpresence.wire.signing import Identity, ServerKeys


async def examine(config: Config, reactor: Any) -> tuple[Finding, ...]:
    """Ask every question once; the configuration names a homeserver."""
    assert config.homeserver_url is not None, "looked at by the command"
    identity = Identity(
        config.server_name, load_signing_keys(config.signing_key_path), config.old_signing_keys
    )
    clock = MonotonicClock(reactor)
    agent: Any = Agent
    client: Any = HTTPClient
    path = config.appservice_registration
    registration = None if path is None else load_registration(path)
    http = client(agent(reactor, connectTimeout=CONNECT_TIMEOUT_S))
    api = HomeserverApi(config.homeserver_url, registration, http, clock)
    federation = build_client(reactor, clock, config.federation, identity, SystemRandom(), tls_policy(config))
    fetcher = KeyFetcher(federation.get_unsigned, clock)

    async def fetch_keys(server_name: ServerName) -> ServerKeys:
        return (await fetcher.from_server(server_name)).keys

    try:
        return await Checks(identity, api, registration, fetch_keys, clock).all()
    finally:
        await federation.close()
