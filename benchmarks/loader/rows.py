"""What was measured so far, a JSON line for each row: a run that is interrupted goes on where it stopped.

Steps are known by their name. Rows of other settings, or of another commit, are never mixed in: they are begun anew.
"""

import json
from pathlib import Path
from typing import Any

Row = dict[str, Any]


class Rows:
    """The rows in a file, which grows step by step."""

    def __init__(self, path: Path, settings: Row):
        self.path = path
        self.rows: list[Row] = []
        lines = path.read_text().splitlines() if path.is_file() else []
        if lines and json.loads(lines[0]) == {"settings": settings}:
            self.rows = [json.loads(line) for line in lines[1:] if line.endswith("}")]
        else:
            path.write_text(json.dumps({"settings": settings}) + "\n")

    def done(self, step: str) -> bool:
        """Whether the step was taken, with whatever outcome."""
        return any(row["step"] == step for row in self.rows)

    def add(self, step: str, rows: list[Row], **known: Any) -> None:
        """The rows of one step, at once."""
        new = [{"step": step, **known, **row} for row in rows]
        with self.path.open("a") as file:
            file.write("".join(json.dumps(row) + "\n" for row in new))
        self.rows += new

    def of(self, what: str) -> list[Row]:
        """All rows that answer one kind of question."""
        return [row for row in self.rows if row["what"] == what]
