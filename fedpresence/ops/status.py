"""Health and counters over HTTP, for whoever watches the daemon.

Always true: no label holds the name of a user, and of other servers at most a hundred, so the number of
series is bounded; `/health` says nothing but whether we serve.

Source: contract.md, "Admin API" (`/health`, `/metrics`); prometheus.io, "Metric and label naming".
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import cast

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from twisted.internet.defer import CancelledError, Deferred, ensureDeferred
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET

from fedpresence import __version__
from fedpresence.engine.queries import Counts
from fedpresence.errors import BadRequest, FedpresenceError
from fedpresence.hub import Hub
from fedpresence.ids import ServerName
from fedpresence.ops.admin import AdminViews, Scanning, ScanProgress, subscriptions
from fedpresence.ops.destinations import STATES, Destinations, DestinationStatus
from fedpresence.request import Request
from fedpresence.web import JsonResource, mount, write_error

_log = Logger()

PREFIX = "fedpresence_"

# Every counter there is, with its labels: a name that is not here is a bug, not a series.
COUNTERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "inbound_transactions": ("Transactions that other servers sent.", ("outcome",)),
    "inbound_edus": ("EDUs in them.", ("edu_type", "outcome")),
    "fronted_transactions": ("Transactions that came to the homeserver through us.", ("outcome",)),
    "key_fetches": ("Requests for another server's keys.", ("outcome",)),
    "outbound_transactions": ("Transactions sent to other servers.", ("outcome",)),
    "appservice_transactions": ("Transactions of the homeserver beside us.", ("outcome",)),
    "appservice_items": ("What was in them.", ("kind",)),
    "homeserver_requests": ("What we asked the homeserver beside us.", ("outcome",)),
    "outbound_pushes": ("Presence of users in them.", ()),
}

# Told as 0 from the start: Prometheus' increase() does not see a series begin, so an alert on one that is not
# there yet misses the first event, and one on "none for an hour" never fires after a restart.
OUTCOMES: dict[str, tuple[str, ...]] = {
    "inbound_transactions": ("ok", "bad", "not_authentic", "forbidden", "too_large", "limited", "failed"),
    "fronted_transactions": ("answered", "forwarded", "taken", "unanswered", "unseen", "unserved"),
    "key_fetches": ("ok", "failed", "refused"),
    "outbound_transactions": ("2xx", "3xx", "4xx", "5xx", "unanswered"),
    "appservice_transactions": ("ok", "bad", "repeated", "unread"),
    "homeserver_requests": ("ok", "refused", "unavailable"),
}


class PrometheusCounters:
    """Counters kept for Prometheus, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._counted = _Counted()
        self.registry.register(self._counted)
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        self.gauges = _Gauges()
        self.registry.register(self.gauges)

    def count(self, name: str, amount: int = 1, **labels: str) -> None:
        """So many more of `name` with these labels."""
        key = (name, *labels.items())
        try:
            self._counted.so_far[key] += amount
        except KeyError:
            _check_labels(name, labels)
            self._counted.so_far[key] = amount


class _Counted(Collector):
    """Plain numbers until somebody asks: the library's own counters take a lock for each event."""

    def __init__(self) -> None:
        # What can be named is there from the start; the rest appears with its first event.
        self.so_far: dict[tuple[object, ...], int] = {
            (name,): 0 for name, (_, labels) in COUNTERS.items() if not labels
        }
        for name, outcomes in OUTCOMES.items():
            self.so_far.update({(name, ("outcome", outcome)): 0 for outcome in outcomes})

    def collect(self) -> Iterator[Metric]:
        """All of them."""
        series: dict[str, dict[tuple[str, ...], int]] = {name: {} for name in COUNTERS}
        for (name, *items), count in self.so_far.items():
            values = tuple(value for _, value in sorted(cast("list[tuple[str, str]]", items)))
            series[str(name)][values] = series[str(name)].get(values, 0) + count
        for name, (words, labels) in COUNTERS.items():
            family = CounterMetricFamily(PREFIX + name, words, labels=sorted(labels))
            for values, count in series[name].items():
                family.add_metric(values, count)
            yield family


def _check_labels(name: str, labels: Mapping[str, str]) -> None:
    """ValueError for labels that `name` does not have, KeyError for a name that there is not."""
    if set(labels) != set(COUNTERS[name][1]):
        raise ValueError(f"{name} has the labels {', '.join(COUNTERS[name][1])}")


def add_health(root: Resource, is_serving: Callable[[], bool]) -> None:
    """`GET /health` below `root`: 200 while serving, else 503; no token is asked for."""

    async def health(request: Request) -> object:
        if not is_serving():
            raise BadRequest("M_UNKNOWN", "Not serving", status=503)
        return {"ok": True}

    mount(root, b"health", JsonResource({"GET": health}))


