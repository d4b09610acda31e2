"""Which loads there are."""

from dataclasses import dataclass

TABLE = "table"
PAYLOAD = "payload"
SCALE = "scale"
CONNECT = "connect"
DURABLE = "durable"

MAILBOXQTT = "mailboxqtt"
MOSQUITTO = "mosquitto"

ALWAYS = "mailboxqtt always"
NONE = "mailboxqtt none"
SNAPSHOTS = "mosquitto with snapshots"
DURABLE_BROKERS = (ALWAYS, NONE, SNAPSHOTS)
"""Set up for sessions that outlive their connections, with their data on a disk."""


@dataclass(frozen=True)
class Cell:
    """One load, measured on each broker."""

    group: str
    load: str
    qos: int
    options: tuple
    """Arguments for loadgen besides those of every run."""

    @property
    def name(self):
        """What `--only` is looked for in, and what a run is filed under."""
        return self.load if self.group == CONNECT else f"{self.load}, QoS {self.qos}"

    def fits(self, broker):
        """Whether the broker of this name takes part: the extended loads are for two only."""
        if self.group == DURABLE or broker in DURABLE_BROKERS:
            return self.group == DURABLE and broker in DURABLE_BROKERS
        return self.group == TABLE or broker in (MAILBOXQTT, MOSQUITTO)

    @property
    def takes_given(self):
        """Whether brokers of `--with` take part, of which nobody knows what they keep."""
        return self.group != DURABLE


def _cells(group, qualities, loads):
    return [
        Cell(group, load, qos, tuple(f"--scenario {options} --qos {qos}".split()))
        for load, options in loads
        for qos in qualities
    ]


STANDARD = _cells(TABLE, (0, 1, 2), [
    ("p2p 10→10", "p2p --clients 20 --window 100"),
    ("fan-in 10→1", "fan-in --clients 11 --window 100"),
    ("fan-out 1→50", "fan-out --clients 51 --window 100"),
    ("wildcard 4→12, 1,200 filters", "wildcard --clients 16 --window 100"),
    ("many: 300 pairs, window 4", "p2p --clients 600 --window 4"),
    ("w10: 10 pairs, window 8", "p2p --clients 20 --window 8"),
    ("low: 10 pairs, 5,000 msg/s", "p2p --clients 20 --rate 5000"),
]) + _cells(DURABLE, (1, 2), [
    ("durable-p2p: 256 pairs, window 100", "p2p --clients 512 --window 100 --persistent"),
    ("durable-alone: 1 pair, window 1", "p2p --clients 2 --window 1 --persistent"),
    ("durable-fan-out: 1→100", "fan-out --clients 101 --window 100 --persistent"),
])

EXTENDED = (
    _cells(PAYLOAD, (0, 1), [
        (f"payload: {name}", f"p2p --clients 20 --window 100 --payload {size}")
        for name, size in [("64 B", 64), ("256 B", 256), ("1 KiB", 1024), ("16 KiB", 16384)]
    ])
    + _cells(SCALE, (0, 1), [
        (f"scale: {pairs:,} pairs, window 4", f"p2p --clients {2 * pairs} --window 4")
        for pairs in (10, 100, 1_000, 5_000)
    ])
    + _cells(CONNECT, (0,), [("connect: 10,000 clients", "connect --clients 10000 --hold 2")])
)
