"""`xfer`: the front door. Verbs are named by import path and loaded when used, so `xfer --help` needs no torch and no
Ray.
"""

import sys

import cyclopts

from shards.settings import ConfigError

app = cyclopts.App(
    name="xfer",
    help_format="plaintext",
    help="Train one vision model from many datasets; get back a small quantized model for your own task.",
    help_epilogue="Start with `xfer demo`: all of it, in minutes, on this machine, with no network.",
)
VERBS = {
    "shards": "shards.cli:app",
    "fit": "xfer.cli:fit",
    "train": "cluster.cli:train",
    "evaluate": "xfer.cli:evaluate",
    "predict": "xfer.cli:predict",
    "quantize": "xfer.cli:quantize",
    "tune": "tuning.cli:tune",
    "report": "tuning.cli:report",
    "demo": "tuning.cli:demo",
}
for verb, target in VERBS.items():
    app.command(target, name=verb)


def main(arguments: list[str] | None = None) -> None:
    """Exit status: 0 done; 1 the work failed; 2 the input was wrong; 130 stopped by Ctrl-C."""
    try:
        app(arguments, exit_on_error=False)
    except cyclopts.CycloptsError:
        sys.exit(2)  # printed already
    except ConfigError as error:
        print(f"xfer: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\nxfer: stopped; the same command goes on from here", file=sys.stderr)
        sys.exit(130)
    except (OSError, RuntimeError, ValueError) as error:
        print(f"xfer: {type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
