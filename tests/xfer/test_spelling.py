"""Which names are one in another spelling."""

import pytest

from xfer.spelling import is_kind_of, likeness, plain


def form(name: str) -> str:
    return plain([name])[name]


@pytest.mark.parametrize(
    "names",
    [
        ("back_pack", "Backpack", "back-pack", "BackPacks", "BACK PACK"),
        ("grey wolf", "gray_wolves", "Grey-Wolf"),
        ("beagle", "n02088364-beagle", "beagle_n02088364", "Beagle.001", "beagle_001", "062.beagle"),
        ("jewellery box", "JewelryBoxes"),
        ("bus", "buses"),
        ("strawberry", "strawberries"),
    ],
)
def test_other_spellings_of_one_name_have_one_plain_form(names):
    assert len({form(name) for name in names}) == 1


@pytest.mark.parametrize(
    "names",
    [("dress", "dres"), ("glass", "gla"), ("cat", "car"), ("boeing_747", "boeing_737"), ("7", "8")],
)
def test_other_names_have_other_forms(names):
    assert len({form(name) for name in names}) == 2


def test_numbers_that_tell_classes_of_one_source_apart_stay():
    assert len(set(plain(["line.001", "line.002"]).values())) == 2
    assert plain(["line.001", "dot.002"])["line.001"] == "line"


def test_likeness_is_of_long_names_only_and_kinds_end_alike():
    assert likeness("motorbike", "motorbke") > 0.9
    assert likeness("cat", "cab") == 0
    assert is_kind_of("mountain_bike", "Bikes")
    assert not is_kind_of("bikes", "mountain_bike")
    assert not is_kind_of("bike", "Bikes")
