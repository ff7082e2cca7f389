"""Loader processes leave the program its own choice of how processes start."""

import subprocess
import sys

from tests.shards.images import built, config

CODE = """
import multiprocessing, sys
from shards.config import DataConfig
from shards.loading.batch import Slot
from shards.loading.open import open_data
from shards.loading.train import train_stream
if __name__ == "__main__":
    config = DataConfig.model_validate_json(sys.argv[1])
    with train_stream(open_data(config).train, config, Slot()) as stream:
        next(stream)
    assert multiprocessing.get_start_method(allow_none=True) is None
    multiprocessing.set_start_method("spawn")
"""


def test_the_start_method_of_the_program_stays_unchosen(tmp_path):
    built(tmp_path, "a", per_class=10)
    one = config(tmp_path, "a", workers=1, batch_size=4)
    subprocess.run([sys.executable, "-c", CODE, one.model_dump_json()], check=True, timeout=120)
