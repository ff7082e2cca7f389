"""What verdicts on pairs of classes come to, and which cannot all hold."""

import pytest

from shards.labels import LabelsConfig, LabelSpace, label_space
from shards.settings import ConfigError, in_one_line, parse

CLASSES = {
    "amazon": ["back_pack", "mug", "cup"],
    "caltech": ["backpack", "mug", "dog"],
    "pets": ["poodle", "terrier", "crane"],
    "web": ["backpack", "crane", "hound"],
}


def labels(*pairs: str) -> LabelsConfig:
    """Each `source/class verdict source/class [name]`."""
    found = []
    for pair in pairs:
        a, verdict, b, *name = pair.split()
        ends = {end: dict([one.split("/")]) for end, one in (("a", a), ("b", b))}
        found.append({**ends, "verdict": verdict, **({"name": name[0]} if name else {})})
    return parse({"pairs": found}, LabelsConfig)


def space(*pairs: str) -> LabelSpace:
    return label_space(labels(*pairs), CLASSES)


def faults(*pairs: str) -> list[str]:
    with pytest.raises(ConfigError) as error:
        space(*pairs)
    return error.value.faults


def test_without_a_verdict_equal_names_are_one_class_and_no_others():
    undecided = space("amazon/back_pack undecided caltech/backpack", "pets/crane undecided web/crane")
    assert undecided.names == {source: {name: name for name in own} for source, own in CLASSES.items()}
    assert undecided.undecided == 2
    assert not undecided.parts


def test_the_same_is_joined_over_chains_and_called_as_the_first_pair_says():
    found = space("caltech/backpack same amazon/back_pack")
    assert [found.names[one][name] for one, name in (("amazon", "back_pack"), ("web", "backpack"))] == ["backpack"] * 2
    found = space("amazon/back_pack same caltech/backpack", "web/backpack same amazon/back_pack")
    assert {found.names["caltech"]["backpack"], found.names["web"]["backpack"]} == {"back_pack"}
    more = space("amazon/back_pack same caltech/backpack", "web/backpack same amazon/back_pack")
    assert more.names["web"]["backpack"] == "back_pack", "pairs that are added rename nothing"
    named = space("amazon/back_pack same caltech/backpack", "web/backpack same amazon/back_pack rucksack")
    assert named.names["caltech"]["backpack"] == "rucksack"


def test_equal_names_that_are_different_get_names_of_their_own():
    found = space("pets/crane different web/crane")
    assert (found.names["pets"]["crane"], found.names["web"]["crane"]) == ("crane (pets)", "crane (web)")


def test_a_class_with_parts_is_the_set_of_those_that_have_none():
    pairs = "pets/poodle part_of caltech/dog", "pets/terrier part_of caltech/dog"
    assert space(*pairs).parts == {"dog": ("poodle", "terrier")}
    nested = space("pets/poodle part_of web/hound", "pets/terrier part_of web/hound", "web/hound part_of caltech/dog",
                   "pets/crane part_of caltech/dog", "pets/crane different web/crane")  # fmt: skip
    assert nested.parts == {"hound": ("poodle", "terrier"), "dog": ("crane (pets)", "poodle", "terrier")}


@pytest.mark.parametrize(
    ("pairs", "words"),
    [
        (["amazn/mug same caltech/mug"], ["pairs.0.a: no source is called 'amazn'; did you mean 'amazon'?"]),
        (["amazon/mugs same caltech/dog"], ["pairs.0.a: amazon has no class 'mugs'; did you mean 'mug'?"]),
        (["amazon/mug same amazon/cup"], ["both are classes of amazon"]),
        (
            ["amazon/cup same caltech/dog", "caltech/dog different amazon/cup"],
            ["pairs.1: `dog` of caltech and `cup` of amazon stand in pairs.0"],
        ),
        (["amazon/cup same caltech/mug"], ["`mug` and `cup` of amazon would be one class, both joined with"]),
        (
            ["amazon/back_pack same web/backpack", "amazon/back_pack different caltech/backpack"],
            ["said to be different, and other pairs make them one"],
        ),
        (
            ["amazon/cup same web/hound", "web/hound same pets/crane", "amazon/cup part_of pets/crane"],
            ["said to be part_of, and other pairs make them one", "crane` and `hound` of web would be one"],
        ),
        (
            ["amazon/cup part_of caltech/dog", "caltech/dog part_of web/hound", "web/hound part_of amazon/cup"],
            ["would be a part of itself"],
        ),
        (["pets/poodle part_of caltech/dog"], ["`dog` of caltech has one part only, `poodle` of pets"]),
        (
            ["pets/poodle part_of caltech/dog", "pets/terrier part_of caltech/dog", "caltech/mug same pets/poodle"],
            ["`mug` would be a part of `dog`, and caltech has both", "teach nothing"],
        ),
        (
            [f"pets/{x} part_of web/{y}" for x in ("poodle", "terrier") for y in ("hound", "backpack")],
            ["which web tells apart"],
        ),
        (
            ["amazon/cup same caltech/dog x", "caltech/dog same web/hound y"],
            ["are one class and get 2 names: x, y"],
        ),
        (["amazon/cup different caltech/dog x"], ["pairs.0.name: is for the verdict same, got different"]),
    ],
)
def test_verdicts_that_cannot_hold_are_refused(pairs, words):
    told = "\n".join(faults(*pairs))
    assert all(word in told for word in words), told


def test_every_fault_is_told_at_once():
    told = faults("amazon/x same caltech/mug", "y/z same caltech/dog", "amazon/cup same caltech/mug",
                  "pets/poodle part_of caltech/dog")  # fmt: skip
    assert len(told) == 4


def test_pairs_of_sources_that_cannot_be_opened_are_passed_over():
    config = labels("amazon/back_pack same gone/x", "amazon/back_pack same caltech/backpack")
    assert label_space(config, CLASSES, ["gone"]).names["caltech"]["backpack"] == "back_pack"


def test_a_line_of_yaml_is_read_back_whatever_the_names():
    import yaml

    value = {"a": {"s": "no"}, "b": {"t": "1e3, {x}: 'y' # z"}}
    assert yaml.safe_load(in_one_line(value)) == value
    assert "\n" not in in_one_line(value | {"c": "long " * 80})
