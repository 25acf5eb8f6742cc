"""Memory, processor time and state of processes, from /proc (Linux)."""

from __future__ import annotations

import os
import time
from pathlib import Path

MAX_EXTRA_BYTES = 10**9
"""what an attempt may take beyond what its process had before"""
TICKS = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")


def rss(pid: int | str = "self") -> int:
    """0 when there is no such process."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE
    except (OSError, IndexError):
        return 0


def reset_peak() -> None:
    """`peak_rss` begins anew."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_rss() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def state_and_cpu(pid: int) -> tuple[str, float]:
    """(state, seconds of processor time) of a process; R is running or ready to. ("X", 0) when there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        return fields[0], (int(fields[11]) + int(fields[12])) / TICKS
    except (OSError, IndexError):
        return "X", 0.0


class Stopwatch:
    """Seconds that an attempt has worked or slept. Waiting for a processor on a busy machine does not count.

    `look` is to be called often, with the processes of the attempt.
    """

    def __init__(self) -> None:
        self._cpu: dict[int, float] = {}
        self._slept = 0.0
        self._last = time.monotonic()
        self._before: dict[int, float] | None = None

    def look(self, pids: list[int]) -> float:
        """The seconds since the first look, or the creation."""
        found = {pid: state_and_cpu(pid) for pid in pids}
        if self._before is None:
            self._before = {pid: cpu for pid, (_, cpu) in found.items()}
        self._cpu |= {pid: cpu for pid, (_, cpu) in found.items()}
        now = time.monotonic()
        if not any(state == "R" for state, _ in found.values()):
            self._slept += now - self._last
        self._last = now
        return self._slept + sum(cpu - self._before.get(pid, 0.0) for pid, cpu in self._cpu.items())
