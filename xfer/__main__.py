"""`xfer`: the front door. Verbs are named by import path and loaded when used, so `xfer --help` needs no torch and no
Ray.
"""

import os
import signal
import sys
import threading
import traceback

import cyclopts

from shards.settings import ConfigError

DEBUG = "--debug"
app = cyclopts.App(
    name="xfer",
    help_format="plaintext",
    help="Train one vision model from many datasets; get back a small quantized model for your own task.",
    help_epilogue=(
        "Start with `xfer demo`: all of it, in minutes, on this machine, with no network.\n\n"
        "`xfer VERB --help` shows what a verb takes, with examples. A message too short? The same command with "
        f"{DEBUG} prints the traceback too."
    ),
    suppress_keyboard_interrupt=False,  # Ctrl-C is answered here
)
DATA, MODEL, SEARCH = (
    cyclopts.Group(name, sort_key=place) for place, name in enumerate(("Data", "One model", "Many models"))
)
VERBS = {
    "shards": ("shards.cli:app", DATA),
    "labels": ("xfer.cli.labels:app", DATA),
    "fit": ("xfer.cli:fit", MODEL),
    "train": ("cluster.cli:train", MODEL),
    "cluster": ("cluster.cli:app", MODEL),
    "evaluate": ("xfer.cli:evaluate", MODEL),
    "compare": ("xfer.cli:compare", MODEL),
    "features": ("xfer.cli:features", MODEL),
    "soup": ("xfer.cli:soup", MODEL),
    "quantize": ("xfer.cli:quantize", MODEL),
    "predict": ("xfer.cli:predict", MODEL),
    "classes": ("xfer.cli.classes:app", MODEL),
    "export": ("xfer.cli:export", MODEL),
    "bench": ("xfer.cli:bench", MODEL),
    "tune": ("tuning.cli:tune", SEARCH),
    "report": ("tuning.cli:report", SEARCH),
    "demo": ("tuning.cli:demo", SEARCH),
}
ANEW = ("evaluate", "compare", "soup", "predict", "export", "bench", "report")
"""Verbs that keep nothing of what was stopped; the others go on."""
for place, (verb, (target, group)) in enumerate(VERBS.items()):
    app.command(target, name=verb, group=group, sort_key=place)


def main(arguments: list[str] | None = None) -> None:
    """Exit status: 0 done; 1 the work failed; 2 the input was wrong; 130 stopped by Ctrl-C, 143 by SIGTERM."""
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _terminated)
    words, debug = _without_debug(sys.argv[1:] if arguments is None else arguments)
    try:
        if not words or words[0] in app.help_flags:
            app.resolved_commands()  # the list says of each verb what its own help says first
        app(words, exit_on_error=False)
    except cyclopts.CycloptsError:
        _end(2, "", debug)  # printed already
    except ConfigError as error:
        _end(2, str(error), debug)
    except _Terminated as stop:
        _end(143, str(stop) or f"stopped by SIGTERM; {_again(words)}", debug)
    except KeyboardInterrupt as stop:
        print(file=sys.stderr)  # the line that shows ^C ends
        _end(130, str(stop) or f"stopped; {_again(words)}", debug)
    except BrokenPipeError:  # who reads our words has enough of them, as `head` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it ends
        _end(1, "", debug)
    except OSError as error:
        _end(1, _of_the_system(error), debug)
    except (RuntimeError, ValueError) as error:
        _end(1, f"{type(error).__name__}: {error}", debug)
    except Exception as error:
        text = f"{type(error).__name__}: {error}".removesuffix(": ")
        _end(1, f"{text}\nthis is a fault of xfer, not of yours; the same command with {DEBUG} shows where", debug)


class _Terminated(KeyboardInterrupt):
    """A batch system or a container ends us: what is done on Ctrl-C is done then, too."""


def _terminated(number: int, frame: object) -> None:
    raise _Terminated


def _again(words: list[str]) -> str:
    return f"the same command {'begins anew' if (words or [''])[0] in ANEW else 'goes on from here'}"


def _end(status: int, message: str, debug: bool) -> None:
    if debug:
        traceback.print_exc()
    if message:
        print(f"xfer: {message}", file=sys.stderr)
    sys.exit(status)


def _without_debug(words: list[str]) -> tuple[list[str], bool]:
    """The words without `--debug`, wherever it stands before a `--`, and whether it was there."""
    end = words.index("--") if "--" in words else len(words)
    return [word for word in words[:end] if word != DEBUG] + words[end:], DEBUG in words[:end]


def _of_the_system(error: OSError) -> str:
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror}" if error.strerror else f"{where}{type(error).__name__}: {error}"


if __name__ == "__main__":
    main()
