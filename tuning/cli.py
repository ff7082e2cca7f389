"""`xfer tune`, `xfer report`, `xfer demo`."""

from pathlib import Path


def tune(study: Path, *overrides: str) -> None:
    """Search fusion weights and bit-widths around a job with Ray Tune. Stopped, the same command goes on.

        xfer tune examples/pacs/study.yaml data.root=data/pacs search.trials=40

    Writes trials.jsonl, report.html, best.yaml (which `xfer train` takes) and the best bundle into the study's folder.

    Parameters
    ----------
    study
        YAML with a job (inline or by path), a `space` of distributions by dotted path, and `search`.
    overrides
        `dotted.path=value`, any number of them.
    """
    from tuning import study as search
    from tuning.config import Study
    from tuning.pareto import describe, front
    from tuning.report import write_report
    from xfer.prepare import load_document

    config = load_document(study, Study, overrides)
    rows, best = search.run(config)
    folder = search.folder_of(config)
    failed = sum(row.error is not None for row in rows)
    print(f"\n{len(rows)} trials{f', {failed} failed' if failed else ''}; beaten by none in accuracy and bytes:")
    for row in front(rows):
        chosen = "   <- best.yaml" if row.trial == best.trial else ""
        print(f"  {row.bytes:>12,} bytes  {100 * row.accuracy:5.1f} %  {describe(row.values)}{chosen}")
    print(f"report: {write_report(folder)}\nnext: xfer train {folder / 'best.yaml'}")


def report(folder: Path) -> None:
    """Write one self-contained HTML page with the figures of a run or a study.

        xfer report runs/pacs

    Parameters
    ----------
    folder
        A run folder or a study folder.
    """
    from tuning.report import write_report

    print(f"report: {write_report(folder)}")


def demo(*, out: Path = Path("runs/demo")) -> None:
    """The whole way on generated images: build, train, search, quantize, evaluate, predict, report.

    Needs no network and no arguments; under 6 minutes on 2 cores. Stopped, the same command goes on.

    Parameters
    ----------
    out
        Where everything goes.
    """
    from tuning.demo import demo as run

    run(out)
