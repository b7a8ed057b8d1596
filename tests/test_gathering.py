"""A busy daemon looks for what came less often; nobody else is to notice."""

import pytest

from fedpresence.gathering import (
    FLOWS_S,
    GATHER_S,
    MOST_VAIN_S,
    PERIOD_S,
    Gathering,
)

LONG_S = 60.0
START_S = 1_000.0


class Reactor:
    """Looks as a reactor does: whoever speaks is heard at the next look."""

    def __init__(self) -> None:
        self.gathering = Gathering()
        self.now_s = START_S
        self.looks = 0
        self.waits_s: list[float] = []

    def hear(self, arrivals: list[tuple[float, int]]) -> None:
        """These speak at those moments (seconds from now on), whether or not they were answered."""
        start_s = self.now_s
        waiting = [(start_s + at_s, who) for at_s, who in arrivals]
        while waiting:
            is_pause = self._pass_time(waiting[0][0])
            ready = [each for each in waiting if each[0] <= self.now_s]
            del waiting[: len(ready)]
            self._note([who for _, who in ready], is_pause)
            self.waits_s += [self.now_s - at_s for at_s, _ in ready]

    def converse(self, clients: int, seconds: float) -> int:
        """Each client speaks again 3 ms after it was heard: how many were heard in all."""
        heard = 0
        ends_s = self.now_s + seconds
        speaks = {who: self.now_s + who * 0.0007 for who in range(clients)}
        while self.now_s < ends_s:
            is_pause = self._pass_time(min(speaks.values()))
            ready = [who for who, at_s in speaks.items() if at_s <= self.now_s]
            self._note(ready, is_pause)
            speaks.update(dict.fromkeys(ready, self.now_s + 0.003))
            heard += len(ready)
        return heard

    def _pass_time(self, next_s: float) -> bool:
        """Until the end of a pause or, where there is none, until somebody speaks: whether there was one."""
        pause_s = self.gathering.pause_s(self.now_s, LONG_S)
        self.now_s = self.now_s + pause_s if pause_s else max(self.now_s, next_s)
        return pause_s > 0

    def _note(self, ready: list[int], is_pause: bool) -> None:
        (self.gathering.gathered if is_pause else self.gathering.looked)(ready, self.now_s)
        self.looks += 1


def steady(per_second: int, seconds: float, speakers: int = 50) -> list[tuple[float, int]]:
    """So many a second, evenly, by everybody in turn."""
    return [(number / per_second, number % speakers) for number in range(round(per_second * seconds))]


@pytest.mark.parametrize("per_second", [1, 20, 90])
def test_who_comes_seldom_never_waits(per_second: int) -> None:
    """Nothing could be gathered, and a person waits."""
    reactor = Reactor()

    reactor.hear(steady(per_second, 5))

    assert max(reactor.waits_s) == 0


@pytest.mark.parametrize("per_second", [150, 200, 1_000])
def test_what_comes_often_is_taken_together(per_second: int) -> None:
    """Some thirty looks a second, whatever comes: each costs as much as the request it finds."""
    reactor = Reactor()

    reactor.hear(steady(per_second, 5, speakers=per_second))

    assert reactor.looks <= 5 / GATHER_S + per_second * PERIOD_S  # once it is known that it comes often
    assert 0 < max(reactor.waits_s) <= GATHER_S + 1e-6


def test_a_body_in_many_pieces_goes_on_without_pauses() -> None:
    """A pause after each 64 KiB would leave a download, or a large transaction, two megabytes a second."""
    gathering, now_s = _busy()
    gathering.looked([200, 201], now_s)
    gathering.came_meanwhile([200], now_s + 0.001)

    for piece in range(1, 50):  # read from one connection and written to another, in turn
        moment_s = now_s + 0.001 + piece * 0.004
        assert gathering.pause_s(moment_s, LONG_S) == 0
        gathering.looked([200 + piece % 2, 300 + piece], moment_s)

    assert gathering.pause_s(moment_s + FLOWS_S, LONG_S) > 0


def test_a_crowd_that_comes_while_others_are_served_is_no_body() -> None:
    """Else a busy daemon would hardly ever look away."""
    gathering, now_s = _busy()

    gathering.came_meanwhile([200, 201], now_s)

    assert gathering.pause_s(now_s, LONG_S) == pytest.approx(GATHER_S)


def _busy() -> tuple[Gathering, float]:
    gathering = Gathering()
    for number in range(100):
        gathering.looked([number], START_S + number / 200)
    return gathering, START_S + 0.5


def test_after_a_rest_nobody_waits() -> None:
    """A quiet update goes through at once, however busy the daemon was a moment before."""
    reactor = Reactor()
    reactor.hear(steady(200, 5))
    reactor.waits_s.clear()

    reactor.hear([(0.5, 1), (0.8, 2), (0.803, 3)])

    assert reactor.waits_s == [0, 0, 0]


@pytest.mark.parametrize("clients", [1, 3, 16])
def test_who_asks_again_when_answered_is_hardly_slowed_down(clients: int) -> None:
    """A test suite, or a server that sends its next transaction: each would go at our pace."""
    paced = Reactor().converse(clients, 20)
    free = round(20 / 0.003) * clients

    assert paced >= 0.9 * free


def test_pauses_in_vain_become_rare_and_those_that_gather_come_again() -> None:
    """A conversation may turn into a crowd: it is tried again, at most every so often."""
    reactor = Reactor()
    reactor.converse(1, 20)
    reactor.looks = 0

    reactor.hear(steady(200, 5))

    assert reactor.looks <= 5 / GATHER_S + 200 * MOST_VAIN_S


def test_a_pause_ends_when_a_timer_is_due() -> None:
    """A batch window that ends late would show as latency."""
    gathering, _ = _busy()

    now_s = START_S + 0.496
    assert gathering.pause_s(now_s, LONG_S) == pytest.approx(GATHER_S - 0.001)
    assert gathering.pause_s(now_s, 0.005) == 0.005
