#!/usr/bin/env python3
"""Runs the same load against mailboxqtt and against the system's mosquitto, alternating, and prints ratios.

Called by `just compare [ROUNDS]`; needs the release builds of mailboxqtt and loadgen, and mosquitto.
The figure to compare is the broker's CPU time per delivered message, which is steadier than wall time.
Each round runs every cell once against each broker, A B A B, so that noise of the machine meets both;
the table has the median of the rounds. Both brokers are started here on free ports and stopped here.
"""

import argparse
import json
import os
import pathlib
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time

CLOSED = ["--warmup", "1", "--duration"]
CELLS = [
    (f"{name} QoS {qos}", [*options, "--qos", str(qos)])
    for name, options in [
        ("p2p 10->10", ["--scenario", "p2p", "--clients", "20", "--window", "100"]),
        ("fan-in 10->1", ["--scenario", "fan-in", "--clients", "11", "--window", "100"]),
        ("fan-out 1->50", ["--scenario", "fan-out", "--clients", "51", "--window", "100"]),
        ("wildcard 4->12", ["--scenario", "wildcard", "--clients", "16", "--window", "100"]),
        ("many 300 pairs, window 4", ["--scenario", "p2p", "--clients", "600", "--window", "4"]),
        ("w10 10 pairs, window 8", ["--scenario", "p2p", "--clients", "20", "--window", "8"]),
        ("low 5,000 msg/s", ["--scenario", "p2p", "--clients", "20", "--rate", "5000"]),
    ]
    for qos in (0, 1, 2)
]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rounds", nargs="?", type=int, default=3)
    parser.add_argument("--only", default="", help="cells whose name contains this")
    parser.add_argument("--seconds", default="3", help="measured in each run")
    arguments = parser.parse_args()
    cells = [cell for cell in CELLS if arguments.only in cell[0]]
    mosquitto = shutil.which("mosquitto", path=os.environ["PATH"] + ":/usr/sbin:/usr/local/sbin")
    if mosquitto is None:
        sys.exit("compare: mosquitto is not installed; on Debian `apt-get install mosquitto` brings it")

    with tempfile.TemporaryDirectory() as folder:
        brokers = {"mailboxqtt": start_mailboxqtt(), "mosquitto": start_mosquitto(mosquitto, folder)}
        try:
            results = measure(brokers, cells, arguments)
        finally:
            for process, _ in brokers.values():
                process.terminate()
                process.wait()
    report(cells, results, arguments)


def release(name):
    target = os.environ.get("CARGO_TARGET_DIR", "target")
    return str(pathlib.Path(target) / "release" / name)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start_mailboxqtt():
    command = [release("mailboxqtt"), "--listen", "127.0.0.1:0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return process, process.stdout.readline().split()[4]


def start_mosquitto(program, folder):
    port = free_port()
    config = pathlib.Path(folder) / "mosquitto.conf"
    config.write_text(
        f"listener {port} 127.0.0.1\nallow_anonymous true\nmax_inflight_messages 1000\n"
        "max_queued_messages 0\nset_tcp_nodelay true\npersistence false\nlog_dest none\n"
    )
    process = subprocess.Popen([program, "-c", str(config)], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return process, f"127.0.0.1:{port}"
    sys.exit("compare: mosquitto did not start within 10 s")


def measure(brokers, cells, arguments):
    results = {}
    for round_number in range(arguments.rounds):
        for name, options in cells:
            for broker, (process, addr) in brokers.items():
                print(f"round {round_number + 1}: {name}, {broker}", file=sys.stderr)
                command = [release("loadgen"), "--addr", addr, "--pid", str(process.pid), "--json"]
                command += [*CLOSED, arguments.seconds, *options]
                run = subprocess.run(command, capture_output=True, text=True)
                if run.returncode not in (0, 1) or not run.stdout:
                    sys.exit(f"compare: {name} against {broker}: {run.stderr.strip()}")
                results.setdefault((name, broker), []).append(json.loads(run.stdout))
    return results


def report(cells, results, arguments):
    print(f"Medians of {arguments.rounds} rounds of {arguments.seconds} s; µs of CPU of the broker per")
    print("delivered message; latency p50/p99 in µs, end to end.\n")
    print("| cell | mailboxqtt | mosquitto | ratio | msg/s | msg/s | latency | latency | lost |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name, _ in cells:
        ours, theirs = results[name, "mailboxqtt"], results[name, "mosquitto"]
        cpu = [median(runs, lambda run: run["broker"]["cpu_us_per_message"]) for runs in (ours, theirs)]
        rate = [median(runs, lambda run: run["received_per_s"]) for runs in (ours, theirs)]
        latency = [
            "/".join(f"{median(runs, lambda run: run['latency_us'][p]):.0f}" for p in ("p50", "p99"))
            for runs in (ours, theirs)
        ]
        lost = "/".join(str(sum(run["lost"] for run in runs)) for runs in (ours, theirs))
        print(
            f"| {name} | {cpu[0]:.3f} | {cpu[1]:.3f} | {cpu[1] / cpu[0]:.1f} | {rate[0]:,.0f} | {rate[1]:,.0f} "
            f"| {latency[0]} | {latency[1]} | {lost} |"
        )


def median(runs, value):
    return statistics.median(value(run) for run in runs)


if __name__ == "__main__":
    main()
