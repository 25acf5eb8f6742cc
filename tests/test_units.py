"""Numbers with units."""

import pytest

from rcdeploy.units import bytes_text, count_text, seconds_text


@pytest.mark.parametrize(
    ("number", "text"),
    [(859_520_964, "859.5 M"), (401.64e9, "401.6 G"), (12_961, "13.0 k"), (999, "999"), (1.234e15, "1.23 P")],
)
def test_counts(number: float, text: str) -> None:
    assert count_text(number) == text


def test_bytes_and_seconds() -> None:
    assert (bytes_text(2_082_536), bytes_text(812), bytes_text(3.44e9)) == ("2.08 MB", "812 bytes", "3.44 GB")
    assert (seconds_text(0.0421), seconds_text(9.4), seconds_text(159.04)) == ("42.1 ms", "9.40 s", "159.0 s")
