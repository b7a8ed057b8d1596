from twisted.internet.task import Clock

from fedpresence.errors import HomeserverUnavailable
from fedpresence.homeserver.existence import LEFT_ALONE_MS, MAX_AT_ONCE, NOT_FOR_MS, Existence
from fedpresence.ids import UserID
from tests.asynchronous import result_of
from tests.homeserver.world import ALICE, CAROL


class Profiles:
    """Knows Alice; may be away."""

    def __init__(self) -> None:
        self.asked: list[UserID] = []
        self.is_away = False

    async def user_exists(self, user_id: UserID) -> bool:
        self.asked.append(user_id)
        if self.is_away:
            raise HomeserverUnavailable("away")
        return user_id == ALICE


def test_who_exists_is_found_and_who_does_not_is_not_asked_for_again_so_soon() -> None:
    """Another server may invite names that nobody has, for as long as it likes."""
    profiles, clock = Profiles(), Clock()
    existence = Existence(profiles, clock)

    assert result_of(existence.existing([ALICE, CAROL])) == [ALICE]
    result_of(existence.existing([CAROL]))
    assert profiles.asked == [ALICE, CAROL]

    clock.advance(NOT_FOR_MS / 1000)
    result_of(existence.existing([CAROL]))
    assert profiles.asked == [ALICE, CAROL, CAROL]


def test_a_homeserver_that_is_away_holds_up_no_inbox() -> None:
    """The invite is repeated by its own server (S:O-16)."""
    profiles, clock = Profiles(), Clock()
    existence = Existence(profiles, clock)
    profiles.is_away = True

    assert result_of(existence.existing([ALICE])) == []
    assert result_of(existence.existing([ALICE])) == []
    assert profiles.asked == [ALICE]

    profiles.is_away = False
    clock.advance(LEFT_ALONE_MS / 1000)
    assert result_of(existence.existing([ALICE])) == [ALICE]


def test_one_inbox_asks_a_bounded_number_of_questions() -> None:
    """A flood of invites must not become a flood of profile requests."""
    profiles = Profiles()

    result_of(Existence(profiles, Clock()).existing(UserID(f"@u{n}:here.test") for n in range(100)))

    assert len(profiles.asked) == MAX_AT_ONCE
