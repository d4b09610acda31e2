"""How each broker is installed, set up, started and ended.

Every run gets a process of its own, so that none inherits what another left behind, and nothing
else runs beside it. Only processes that were started here are ended, by their process id.
"""

import contextlib
import os
import pathlib
import re
import shutil
import socket
import string
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field

from compare import cells

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parent.parent
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")).absolute()
OUTPUT = TARGET / "compare"
TOOLS = OUTPUT / "tools"
MEMORY = pathlib.Path("/dev/shm")

START_S_MAX = 10
STOP_S_MAX = 10


class Unavailable(Exception):
    """Why a broker cannot be measured, or did not come up."""


@dataclass
class Running:
    """A broker that accepts connections."""

    addr: str
    pid: int
    log: pathlib.Path = None

    def last_error(self):
        """The last line of its log that speaks of an error, if any."""
        errors = [line for line in self._lines() if re.search(r"\berr(or)?\b", line, re.IGNORECASE)]
        return errors[-1] if errors else ""

    def last_words(self):
        """The same, or else the last line."""
        return self.last_error() or (self._lines() or [""])[-1]

    def _lines(self):
        text = self.log.read_text(errors="replace") if self.log else ""
        lines = re.sub("\x1b\\[[0-9;]*m", "", text).splitlines()
        return [line.strip() for line in lines if line.strip()]


@dataclass
class Broker:
    """A broker that is started for each run."""

    name: str
    version: str
    command: list = field(repr=False)
    """May hold `${port}`, `${folder}` and `${settings}`."""
    settings: str = ""
    """The settings file, with `${port}` and `${folder}`."""
    place: pathlib.Path = field(default=MEMORY, repr=False)
    """Where its folder is made; somewhere else if that is not there."""

    @contextlib.contextmanager
    def running(self):
        """Starts it on a free port and ends it afterwards, whatever happens in between."""
        place = self.place if self.place.is_dir() else None
        with tempfile.TemporaryDirectory(prefix="mailboxqtt-compare-", dir=place) as folder:
            port = _free_port()
            values = {"port": port, "folder": folder, "settings": f"{folder}/{self.settings}"}
            if self.settings:
                pathlib.Path(values["settings"]).write_text(_fill(self.settings_text(), values))
            command = [_fill(argument, values) for argument in self.command]
            log = pathlib.Path(folder, "log")
            with log.open("wb") as output:
                # In a session of its own: Ctrl-C is for this script, which then ends the broker.
                process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                    start_new_session=True,
                )
            try:
                running = Running(f"127.0.0.1:{port}", process.pid, log)
                _wait_until_it_accepts(process, port, running)
                yield running
            finally:
                _end(process)

    def settings_text(self):
        """The settings file as it is in the repository."""
        return (HERE / "settings" / self.settings).read_text() if self.settings else ""


@dataclass
class Given:
    """A broker that somebody else started and will end (`--with`)."""

    name: str
    addr: str
    pid: int
    version: str = ""

    @classmethod
    def parse(cls, text):
        """Takes NAME=ADDR,PID."""
        match = re.fullmatch(r"([^=\s|]+)=([^,\s]+:\d+),(\d+)", text)
        if not match:
            raise ValueError("it takes NAME=HOST:PORT,PID, as in flashmq=127.0.0.1:1883,4711")
        return cls(match.group(1), match.group(2), int(match.group(3)))

    @contextlib.contextmanager
    def running(self):
        """It runs already."""
        yield Running(self.addr, self.pid)

    def settings_text(self):
        """Not known here."""
        return ""


def mailboxqtt():
    """Builds this repository, the load generator with it."""
    _install(["cargo", "build", "--release", "--workspace"], cwd=ROOT)
    program = release("mailboxqtt")
    commit = _output(["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude=*"])
    version = _version([program, "--version"])
    if re.fullmatch(r"[0-9a-f]{7,}(-dirty)?\s*", commit):
        version += f" ({commit.strip()})"
    return Broker("mailboxqtt", version, [program, "--durability", "none", "--listen", "127.0.0.1:${port}"])


