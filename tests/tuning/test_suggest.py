"""What holds for every sampler, those added later too: values inside the space, each once, and a seed that decides."""

from typing import Any, get_args

import pytest

from cluster.session import set_environment
from tuning.config import Distribution, SearchConfig
from tuning.record import Row
from tuning.space import key_of, to_sampled, to_values
from tuning.suggest import SAMPLERS, Suggester

set_environment()  # before Ray is imported: other tests of this process connect to it

MIXED = {
    "weights": Distribution(simplex=["fine", "coarse", "third"]),
    "bits": Distribution(choice=[2, 4, 8]),
    "rate": Distribution(log_uniform=(1e-3, 1e-1)),
    "steps": Distribution(integer=(10, 20)),
    "flag": Distribution(choice=[True, 1, [1, 2], {"a": None}]),
}
COUNTED = {"bits": Distribution(choice=[2, 4, 8]), "steps": Distribution(integer=(1, 4))}


def score(values: dict[str, Any]) -> tuple[float, int]:
    return 1 / (1 + sum(map(len, map(str, values.values())))), values["bits"] * 100


def go_on(suggester: Suggester, count: int) -> list[dict[str, Any]]:
    found = []
    for i in range(count):
        values = suggester.next()
        if values is None:
            break
        found.append(values)
        accuracy, size = score(values)
        suggester.tell(Row(str(i), values, accuracy, size, error="ValueError: x" if i % 5 == 4 else None))
    return found


def test_the_config_offers_exactly_these_samplers():
    assert set(get_args(SearchConfig.model_fields["sampler"].annotation)) == set(SAMPLERS)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_values_lie_in_the_space_and_come_once(sampler):
    found = go_on(Suggester(MIXED, sampler, 0), 30)
    assert len({key_of(values) for values in found}) == 30
    for values in found:
        assert sum(values["weights"].values()) == pytest.approx(1)
        assert values["bits"] in (2, 4, 8)
        assert 1e-3 <= values["rate"] <= 1e-1
        assert 10 <= values["steps"] <= 20
        assert to_sampled(MIXED, values) is not None
    assert {type(values["flag"]) for values in found} == {bool, int, list, dict}


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_seed_decides(sampler):
    first, same, other = (go_on(Suggester(MIXED, sampler, seed), 12) for seed in (3, 3, 4))
    assert first == same
    assert first != other


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_combination_is_tried_once_and_then_no_more(sampler):
    suggester = Suggester(COUNTED, sampler, 0)
    assert len({key_of(values) for values in go_on(suggester, 100)}) == 12
    assert suggester.exhausted
    assert suggester.next() is None


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_what_was_tried_before_or_is_under_way_is_not_tried_again(sampler):
    before = go_on(Suggester(COUNTED, sampler, 0), 6)
    rows = [Row(str(i), values, *score(values)) for i, values in enumerate(before)]
    under_way = next(v for v in ({"bits": b, "steps": s} for b in (2, 4, 8) for s in range(1, 5)) if v not in before)
    rest = go_on(Suggester(COUNTED, sampler, 0, rows, [under_way]), 100)
    assert len(rest) == 5
    assert not any(values in [*before, under_way] for values in rest)


def test_samplers_that_learn_hear_of_earlier_rows():
    """Of 40 rows, small steps are better and smaller: TPE then asks for small steps, random numbers do not."""
    space = {"bits": Distribution(choice=[2, 4, 8]), "steps": Distribution(integer=(1, 1000))}
    rows = [Row(str(n), {"bits": 4, "steps": n * 25}, 1 - n / 40, n * 1000) for n in range(1, 41)]
    means = {}
    for sampler in ("tpe", "random"):
        suggester = Suggester(space, sampler, 0, rows)
        asked = [suggester.next() or {} for _ in range(20)]
        means[sampler] = sum(values["steps"] for values in asked) / 20
    assert means["tpe"] < 300 < means["random"]


def test_samplers_differ():
    first = {sampler: key_of(go_on(Suggester(MIXED, sampler, 0), 25)) for sampler in SAMPLERS}
    assert len(set(first.values())) == len(SAMPLERS)


def test_values_and_sampled_parameters_are_one_thing():
    sampled = {"weights#0": 0.25, "weights#1": 0.5, "bits": 1, "rate": 0.01, "steps": 12, "flag": 0}
    values = to_values(MIXED, sampled)
    assert values["flag"] is True
    assert to_sampled(MIXED, values) == pytest.approx(sampled)
    assert to_sampled(MIXED, {**values, "bits": 3}) is None
    assert to_sampled(MIXED, {**values, "steps": 12.5}) is None
    assert to_sampled(MIXED, {**values, "steps": 21}) is None
