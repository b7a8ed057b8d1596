import pytest

from tests.stories.in_the_rig import Theatre
from tests.stories.repairs import REPAIRS
from tests.stories.stage import Story

TABLE = (  # the first column of subscriptions.md 5, to the letter
    "invite lost",
    "accept lost",
    "deny lost (request)",
    "deny lost (revocation)",
    "drop lost",
    "push lost",
    "invite delivered twice",
    "accept delivered twice",
    "accept before our invite got its 200",
    "push before accept",
    "deny overtakes accept (broken peer)",
    "drop and accept cross on the wire",
    "drop, then new invite at once",
    "local deny and incoming drop cross",
    "O's server lost its database",
    "T's server lost its database",
    "clock jumps",
)


def test_every_row_of_the_table_has_its_story() -> None:
    """A repair that nobody has seen happen is a hope."""
    assert tuple(REPAIRS) == TABLE


@pytest.mark.parametrize(
    "story",
    [pytest.param(story, id=f"{case}: {story.__name__}") for case in REPAIRS for story in REPAIRS[case]],
)
def test_it_heals_by_itself(theatre: Theatre, story: Story) -> None:
    """Half-open pairs close by themselves, whatever was lost (S:5, decision 17)."""
    theatre.play(story)
