"""What it was measured on."""

import os
import pathlib
import platform
import re
import time

BUSY_PERCENT_MAX = 10
"""Beyond, figures are noisy, and the result says so."""


def describe():
    """Names processor, memory, kernel and system."""
    cpu = re.search(r"^model name\s*:\s*(.+)$", _read("/proc/cpuinfo"), re.MULTILINE)
    memory = re.search(r"^MemTotal:\s+(\d+)", _read("/proc/meminfo"), re.MULTILINE)
    system = re.search(r'^PRETTY_NAME="?([^"\n]+)', _read("/etc/os-release"), re.MULTILINE)
    return {
        "cpu": cpu.group(1) if cpu else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(int(memory.group(1)) / 2**20) if memory else None,
        "kernel": f"{platform.system()} {platform.release()}",
        "system": system.group(1) if system else platform.platform(),
    }


def busy_percent(seconds=1.0):
    """How busy all cores are with something else while nothing is measured."""
    before = _cpu_ticks()
    time.sleep(seconds)
    after = _cpu_ticks()
    total = sum(after) - sum(before)
    idle = sum(after[3:5]) - sum(before[3:5])
    return round(100 * (1 - idle / total), 1) if total else 0.0


def _cpu_ticks():
    return [int(ticks) for ticks in _read("/proc/stat").splitlines()[0].split()[1:9]]


def _read(path):
    try:
        return pathlib.Path(path).read_text()
    except OSError:
        return ""
