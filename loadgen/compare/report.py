"""Markdown, made from `result.json` alone."""

import re

from compare import cells
from compare.machine import BUSY_PERCENT_MAX
from compare.summary import spread_percent, summaries, times

BEGIN = "<!-- compare:begin (written by `just compare --readme`) -->"
END = "<!-- compare:end -->"

LOST = """\
A cell says in bold what broke a promise of the protocol, summed over its runs: messages lost or not acknowledged at QoS 1
and 2, doubled at QoS 2, out of order. At QoS 0 a broker may lose; how much is said in plain letters. A closed loop waits
for what was lost, so the figures of such a run are those of the time in which messages still flowed."""

DURABLE = """\
Sessions outlive their connections, and data are on a disk. What is gone after a `kill -9`, or a power cut, of what was
acknowledged: with `mailboxqtt always` nothing; with `mailboxqtt none` everything; with mosquitto what came since its last
snapshot, which it writes every 30 minutes by default, sessions and subscriptions included."""

LIMIT = (
    "`*`: in at least one run the generator was at its limit, or missed its deadlines: the figure is "
    "its own as much as the broker's."
)


class Report:
    """The tables of one result."""

    def __init__(self, result):
        self.result = result
        self.found = summaries(result)
        self.notes = {}
        """Why cells are empty, each reason once."""

    def full(self):
        """Everything, for people."""
        parts = [self.conditions()]
        if self._cells(cells.TABLE):
            parts += ["## CPU time", self.cpu(cells.TABLE), LOST]
            parts += ["## Throughput", self.throughput(cells.TABLE)]
            parts += ["## Latency", self.latency(cells.TABLE)]
        if self._cells(cells.DURABLE):
            parts += ["## Nothing acknowledged may be lost", DURABLE]
            parts += [self.cpu(cells.DURABLE), self.throughput(cells.DURABLE)]
            parts += [self.latency(cells.DURABLE)]
        if self._cells(cells.PAYLOAD):
            parts += ["## Payload", "Ten pairs, window 100.", self.cpu(cells.PAYLOAD)]
        if self._cells(cells.SCALE):
            parts += ["## Number of connections", self.cpu(cells.SCALE)]
        if self._cells(cells.CONNECT):
            parts += ["## Connecting", self.connects()]
        return _paragraphs([*parts, self.footnotes()])

    def short(self):
        """For README: where and how, the table of CPU time, and what it costs to lose nothing."""
        parts = [self.conditions(), self.cpu(cells.TABLE)]
        if self._cells(cells.DURABLE):
            parts += [DURABLE, self.throughput(cells.DURABLE)]
        return _paragraphs([*parts, self.footnotes()])

    def conditions(self):
        """Where, when and how."""
        result, machine = self.result, self.result["machine"]
        rounds = "one round" if result["rounds"] == 1 else f"{result['rounds']} rounds"
        text = (
            f"Measured on {result['date'][:10]} by `{result['command']}`, on {machine['cores']} cores "
            f"({machine['cpu']}, {machine['memory_gib']} GiB, {machine['system']}, {machine['kernel']}) "
            f"that broker and generator share. Medians of {rounds} of {result['seconds']:g} s."
        )
        if not result["complete"]:
            text += f" **Interrupted** after {len(result['runs'])} runs."
        if (spread := spread_percent(self.found)) is not None:
            text += f" Runs of one cell differ by {spread:.0f} % in the middle case."
        if machine["busy_percent"] > BUSY_PERCENT_MAX:
            text += f" **Beware**: before it began the machine was {machine['busy_percent']} % busy."
        for each in result["left_out"]:
            text += f"\n\n{each['name']} is missing: {each['reason']}."
        return text

    def cpu(self, group):
        """Microseconds of the broker per delivered message, and how many times ours that is."""

        def text(found, ours):
            factor = times(found.cpu_us, ours.cpu_us if ours else None)
            if found is ours or factor is None:
                return f"{found.cpu_us:.3f}"
            return f"{found.cpu_us:.3f} ({_significant(factor)}×)"

        head = "µs of CPU of the broker per delivered message (times ours)"
        return self._table(head, group, lambda found: found.cpu_us, text, faults=True)

    def throughput(self, group):
        """Thousand messages per second."""

        def text(found, _):
            return f"{_significant(found.received_per_s / 1_000)}{'*' if found.saturated else ''}"

        table = self._table(
            "thousand messages/s received", group, lambda found: found.received_per_s, text
        )
        return f"{table}\n\n{LIMIT}"

    def latency(self, group):
        """End to end; in a closed loop mostly the queue that the window makes."""
        table = self._table(
            "latency p50/p99, µs", group, lambda found: found.p99_us,
            lambda found, _: f"{found.p50_us:,.0f}/{found.p99_us:,.0f}{'*' if found.saturated else ''}",
        )
        return f"{table}\n\n{LIMIT}"

    def connects(self):
        """Handshakes and memory."""
        rows = [
            ("connects/s", lambda found: found.connects_per_s, "{:,.0f}"),
            ("KiB of memory per idle connection", lambda found: found.kib_per_connection, "{:.1f}"),
        ]
        lines = []
        for cell in self._cells(cells.CONNECT):
            for name, value, form in rows:
                texts = self._row(cell, value, lambda found, _, v=value, f=form: f.format(v(found)))
                lines.append([f"{cell['load']}, {name}", *texts])
        return self._lines("", cells.CONNECT, lines)

    def footnotes(self):
        """The reasons that tables refer to."""
        return "\n".join(f"{number}. {note}" for number, note in self.notes.values())

    def _cells(self, group):
        return [cell for cell in self.result["cells"] if cell["group"] == group]

    def _brokers(self, group):
        """Those that took part in a group."""
        names = {cell["name"] for cell in self._cells(group)}
        measured = {broker for cell, broker in self.found if cell in names}
        return [each for each in self.result["brokers"] if each["name"] in measured]

    def _table(self, head, group, value, text, faults=False):
        lines = []
        for cell in self._cells(group):
            lines.append([cell["name"], *self._row(cell, value, text, faults)])
        return self._lines(head, group, lines)

    def _lines(self, head, group, lines):
        brokers = [f"{each['name']} {each['version']}".strip() for each in self._brokers(group)]
        head = [f"| {' | '.join([head, *brokers])} |", "|---" + "|--:" * len(brokers) + "|"]
        return "\n".join(head + [f"| {' | '.join(line)} |" for line in lines])

    def _row(self, cell, value, text, faults=False):
        name = cells.ALWAYS if cell["group"] == cells.DURABLE else cells.MAILBOXQTT
        ours = self.found.get((cell["name"], name))
        row = []
        for broker in self._brokers(cell["group"]):
            found = self.found.get((cell["name"], broker["name"]))
            if found is None:
                row.append("")
            elif value(found) is None:
                row.append(f"– ({self._note(broker['name'], found)})")
            else:
                marks = marks_of(found, cell["qos"]) if faults else []
                if faults and found.failed:
                    times_failed = f"{found.failed} of {found.runs} runs failed"
                    marks.append(f"**{times_failed}** ({self._note(broker['name'], found)})")
                row.append(", ".join([text(found, ours), *marks]))
        return row

    def _note(self, broker, found):
        """The number of the reason why something is missing."""
        note = f"{broker}: {found.reason or 'no message arrived'}"
        # Ports, processes and clients are others in each run.
        same = re.sub(r"\w*\d\w*", "", note)
        self.notes.setdefault(same, (len(self.notes) + 1, note))
        return self.notes[same][0]


def marks_of(found, qos):
    """What went wrong, in bold where MQTT forbids it."""
    faults = [(f"{count:,} {name}", broken) for count, name, broken in found.faults(qos)]
    return [f"**{text}**" if broken else text for text, broken in faults]


def replace(page, text):
    """The page with another text between the markers."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"it has no lines\n{BEGIN}\n{END}")
    return f"{before}{BEGIN}\n{text.strip()}\n{END}{after}"


def _significant(number):
    """Three digits, or two below ten."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.1f}"


def _paragraphs(parts):
    return "\n\n".join(part for part in parts if part) + "\n"
