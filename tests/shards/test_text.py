"""What reports are made of."""

from shards.text import short, table


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
