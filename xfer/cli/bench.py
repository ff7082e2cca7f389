"""`xfer bench`."""

import json
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from shards.settings import ConfigError


def bench(
    *models: Path,
    batch: Annotated[
        tuple[int, ...], Parameter(negative="", consume_multiple=True, help="Images that are seen at once.")
    ] = (1, 16),
    seconds: Annotated[float, Parameter(help="Time for each way to run a model, beside loading it.")] = 10.0,
    threads: Annotated[int | None, Parameter(help="Of the CPU; all if not given.")] = None,
    as_json: Annotated[Path | None, Parameter(name="--json", help="A file for all numbers.")] = None,
) -> None:
    """Time models on this machine's CPU: latency, throughput and memory of each way to run them.

        xfer bench runs/pacs/bundle
        xfer bench runs/pacs/bundle runs/other pacs.int8.onnx --batch 1 16 64
        xfer bench runs/pacs/bundle --threads 1 --json bench.json

    A run or a bundle is run by PyTorch as it is (eager), compiled, and compiled in bfloat16, and by onnxruntime where
    xfer export has written model.onnx or model.int8.onnx beside it. The ways take turns, each in a process of its own.
    Nothing is timed while other programs are busy; where the rounds differ by more than a quarter, the table is shown
    with a warning and the exit status is 1.

    Parameters
    ----------
    models
        Run folders, bundle folders, or files that xfer export wrote.
    """
    faults = [] if models else ["give a run, a bundle or a file that xfer export wrote"]
    faults += [f"--batch: must be at least 1, got {size}" for size in batch if size < 1]
    faults += [] if seconds > 0 else [f"--seconds: must be more than 0, got {seconds:g}"]
    faults += [f"--threads: must be at least 1, got {threads}"] if threads is not None and threads < 1 else []
    faults += [f"{as_json}: there is no folder {as_json.parent}"] if as_json and not as_json.parent.is_dir() else []
    if faults:
        raise ConfigError(faults)
    from shards.format.whole import write_text
    from xfer.bench import bench as timed

    found = timed(models, sorted(set(batch)), seconds, threads)
    print(found.text())
    if as_json:
        write_text(as_json, json.dumps(found.to_json(), indent=2) + "\n")
    if found.noise:
        raise RuntimeError(f"this machine is too noisy to tell: {found.noise}")
