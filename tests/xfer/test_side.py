"""Side inputs in a model: nothing at first, missing where they are missing, and never a class's name."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from shards.loading.batch import Batch
from xfer.model import build_model
from xfer.model_config import ModelConfig
from xfer.quant.bits import layers
from xfer.side import VALUES, SideInputs, dropping, hash_of, inputs, joined_form, scrubbed

CLASSES = ["T-Shirt", "back_pack", "Shoes"]
FIELDS = {"maker": "category", "price": "number", "note": "text"}
SAID: list[dict[str, Any]] = [
    {"maker": "ann", "price": 3, "note": "worn twice"},
    {"maker": 7, "note": ["quite new", "blue"]},
    {"price": 5.0},
    {},
]
IMAGES = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
Z = torch.randn(4, 8, generator=torch.Generator().manual_seed(1))
NONE = frozenset[int]()


def known(side: SideInputs) -> SideInputs:
    facts = {
        "maker": {"values": ["ann", "7"], "others": 0},
        "price": {"mean": 4.0, "deviation": 2.0},
        "note": {},
    }
    for name, part in side.by_field:
        part.know(facts[name])
    side.name(CLASSES)
    return side


@pytest.fixture
def side() -> SideInputs:
    """Of weights that are no zeros."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = known(SideInputs(FIELDS, 8, len(CLASSES)))
        torch.nn.init.normal_(made.film.weight)
    return made


def model(side: dict | None, **fusion: Any):
    values: dict[str, Any] = {
        "branches": {"a": {"backbone": "resnet10"}, "b": {"backbone": "resnet10", "size": 16}},
        "fusion": {"width": 8, **fusion},
        "side": side,
    }
    return build_model(ModelConfig.model_validate(values), 3, seed=0).eval()


@pytest.mark.parametrize("kind", ["wsum", "attention", "late", "concat"])
def test_at_first_a_model_is_the_one_without_side_inputs_to_the_bit(kind):
    plain, made = model(None, kind=kind), model({"fields": FIELDS}, kind=kind)
    known(made.side)
    for name, value in plain.state_dict().items():
        assert torch.equal(made.state_dict()[name], value), name
    for rows in (None, made.side.encode(SAID, 4)):
        assert torch.equal(made(IMAGES, rows), plain(IMAGES))


def test_they_change_the_answer_once_they_are_trained_and_the_gradient_reaches_all_of_them(side):
    rows = side.encode(SAID, 4)
    out = side(Z, rows)
    assert not torch.allclose(out[0], side(Z)[0])
    out.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in side.parameters())


def test_no_side_inputs_are_the_same_as_all_of_them_missing(side):
    gone = side(Z, side.encode([{}] * 4, 4))
    assert torch.equal(side(Z), gone)
    assert torch.equal(side(Z, side.encode(None, 4)), gone)
    with torch.no_grad():
        assert torch.equal(side(Z), gone)
    assert torch.equal(side(Z, side.encode(SAID, 4))[3], gone[3])


def test_a_value_that_was_not_known_and_one_of_another_kind_are_missing(side):
    odd = [{"maker": "eve"}, {"price": "cheap"}, {"note": "?!"}, {"maker": True, "price": True}]
    assert side.encode(odd, 4).isnan().all()
    alike = side.encode([{"maker": 7}, {"maker": 7.0}, {"maker": "7"}, {"maker": " 7 "}], 4)
    assert torch.equal(alike[:, :1], torch.ones(4, 1))


def test_numbers_are_measured_by_the_training_data_and_end_somewhere(side):
    column = side.encode([{"price": 4}, {"price": 8.0}, {"price": 1e12}, {"price": -1e12}], 4)[:, 257]
    assert column.tolist() == [0.0, 2.0, 5.0, -5.0]


def test_of_a_category_only_values_that_occur_twice_are_known_the_frequent_ones_first():
    category = next(iter(SideInputs({"a": "category"}, 8, 3).parts))
    facts = category.learn(["once", *["b"] * 2, *["a"] * 3, 5, 5.0])
    assert facts == {"values": ["a", "5", "b"], "others": 1}
    many = [f"{i}" for i in range(VALUES + 9)] * 2
    assert len(category.learn(many)["values"]) == VALUES
    category.know({"values": many[:VALUES], "others": 9})
    assert category.num_known == VALUES
    category.know(facts)
    assert category.num_known == 3


