from typing import Any

import pytest
from twisted.internet.defer import Deferred, fail, succeed
from twisted.names import dns
from twisted.names.error import DNSNameError, DNSQueryTimeoutError, DNSServerError

from fedpresence.outbound.srv import SrvRecord, names_lookup
from tests.asynchronous import failure_of, result_of


class Resolver:
    """Answers every question alike."""

    def __init__(self, answer: "Deferred[Any]") -> None:
        self._answer = answer
        self.asked: list[str] = []

    def lookupService(self, name: str, timeout: object) -> "Deferred[Any]":
        """As IResolver."""
        self.asked.append(name)
        return self._answer


def test_records_are_read_and_others_passed_over() -> None:
    """An answer also has CNAMEs and whatever a name server likes to add."""
    header: Any = dns.RRHeader
    records = [
        header("x.test", dns.SRV, ttl=60, payload=dns.Record_SRV(1, 2, 3, b"c.test.", 60)),
        header("x.test", dns.SRV, ttl=60, payload=dns.Record_SRV(0, 0, 0, b".", 60)),
        header("x.test", dns.CNAME, ttl=60, payload=dns.Record_CNAME(b"y.test", 60)),
    ]
    resolver = Resolver(succeed((records, [], [])))

    found = result_of(names_lookup(resolver)("_matrix-fed._tcp.x.test"))

    assert found == [SrvRecord(1, 2, 3, "c.test", 60), SrvRecord(0, 0, 0, "", 60)]
    assert resolver.asked == ["_matrix-fed._tcp.x.test"]


def test_a_name_that_does_not_exist_has_no_records() -> None:
    """Most servers have no SRV records: that is an answer, not a failure."""
    assert result_of(names_lookup(Resolver(fail(DNSNameError())))("x.test")) == []


@pytest.mark.parametrize("error", [DNSServerError(), DNSQueryTimeoutError(1)])
def test_a_question_that_failed_is_told_apart(error: Exception) -> None:
    """Only an answer may be remembered for long."""
    failure_of(names_lookup(Resolver(fail(error)))("x.test"), OSError)
