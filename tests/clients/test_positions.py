import pytest

from fedpresence.clients.positions import SPELLINGS, Position, Positions, respelled
from fedpresence.ids import UserID
from fedpresence.storage.store import TokenOwner
from tests.clients.world import ALICE, LAPTOP, PHONE

AT_PHONE = TokenOwner(ALICE, PHONE)
AT_LAPTOP = TokenOwner(ALICE, LAPTOP)


def test_a_new_token_says_that_what_came_with_it_was_seen() -> None:
    """Nobody has a token who has not had its answer."""
    positions = Positions()

    positions.answered(AT_PHONE, None, "h1", "box", 4)

    assert positions.find(AT_PHONE, "h1", "box") == Position("box", 4, 4)


def test_a_token_that_is_repeated_says_so_at_the_second_answer() -> None:
    """Whether the first arrived, nobody knows."""
    positions = Positions()
    positions.answered(AT_PHONE, None, "h1", "box", 4)

    positions.answered(AT_PHONE, "h1", "h1", "box", 6)
    once = positions.find(AT_PHONE, "h1", "box")
    positions.answered(AT_PHONE, "h1", "h1", "box", 7)

    assert once == Position("box", 4, 6)
    assert positions.find(AT_PHONE, "h1", "box") == Position("box", 6, 7)


def test_a_token_never_heard_of_knows_nothing_for_sure() -> None:
    """Its snapshot may be lost like any answer."""
    positions = Positions()

    positions.answered(AT_PHONE, "elsewhere", "elsewhere", "box", 6)

    assert positions.find(AT_PHONE, "elsewhere", "box") == Position("box", None, 6)


def test_what_was_said_is_never_unsaid() -> None:
    """A limited answer says less than the one before, and must not wake the next poll with the rest again."""
    positions = Positions()
    positions.answered(AT_PHONE, None, "h1", "box", 1)
    positions.answered(AT_PHONE, "h1", "h1", "box", 9)

    positions.answered(AT_PHONE, "h1", "h1", "box", 5)

    assert positions.find(AT_PHONE, "h1", "box") == Position("box", 5, 9)


def test_devices_and_mailboxes_do_not_share_tokens() -> None:
    """Two devices may hold the same token of the homeserver's; another mailbox counts anew."""
    positions = Positions()
    positions.answered(AT_PHONE, None, "h1", "box", 4)

    assert positions.find(AT_LAPTOP, "h1", "box") is None
    assert positions.find(AT_PHONE, "h1", "other") is None
    assert positions.find(AT_PHONE, "h2", "box") is None


def test_a_device_keeps_its_last_tokens() -> None:
    """One answer may be lost, but nobody comes back with a token of yesterday."""
    positions = Positions(tokens_each=2)
    for number in range(4):
        positions.answered(AT_PHONE, None, f"h{number}", "box", number)

    assert [positions.find(AT_PHONE, f"h{n}", "box") is not None for n in range(4)] == [
        False,
        False,
        True,
        True,
    ]


def test_whoever_was_quiet_longest_is_forgotten() -> None:
    """Memory is bounded; a miss costs a snapshot."""
    positions = Positions(max_devices=3)
    for name in "abcd":
        positions.answered(TokenOwner(UserID(f"@{name}:here.test"), None), None, "h1", "box", 1)

    assert len(positions) == 3
    assert positions.find(TokenOwner(UserID("@a:here.test"), None), "h1", "box") is None


def test_a_token_has_other_spellings_of_the_same_numbers() -> None:
    """Clients that know the token drop an answer which repeats it; the homeserver must see no difference."""
    token = "s12_7_0_3"
    seen = [token]
    while (token := respelled(token)) != seen[0]:
        seen.append(token)

    assert seen[:3] == ["s12_7_0_3", "s12_07_0_3", "s12_007_0_3"]
    assert len(seen) == SPELLINGS
    assert {tuple(int(number) for number in each[1:].split("_")) for each in seen} == {(12, 7, 0, 3)}


@pytest.mark.parametrize(
    ("token", "other"),
    [
        ("m12~1.13_0_5", "m12~1.13_00_5"),
        ("s1_1", "s1_01"),
        ("", ""),
        ("h1", "h1"),
        ("s12", "s12"),
        ("12", "12"),
        ("s1_x_2", "s1_x_2"),
        ("t12-34_5", "t12-34_5"),
        ("s1_-1_2", "s1_-1_2"),
    ],
)
def test_only_a_token_that_is_understood_is_spelled_otherwise(token: str, other: str) -> None:
    """A token of another kind may mean anything."""
    assert respelled(token) == other
