import re
from types import ModuleType

from fedpresence.engine.subscription import OBSERVED_TABLE, OBSERVER_TABLE
from tests.engine import (
    test_subscription_observed_denied,
    test_subscription_observed_granted,
    test_subscription_observed_requested,
    test_subscription_observer_accepted,
    test_subscription_observer_denied,
    test_subscription_observer_pending,
)

OBSERVER_ROWS = (  # subscriptions.md 3, every row
    *("O-1", "O-2", "O-3", "O-4", "O-5", "O-6", "O-7", "O-8"),
    *("O-9", "O-10", "O-11", "O-12", "O-13", "O-14", "O-15", "O-16", "O-17", "O-18", "O-19"),
    *("O-20", "O-21", "O-22", "O-23", "O-24", "O-25", "O-25a", "O-26", "O-26a", "O-27", "O-28"),
    *("O-29", "O-30", "O-31", "O-32", "O-33", "O-34", "O-35", "O-36", "O-37", "O-38"),
)
OBSERVED_ROWS = (  # subscriptions.md 4, every row
    *("T-1", "T-2", "T-3", "T-4", "T-5", "T-6", "T-7a", "T-8", "T-8a", "T-8b", "T-8c"),
    *("T-10", "T-11", "T-13", "T-14", "T-15", "T-16", "T-17", "T-18", "T-19"),
    *("T-20", "T-21", "T-9", "T-7", "T-22", "T-12", "T-23", "T-24", "T-25", "T-26", "T-27", "T-27a"),
    *("T-28", "T-29"),
    *("T-30", "T-31", "T-32", "T-33", "T-34", "T-35", "T-36", "T-37", "T-38"),
)


def rows_tested_in(*modules: ModuleType) -> set[str]:
    """The rows that tests are named for: `test_o_25a_...` tests O-25a."""
    names = [name for module in modules for name in vars(module)]
    found = [re.match(r"test_([ot])_(\d+[a-c]?)_", name) for name in names]
    return {f"{match[1].upper()}-{match[2]}" for match in found if match}


def test_every_row_of_the_observers_table_has_its_test() -> None:
    """A row without a test is a rule that nobody keeps."""
    tested = rows_tested_in(
        test_subscription_observer_pending,
        test_subscription_observer_accepted,
        test_subscription_observer_denied,
    )
    assert tested == set(OBSERVER_ROWS)
    assert {step.row for step in OBSERVER_TABLE.values()} <= set(OBSERVER_ROWS)


def test_every_row_of_the_observed_users_table_has_its_test() -> None:
    """A row without a test is a rule that nobody keeps."""
    tested = rows_tested_in(
        test_subscription_observed_requested,
        test_subscription_observed_granted,
        test_subscription_observed_denied,
    )
    assert tested == set(OBSERVED_ROWS)
    assert {step.row for step in OBSERVED_TABLE.values()} <= set(OBSERVED_ROWS)
