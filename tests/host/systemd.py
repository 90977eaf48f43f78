#!/usr/bin/env python3
"""Installs the program on a Debian of its own as the manual says, under a real systemd, and does to it what operators do.

    systemd.py PORTCULLIS

Needs root, debootstrap, systemd-nspawn, iproute2. The Debian is made by debootstrap and kept in --cache; a copy of it boots in
namespaces of its own. Takes about a minute. Exit status: 0 good, 1 a check failed, 2 no systemd boots in a container here, whatever
is installed in it.
"""

import argparse
import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import lab
from lab import SOURCES, Checks, run, tree, until

PACKAGES = ["systemd", "systemd-sysv", "dbus", "logrotate", "procps"]
WATCHDOG = 3

# A container's own view of the control groups, whichever kind this machine has mounted; then the container.
BOOT = """
umount -R -l /sys/fs/cgroup 2>/dev/null || true
mount -t cgroup2 cgroup2 /sys/fs/cgroup
exec systemd-nspawn --quiet --boot --register=no --keep-unit --private-network --machine=portcullis-test \\
    --directory="$1" --bind-ro="$2:/src" --bind-ro="$3:/binary" --console=pipe
"""

MAIN = """listeners: [{{ address: ":80" }}]
access_log: {{ path: /var/log/portcullis/access.log }}
sites: sites.d/*.yaml
drain_timeout: 20s
{more}"""

# One client asks all the time, each time on a connection of its own; the other one keeps its connection, if it may.
LOAD = """
import http.client, sys, threading, time
done, failed = 0, []
def ask(keeps):
    global done
    connection = None
    while not ended.is_set():
        try:
            connection = connection or http.client.HTTPConnection("127.0.0.1", 80, timeout=5)
            connection.request("GET", "/", headers={"Host": "steady.test"})
            answer = connection.getresponse()
            assert answer.status == 200 and answer.read() == b"steady", answer.status
            done += 1
            if not keeps or answer.will_close:
                connection.close()
                connection = None
        except (OSError, AssertionError, http.client.HTTPException) as error:
            failed.append(repr(error))
            connection = None
        time.sleep(0.005)
ended = threading.Event()
clients = [threading.Thread(target=ask, args=(keeps,)) for keeps in (True, False)]
for client in clients: client.start()
sys.stdin.read()
ended.set()
for client in clients: client.join()
print(done, len(failed), failed[:3])
"""

BACKEND = """
import http.server, time
class Backend(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        time.sleep(2)
        self.send_response(200)
        self.send_header("Content-Length", "4")
        self.end_headers()
        self.wfile.write(b"slow")
    def log_message(self, *args):
        pass
http.server.ThreadingHTTPServer(("127.0.0.1", 9000), Backend).serve_forever()
"""


