import pytest

from tests.stories import currently_active
from tests.stories.in_the_rig import Theatre
from tests.stories.stage import Story


@pytest.mark.parametrize("story", currently_active.STORIES, ids=lambda story: story.__name__)
def test_it_goes_as_it_is_told(theatre: Theatre, story: Story) -> None:
    """Must and MUST NOT of P:8.5, second by second, between two servers."""
    theatre.play(story)
