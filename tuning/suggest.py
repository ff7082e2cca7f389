"""What to try next: Ray Tune's OptunaSearch, made to remember from the rows and never to ask for the same values twice.

Nothing is stored beside trials.jsonl: a search that goes on hears of its earlier rows again, so it cannot disagree with
them. A sampler that keeps repeating itself in a space that can be counted is helped out with what is left of it.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tuning.record import Row
from tuning.space import Space, combinations, key_of, size, to_sampled, to_values, tune_space

OBJECTIVES = {"accuracy": "max", "bytes": "min"}
REPEATS = 25  # suggestions of known values in a row before what is left is counted out
COUNTED = 1_000_000  # combinations that are counted out at most


def _tpe(seed: int) -> Any:
    from optuna.samplers import TPESampler

    return TPESampler(seed=seed, multivariate=True, n_startup_trials=8)


def _nsga2(seed: int) -> Any:
    from optuna.samplers import NSGAIISampler

    return NSGAIISampler(seed=seed, population_size=12)


def _random(seed: int) -> Any:
    from optuna.samplers import RandomSampler

    return RandomSampler(seed=seed)


SAMPLERS: dict[str, Callable[[int], Any]] = {"tpe": _tpe, "nsga2": _nsga2, "random": _random}


class Suggester:
    """Values to try, each once. `rows`: what was tried before; `under_way`: values that are being tried elsewhere."""

    def __init__(
        self,
        space: Space,
        sampler: str,
        seed: int,
        rows: Sequence[Row] = (),
        under_way: Sequence[Mapping[str, Any]] = (),
    ):
        import optuna
        from ray.tune.search.optuna import OptunaSearch

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        known = [(row, sampled) for row in rows if (sampled := to_sampled(space, row.values)) is not None]
        self.space, self.size = space, size(space)
        self.seen = {key_of(row.values) for row, _ in known} | {key_of(values) for values in under_way}
        self._asked: dict[str, str] = {}  # key of the values -> the searcher's name of the suggestion
        self._count = 0
        self._numbers = random.Random(seed + len(rows))
        self._searcher = OptunaSearch(
            OptunaSearch.convert_search_space(tune_space(space)),
            metric=list(OBJECTIVES),
            mode=list(OBJECTIVES.values()),
            points_to_evaluate=[sampled for _, sampled in known],
            sampler=SAMPLERS[sampler](seed + len(rows)),
        )
        for row, _ in known:
            name, _ = self._ask()
            self._answer(name, row)

    @property
    def exhausted(self) -> bool:
        """Whether every combination of a space that can be counted was tried."""
        return self.size is not None and len(self.seen) >= self.size

    def next(self) -> dict[str, Any] | None:
        """Values that were not tried yet, by path; None if there are none."""
        for _ in range(0 if self.exhausted else REPEATS):
            name, values = self._ask()
            if (key := key_of(values)) not in self.seen:
                self.seen.add(key)
                self._asked[key] = name
                return values
            self._answer(name, None)
        return self._left()

    def tell(self, row: Row) -> None:
        """How the values of `row` did."""
        name = self._asked.pop(key_of(row.values), None)
        if name is not None:
            self._answer(name, row)

    def _ask(self) -> tuple[str, dict[str, Any]]:
        self._count += 1
        name = str(self._count)
        return name, to_values(self.space, self._searcher.suggest(name) or {})

    def _answer(self, name: str, row: Row | None) -> None:
        if row is None or row.error is not None:
            self._searcher.on_trial_complete(name, error=True)
        else:
            self._searcher.on_trial_complete(name, {"accuracy": row.accuracy, "bytes": row.bytes})

    def _left(self) -> dict[str, Any] | None:
        """One of the combinations not tried yet, evenly."""
        if self.size is None or self.size > COUNTED:
            return None
        left = [values for values in combinations(self.space) if key_of(values) not in self.seen]
        if not left:
            return None
        chosen = self._numbers.choice(left)
        self.seen.add(key_of(chosen))
        return chosen