def add_metrics(
    root: Resource,
    counters: PrometheusCounters,
    hub: Hub,
    engine: AdminViews,
    destinations: Destinations,
    scan: Scanning | None = None,
) -> None:
    """`GET /metrics` below `root`, in Prometheus' text format."""

    async def text() -> bytes:
        counts, unwanted = await hub.read(lambda _: (engine.counts(), engine.unwanted()))
        counters.gauges.set(counts, unwanted, destinations.describe(None).values())
        if scan is not None:
            counters.gauges.set_scan(scan.progress())
        return generate_latest(counters.registry)

    mount(root, b"metrics", _Metrics(lambda: ensureDeferred(text())))


class _Gauges(Collector):
    """What is counted only when somebody asks."""

    def __init__(self) -> None:
        self._metrics: tuple[Metric, ...] = ()
        self._scan: tuple[Metric, ...] = ()

    def set_scan(self, progress: ScanProgress) -> None:
        """What is still to be asked of the homeserver."""
        waiting = GaugeMetricFamily(
            PREFIX + "scan_to_ask", "What is still to be asked of the homeserver beside us.", labels=("kind",)
        )
        waiting.add_metric(["user"], progress.users_to_ask)
        waiting.add_metric(["room"], progress.rooms_to_ask)
        self._scan = (waiting,)

    def set(
        self, counts: Counts, unwanted: Mapping[ServerName, int], destinations: Iterable[DestinationStatus]
    ) -> None:
        """What the next collection tells."""
        pushes = CounterMetricFamily(
            PREFIX + "unwanted_pushes", "Pushes of users whom nobody here may see.", labels=("origin",)
        )
        for origin, count in unwanted.items():
            pushes.add_metric([origin or "other"], count)
        users = GaugeMetricFamily(PREFIX + "users", "Local users by state.", labels=("state",))
        for state in ("online", "unavailable", "offline", "busy"):
            users.add_metric([state], getattr(counts, state))
        pairs = GaugeMetricFamily(PREFIX + "subscriptions", "Pairs by stage.", labels=("stage",))
        for stage, count in subscriptions(counts).items():
            pairs.add_metric([stage], count)
        states = dict.fromkeys(STATES, 0)
        pending = owed = 0
        for destination in destinations:
            states[destination.state] += 1
            pending += destination.pending_users
            owed += destination.owed
        queues = GaugeMetricFamily(PREFIX + "destinations", "Destinations by state.", labels=("state",))
        for state, count in states.items():
            queues.add_metric([state], count)
        version = GaugeMetricFamily(PREFIX + "info", "Always 1.", labels=("version",))
        version.add_metric([__version__], 1)
        self._metrics = (
            users,
            pushes,
            GaugeMetricFamily(PREFIX + "remote_users", "Remote users kept.", value=counts.remote),
            GaugeMetricFamily(
                PREFIX + "rooms_doubted",
                "Rooms by which no presence is shared until their members were read again.",
                value=counts.rooms_doubted,
            ),
            pairs,
            queues,
            GaugeMetricFamily(PREFIX + "pending_users", "News that waits, in all queues.", value=pending),
            GaugeMetricFamily(PREFIX + "owed_edus", "List EDUs owed to other servers.", value=owed),
            version,
        )

    def collect(self) -> Iterator[Metric]:
        """What was set last."""
        yield from self._metrics
        yield from self._scan


class _Metrics(Resource):
    """Plain text, for GET alone."""

    isLeaf = True

    def __init__(self, text: Callable[[], Deferred[bytes]]) -> None:
        Resource.__init__(self)
        self._text = text

    def render_GET(self, request: Request) -> int:
        """All series."""
        asking = self._text()
        request.notifyFinish().addErrback(lambda _: asking.cancel())
        asking.addCallback(lambda text: _answer(request, text))
        asking.addErrback(lambda failure: _refuse(request, failure))
        return NOT_DONE_YET


def _answer(request: Request, text: bytes) -> None:
    request.setHeader(b"Content-Type", CONTENT_TYPE_LATEST.encode("ascii"))
    request.setHeader(b"Content-Length", b"%d" % len(text))
    request.write(text)
    request.finish()


def _refuse(request: Request, failure: Failure) -> None:
    if failure.check(CancelledError):
        return
    if not failure.check(FedpresenceError):
        _log.failure("collecting metrics failed", failure)
    write_error(request, BadRequest("M_UNKNOWN", "Metrics cannot be read now", status=503))
