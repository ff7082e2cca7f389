"""The rules that keep the layers apart: import contracts, and what only one place may do."""

import ast
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted(path for package in ("shards", "xfer", "cluster", "tuning") for path in (ROOT / package).rglob("*.py"))


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def importers(module: str) -> set[str]:
    return {
        str(path.relative_to(ROOT))
        for path in FILES
        if any(name == module or name.startswith(f"{module}.") for name in imports(path))
    }


def test_import_contracts():
    command = shutil.which("lint-imports", path=Path(sys.executable).parent)
    assert command
    done = subprocess.run([command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("module", "owners"),
    [
        ("torch.distributed", {"xfer/deepspeed_engine.py", "cluster/process_group.py"}),
        ("deepspeed", {"xfer/deepspeed_engine.py"}),
        ("webdataset", {"shards/ingest/write.py"}),
        ("optuna", {"tuning/suggest.py"}),
        (
            "matplotlib",
            {
                "shards/inspect/figures.py",
                "shards/inspect/plan/figure.py",
                "shards/inspect/preview/figure.py",
                "xfer/figures.py",
            },
        ),
        ("pickle", set()),
    ],
)
def test_a_dependency_has_one_owner(module, owners):
    assert importers(module) == owners


def test_only_what_reads_the_command_line_needs_what_parses_it():
    verbs = {file for file in importers("cyclopts") if file.split("/")[1] != "cli"}
    assert verbs == {"xfer/__main__.py"}


def test_the_environment_is_touched_in_one_file_only():
    touching = {str(p.relative_to(ROOT)) for p in FILES if "os.environ" in p.read_text() or "getenv" in p.read_text()}
    assert touching <= {"cluster/session.py"}


def test_tensors_are_never_unpickled_without_the_safe_mode():
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                assert any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in node.keywords), path
