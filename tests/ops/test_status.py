from typing import Any

import pytest
from treq.testing import StubTreq
from twisted.internet.task import Clock

from fedpresence.hub import Hub
from fedpresence.inbound.gate import OUTCOMES as GATE_OUTCOMES
from fedpresence.ops.status import COUNTERS, OUTCOMES, PrometheusCounters, add_health, add_metrics
from fedpresence.web import Unknown
from tests.asynchronous import result_of
from tests.ops.fakes import FakeDestinations, FakeEngine, NoStore


def ask(root: Unknown, path: str) -> tuple[int, str, str]:
    """Status, content type and text."""
    http: Any = StubTreq(root)
    asking = http.get(f"http://here.test{path}")
    http.flush()
    response = result_of(asking)
    return response.code, response.headers.getRawHeaders("Content-Type")[0], result_of(response.text())


def metrics(counters: PrometheusCounters) -> list[str]:
    """The lines of /metrics."""
    engine = FakeEngine()
    hub = Hub(engine, NoStore(), Clock(), lambda _: None, lambda _: None)
    root = Unknown()
    add_metrics(root, counters, hub, engine, FakeDestinations())

    code, content_type, text = ask(root, "/metrics")

    assert code == 200
    assert content_type.startswith("text/plain")
    return text.splitlines()


def test_health_says_whether_we_serve() -> None:
    """A load balancer takes us out before we stop, and lets us in once we answer."""
    serving = True
    root = Unknown()
    add_health(root, lambda: serving)

    healthy = ask(root, "/health")
    serving = False
    stopping = ask(root, "/health")

    assert healthy == (200, "application/json", '{"ok":true}')
    assert stopping[0] == 503


def test_what_was_counted_is_told_with_its_labels() -> None:
    """Dashboards are built on these names."""
    counters = PrometheusCounters()
    counters.count("inbound_transactions", outcome="ok")
    counters.count("inbound_transactions", outcome="ok")
    counters.count("inbound_edus", edu_type="m.presence", outcome="received")
    counters.count("key_fetches", outcome="failed")
    counters.count("outbound_transactions", outcome="2xx")
    counters.count("outbound_pushes")

    lines = metrics(counters)

    assert 'fedpresence_inbound_transactions_total{outcome="ok"} 2.0' in lines
    assert 'fedpresence_inbound_edus_total{edu_type="m.presence",outcome="received"} 1.0' in lines
    assert 'fedpresence_key_fetches_total{outcome="failed"} 1.0' in lines
    assert "fedpresence_outbound_pushes_total 1.0" in lines


def test_an_outcome_that_never_was_is_told_as_zero() -> None:
    """Prometheus sees no increase where a series begins, and none at all where it is not there."""
    lines = metrics(PrometheusCounters())

    assert 'fedpresence_outbound_transactions_total{outcome="2xx"} 0.0' in lines
    for outcome in ("ok", "bad", *GATE_OUTCOMES.values()):
        assert f'fedpresence_inbound_transactions_total{{outcome="{outcome}"}} 0.0' in lines
    with_outcomes_alone = {name for name, (_, labels) in COUNTERS.items() if labels == ("outcome",)}
    assert set(OUTCOMES) == with_outcomes_alone


def test_labels_are_told_apart_by_their_names() -> None:
    """Prometheus refuses a page that has one series twice."""
    counters = PrometheusCounters()
    counters.count("inbound_edus", edu_type="m.presence", outcome="received")
    counters.count("inbound_edus", outcome="received", edu_type="m.presence")

    lines = metrics(counters)

    assert 'fedpresence_inbound_edus_total{edu_type="m.presence",outcome="received"} 2.0' in lines
    with pytest.raises(ValueError, match="outcome"):
        counters.count("key_fetches", edu_type="m.presence")


def test_gauges_are_read_when_they_are_asked_for() -> None:
    """They hold no names of users, and of servers a bounded number: they do not grow with the federation."""
    lines = metrics(PrometheusCounters())

    assert 'fedpresence_users{state="online"} 1.0' in lines
    assert "fedpresence_remote_users 4.0" in lines
    assert "fedpresence_rooms_doubted 10.0" in lines
    assert 'fedpresence_subscriptions{stage="granted"} 8.0' in lines
    assert 'fedpresence_destinations{state="failing"} 1.0' in lines
    assert 'fedpresence_destinations{state="idle"} 0.0' in lines
    assert "fedpresence_pending_users 2.0" in lines
    assert 'fedpresence_unwanted_pushes_total{origin="flood.test"} 7.0' in lines
    assert 'fedpresence_unwanted_pushes_total{origin="other"} 2.0' in lines
    assert not any("there.test" in line for line in lines)


def test_metrics_on_two_listeners_are_the_same_series() -> None:
    """A registry that knew a gauge twice would answer what Prometheus refuses."""
    counters = PrometheusCounters()
    metrics(counters)

    lines = metrics(counters)

    assert len([line for line in lines if line.startswith("fedpresence_remote_users ")]) == 1


def test_every_counter_is_prefixed_and_explained() -> None:
    """Names in one Prometheus come from many programs."""
    lines = metrics(PrometheusCounters())

    for name, (words, _) in COUNTERS.items():
        assert f"# HELP fedpresence_{name}_total {words}" in lines
