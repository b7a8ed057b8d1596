from fedpresence.clients.positions import Position, Positions
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
