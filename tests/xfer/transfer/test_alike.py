"""What images of two sources say of their classes, and what is proposed of it."""

import torch
import yaml

from shards.labels import LabelsConfig
from shards.settings import parse
from xfer.transfer.alike import Known, agreement, known
from xfer.transfer.propose import propose, text_of

CENTRES = torch.randn(8, 16, generator=torch.Generator().manual_seed(0)) * 2


def source(kinds: list[int], names: list[str], seed: int, shift: float = 0.0, per_kind: int = 40) -> Known:
    """Images around the centres of kinds; equal names are one class. `shift`: how far all of them lie from those of
    other sources.
    """
    generator = torch.Generator().manual_seed(seed)
    classes = sorted(set(names))
    x = torch.cat([CENTRES[kind] + torch.randn(per_kind, 16, generator=generator) for kind in kinds])
    labels = torch.tensor([classes.index(name) for name in names]).repeat_interleave(per_kind)
    return known(classes, x * (1 + shift) + shift, labels)


def said(a: Known, b: Known) -> set[tuple[str, str, str]]:
    return {(one.a, one.b, one.says) for one in agreement(a, b) if one.says}


def test_the_same_things_are_found_under_any_name_and_in_another_domain():
    a = source([0, 1, 2, 3], ["a0", "a1", "a2", "a3"], 1)
    b = source([3, 1, 0, 2], ["b3", "b1", "b0", "b2"], 2, shift=3.0)
    assert said(a, b) == {(f"a{i}", f"b{i}", "same") for i in range(4)}
    (one,) = [one for one in agreement(a, b) if (one.a, one.b) == ("a1", "b1")]
    assert one.images == (40, 40)
    assert min(one.there, one.back) > 0.9 > 0.1 > max(one.runner_up)


def test_parts_are_found_either_way():
    a = source([0, 1, 2, 3, 4], ["cat", "poodle", "terrier", "fish", "bird"], 1)
    b = source([0, 1, 2, 3, 4], ["feline", "dog", "dog", "fishes", "birds"], 2)
    parts = {("poodle", "dog", "part_of"), ("terrier", "dog", "part_of")}
    others = {("cat", "feline", "same"), ("fish", "fishes", "same"), ("bird", "birds", "same")}
    assert said(a, b) == parts | others
    assert {(x, y) for x, y, word in said(b, a) if word == "has_part"} == {("dog", "poodle"), ("dog", "terrier")}


def test_a_class_that_a_head_calls_everything_has_no_advantage():
    a, b = source([0, 1, 2], ["x", "y", "z"], 1), source([0, 1, 2], ["x", "y", "z"], 2)
    weight, bias = a.head
    loud = Known(a.classes, a.x, a.labels, (weight, bias + torch.tensor([50.0, 0, 0])), a.own)
    assert said(loud, b) == said(a, b) == {(name, name, "same") for name in "xyz"}


def proposed(a: Known, b: Known, **options) -> set[tuple[str, str, str]]:
    found, _ = propose({"a": a.classes, "b": b.classes}, {"a": a, "b": b}, **options)
    return {(one.a[1], one.b[1], one.proposed) for one in found}


def test_spelling_has_a_say_only_where_it_is_asked():
    classes = {"a": ["back_pack", "mice", "cat"], "b": ["Backpacks", "mouse", "cat"]}
    found, _ = propose(classes, {})
    assert {(one.a[1], one.b[1], one.proposed) for one in found} == {
        ("back_pack", "Backpacks", "same"), ("mice", "mouse", "same")
    }  # fmt: skip
    assert propose(classes, {}, names=False) == ([], 0)


def test_images_contradict_names_that_are_equal():
    a = source([0, 1, 2, 3], ["crane", "w", "x", "y"], 1)
    b = source([3, 1, 2, 0], ["crane", "w", "x", "machine"], 2)
    found = {("crane", "machine", "same"), ("y", "crane", "same"), ("crane", "crane", "different")}
    assert proposed(a, b) == found, "w and x are joined already"
    few = source([3, 1, 2, 0], ["crane", "w", "x", "machine"], 2, per_kind=8)
    assert ("crane", "crane", "different") not in proposed(a, few), "too few images to contradict"


def test_names_of_two_kinds_are_parts_and_one_is_not():
    classes = {"a": ["mountain_bike", "racing_bike", "fire_truck"], "b": ["bikes", "truck"]}
    found, _ = propose(classes, {})
    assert {(one.a[1], one.b[1], one.proposed) for one in found} == {
        ("mountain_bike", "bikes", "part_of"), ("racing_bike", "bikes", "part_of")
    }  # fmt: skip


def test_nothing_is_decided_and_what_a_person_said_stays_and_wins():
    classes = {"a": ["back_pack", "mug"], "b": ["backpack", "mugs"], "c": ["back-pack", "Mugs"]}
    found, left_out = propose(classes, {})
    assert {one.verdict for one in found} == {"undecided"}
    assert (len(found), left_out) == (6, 0)
    said = [
        {"a": {"b": "backpack"}, "b": {"a": "back_pack"}, "verdict": "same", "name": "pack"},
        {"a": {"c": "back-pack"}, "b": {"b": "backpack"}, "verdict": "different"},
    ]
    found, left_out = propose(classes, {}, parse({"pairs": said}, LabelsConfig))
    by_ends = {(one.a, one.b): one for one in found}
    assert by_ends[("b", "backpack"), ("a", "back_pack")].name == "pack"
    assert by_ends[("c", "back-pack"), ("b", "backpack")].verdict == "different"
    assert (len(found), left_out) == (5, 1), "the third would make one of what is said to be different"
    again = parse(yaml.safe_load(text_of(found, "labels.yaml")), LabelsConfig)
    assert again.pairs == tuple(one.pair() for one in found)


def test_what_one_head_alone_says_is_no_agreement():
    a = source([0, 1, 2, 3], ["a0", "a1", "a2", "extra"], 1)
    b = source([0, 1, 2], ["b0", "b1", "b2"], 2)
    found = {(one.a, one.b): one for one in agreement(a, b)}
    assert max(found["extra", other].there for other in b.classes) > 0.3, "it is called something"
    assert said(a, b) == {(f"a{i}", f"b{i}", "same") for i in range(3)}
