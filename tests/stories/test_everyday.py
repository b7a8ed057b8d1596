import pytest

from tests.stories import everyday, troubles
from tests.stories.in_the_rig import Theatre
from tests.stories.stage import Story


@pytest.mark.parametrize("story", everyday.STORIES, ids=lambda story: story.__name__)
def test_people_are_served(theatre: Theatre, story: Story) -> None:
    """What people do every day, and what the others see of it."""
    theatre.play(story)


@pytest.mark.parametrize("story", troubles.STORIES, ids=lambda story: story.__name__)
def test_troubles_pass(theatre: Theatre, story: Story) -> None:
    """Servers, paths, clocks and keys fail; people should hardly notice, and nothing may leak."""
    theatre.play(story)
