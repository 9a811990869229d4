"""A log that cannot be flooded."""

from iostreamsrv.loglimit import BURST, LogLimit


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_few_lines_pass_and_the_rest_is_counted() -> None:
    said: list[str] = []
    clock = Clock()
    limit = LogLimit(lambda text, *arguments: said.append(text % arguments), clock)
    for number in range(BURST + 7):
        limit("failed: %d", number)
    assert said == [f"failed: {number}" for number in range(BURST)]
    clock.now += 1
    limit("failed: %d", 99)
    assert said[BURST:] == ["failed: 99 (and 7 lines like this one before)"]
    limit("failed: %d", 100)
    assert len(said) == BURST + 1


def test_after_a_quiet_time_as_many_pass_as_at_first() -> None:
    said: list[str] = []
    clock = Clock()
    limit = LogLimit(lambda text, *arguments: said.append(text), clock)
    for _ in range(3):
        for _ in range(2 * BURST):
            limit("again")
        clock.now += 1000
    assert len(said) == 3 * BURST
