"""What a process and all that it started use, from Linux's /proc."""

import os
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")


def family(pid: int) -> list[int]:
    """The process and its living descendants."""
    found, queue = [], [pid]
    while queue:
        one = queue.pop()
        found.append(one)
        for listing in Path(f"/proc/{one}/task").glob("*/children"):
            queue += [int(word) for word in _read(listing).split()]
    return found


def cpu_seconds(pid: int) -> float:
    """Processor time of the process and its living descendants since they started."""
    ticks = 0
    for one in family(pid):
        fields = _read(Path(f"/proc/{one}/stat")).rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12]) if fields else 0
    return ticks / _TICKS


def memory_mb(pid: int) -> float:
    """Resident memory of the process and its living descendants in 10**6 bytes; what they share counts once."""
    kib = 0
    for one in family(pid):
        for line in _read(Path(f"/proc/{one}/smaps_rollup")).splitlines():
            if line.startswith("Pss:"):
                kib += int(line.split()[1])
    return kib * 1024 / 1e6


def _read(path: Path) -> str:
    """Text of a file that may go away with its process."""
    try:
        return path.read_text()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return ""