class Machine:
    """A Debian that has booted."""

    def __init__(self, root, binary):
        self.root = root
        self.log = root.with_name("console")
        arguments = ["sh", "-ec", BOOT, "boot", str(root), str(SOURCES), binary]
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(["unshare", "--mount", "--propagation", "private", *arguments], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self.leader = None
        self.helpers = []

    def boots(self):
        """Whether it runs, with nothing of ours in it."""
        children = lambda pid: Path(f"/proc/{pid}/task/{pid}/children").read_text().split()

        def leader():
            if self.process.poll() is not None:
                return True
            with contextlib.suppress(OSError):
                for child in children(self.process.pid):
                    if "systemd" in Path(f"/proc/{child}/comm").read_text():
                        return child
            return False

        found = until(30, leader)
        if not isinstance(found, str):
            return False
        self.leader = found
        state = lambda: self("systemctl", "is-system-running").stdout.strip() in ("running", "degraded")
        return bool(until(90, lambda: self.process.poll() is not None or state())) and self.process.poll() is None

    def inside(self, *command, spaces="-mpnui"):
        return ["nsenter", "-t", self.leader, *(f"-{space}" for space in spaces.strip("-")), *command]

    def __call__(self, *command, **options):
        options = {"check": False, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "stdin": subprocess.DEVNULL, "timeout": 120, **options}
        return run(*self.inside(*command), **options)

    def start(self, program, **options):
        """A program of this machine in the container's network."""
        helper = subprocess.Popen(self.inside(sys.executable, "-c", program, spaces="-n"), text=True, **options)
        self.helpers.append(helper)
        return helper

    def get(self, host, path="/", seconds=5):
        """The body of an answer, or why there is none."""
        program = f"""
import http.client
connection = http.client.HTTPConnection("127.0.0.1", 80, timeout={seconds})
connection.request("GET", "{path}", headers={{"Host": "{host}"}})
print(connection.getresponse().read().decode(), end="")
"""
        answer = run(*self.inside(sys.executable, "-c", program, spaces="-n"), check=False, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        return answer.stdout or answer.stderr[-100:]

    def shows(self, key):
        return self("systemctl", "show", "-p", key, "--value", "portcullis").stdout.strip()

    def journal(self):
        return self("journalctl", "-u", "portcullis", "--no-pager", "-n", "40").stdout

    def is_up(self):
        return self.shows("ActiveState") == "active" and self.get("steady.test") == "steady"

    def write(self, path, text):
        (self.root / path.lstrip("/")).write_text(text)

    def main(self, more=""):
        self.write("/etc/portcullis/portcullis.yaml", MAIN.format(more=more))

    def site(self, name, text):
        self.write(f"/etc/portcullis/sites.d/{name}.yaml", text)

    def end(self):
        for helper in self.helpers:
            helper.kill()
            helper.wait()
        # Its first process does what a machine does when it is switched off.
        if self.leader and self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(self.leader), signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(10)
        self.process.kill()
        self.process.wait()


def respond(name):
    return f"domains: [{name}.test]\nroutes: [{{ path: /, respond: {{ body: {name} }} }}]\n"


def installed(check, machine):
    """By the manual's own commands, in its order."""
    page = (SOURCES / "docs/operating.md").read_text()
    commands = re.search(r"## With systemd\n\n```sh\n(.*?)```", page, re.S)[1]
    script = "set -e\ncd /src\n" + commands.replace("target/release/portcullis", "/binary")
    done = machine("sh", "-c", script)
    check.that("the manual's commands install and start it", done.returncode == 0, done.stdout)
    pid = machine.shows("MainPID")
    status = machine("cat", f"/proc/{pid}/status").stdout
    uids = (re.search(r"^Uid:\s*(\d+)", status, re.M) or [0, "?"])[1]
    name = machine("id", "-nu", uids).stdout.strip()
    check.that("it runs as the user portcullis", name == "portcullis", status)
    capabilities = (re.search(r"^CapEff:\s*(\w+)", status, re.M) or [0, "?"])[1]
    check.that("with the right to low ports and no other", capabilities.lstrip("0") == "400", capabilities)
    machine.site("steady", respond("steady"))
    machine.main()
    reload = machine("systemctl", "reload", "portcullis")
    check.that("`systemctl reload` puts files in force", reload.returncode == 0 and machine.get("steady.test") == "steady", reload.stdout + machine.journal())
    machine("systemctl", "restart", "portcullis")
    check.that("after `systemctl restart` it serves", until(10, machine.is_up), machine.journal())


def reloads(check, machine):
    machine.main("nonsense: 1\n")
    machine.site("steady", respond("steady").replace("steady }", "changed }"))
    reload = machine("systemctl", "reload", "portcullis")
    seen = machine.get("steady.test")
    check.that("a bad main file fails the reload, and nothing changes", reload.returncode != 0 and seen == "steady", seen)
    check.that("the journal has the mistake", "nonsense" in machine.journal(), machine.journal())
    machine.main()
    machine.site("steady", respond("steady"))
    machine.site("other", respond("other"))
    machine.site("broken", "domains: [broken.test\n")
    reload = machine("systemctl", "reload", "portcullis")
    check.that("a broken site fails the reload, and the others are in force", reload.returncode != 0 and machine.get("other.test") == "other", reload.stdout)
    machine("systemctl", "restart", "portcullis")
    check.that("after a restart it keeps nobody down", until(10, machine.is_up) and machine.get("other.test") == "other", machine.journal())
    (machine.root / "etc/portcullis/sites.d/broken.yaml").unlink()


def upgrades(check, machine):
    load = machine.start(LOAD, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    before, restarts = machine.shows("MainPID"), machine.shows("NRestarts")
    for n in range(1, 5):
        upgrade = machine("runuser", "-u", "portcullis", "--", "portcullis", "upgrade")
        told = re.search(r"process (\d+) has taken over", upgrade.stdout)
        # systemd hears of it when the process is already at work.
        same = told and until(5, lambda: machine.shows("MainPID") not in ("0", before))
        after = machine.shows("MainPID")
        check.that(f"upgrade {n}: systemd follows to the new main process", bool(told and same), f"{upgrade.stdout} {before} {after}")
        before = after
    machine("systemctl", "reload", "portcullis")
    said = load.communicate("")[0].split(" ", 2)
    print(f"        {said[0]} requests during the upgrades, {said[1]} failed")
    check.that("no request failed meanwhile", int(said[0]) > 100 and said[1] == "0", said)
    check.that("it was not restarted for that", machine.shows("NRestarts") == restarts and machine.is_up(), machine.journal())


def accidents(check, machine):
    pid = machine.shows("MainPID")
    machine("kill", "-KILL", pid)
    check.that("killed, it is started again", until(15, lambda: machine.shows("MainPID") not in ("0", pid) and machine.is_up()), machine.journal())
    drop_in = machine.root / "etc/systemd/system/portcullis.service.d"
    drop_in.mkdir(parents=True)
    (drop_in / "watchdog.conf").write_text(f"[Service]\nWatchdogSec={WATCHDOG}s\n")
    machine("systemctl", "daemon-reload")
    machine("systemctl", "restart", "portcullis")
    until(10, machine.is_up)
    pid = machine.shows("MainPID")
    # Longer than the watchdog: what speaks in time is left alone.
    until(2 * WATCHDOG, lambda: machine.shows("MainPID") != pid)
    check.that("the watchdog leaves it alone while it works", machine.shows("MainPID") == pid, machine.journal())
    machine("kill", "-STOP", pid)
    again = until(WATCHDOG + 20, lambda: machine.shows("MainPID") not in ("0", pid) and machine.is_up())
    check.that("hung, it is started again by the watchdog", again and "watchdog" in machine.journal().lower(), machine.journal())


def logs(check, machine):
    log = machine.root / "var/log/portcullis/access.log"
    machine.get("steady.test", "/before")
    written = until(5, lambda: log.is_file() and "/before" in log.read_text())
    done = machine("logrotate", "-f", "/etc/logrotate.d/portcullis")
    rotated = log.with_name("access.log.1")
    fresh = until(5, lambda: machine.get("steady.test", "/after") and log.is_file() and "/after" in log.read_text())
    seen = f"{done.stdout} {sorted(path.name for path in log.parent.iterdir())}"
    check.that("logrotate: new lines are in the new file", written and fresh and "/before" in rotated.read_text() and "/before" not in log.read_text(), seen)


def tracking(check, machine):
    """keepalived's view."""
    track = machine.root / "run/portcullis/track"
    read = lambda: machine("cat", "/run/portcullis/track").stdout.strip()
    machine("systemctl", "start", "portcullis-track")
    check.that("portcullis-track says that it serves", until(10, lambda: read() == "1"), f"{read()} {track}")
    machine("systemctl", "stop", "portcullis")
    check.that("and that it does not, once it is stopped", until(10, lambda: read() == "0"), read())
    machine("systemctl", "start", "portcullis")
    check.that("and again", until(10, lambda: read() == "1"), read())
    machine("systemctl", "stop", "portcullis-track")
    check.that("without it there is no file", not machine("test", "-e", "/run/portcullis/track").returncode == 0)


def stops(check, machine):
    machine.start(BACKEND)
    machine.site("slow", "domains: [slow.test]\nbackends: [127.0.0.1:9000]\nhealth_check: off\n")
    machine("systemctl", "reload", "portcullis")
    slow = machine.start(
        "import http.client\nc = http.client.HTTPConnection('127.0.0.1', 80, timeout=20)\nc.request('GET', '/', headers={'Host': 'slow.test'})\n"
        "print('sent', flush=True)\nprint(c.getresponse().read().decode())",
        stdout=subprocess.PIPE,
    )
    slow.stdout.readline()
    until(1, lambda: False)
    began = time.monotonic()
    machine("systemctl", "stop", "portcullis")
    took, answer = time.monotonic() - began, slow.communicate()[0].strip()
    check.that("a stop lets a request finish that is under way", answer == "slow" and took < 15, (answer, took))
    check.that("and ends well", machine.shows("Result") == "success", machine.journal())
    machine.main("nonsense: 1\n")
    machine("systemctl", "start", "portcullis")
    state = until(5, lambda: machine.shows("ActiveState") == "failed")
    check.that("a start with a bad main file fails, and is not tried again", state and machine.shows("ExecMainStatus") == "78", machine.journal())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary", type=os.path.abspath)
    lab.add_cache(parser)
    options = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("systemd.py: needs root, for namespaces and debootstrap")
    options.cache.mkdir(parents=True, exist_ok=True)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    work = Path(tempfile.mkdtemp(prefix="portcullis-systemd."))
    work.chmod(0o755)
    machine, check = None, Checks()
    try:
        kept, root = tree(options.cache, "systemd", PACKAGES), work / "root"
        run("cp", "-a", "--reflink=auto", kept, root)
        machine = Machine(root, options.binary)
        if not machine.boots():
            print("systemd.py: no systemd boots in a container here:", machine.log.read_text(errors="replace")[-2000:], sep="\n")
            sys.exit(2)
        print(machine("systemctl", "--version").stdout.splitlines()[0], flush=True)
        for checks in (installed, reloads, upgrades, accidents, logs, tracking, stops):
            checks(check, machine)
    finally:
        if machine:
            machine.end()
        shutil.rmtree(work, ignore_errors=True)
    print(f"{check.count - check.failed} of {check.count} checks hold")
    sys.exit(1 if check.failed else 0)


if __name__ == "__main__":
    main()
