from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from fedpresence.testing.processes import LocalFederation
from tests.stories import currently_active, everyday, troubles
from tests.stories.between_processes import ProcessStage, two_servers
from tests.stories.stage import Story

# Each hall has two servers, and plays its stories one after the other; both halls play at once, for most
# of a story is waiting. The exact one comes first: other stories' news would delay timers' (decision 12).
HALLS: tuple[tuple[Story, ...], ...] = (
    (currently_active.one_message_makes_three_updates, troubles.servers_come_and_go),
    (everyday.somebody_takes_it_back, everyday.somebody_hides),
)


@pytest.fixture(scope="module")
def performances(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[Story, Future[None]]]:
    """All of the stories, begun."""
    folder = tmp_path_factory.mktemp("halls")
    with two_servers(folder / "first") as first, two_servers(folder / "second") as second:
        pools = [ThreadPoolExecutor(1), ThreadPoolExecutor(1)]
        halls = zip((first, second), pools, HALLS, strict=True)
        yield {
            story: pool.submit(perform, federation, story)
            for federation, pool, stories in halls
            for story in stories
        }
        for pool in pools:
            pool.shutdown()


def perform(federation: LocalFederation, story: Story) -> None:
    stage = ProcessStage(federation, story.__name__)
    try:
        stage.play(story)
    finally:
        stage.close()


@pytest.mark.parametrize(
    "story", [story for hall in HALLS for story in hall], ids=lambda story: story.__name__
)
def test_it_goes_the_same_between_processes(performances: dict[Story, Future[None]], story: Story) -> None:
    """What the rig shows is what servers of their own do, on a clock that nobody can turn."""
    performances[story].result(timeout=120)
