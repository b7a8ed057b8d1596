"""What a listener serves: the resources that the configuration names, under one root.

Source: contract.md, `listeners` and `GET /health`.
"""

from collections.abc import Callable
from typing import Any

from twisted.web.resource import Resource

from fedpresence.admission import Admit, RequestHead
from fedpresence.clients.parts import ClientParts, ClientSettings
from fedpresence.clients.resource import OWN_PATHS, PASSED_THROUGH, add_clients, add_clients_beside
from fedpresence.clients.tap import add_tap
from fedpresence.config import ListenerConfig
from fedpresence.homeserver.appservice import add_appservice, admission
from fedpresence.homeserver.relay import PassThrough, streams
from fedpresence.homeserver.send import Fronting, add_front
from fedpresence.inbound.resource import Federation, add_federation
from fedpresence.ops.admin import AdminParts, add_admin
from fedpresence.ops.admin import admission as admin_admission
from fedpresence.ops.status import add_health, add_metrics
from fedpresence.parts import Parts
from fedpresence.site import BoundedSite
from fedpresence.web import Unknown

_STREAMS = streams(tuple(b"/%b" % b"/".join(path) for path in PASSED_THROUGH))


def site_for(parts: Parts, place: ListenerConfig, is_serving: Callable[[], bool]) -> BoundedSite:
    """The site of one listener."""
    root: Resource = Unknown()
    asked: list[Admit] = []
    config = parts.config
    add_health(root, is_serving)
    if "client" in place.resources:
        settings = ClientSettings(config.server_name, config.presence.busy)
        clients = ClientParts(
            parts.hub, parts.engine, parts.tokens, parts.feed, parts.changes, parts.clock, settings
        )
        relay = parts.relay
        if relay is None:
            add_clients(root, clients)
        else:
            add_clients_beside(root, clients, relay, lambda: PassThrough(relay))
    if "sync_tap" in place.resources:
        add_tap(root, parts.tap)
    if "federation" in place.resources:
        asked.append(_add_federation(root, parts))
    if "appservice" in place.resources and parts.appservice is not None:
        asked.append(admission(parts.appservice))
        add_appservice(root, parts.appservice)
    if "admin" in place.resources and config.admin_token is not None:
        asked.append(admin_admission(config.admin_token))
        add_admin(
            root,
            AdminParts(
                config.server_name,
                config.admin_token,
                parts.hub,
                parts.engine,
                parts.outbound,
                parts.revoke_tokens,
                parts.clock,
                parts.take_up_new_users,
                parts.scan,
            ),
        )
    if "metrics" in place.resources:
        add_metrics(root, parts.counters, parts.hub, parts.engine, parts.outbound, parts.scan)
    if "client" in place.resources and parts.relay is not None:
        asked.append(_admit_streams)  # last: it takes whatever nobody else knows
    return BoundedSite(root, config.limits, parts.clock, parts.budget, _first_of(asked))


def _add_federation(root: Resource, parts: Parts) -> Admit:
    """Ours alone, or in front of the homeserver's; who admits its requests."""
    alone: Resource = root if parts.relay is None else Unknown()
    well_known = parts.config.federation.serve_well_known
    add_federation(
        alone,
        Federation(parts.identity, parts.gate, parts.transactions, parts.clock, parts.seen_alive, well_known),
    )
    if parts.relay is None:
        return parts.gate.admit
    fronting = Fronting(
        parts.relay,
        parts.origins,
        parts.origin_limits,
        parts.budget,
        parts.transactions,
        parts.clock,
        parts.counters,
        parts.seen_alive,
        alone,
    )
    return add_front(root, fronting, serves_well_known=well_known is not None)


def _admit_streams(head: RequestHead) -> Any:
    """Bodies of what is passed through are never here as a whole; those for ourselves are."""
    return None if OWN_PATHS.match(head.uri) else _STREAMS(head)


def _first_of(asked: list[Admit]) -> Admit | None:
    """The first who has something to say about a request's body; None where there is nobody."""
    if len(asked) < 2:
        return asked[0] if asked else None

    def admit(head: Any) -> Any:
        for ask in asked:
            admitted = ask(head)
            if admitted is not None:
                return admitted
        return None

    return admit
