"""Which tests `make test-fast` leaves out for the time they take: `tests/slow.txt`, read by conftest.py.

    python -m pytest --junitxml=times.xml -m "not ray and not deepspeed and not hosts and not gpu"
    python -m tests.slow times.xml      # writes tests/slow.txt anew, from an idle machine

A test is slow from 0.2 s on, its fixtures included; one of its parameters is enough.
"""

import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

LIST = Path(__file__).parent / "slow.txt"
LIMIT_S = 0.2


def main(times: str) -> None:
    slow = set()
    for case in ElementTree.parse(times).iter("testcase"):
        if float(case.get("time", 0)) >= LIMIT_S:
            file = case.get("classname", "").replace(".", "/")
            slow.add(f"{file}.py::{case.get('name', '').split('[')[0]}")
    LIST.write_text("\n".join(sorted(slow)) + "\n")
    print(f"{len(slow)} slow tests: {LIST}")


if __name__ == "__main__":
    main(sys.argv[1])
