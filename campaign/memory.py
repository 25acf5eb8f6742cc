"""Resident memory of processes, in bytes, from /proc (Linux)."""

from __future__ import annotations

import os
from pathlib import Path

MAX_EXTRA_BYTES = 10**9
"""what an attempt may take beyond what its process had before"""
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
