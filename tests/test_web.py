import json
from typing import Any

from twisted.internet.defer import Deferred
from twisted.web.test.requesthelper import DummyRequest

from fedpresence.errors import BadRequest
from fedpresence.web import carried_through, write_error
from tests.asynchronous import failure_of, result_of


def test_work_goes_on_when_whoever_asked_has_gone() -> None:
    """An operator who hangs up must not leave a user half deactivated."""
    disk: Deferred[None] = Deferred()
    steps: list[str] = []

    async def work() -> None:
        steps.append("tokens")
        await disk
        steps.append("grants")

    asked = carried_through(work())
    asked.addErrback(lambda _: None)
    asked.cancel()
    disk.callback(None)

    assert steps == ["tokens", "grants"]


def test_whoever_stays_hears_the_outcome() -> None:
    """The answer is the work's own, good or bad."""

    async def good() -> int:
        return 1

    async def bad() -> int:
        raise BadRequest("M_FORBIDDEN", "No", status=403)

    assert result_of(carried_through(good())) == 1
    assert failure_of(carried_through(bad()), BadRequest).status == 403


def test_a_client_hears_whether_it_may_keep_what_it_has() -> None:
    """`soft_logout` is said where it is so, and else nothing of it."""
    bodies = []
    for is_soft in (True, False):
        request: Any = DummyRequest([b""])
        request._disconnected = False
        write_error(request, BadRequest("M_UNKNOWN_TOKEN", "No", status=401, soft_logout=is_soft))
        bodies.append(json.loads(b"".join(request.written)))

    assert bodies == [
        {"errcode": "M_UNKNOWN_TOKEN", "error": "No", "soft_logout": True},
        {"errcode": "M_UNKNOWN_TOKEN", "error": "No"},
    ]
