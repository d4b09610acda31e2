"""Runs every cell on every broker, in turn, and keeps each single result."""

import json
import subprocess
import sys
import time

from compare.brokers import Given, Unavailable, release

WARMUP_S = 1.0
"""Of load before each measured interval, or as long as that if it is shorter."""
OVERHEAD_S = 2.0
"""What a run takes besides, as long as it is not known: starting, connecting, draining."""
GIVE_UP_S = 120.0
"""A run that takes so much longer than it should is ended."""


def order(rounds, cells, brokers):
    """All runs: in each round each cell once on each broker, with another one first in each round."""
    for number in range(rounds):
        first = number % len(brokers)
        turn = brokers[first:] + brokers[:first]
        for cell in cells:
            for broker in turn:
                if cell.fits(broker.name) or isinstance(broker, Given) and cell.takes_given:
                    yield number + 1, cell, broker


def measure(rounds, cells, brokers, seconds, runs):
    """Appends to `runs` what each run has shown, so that what there is survives an interruption."""
    todo = list(order(rounds, cells, brokers))
    progress = Progress(len(todo), seconds + min(WARMUP_S, seconds) + OVERHEAD_S)
    for number, cell, broker in todo:
        progress.next(f"round {number} of {rounds}: {cell.name}, {broker.name}")
        run = {"round": number, "cell": cell.name, "broker": broker.name}
        runs.append({**run, **run_once(cell, broker, seconds)})
    progress.end()


def run_once(cell, broker, seconds):
    """One run: the JSON of loadgen, or the reason why there is none."""
    try:
        with broker.running() as running:
            shown = _load(cell, running, seconds)
            if shown["loadgen"] is None and (error := running.last_error()):
                shown["reason"] += f"; in its log: {error}"
            return shown
    except (Unavailable, OSError) as reason:
        return {"reason": str(reason), "loadgen": None}


def _load(cell, running, seconds):
    command = [release("loadgen"), "--json", "--addr", running.addr, "--pid", str(running.pid)]
    # rumqttd refuses clients without keep-alive.
    command += ["--keep-alive", "300"]
    command += ["--warmup", str(min(WARMUP_S, seconds)), "--duration", str(seconds), *cell.options]
    limit_s = WARMUP_S + seconds + GIVE_UP_S
    try:
        run = subprocess.run(
            command, capture_output=True, text=True, timeout=limit_s, check=False
        )
    except subprocess.TimeoutExpired:
        return {"reason": f"not finished after {limit_s:.0f} s", "loadgen": None}
    if run.returncode != 0 and run.stderr.startswith("error: "):
        # The arguments were wrong: no broker is to blame for that.
        sys.exit(f"compare: {' '.join(command)}: {run.stderr}")
    said = " ".join(run.stderr.split()).removeprefix("loadgen: ")
    if not run.stdout:
        return {"reason": said or f"loadgen ended with {run.returncode}", "loadgen": None}
    # Exit code 1 says that a promise was broken; the figures are there, and say so.
    return {"reason": said, "loadgen": json.loads(run.stdout)}


class Progress:
    """One line on standard error: what runs, and how long all of it will still take."""

    def __init__(self, runs, guess_s):
        self.runs = runs
        self.guess_s = guess_s
        self.begun = 0
        self.started = time.monotonic()

    def next(self, what):
        """A run begins."""
        each_s = self.guess_s
        if self.begun:
            each_s = (time.monotonic() - self.started) / self.begun
        left = duration(each_s * (self.runs - self.begun))
        self.begun += 1
        self._print(f"[{self.begun}/{self.runs}, {left} left] {what}")

    def end(self):
        """All runs are over."""
        took = duration(time.monotonic() - self.started)
        self._print(f"{self.runs} runs in {took}")
        if sys.stderr.isatty():
            print(file=sys.stderr)

    def _print(self, line):
        # On a terminal the line stays where it is.
        if sys.stderr.isatty():
            print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)
        else:
            print(line, file=sys.stderr, flush=True)


def duration(seconds):
    """For people."""
    seconds = round(seconds)
    return f"{seconds} s" if seconds < 100 else f"{round(seconds / 60)} min"
