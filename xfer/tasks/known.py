"""The tasks, by the name that manifests and recipes give them."""

from xfer.tasks.classify import Classify
from xfer.tasks.detect import Detect
from xfer.tasks.segment import Segment
from xfer.tasks.task import Task

TASKS: dict[str, Task] = {task.name: task for task in (Classify(), Detect(), Segment())}


def task_of(name: str) -> Task:
    """Raises KeyError."""
    return TASKS[name]
