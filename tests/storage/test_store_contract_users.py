import pytest

from fedpresence.engine.effects import SaveHidden, SaveUser
from fedpresence.ids import DeviceID, UserID
from fedpresence.storage.store import TokenOwner
from fedpresence.testing.builders import ALICE, BOB, CAROL, NOW_MS, PHONE
from tests.storage.worlds import World, a_record, commit, stored

# --- users and tokens -----------------------------------------------------------------------------


def test_a_token_makes_its_user_and_finds_its_owner(world: World) -> None:
    """A user exists once a token was issued (contract, "Client API")."""
    owner = TokenOwner(ALICE, PHONE)

    kept = world.wait(world.store.add_token("secret", owner, NOW_MS))

    found = stored(world)
    assert kept
    assert list(found.users) == [(ALICE, False)]
    assert world.wait(world.store.find_token("secret")) == owner
    assert world.wait(world.store.find_token("secre")) is None
    assert world.wait(world.store.find_token("\udcff")) is None


def test_tokens_are_listed_oldest_first_and_per_user(world: World) -> None:
    """The operator decides by this list what to revoke."""
    add = world.store.add_token
    world.wait(add("t1", TokenOwner(ALICE, PHONE), NOW_MS + 1))
    world.wait(add("t2", TokenOwner(CAROL, None), NOW_MS))

    assert world.wait(world.store.list_tokens(None)) == [(CAROL, None, NOW_MS), (ALICE, PHONE, NOW_MS + 1)]
    assert world.wait(world.store.list_tokens(ALICE)) == [(ALICE, PHONE, NOW_MS + 1)]
    assert world.wait(world.store.list_tokens(BOB)) == []


@pytest.mark.parametrize(
    ("device", "all_devices", "gone", "left"),
    [
        (PHONE, False, [PHONE], ["t3", "t4"]),
        (None, False, [None], ["t1", "t2", "t4"]),
        (None, True, [None, PHONE], ["t4"]),
        (DeviceID("OTHER"), False, [], ["t1", "t2", "t3", "t4"]),
    ],
)
def test_revoking_takes_all_tokens_of_the_device_and_no_others(
    world: World, device: DeviceID | None, all_devices: bool, gone: list[DeviceID | None], left: list[str]
) -> None:
    """A token that survives its revocation is an open door."""
    owners = {"t1": (ALICE, PHONE), "t2": (ALICE, PHONE), "t3": (ALICE, None), "t4": (CAROL, PHONE)}
    for token, (user_id, device_id) in owners.items():
        world.wait(world.store.add_token(token, TokenOwner(user_id, device_id), NOW_MS))

    answer = world.wait(world.store.revoke_tokens(ALICE, device, all_devices=all_devices))

    assert answer == gone
    world.restart()
    assert [t for t in owners if world.wait(world.store.find_token(t))] == left


def test_a_deactivated_user_has_no_tokens_and_no_presence_and_gets_none(world: World) -> None:
    """Deactivation is for good, and holds the moment it is committed."""
    world.wait(world.store.add_token("secret", TokenOwner(ALICE, PHONE), NOW_MS))
    world.wait(world.store.save_presence([a_record(ALICE)], NOW_MS))

    commit(world, SaveUser(ALICE, True))
    kept = world.wait(world.store.add_token("again", TokenOwner(ALICE, PHONE), NOW_MS))

    found = stored(world)
    assert not kept
    assert list(found.users) == [(ALICE, True)]
    assert list(found.presence) == []
    assert world.wait(world.store.list_tokens(None)) == []


def test_a_users_order_is_that_of_their_making(world: World) -> None:
    """A change to a user must not make them look new."""
    commit(world, SaveUser(ALICE, False), SaveUser(CAROL, False))
    commit(world, SaveUser(ALICE, True))

    assert list(stored(world).users) == [(ALICE, True), (CAROL, False)]


# --- what another process does --------------------------------------------------------------------


def test_users_made_beside_us_are_told_once(world: World) -> None:
    """`token add` makes a user whom the running daemon must know at once."""
    commit(world, SaveUser(ALICE, False))
    world.wait(world.store.load())
    command = world.another_process()
    assert world.wait(world.store.new_users()) == []

    world.wait(command.add_token("t1", TokenOwner(CAROL, None), NOW_MS))
    world.wait(command.add_token("t2", TokenOwner(ALICE, None), NOW_MS))
    commit(world, SaveUser(UserID("@dan:here.test"), False))

    assert world.wait(world.store.new_users()) == [CAROL]
    assert world.wait(world.store.new_users()) == []


def test_a_user_made_by_our_own_token_is_told_too(world: World) -> None:
    """Whoever issues tokens in the daemon's own process need not know of the engine."""
    world.wait(world.store.load())

    world.wait(world.store.add_token("t1", TokenOwner(CAROL, None), NOW_MS))

    assert world.wait(world.store.new_users()) == [CAROL]
    assert world.wait(world.store.new_users()) == []


def test_changes_beside_us_are_told_once_and_our_own_never(world: World) -> None:
    """A cache of tokens is thrown away when somebody else wrote, not at every commit of ours."""
    command = world.another_process()
    world.wait(world.store.add_token("t1", TokenOwner(ALICE, None), NOW_MS))
    commit(world, SaveUser(CAROL, False))
    assert not world.wait(world.store.tokens_changed())

    world.wait(command.revoke_tokens(ALICE, None, all_devices=True))

    assert world.wait(world.store.tokens_changed())
    assert not world.wait(world.store.tokens_changed())
    assert world.wait(world.store.find_token("t1")) is None


def test_a_hidden_device_whose_last_token_went_is_told(world: World) -> None:
    """P:D-8: until then it keeps its word, whatever other devices of the user have."""
    laptop, store = DeviceID("LAPTOP"), world.store
    for token, device_id in (("t1", PHONE), ("t2", PHONE), ("t3", laptop), ("t4", None)):
        world.wait(store.add_token(token, TokenOwner(ALICE, device_id), NOW_MS))
    commit(world, *(SaveHidden(ALICE, device_id, True) for device_id in (PHONE, laptop, None)))
    assert world.wait(store.hidden_without_token()) == []

    world.wait(store.revoke_tokens(ALICE, PHONE, all_devices=False))
    world.wait(store.revoke_tokens(ALICE, None, all_devices=False))

    gone = world.wait(store.hidden_without_token())
    assert sorted(gone, key=str) == [(ALICE, PHONE), (ALICE, None)]


def test_asking_for_new_users_does_not_hide_changed_tokens(world: World) -> None:
    """Both watch the same sign; each must see it for itself."""
    command = world.another_process()
    world.wait(world.store.tokens_changed())

    world.wait(command.add_token("t1", TokenOwner(CAROL, None), NOW_MS))

    assert world.wait(world.store.new_users()) == [CAROL]
    assert world.wait(world.store.tokens_changed())


def test_whoever_writes_is_noticed(world: World) -> None:
    """An idle daemon asks nothing else, twice a second: no commit may slip through."""
    command = world.another_process()
    world.wait(world.store.add_token("t1", TokenOwner(ALICE, None), NOW_MS))
    world.store.touched()

    world.wait(command.revoke_tokens(ALICE, None, all_devices=True))

    assert world.store.touched()
