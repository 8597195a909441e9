"""Round ticks and short numbers."""

import pytest

from pipeline.pages.axis import nice_ticks, shown_number


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [(0, 8, [0, 2, 4, 6, 8]), (0, 0.001, [0, 0.0005, 0.001]), (-3, 10, [-5, 0, 5, 10]), (0, 0, [0])],
)
def test_ticks_are_round_and_span_the_values(low: float, high: float, ticks: list[float]) -> None:
    assert nice_ticks(low, high) == pytest.approx(ticks)


def test_numbers_are_shown_shortly() -> None:
    assert [shown_number(value) for value in (0, 0.25, 2.34567, 1234, 1e-5, 123456)] == [
        "0", "0.25", "2.35", "1,234", "1e-5", "1.23e5",
    ]  # fmt: skip


def test_a_number_that_is_rounded_up_to_a_thousand_has_no_exponent() -> None:
    assert [shown_number(value) for value in (999.4, 999.6, -999.6)] == ["999", "1,000", "-1,000"]
