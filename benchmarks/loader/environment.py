"""The peers' own environment, beside the project's and ignored by git; the project never depends on them.

torch and torchvision are the project's own, seen through a `.pth` file: every torch loader runs the same build of them,
and 5 GB are not there twice. Everything else the peers get in the versions of `peers.txt`. FFCV is compiled and needs
`libturbojpeg0-dev libopencv-dev pkg-config g++`; where they are missing, it is left out and the report says so.
"""

import subprocess
import sys
import sysconfig
from pathlib import Path

FOLDER = Path(__file__).parents[1] / ".peers"
_PYTHON = FOLDER / "env" / "bin" / "python"
_PINS = Path(__file__).parents[1] / "peers.txt"
_OWN = ("torch", "torchvision")
_COMPILED = ("ffcv==1.0.2", "numba==0.68.1", "opencv-python-headless==5.0.0.93")


def python() -> Path:
    """That environment's; without one, the project's own: peers it does not have are then reported as missing."""
    return _PYTHON if _PYTHON.exists() else Path(sys.executable)


def set_up() -> None:
    """Makes the environment; done again, it changes nothing."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    if not _PYTHON.exists():
        _uv("venv", "--python", sys.executable, str(FOLDER / "env"))
    excludes = FOLDER / "excludes.txt"
    excludes.write_text("\n".join(_OWN) + "\n")
    install = ("pip", "install", "--system-certs", "--python", str(_PYTHON), "--excludes", str(excludes))
    _uv(*install, "-r", str(_PINS))
    site = subprocess.run(
        [_PYTHON, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], capture_output=True, text=True
    )
    # Behind the peers' own packages: of what both have, the peers get theirs.
    Path(site.stdout.strip(), "project.pth").write_text(sysconfig.get_path("purelib") + "\n")
    try:
        _uv(*install, *_COMPILED)
    except subprocess.CalledProcessError:
        print("FFCV could not be compiled; it is left out. It needs: libturbojpeg0-dev libopencv-dev pkg-config g++")


def _uv(*arguments: str) -> None:
    subprocess.run([Path(sys.executable).with_name("uv"), *arguments], check=True)
