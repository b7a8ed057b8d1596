from hypothesis import given
from hypothesis import strategies as st

from fedpresence.clients.mailbox import MAX_NEWS, Mailbox, parse_token
from fedpresence.ids import UserID
from tests.clients.world import ALICE, BOB, DAN

USERS = [UserID(f"@u{n}:there.test") for n in range(5)]


@given(steps=st.lists(st.tuples(st.sampled_from(USERS), st.booleans()), max_size=40), seen=st.integers(0, 40))
def test_whoever_comes_back_misses_nobody_and_sees_nobody_twice(
    steps: list[tuple[UserID, bool]], seen: int
) -> None:
    """P:Y-1: the newest word of each observed user after the token, in order."""
    box = Mailbox(ALICE, "run1.1", 0)
    for observed, gone in steps:
        box.add_news(observed, gone=gone)
    expected = dict(steps[seen:])

    newer = box.news_after(min(seen, len(steps)))

    assert {observed: gone for observed, _, gone in newer} == expected
    assert [at for _, at, _ in newer] == sorted({at for _, at, _ in newer})


def test_a_token_holds_in_its_own_mailbox_only() -> None:
    """A number of another mailbox means something else."""
    box, other = Mailbox(ALICE, "run1.1", 0), Mailbox(ALICE, "run1.2", 0)
    for _ in range(3):
        box.add_news(BOB, gone=False)
        other.add_news(BOB, gone=False)

    assert box.position(parse_token(box.token(2))) == 2
    assert other.position(parse_token(box.token(2))) is None
    assert box.position(parse_token(box.token(4))) is None  # nobody was ever given that


def test_a_mailbox_is_bounded_and_a_token_from_before_is_given_a_snapshot() -> None:
    """Memory has a bound; what was given up is not silently missing."""
    box = Mailbox(ALICE, "run1.1", 0)
    box.add_news(DAN, gone=True)
    for n in range(MAX_NEWS):
        box.add_news(UserID(f"@u{n}:there.test"), gone=False)

    assert len(box.news_after(0)) == MAX_NEWS
    assert box.position(("run1.1", 0)) is None
    assert box.position(("run1.1", 1)) == 1
