"""How many CPUs this process may use: those it is bound to, within its control group's quota."""

import os
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")


def usable_cpus(cgroups: Path = CGROUPS) -> int:
    """At least 1. `os.cpu_count()` counts the machine's, of which a container may have few."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([bound, *(int(quota) for quota in _quotas(cgroups))]))


def _quotas(cgroups: Path) -> list[float]:
    """CPUs' worth of time that version 1 or 2 of control groups grant, of this group and all above it."""
    found = []
    for folder in (cgroups, *_own_folders(cgroups)):
        words = _text(folder / "cpu.max").split()
        found.append((words[0], words[1]) if len(words) == 2 else ("", ""))
    for name in ("cpu", "cpu,cpuacct"):
        folder = cgroups / name
        found.append((_text(folder / "cpu.cfs_quota_us"), _text(folder / "cpu.cfs_period_us")))
    return [int(quota) / int(period) for quota, period in found if quota.isdigit() and period.isdigit() and int(period)]


def _own_folders(cgroups: Path) -> list[Path]:
    for line in _text(Path("/proc/self/cgroup")).splitlines():
        if line.startswith("0::/"):
            own = Path(line.removeprefix("0::/"))
            return [cgroups / part for part in (own, *own.parents)]
    return []


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
