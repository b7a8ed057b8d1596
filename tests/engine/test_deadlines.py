from hypothesis import given
from hypothesis import strategies as st

from fedpresence.engine.deadlines import TIDIED_AHEAD_MS, Deadlines
from tests.engine.costs import calls_of

keys = st.sampled_from("abcde")
moments = st.integers(0, 30)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("set"), keys, moments),
        st.tuples(st.just("cancel"), keys, st.just(0)),
        st.tuples(st.just("pop"), st.just(""), moments),
    ),
    max_size=60,
)


@given(steps)
def test_every_key_falls_due_at_its_own_moment_and_at_no_other(steps: list[tuple[str, str, int]]) -> None:
    """A deadline too early wakes for nothing; one too late is a user who stays online."""
    deadlines: Deadlines[str] = Deadlines()
    model: dict[str, int] = {}

    for what, key, ms in steps:
        if what == "set":
            deadlines.set(key, ms)
            model[key] = ms
        elif what == "cancel":
            deadlines.set(key, None)
            model.pop(key, None)
        else:
            expected = [k for k in model if model[k] <= ms]
            due = deadlines.pop_due(ms)
            assert sorted(due) == sorted(expected)
            assert [model[k] for k in due] == sorted(model[k] for k in due)
            for k in expected:
                del model[k]
        nobody_before = deadlines.no_sooner_ms()
        assert not model or (nobody_before is not None and nobody_before <= min(model.values()))
        assert deadlines.next_ms() == min(model.values(), default=None) == deadlines.no_sooner_ms()
        assert len(deadlines) == len(model)


@given(steps)
def test_old_entries_do_not_pile_up(steps: list[tuple[str, str, int]]) -> None:
    """A heap that keeps what was moved or cancelled would grow for ever."""
    deadlines: Deadlines[str] = Deadlines()

    for what, key, ms in steps:
        if what != "pop":
            deadlines.set(key, ms if what == "set" else None)
    deadlines.pop_due(30)

    assert not deadlines._heap
    assert not deadlines._early


def test_keys_that_fall_due_together_come_out_in_the_order_they_were_set() -> None:
    """The same events give the same effects, in the same order, on every machine."""
    deadlines: Deadlines[str] = Deadlines()
    for key in "dbca":
        deadlines.set(key, 10)

    assert deadlines.pop_due(10) == list("dbca")


def test_what_is_over_the_limit_is_due_still() -> None:
    """A herd is taken up in turns, between which others are served; none of it may be lost."""
    deadlines: Deadlines[str] = Deadlines()
    for key in "dbca":
        deadlines.set(key, 10)

    assert deadlines.pop_due(10, 3) == list("dbc")
    assert deadlines.next_ms() == 10
    assert deadlines.pop_due(10, 3) == ["a"]


def test_keys_of_unlike_kinds_may_share_a_moment() -> None:
    """Users, pairs and our own housekeeping are never compared with one another."""
    deadlines: Deadlines[str | tuple[str, str, bool]] = Deadlines()
    for _ in range(2):
        for key in ("a", ("a", "b", True), "b", ("a", "b", False)):
            deadlines.set(key, 20)
            deadlines.set(key, 10)
            deadlines.set(key, 20)

    assert deadlines.pop_due(9) == []
    assert len(deadlines.pop_due(20)) == 4


def test_a_moment_that_moves_later_all_the_time_costs_a_dictionary_write() -> None:
    """A user who types for an hour moves the end of their activity thousands of times."""
    deadlines: Deadlines[str] = Deadlines()

    for ms in range(100, 10_000):
        deadlines.set("a", ms)

    assert len(deadlines._heap) == 1
    assert deadlines.next_ms() == 9999


def test_a_stream_that_opens_and_closes_all_the_time_leaves_no_trail() -> None:
    """A client that polls without waiting: near and far moments by turns."""
    deadlines: Deadlines[str] = Deadlines()

    for now in range(0, 100_000, 100):
        deadlines.set("a", now + 300_000)
        deadlines.set("a", now + 30_000)
        deadlines.pop_due(now)
        assert len(deadlines._heap) <= 8


def test_a_million_sleepers_cost_nothing_per_tick() -> None:
    """Asking whether something is due looks at the first entry, however many there are."""
    few: Deadlines[int] = Deadlines()
    many: Deadlines[int] = Deadlines()
    for key in range(10):
        few.set(key, 1_000_000)
    for key in range(1_000_000 // 10):
        many.set(key, 1_000_000)

    before = list(many._heap)
    assert calls_of(lambda: many.pop_due(999_999)) == calls_of(lambda: few.pop_due(999_999)) < 10

    assert many._heap == before
    assert many.next_ms() == 1_000_000


def test_a_key_that_may_be_later_is_asked_when_it_surfaces_and_not_before() -> None:
    """Ten events a second of one user need not find out ten times when they will be idle."""
    true: dict[str, int | None] = {"a": 10, "b": 15}
    asked: list[str] = []

    def moment_of(key: str) -> int | None:
        asked.append(key)
        return true[key]

    deadlines: Deadlines[str] = Deadlines(moment_of)
    deadlines.set("a", 10)
    deadlines.set("b", 15)

    for later in range(11, 30):
        true["a"] = later
        deadlines.ask_again("a")
    assert asked == []
    assert (deadlines.next_ms(), deadlines.next_ms()) == (15, 15)
    assert asked == ["a"]
    assert deadlines.pop_due(28) == ["b"]
    assert deadlines.next_ms() == 29

    true["a"] = None
    assert deadlines.ask_again("a")
    assert deadlines.next_ms() is None


def test_who_wakes_for_nothing_has_peace_for_a_while_and_never_tidies_everything() -> None:
    """A million remote users who are pushed in time: neither a wake-up for each nor all of them in one."""
    true = {key: 1_000 * key for key in range(100)}
    deadlines: Deadlines[int] = Deadlines(true.get)
    for key, at_ms in true.items():
        deadlines.set(key, at_ms)
    for key in true:
        true[key] += 1_000_000
        deadlines.ask_again(key)

    assert deadlines.pop_due(0) == []
    assert deadlines.no_sooner_ms() == TIDIED_AHEAD_MS + 1_000
    assert len(deadlines._unsure) == 100 - 11

    assert deadlines.next_ms() == 1_000_000
    assert deadlines.pop_due(1_000_000) == [0]


def test_a_key_without_a_moment_is_not_asked_again() -> None:
    """Whoever calls must set one: nobody would look."""
    deadlines: Deadlines[str] = Deadlines(lambda key: 10)

    assert not deadlines.ask_again("a")
    assert (deadlines.no_sooner_ms(), deadlines.next_ms()) == (None, None)
