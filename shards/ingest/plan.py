"""The plan of a build: which items go into which shard, decided before anything is written.

`hash` covers all that decides the result: every item with its stamp, the options of the source, classes, cut and
seed. So a changed image is another plan, and a moved source is the same one.
"""

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from shards.format.manifest import canonical
from shards.format.whole import write_json
from shards.ingest.listing import Listing, write_listing
from shards.ingest.write import Task
from shards.progress import progress
from shards.sources import Source
from shards.sources.notes import Notes

_VERSION = 2


@dataclass(frozen=True)
class Request:
    """What is asked for: a data set's name and split, out of which source of which kind, and how it is cut.

    `options` are those of the source that decide its content; `drop_boxes`: an unsound box is left out, not its image.
    """

    name: str
    split: str
    origin: str
    kind: str
    options: dict[str, object]
    shard_bytes: int
    seed: int
    drop_boxes: bool = False


@dataclass(frozen=True)
class Plan:
    """A request and the listing of its source, in shard order and cut; `notes`: what listing has to tell."""

    request: Request
    task: str
    classes: tuple[str, ...]
    fields: dict[str, str]
    listing: Listing
    ignored: int
    notes: Notes

    @property
    def num_items(self) -> int:
        """Samples listed; refused ones will not become samples."""
        return self.listing.num_items

    @property
    def hash(self) -> str:
        """sha256 of everything that decides the shards."""
        r = self.request
        content = [_VERSION, r.name, r.split, r.kind, r.options, r.shard_bytes, r.seed, r.drop_boxes]
        content += [self.task, self.classes, self.fields, self.listing.sha256]
        return "sha256:" + hashlib.sha256(canonical(content)).hexdigest()

    def summary(self) -> dict:
        """What tells this plan from another, for reports."""
        return {
            "plan": self.hash,
            "name": self.request.name,
            "split": self.request.split,
            "source": self.request.origin,
            "kind": self.request.kind,
            "options": self.request.options,
            "items": self.num_items,
            "seed": self.request.seed,
            "shard_bytes": self.request.shard_bytes,
        }

    def tasks(self) -> list[Task]:
        """One task for each shard."""
        hashed, state = self.hash, str(self.listing.path.parent)
        return [
            Task(f"{self.request.split}-{number:06d}.tar", state, hashed, str(self.listing.path), span)
            for number, span in enumerate(self.listing.spans)
        ]


def make(source: Source, request: Request, state: Path) -> Plan:
    """Lists the source into the folder `state`. The plan is a pure function of source and request."""
    with progress(f"list {request.name}/{request.split}", None, "samples") as advance:
        listing = write_listing(source.items(), state / "listing", request.seed, request.shard_bytes, advance)
    notes = Notes(source.notes.take())
    return Plan(request, source.task, source.classes, source.fields, listing, source.ignored, notes)


def open_state(out: Path, split: str) -> Path:
    """The folder in which a split is prepared; what an earlier build left there may still be of use."""
    state = out / f".build-{split}"
    state.mkdir(parents=True, exist_ok=True)
    for partial in state.glob("*.tmp*"):
        partial.unlink(missing_ok=True)
    return state


def keep_own(state: Path, plan: Plan) -> None:
    """Removes the shards of any other plan than this one."""
    if read_json(state / "plan.json").get("plan") == plan.hash:
        return
    for old in state.iterdir():
        if old != plan.listing.path:
            old.unlink()
    write_json(state / "plan.json", plan.summary())


def leave(state: Path) -> None:
    """Nothing will be built now: removes the listing, and the folder if no other build has left anything in it."""
    (state / "listing").unlink(missing_ok=True)
    if state.is_dir() and not any(state.iterdir()):
        state.rmdir()


def close_state(state: Path) -> None:
    """Removes the folder of a build that is committed."""
    shutil.rmtree(state)


def read_json(path: Path) -> dict:
    """A JSON object, or an empty one if there is none to read."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
