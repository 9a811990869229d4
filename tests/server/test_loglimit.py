"""A log that cannot be flooded."""

from iostreamsrv.runtime.logs import BURST, LogRateLimit


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_few_lines_pass_and_the_rest_is_counted() -> None:
    clock = Clock()
    limit = LogRateLimit(clock)
    assert [limit.admit() for _ in range(BURST + 7)] == [0] * BURST + [None] * 7
    clock.now += 1
    assert limit.admit() == 7
    assert limit.admit() is None


def test_after_a_quiet_time_as_many_pass_as_at_first() -> None:
    clock = Clock()
    limit = LogRateLimit(clock)
    passed = 0
    for _ in range(3):
        passed += sum(limit.admit() is not None for _ in range(2 * BURST))
        clock.now += 1000
    assert passed == 3 * BURST