def mosquitto():
    """From the system's packages."""
    program = _system_program("mosquitto")
    version = _version([program, "-h"])
    return Broker("mosquitto", version, [program, "-c", "${settings}"], "mosquitto.conf")


def durable(broker):
    """The same program set up in other ways: for sessions that outlive their connections, on a disk."""
    def variant(name, command, settings=""):
        return Broker(name, broker.version, command, settings, place=OUTPUT)

    if broker.name == cells.MAILBOXQTT:
        program, listen = broker.command[0], ["--listen", "127.0.0.1:${port}"]
        always = ["--durability", "always", "--data-dir", "${folder}/data"]
        return [
            variant(cells.ALWAYS, [program, *always, *listen]),
            variant(cells.NONE, [program, "--durability", "none", *listen]),
        ]
    if broker.name == cells.MOSQUITTO:
        return [variant(cells.SNAPSHOTS, broker.command, "mosquitto-snapshots.conf")]
    return []


def rumqttd():
    """From crates.io, compiled once; not `--locked`, as compilers of today refuse `metrics` 0.22.1."""
    program = TOOLS / "bin" / "rumqttd"
    if not program.exists():
        _install(["cargo", "install", "--root", str(TOOLS), "rumqttd"])
    listed = _output(["cargo", "install", "--list", "--root", str(TOOLS)])
    version = re.search(r"^rumqttd v([\d.]+)", listed, re.MULTILINE)
    command = [str(program), "-c", "${settings}"]
    return Broker("rumqttd", version.group(1) if version else "", command, "rumqttd.toml")


def nats_server():
    """From the system's packages; it has MQTT since 2.2, and QoS 2 since 2.10."""
    program = _system_program("nats-server")
    version = _version([program, "--version"])
    return Broker("nats-server", version, [program, "-c", "${settings}"], "nats-server.conf")


KNOWN = {
    "mailboxqtt": mailboxqtt,
    "mosquitto": mosquitto,
    "rumqttd": rumqttd,
    "nats-server": nats_server,
}


def release(name):
    """The path of one of our own programs."""
    return str(TARGET / "release" / name)


def _system_program(name):
    """Finds a program that is also the name of its package, and installs that where it is missing."""
    path = os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin"
    if program := shutil.which(name, path=path):
        return program
    managers = {
        "apt-get": ["install", "-y", "--no-install-recommends"],
        "dnf": ["install", "-y"],
        "pacman": ["-S", "--needed", "--noconfirm"],
        "brew": ["install"],
    }
    manager = next((each for each in managers if shutil.which(each)), None)
    if manager is None:
        raise Unavailable(f"no apt-get, dnf, pacman or brew here to install {name}")
    root = [] if manager == "brew" or os.geteuid() == 0 else ["sudo"]
    root += ["env", "DEBIAN_FRONTEND=noninteractive"]
    if manager == "apt-get":
        # Package lists may be missing or old; a failure here shows when installing.
        subprocess.run([*root, manager, "-q", "update"], stdout=sys.stderr, check=False)
    _install([*root, manager, *managers[manager], name])
    if program := shutil.which(name, path=path):
        return program
    raise Unavailable(f"{manager} installed {name}, and there is no such program")


def _install(command, cwd=None):
    try:
        code = subprocess.run(command, cwd=cwd, stdout=sys.stderr, check=False).returncode
    except OSError as error:
        raise Unavailable(f"`{' '.join(command)}`: {error}") from error
    if code != 0:
        raise Unavailable(f"`{' '.join(command)}` failed with {code}")


def _output(command):
    try:
        run = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return run.stdout + run.stderr


def _version(command):
    version = re.search(r"\d+\.\d+[\w.-]*", _output(command))
    return version.group() if version else ""


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _fill(text, values):
    return string.Template(text).substitute(values)


def _wait_until_it_accepts(process, port, running):
    deadline = time.monotonic() + START_S_MAX
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise Unavailable(f"it ended with {process.returncode}: {running.last_words()}")
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.01)
    raise Unavailable(f"it did not accept connections within {START_S_MAX} s")


def _end(process):
    process.terminate()
    try:
        process.wait(STOP_S_MAX)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