def test_all_values_are_told_apart_in_bfloat16_too():
    side = SideInputs({"a": "category"}, 8, 3)
    torch.nn.init.normal_(side.film.weight)
    side.parts[0].know({"values": [str(i) for i in range(VALUES)]})
    said = [{"a": str(i)} for i in (700, 701, 702, 703)]
    with torch.autocast("cpu", torch.bfloat16):
        out = side(Z[:1].expand(4, -1), side.encode(said, 4))
    assert len(out.detach().float().unique(dim=0)) == 4


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("a blue T-shirt, worn", ["a", "blue", "worn"]),
        ("Tshirts and T SHIRT", ["and"]),
        ("my backpack (back-packs!)", ["my"]),
        ("SHOE", []),
        ("shirt shop", ["shirt", "shop"]),
        ("grey colour", ["gray", "color"]),
    ],
)
def test_names_of_classes_are_taken_out_of_texts_however_they_are_written(text, left):
    names = frozenset(hash_of(joined_form(name)) for name in CLASSES)
    assert scrubbed(text, names) == left
    assert scrubbed(text, NONE) != left or text in ("shirt shop", "grey colour")


def test_a_text_that_says_nothing_but_the_class_is_missing_and_else_the_class_changes_nothing(side):
    rows = side.encode([{"note": "Shoes"}, {"note": "blue shoes"}, {"note": "blue"}, {"note": "green"}], 4)[:, 1:257]
    assert rows[0].isnan().all()
    assert torch.equal(rows[1], rows[2])
    assert not torch.equal(rows[2], rows[3])


def batches(size: int, total: int = 400) -> Iterator[Batch]:
    for start in range(0, total, size):
        at = torch.arange(start, start + size)
        yield Batch(torch.zeros(size, 3, 1, 1), at, at, at, at >= 0, side=tuple({"at": int(i)} for i in at))


def test_a_sample_is_seen_without_by_seed_and_position_alone():
    def seen(size: int, seed: int = 0, share: float = 0.3) -> list[dict]:
        return [one for batch in dropping(batches(size), share, seed) for one in batch.side or ()]

    once = seen(8)
    assert once == seen(50)
    assert once != seen(8, seed=1)
    assert 0.22 < sum(not one for one in once) / 400 < 0.38
    assert all(one in ({}, {"at": at}) for at, one in enumerate(once))
    assert all(seen(8, share=0.0))


def test_a_model_without_side_inputs_gets_images_alone():
    batch = next(batches(4))
    assert len(inputs(model(None), batch)) == 1
    assert len(inputs(model({"fields": {"at": "number"}}), batch)) == 2


def test_a_branch_that_is_dropped_changes_nothing_and_late_whose_channels_all_move_refuses_it():
    made = model({"fields": FIELDS}, weights={"a": 1.0, "b": 0.0})
    known(made.side)
    torch.nn.init.normal_(made.side.film.weight)
    rows = made.side.encode(SAID, 4)
    with torch.no_grad():
        before = made(IMAGES, rows)
        assert made.drop_below(0.1) == {"b": 0.0}
        assert torch.equal(made(IMAGES, rows), before)
    with pytest.raises(ValueError, match="late with side inputs"):
        model({"fields": FIELDS}, kind="late", prune=0.1)


def test_they_stay_in_float_when_a_model_is_packed():
    assert not [name for name in layers(model({"fields": FIELDS})) if name.startswith("side")]


def test_what_is_known_of_values_and_names_is_in_the_tensors_and_not_in_the_open(side):
    other = SideInputs(FIELDS, 8, len(CLASSES))
    other.load_state_dict(side.state_dict())
    assert torch.equal(other.encode(SAID, 4).nan_to_num(9), side.encode(SAID, 4).nan_to_num(9))
    assert "ann" not in str(side.state_dict())
