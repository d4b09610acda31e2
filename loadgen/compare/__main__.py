"""The command line, and the order of things."""

import argparse
import datetime
import json
import os
import resource
import shlex
import signal
import subprocess
import sys

from compare import machine
from compare.brokers import HERE, KNOWN, OUTPUT, ROOT, TOOLS, Given, Unavailable, durable
from compare.cells import EXTENDED, STANDARD
from compare.measure import measure
from compare.report import Report, replace

RESULT = OUTPUT / "result.json"
TABLE = OUTPUT / "result.md"
CHART = OUTPUT / "chart.svg"
DOCS = ROOT / "docs"

FILES = 65_536


def main():
    """Measures, or with `--readme` writes the last measurement into the documentation."""
    arguments = parse(sys.argv[1:])
    if arguments.readme:
        publish()
        return 0
    brokers, left_out = install(arguments)
    cells = [cell for cell in STANDARD + EXTENDED * arguments.extended if chosen(cell, arguments)]
    result = header(arguments, brokers, left_out, cells)
    allow_files()
    # The end is orderly also when somebody else asks for it.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        measure(arguments.rounds, cells, brokers, arguments.seconds, result["runs"])
        result["complete"] = True
    except KeyboardInterrupt:
        print("\ncompare: interrupted; this is what there is until here", file=sys.stderr)
    finally:
        # An earlier result is worth more than an empty one.
        if result["runs"]:
            write(result)
    return 0 if result["complete"] else 130


def header(arguments, brokers, left_out, cells):
    """The result as it is before the first run."""
    busy_percent = machine.busy_percent()
    if busy_percent > machine.BUSY_PERCENT_MAX:
        print(f"compare: the machine is {busy_percent} % busy with something else", file=sys.stderr)
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join(["just", "compare", *sys.argv[1:]]),
        "machine": {**machine.describe(), "busy_percent": busy_percent},
        "rounds": arguments.rounds,
        "seconds": arguments.seconds,
        "whole": not arguments.only,
        "complete": False,
        "brokers": [
            {"name": each.name, "version": each.version, "settings": each.settings_text()}
            for each in brokers
        ],
        "left_out": left_out,
        "cells": [{**vars(cell), "name": cell.name} for cell in cells],
        "runs": [],
    }


