"""What the crop benchmark computes from what it measures."""

import pytest

from benchmarks.crop import FileSource, Timed, rate


def block(process: int, start: float, stop: float) -> Timed:
    return Timed(process=process, start=start, stop=stop, cpu=stop - start, images=10, faces=0)


def test_the_rate_of_workers_is_that_of_the_time_in_which_all_are_at_work() -> None:
    one = [block(1, 0, 5), block(1, 5, 6), block(1, 6, 7), block(1, 7, 8)]
    assert rate(one) == pytest.approx(10), "without the first block, which makes the detector"
    late = [block(2, 4, 6.5), block(2, 6.5, 7.5), block(2, 7.5, 9.5)]
    assert rate([*one, *late]) == pytest.approx((10 * 1.5 + 10 + 10 * 0.5 / 2) / 1.5)


def test_too_short_a_measurement_is_refused() -> None:
    with pytest.raises(ValueError, match="raise --images or --rounds"):
        rate([block(1, 0, 1), block(2, 3, 4)])


def test_blocks_hold_every_image_once() -> None:
    blocks = FileSource([None] * 37).blocks(None)  # type: ignore[arg-type, list-item]
    assert [index for one in blocks for index in range(one.start, one.stop)] == list(range(37))
