"""Real data sets, for tests that want more than drawn images: sub-folders of the folder that XFER_TEST_DATA names."""

import os
from pathlib import Path

import pytest

BCCD, CAMVID, CLOTHING = "bccd", "camvid240", "clothing160"


def real(name: str) -> Path:
    """The folder of a data set; the test is skipped if there is none."""
    folder = Path(os.environ.get("XFER_TEST_DATA", "none")) / name
    if not folder.is_dir():
        pytest.skip(f"needs the folder {name} in XFER_TEST_DATA")
    return folder
