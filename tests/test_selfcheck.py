from collections.abc import Callable

import pytest
from twisted.internet.task import Clock

from fedpresence.errors import DeliveryFailed
from fedpresence.ids import ServerName
from fedpresence.selfcheck import Arrival, SelfCheck, is_public
from tests.asynchronous import result_of

OURS = ServerName("example.org")
Answer = Callable[[SelfCheck], None]


def asked(answer: Answer) -> Arrival:
    check = SelfCheck(OURS, Clock())

    async def send(destination: ServerName, method: str, uri: str, content: object) -> object:
        assert (destination, method) == (OURS, "PUT")
        answer(check)
        return None

    arrival, _ = result_of(check.ask(send))
    return arrival


def refused(status: int | None) -> None:
    raise DeliveryFailed(OURS, "refused", status=status)


def test_a_request_that_comes_back_is_ours() -> None:
    """The ordinary case: our own listener refuses its own transaction, and that is how we know it."""

    def answer(check: SelfCheck) -> None:
        check.heard(OURS)
        refused(403)

    assert asked(answer) is Arrival.HERE


@pytest.mark.parametrize("status", [200, 401, 404, 502])
def test_an_answer_of_somebody_else_is_told_apart(status: int) -> None:
    """A staging copy must not speak for the production server (Z-23)."""

    def answer(check: SelfCheck) -> None:
        if status != 200:
            refused(status)

    assert asked(answer) is Arrival.ELSEWHERE


def test_no_answer_is_only_a_warning() -> None:
    """Many networks do not let a host reach its own public address."""
    assert asked(lambda check: refused(None)) is Arrival.NOWHERE


def test_what_others_send_meanwhile_proves_nothing() -> None:
    """Only a request signed by ourselves shows where our name leads."""
    assert asked(lambda check: check.heard(ServerName("there.test"))) is Arrival.ELSEWHERE


@pytest.mark.parametrize(
    ("name", "public"),
    [
        ("example.org", True),
        ("example.org:8448", True),
        ("here.test", False),
        ("a.localhost", False),
        ("localhost:8448", False),
        ("127.0.0.1:8448", False),
        ("[::1]", False),
        ("fixed.org", False),
    ],
)
def test_only_names_that_strangers_find_are_checked(name: str, public: bool) -> None:
    """A test rig has no public name, and must not wait for one."""
    assert is_public(ServerName(name), {ServerName("fixed.org"): ("192.0.2.1", 8448)}) is public
