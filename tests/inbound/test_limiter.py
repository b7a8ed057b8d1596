import pytest

from fedpresence.config import LimitsConfig, Rate
from fedpresence.errors import BadRequest
from fedpresence.inbound.limiter import Limiter, OriginLimits
from tests.inbound.servers import ELSEWHERE, NOW_MS, THERE


def test_a_burst_is_taken_at_once_and_no_more() -> None:
    """The bucket's two sides: what fits, and the first that does not."""
    limiter: Limiter[str] = Limiter(Rate(10, 3))

    taken = [limiter.take("a", 1, NOW_MS) for _ in range(3)]
    wait_ms = limiter.take("a", 1, NOW_MS)

    assert taken == [0, 0, 0]
    assert wait_ms == 101
    assert limiter.take("a", 1, NOW_MS + wait_ms) == 0


def test_more_than_a_burst_passes_a_full_bucket_and_is_paid_later() -> None:
    """A body that the size limit allows must not be refused for ever by the rate."""
    limiter: Limiter[str] = Limiter(Rate(10, 10))

    assert limiter.take("a", 30, NOW_MS) == 0
    assert limiter.take("a", 1, NOW_MS + 2_000) > 0
    assert limiter.take("a", 1, NOW_MS + 2_200) == 0


def test_the_number_of_buckets_is_bounded() -> None:
    """Origins are free to invent; memory is not."""
    limiter: Limiter[int] = Limiter(Rate(1, 1), max_buckets=3)

    for key in range(10):
        limiter.take(key, 1, NOW_MS)

    assert len(limiter) == 3


def test_a_clock_that_goes_back_gives_nothing() -> None:
    """Time is monotonic, and a bucket does not rely on it."""
    limiter: Limiter[str] = Limiter(Rate(1, 1))
    limiter.take("a", 1, NOW_MS)

    assert limiter.take("a", 1, NOW_MS - 10_000) > 0


def test_expecting_bytes_takes_none() -> None:
    """A forged origin must not spend the budget of the real one."""
    limits = OriginLimits(LimitsConfig(origin_bytes=Rate(10, 100)))

    for _ in range(10):
        limits.expect_bytes(THERE, 100, NOW_MS)
    limits.take_bytes(THERE, 100, NOW_MS)
    with pytest.raises(BadRequest) as refused:
        limits.expect_bytes(THERE, 1, NOW_MS)
    limits.expect_bytes(ELSEWHERE, 1, NOW_MS)

    assert refused.value.status == 429
    assert refused.value.retry_after_ms == 101


def test_a_reload_changes_the_rates() -> None:
    """An operator under attack turns limits down without a restart."""
    limits = OriginLimits(LimitsConfig(origin_entries=Rate(10, 100)))

    limits.reload(LimitsConfig(origin_entries=Rate(10, 5), transaction_body=7))
    limits.take_entries(THERE, 5, NOW_MS)

    with pytest.raises(BadRequest):
        limits.take_entries(THERE, 1, NOW_MS)
    assert limits.max_body == 7