def allow_files():
    """Raises the limit of open files as far as any load needs; brokers inherit it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES if hard == resource.RLIM_INFINITY else min(FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def parse(arguments):
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="just compare",
        description="Runs the same load against this broker and others, alternating; "
        f"writes {RESULT.name}, {TABLE.name} and {CHART.name} to {OUTPUT}.",
    )
    parser.add_argument("rounds", nargs="?", type=positive(int), default=3, help="three by default")
    parser.add_argument(
        "--only", action="append", default=[], metavar="CELL",
        help="cells whose name holds this, as in p2p, durable- or 'QoS 1'; more than once is possible",
    )
    parser.add_argument(
        "--brokers", metavar="A,B", default=",".join(KNOWN), help="of %(default)s"
    )
    parser.add_argument(
        "--with", dest="given", action="append", default=[], metavar="NAME=ADDR,PID", type=given,
        help="also a broker that runs already, as in flashmq=127.0.0.1:1884,4711",
    )
    parser.add_argument(
        "--extended", action="store_true",
        help="also connecting, and ladders of payloads and of connections, for two brokers",
    )
    parser.add_argument(
        "--seconds", type=positive(float), default=3.0, help="measured in each run, 3 by default"
    )
    parser.add_argument(
        "--readme", action="store_true",
        help="measure nothing; write the last result into README.md and docs/comparison.md",
    )
    parsed = parser.parse_args(arguments)
    parsed.brokers = parsed.brokers.split(",") if parsed.brokers else []
    for name in parsed.brokers:
        if name not in KNOWN:
            parser.error(f"--brokers: {name} is none of {', '.join(KNOWN)}; see --with")
    names = parsed.brokers + [each.name for each in parsed.given]
    if len(set(names)) < len(names):
        parser.error("two brokers have the same name")
    if not any(chosen(cell, parsed) for cell in STANDARD + EXTENDED * parsed.extended):
        parser.error("--only: no cell has a name like that")
    return parsed


def chosen(cell, arguments):
    """Whether a cell is to be measured."""
    return not arguments.only or any(part in cell.name for part in arguments.only)


def positive(kind):
    """A number above zero."""

    def number(text):
        value = kind(text)
        if value <= 0:
            raise ValueError
        return value

    number.__name__ = f"positive {kind.__name__}"
    return number


def given(text):
    """A value of `--with`."""
    try:
        return Given.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def install(arguments):
    """All brokers that can be had here, and why the others cannot."""
    brokers, left_out = [], []
    # The load generator comes with ours.
    for name in dict.fromkeys(["mailboxqtt", *arguments.brokers]):
        try:
            broker = KNOWN[name]()
        except Unavailable as reason:
            if name == "mailboxqtt":
                sys.exit(f"compare: {reason}")
            print(f"compare: going on without {name}: {reason}", file=sys.stderr)
            left_out.append({"name": name, "reason": str(reason)})
            continue
        if name in arguments.brokers:
            brokers.append(broker)
    OUTPUT.mkdir(parents=True, exist_ok=True)
    brokers += [variant for broker in brokers for variant in durable(broker)]
    brokers += arguments.given
    if not brokers:
        sys.exit("compare: there is no broker to measure")
    return brokers, left_out


def write(result):
    """Everything that is made from the runs."""
    OUTPUT.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(dump(result))
    text = Report(result).full()
    TABLE.write_text(text)
    print(f"\n{text}")
    drawn = CHART if draw(result) else "no chart"
    print(f"compare: {RESULT}, {TABLE}, {drawn}", file=sys.stderr)


def dump(result):
    """As JSON, with a line for each run."""
    head = json.dumps({key: result[key] for key in result if key != "runs"}, indent=1, ensure_ascii=False)
    runs = ",\n".join(json.dumps(run, ensure_ascii=False) for run in result["runs"])
    return f'{head[:-2]},\n "runs": [\n{runs}\n]}}\n'


def draw(result):
    """The chart, by matplotlib in an environment of its own; says why where there is none."""
    CHART.unlink(missing_ok=True)
    if not any(cell["group"] == "table" for cell in result["cells"]) or not result["runs"]:
        return False
    venv = TOOLS / "venv"
    python = venv / "bin" / "python"
    wanted = HERE / "requirements.txt"
    installed = venv / "requirements.txt"
    commands = []
    if not installed.exists() or installed.read_bytes() != wanted.read_bytes():
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        commands = [[sys.executable, "-m", "venv", "--clear", venv], [*pip, "-r", wanted]]
    commands.append([python, "-B", "-m", "compare.chart", RESULT, CHART])
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent)}
    try:
        for command in commands:
            subprocess.run(command, check=True, env=environment, stdout=sys.stderr)
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"compare: no chart: {error}", file=sys.stderr)
        return False
    # Written last: it says that the installation is complete.
    installed.write_bytes(wanted.read_bytes())
    return True


def publish():
    """Writes the last result into README.md and docs/comparison.md."""
    if not RESULT.exists():
        sys.exit("compare: there is no result yet; `just compare` makes one")
    result = json.loads(RESULT.read_text())
    if not result["complete"] or not result["whole"]:
        sys.exit("compare: the last run was interrupted or had --only; the documentation shows whole runs")
    report = Report(result)
    pages = {ROOT / "README.md": report.short(), DOCS / "comparison.md": Report(result).full()}
    if CHART.exists():
        (DOCS / "comparison.svg").write_bytes(CHART.read_bytes())
        image = "![CPU time of each broker per delivered message]"
        pages[ROOT / "README.md"] += f"\n{image}(docs/comparison.svg)\n"
        pages[DOCS / "comparison.md"] += f"\n{image}(comparison.svg)\n"
    for path, text in pages.items():
        try:
            path.write_text(replace(path.read_text(), text))
        except ValueError as error:
            sys.exit(f"compare: {path}: {error}")
    print("compare: README.md and docs/comparison.md show the run of " + result["date"][:10])


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
