from fedpresence.engine.effects import SaveUser
from fedpresence.errors import StoreError
from fedpresence.ids import UserID
from fedpresence.storage.memory import MemoryStore
from fedpresence.testing.builders import ALICE, CAROL
from tests.asynchronous import failure_of, result_of


def users(store: MemoryStore) -> list[UserID]:
    return [user_id for user_id, _ in result_of(store.load()).users]


def test_the_commit_it_was_told_to_fail_fails_and_changes_nothing() -> None:
    """Scenarios fail the 1st, 2nd, 3rd ... commit and look at what a restart finds."""
    store = MemoryStore(fail_after=2)
    result_of(store.commit([SaveUser(ALICE, False)], 1))

    failure_of(store.commit([SaveUser(CAROL, False)], 2), StoreError)

    assert users(store.reopened()) == [ALICE]
    result_of(store.commit([SaveUser(CAROL, False)], 3))
    assert users(store.reopened()) == [ALICE, CAROL]
    assert store.commits == 3


def test_a_reopened_store_shares_what_is_committed_and_a_snapshot_does_not() -> None:
    """A restart goes on with the data; a backup stays as it was."""
    store = MemoryStore()
    result_of(store.commit([SaveUser(ALICE, False)], 1))
    again, backup = store.reopened(), store.snapshot()

    result_of(store.commit([SaveUser(CAROL, False)], 2))

    assert users(again) == [ALICE, CAROL]
    assert users(backup) == [ALICE]
