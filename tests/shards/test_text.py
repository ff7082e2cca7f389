"""What reports are made of."""

import pytest

from shards.text import duration, short, table


def test_a_table_has_numbers_to_the_right_and_text_to_the_left():
    rows = [["", "a node", "why"], ["one epoch", "7", "it is read once"], ["all", "1,234,567", "-"]]
    assert table(rows, text=1) == [
        "                a node  why",
        "  one epoch          7  it is read once",
        "  all        1,234,567  -",
    ]
    assert table([["7", "b"], ["12", "ccc"]], left=0) == ["   7    b", "  12  ccc"]


def test_a_long_key_keeps_both_ends():
    assert short("cat/000012", 10) == "cat/000012"
    assert short("animals/cat/000012", 10) == "anim…00012"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (9.94, "9.9 s"), (42.9, "42 s"), (185, "3 min 5 s"), (3599.9, "59 min 59 s"),
     (7620, "2 h 7 min"), (90061, "1 d 1 h")],
)  # fmt: skip
def test_a_duration_has_at_most_two_units(seconds, text):
    assert duration(seconds) == text
