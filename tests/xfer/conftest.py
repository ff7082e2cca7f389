"""What tests of models share."""

from collections.abc import Iterator

import pytest

from tests.xfer.ranks import Ranks, started


@pytest.fixture(scope="module")
def two() -> Iterator[Ranks]:
    """Two ranks."""
    with started(2) as ranks:
        yield ranks


@pytest.fixture
def looks(monkeypatch) -> list[tuple[str, int]]:
    """Of which source how many images were asked for, each time any are read."""
    from xfer.transfer import features

    asked: list[tuple[str, int]] = []
    real = features.few

    def noted(subsets, config, count, **options):
        asked.extend((subset.name, count) for subset in subsets)
        return real(subsets, config, count, **options)

    monkeypatch.setattr(features, "few", noted)
    return asked


@pytest.fixture
def fast(monkeypatch) -> None:
    """One penalty, where it does not matter how well a head is fitted."""
    from xfer.transfer import linear

    monkeypatch.setattr(linear, "PENALTIES", (1e-2,))
