"""netbuf.sizing: limits that leave room for what comes until the guest stands still."""

import math

import pytest

from netbuf.errors import LimitError
from netbuf.sizing import (
    LINE_BYTES_PER_S,
    POLL_S_MAX,
    POLL_S_MIN,
    kernel_limit_bytes,
    limit_bytes,
    poll_s,
    reserve_bytes,
)


def test_the_reserve_outlasts_the_longest_poll() -> None:
    assert reserve_bytes() > LINE_BYTES_PER_S * POLL_S_MAX
    assert kernel_limit_bytes(1) == 1 + reserve_bytes()


def test_a_limit_that_the_kernel_cannot_count_is_named() -> None:
    most = (1 << 32) - 1 - reserve_bytes()
    assert kernel_limit_bytes(most) == (1 << 32) - 1
    with pytest.raises(LimitError, match=f"limit_bytes={most + 1}: a plug holds at most {most}"):
        kernel_limit_bytes(most + 1)


def test_two_epochs_at_the_rate_of_the_link_are_half_of_the_limit() -> None:
    assert limit_bytes(1000, 40) == 2 * 2 * 5_000_000
    assert limit_bytes(1, 1) == 1 << 20
    assert limit_bytes(1_000_000, 3_600_000) == 1 << 30


@pytest.mark.parametrize(
    ("link_mbit_per_s", "epoch_ms"), [(0, 25), (1000, 0), (-1, -1), (1000, math.nan), (1000, math.inf)]
)
def test_a_link_or_epoch_of_nothing_is_named(link_mbit_per_s: int, epoch_ms: float) -> None:
    with pytest.raises(LimitError, match=f"link_mbit_per_s={link_mbit_per_s}, epoch_ms={epoch_ms}"):
        limit_bytes(link_mbit_per_s, epoch_ms)


def test_looks_come_closer_before_a_level_and_are_bounded() -> None:
    limit = 100_000_000
    assert poll_s(0, limit) == POLL_S_MAX
    assert poll_s(40_000_000, limit) == pytest.approx(10_000_000 / LINE_BYTES_PER_S)
    assert poll_s(49_999_999, limit) == POLL_S_MIN
    assert poll_s(50_000_000, limit) == POLL_S_MAX
    assert poll_s(2 * limit, limit) == POLL_S_MIN
