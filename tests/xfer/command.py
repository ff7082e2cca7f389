"""The command line, in this process."""

from xfer.__main__ import main


def status(*arguments: str) -> int:
    """Exit status of `xfer arguments...`."""
    try:
        main(list(arguments))
    except SystemExit as exit:
        return int(exit.code or 0)
    return 0
