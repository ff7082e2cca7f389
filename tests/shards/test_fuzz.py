"""Mutated shards, manifests, indexes and files of others: errors with a name, or what was written, and nothing else.

`python -m benchmarks.fuzz` does the same a hundred thousand times.
"""

import os
import resource
import tempfile
from pathlib import Path

import pytest

from tests.shards.fuzzing import MUTATIONS, run, targets


@pytest.mark.slow
def test_two_thousand_mutations_by_every_way_in():
    # In memory if there is such a place: on a disk the files would take longer than the reading.
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as folder:
        check(Path(folder))


def check(tmp_path: Path) -> None:
    ways_in = targets(tmp_path / "sound")
    for target in ways_in.values():
        target.read(target.folder)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tally = run(ways_in, tmp_path / "work", 2000, seed=1)
    assert tally.findings == []
    assert {name for name, outcome in tally.outcomes if outcome != "as written"} == ways_in.keys()
    assert tally.mutations.keys() == MUTATIONS.keys()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000, "KiB"
