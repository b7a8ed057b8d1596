from twisted.internet.defer import Deferred

from fedpresence.errors import BadRequest
from fedpresence.web import carried_through
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
