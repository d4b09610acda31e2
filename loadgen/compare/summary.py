"""Medians and faults, from the runs in `result.json`. Knows no broker and prints nothing."""

import statistics
from dataclasses import dataclass, field


@dataclass
class Summary:
    """What all runs of one cell on one broker have shown. `None` is what none of them has."""

    runs: int
    failed: int
    """Runs without a result."""
    reason: str
    """Of the last of them."""
    cpu_us: float = None
    """Medians: CPU time of the broker per delivered message."""
    cpu_us_all: list = field(default_factory=list)
    """Of each run."""
    received_per_s: float = None
    p50_us: float = None
    p99_us: float = None
    connects_per_s: float = None
    kib_per_connection: float = None
    lost: int = 0
    """Sums over the runs."""
    expected: int = 0
    duplicated: int = 0
    reordered: int = 0
    """Within a topic, as MQTT orders nothing else; so not in wildcard, where publishers have many."""
    unacknowledged: int = 0
    saturated: int = 0
    """Runs in which the generator was the limit."""

    def faults(self, qos):
        """What went wrong: how often, what, and whether MQTT forbids it at this QoS."""
        kinds = [
            (self.lost, "lost", qos > 0),
            (self.unacknowledged, "unacknowledged", qos > 0),
            (self.duplicated, "doubled", qos == 2),
            (self.reordered, "out of order", True),
        ]
        return [kind for kind in kinds if kind[0]]


def summaries(result):
    """By name of the cell and name of the broker."""
    grouped = {}
    for run in result["runs"]:
        grouped.setdefault((run["cell"], run["broker"]), []).append(run)
    return {key: _summarise(runs) for key, runs in grouped.items()}


def _summarise(runs):
    failed = [run for run in runs if run["loadgen"] is None]
    found = [run["loadgen"] for run in runs if run["loadgen"] is not None]
    cpu_us = _values(found, "broker", "cpu_us_per_message")

    one_topic = [each for each in found if each["scenario"] != "wildcard"]

    def total(key, of=found):
        return sum(each[key] for each in of)

    return Summary(
        runs=len(runs),
        failed=len(failed),
        reason=failed[-1]["reason"] if failed else "",
        cpu_us=_median(cpu_us),
        cpu_us_all=cpu_us,
        received_per_s=_median(_values(found, "received_per_s")),
        p50_us=_median(_values(found, "latency_us", "p50")),
        p99_us=_median(_values(found, "latency_us", "p99")),
        connects_per_s=_median(_values(found, "connect", "per_s")),
        kib_per_connection=_median(_values(found, "broker", "kib_per_connection")),
        lost=total("lost"),
        expected=total("expected_total"),
        duplicated=total("duplicated"),
        reordered=total("reordered", one_topic),
        unacknowledged=total("unacknowledged"),
        saturated=sum(each["generator"]["saturated"] for each in found),
    )


def _values(found, *path):
    values = []
    for value in found:
        for key in path:
            value = value and value.get(key)
        if value is not None:
            values.append(value)
    return values


def _median(values):
    return statistics.median(values) if values else None


def spread_percent(found):
    """How far the runs of one cell on one broker are apart: the median over all, if any has several."""
    several = [each.cpu_us_all for each in found.values() if len(each.cpu_us_all) > 1 and each.cpu_us]
    return _median([100 * (max(all) - min(all)) / statistics.median(all) for all in several])


def times(theirs, ours):
    """How many times as much; `None` where one is missing."""
    return theirs / ours if theirs is not None and ours else None
