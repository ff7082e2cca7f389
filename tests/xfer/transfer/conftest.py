"""What several tests begin with: another task's model, trained and packed once."""

import pytest

import xfer
from xfer.surface import Run


@pytest.fixture(scope="session")
def source(shards_root, tmp_path_factory) -> Run:
    """A trained run of two branches and its bundle: layer1 of 3 bits, the stem in float, the rest of 4 bits."""
    values = {
        "name": "source",
        "output": str(tmp_path_factory.mktemp("source")),
        "data": {
            "root": str(shards_root),
            "sources": {"paint": {"path": "paint"}, "outline": {"path": "outline"}},
            "image_size": 32,
            "batch_size": 12,
            "workers": 0,
        },
        "model": {
            "branches": {
                "fine": {"backbone": "resnet10", "stem": "small"},
                "coarse": {"backbone": "resnet10", "size": 16},
            },
            "fusion": {"width": 16, "weights": {"fine": 0.7, "coarse": 0.3}},
        },
        "train": {"steps": 4, "learning_rate": 0.01},
        "quantize": {"calibration": 16},
    }
    run = xfer.fit(values, quiet=True)
    run.quantize(bits=4, groups={"layer1": 3, "stem": 32})
    return run
