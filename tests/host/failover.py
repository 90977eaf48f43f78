#!/usr/bin/env python3
"""Two proxies, two real keepalived, virtual addresses: does a client notice when one of them dies?

Builds a small network of its own out of network namespaces: a client, two backends, and the nodes lb0 and lb1 with a proxy, its
health command and a keepalived each, on one bridge. keepalived runs with the files of `conf/keepalived`; only the path of the track
file is another one. Under a steady load proxies are killed, links cut and keepalived stopped; what that cost is printed and checked.

    failover.py --portcullis PATH                everything
    failover.py --only active-active --times 3

Needs root, Linux, iproute2 and keepalived. Takes about 80 seconds. Exit status: 0 good, 1 a check failed, 2 cannot run here.
"""

import argparse
import asyncio
import collections
import contextlib
import ctypes
import http.server
import json
import os
import pathlib
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

HERE = pathlib.Path(__file__).resolve().parent
FIRST, SECOND = "192.0.2.10", "192.0.2.20"  # the virtual addresses, as in the files of `conf/keepalived`
NODES = {"lb0": "192.0.2.11", "lb1": "192.0.2.12"}
APP, CLIENT = "192.0.2.21", "192.0.2.31"
BACKENDS = {"b1": 8001, "b2": 8002}
SITE = "ha.test"
SECRET = "one secret for both nodes"
CLIENTS = 20  # for each address; each has its own cookie
KEEPING = 4  # so many of them keep their connection, the others make one for each request
PACE = 0.1  # seconds between two requests of a client: 200 requests per second and address
PATIENCE = 0.3  # seconds until a client gives a request up
ADVERT = 0.2  # `advert_int` of the configurations
DELAY = 5.0  # `preempt_delay` of active-active


class Failed(Exception):
    """A check that failed."""


class Unable(Exception):
    """The test cannot run here."""


def check(good, message):
    if not good:
        raise Failed(message)


def wait_for(what, condition, timeout=15.0):
    """Asks until the answer is true, and returns it."""
    until = time.monotonic() + timeout
    while True:
        answer = condition()
        if answer:
            return answer
        if time.monotonic() > until:
            raise Failed(f"waited {timeout:g} s in vain for: {what}")
        time.sleep(0.02)


def ip(*args):
    done = subprocess.run(["ip", *args], capture_output=True, text=True)
    if done.returncode:
        raise Unable(f"`ip {' '.join(args)}`: {done.stderr.strip()}")
    return done.stdout


# Processes


class Child:
    """A process in one of the namespaces, with a log. It gets SIGTERM should this test die."""

    def __init__(self, name, space, command, log, stdout=None):
        self.name, self.log = name, log
        libc = ctypes.CDLL(None)
        with open(log, "ab") as file:
            self.process = subprocess.Popen(
                ["ip", "netns", "exec", space, *command],
                stdin=subprocess.DEVNULL,
                stdout=stdout or file,
                stderr=file,
                start_new_session=True,
                preexec_fn=lambda: libc.prctl(1, signal.SIGTERM),
            )

    def alive(self):
        return self.process.poll() is None

    def kill(self):
        self.process.kill()
        self.process.wait()

    def stop(self, timeout=5.0):
        if self.alive():
            self.process.terminate()
            try:
                self.process.wait(timeout)
            except subprocess.TimeoutExpired:
                self.kill()

    def text(self):
        return pathlib.Path(self.log).read_text(errors="replace")


# The network


class Network:
    def __init__(self):
        self.prefix = f"failover-{os.getpid()}-"
        self.spaces = []

    def build(self):
        self.bridge = self.space("bridge")
        ip("-n", self.bridge, "link", "add", "br0", "type", "bridge")
        ip("-n", self.bridge, "link", "set", "br0", "up")

    def space(self, name):
        space = self.prefix + name
        ip("netns", "add", space)
        self.spaces.append(space)
        ip("-n", space, "link", "set", "lo", "up")
        return space

    def host(self, name, address):
        space = self.space(name)
        ip("-n", self.bridge, "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", space)
        ip("-n", self.bridge, "link", "set", name, "master", "br0", "up")
        ip("-n", space, "addr", "add", f"{address}/24", "dev", "eth0")
        ip("-n", space, "link", "set", "eth0", "up")
        return space

    def cable(self, name, state):
        ip("-n", self.bridge, "link", "set", name, state)

    def remove(self):
        for space in self.spaces:
            # Only what this test started can be in its namespaces: a keepalived whose parent died, say.
            for pid in subprocess.run(["ip", "netns", "pids", space], capture_output=True, text=True).stdout.split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
        for space in self.spaces:
            subprocess.run(["ip", "netns", "del", space], capture_output=True)


class Node:
    """lb0 or lb1: a proxy, its health command and keepalived."""

    def __init__(self, name, network, directory, options, addresses, break_it):
        self.name, self.options, self.break_it = name, options, break_it
        self.space = network.host(name, NODES[name])
        self.directory = directory / name
        (self.directory / "sites.d").mkdir(parents=True)
        (self.directory / "state").mkdir()
        self.track = self.directory / "track"
        self.config = self.directory / "portcullis.yaml"
        main = {
            "listeners": [{"address": f"{address}:80", "freebind": break_it != "freebind"} for address in addresses],
            "admin": {"socket": f"{self.directory}/admin.sock"},
            "state_dir": str(self.directory / "state"),
            "sticky_secret": SECRET + (name if break_it == "secret" else ""),
            "drain_timeout": "1s",
            "sites": "sites.d/*.yaml",
            "backend_groups": {
                "app": {
                    "sticky": {"cookie": "SRV"},
                    "health_check": {"path": "/healthz", "interval": "1s"},
                    "backends": [{"address": f"{APP}:{port}", "name": name} for name, port in BACKENDS.items()],
                }
            },
        }
        # JSON is YAML.
        self.config.write_text(json.dumps(main, indent=2) + "\n")
        (self.directory / "sites.d" / "app.yaml").write_text(json.dumps({"domains": [SITE], "group": "app"}) + "\n")
        self.proxy = self.health = self.keepalived = self.ending = None

    def child(self, what, command):
        return Child(f"{what} on {self.name}", self.space, command, self.directory / f"{what}.log")

    def command(self, template):
        return [part.format(config=self.config, track=self.track, dir=self.directory, node=self.name) for part in shlex.split(template)]

    def start_proxy(self):
        self.proxy = self.child("proxy", self.command(self.options.proxy))

    def start_health(self):
        if self.break_it == "health":
            self.track.write_text("1\n")
        else:
            self.health = self.child("health", self.command(self.options.health))

    def start_keepalived(self, text):
        count = text.count("/run/portcullis/track")
        check(count == 1, f"the configuration names the track file {count} times, not once")
        config = self.directory / "keepalived.conf"
        config.write_text(text.replace("/run/portcullis/track", str(self.track)))
        pids = [f"--{what}={self.directory}/{what}" for what in ("pid", "vrrp_pid", "checkers_pid", "bfd_pid")]
        # Only VRRP, in the foreground, logging into our file, every pid file our own: nothing shared with another keepalived.
        command = ["keepalived", "-P", "-n", "-l", "-G", "-D", "-f", str(config), "-i", self.name, *pids]
        self.keepalived = self.child("keepalived", command)

    def has(self, address):
        links = json.loads(ip("-n", self.space, "-j", "-4", "addr", "show", "dev", "eth0"))
        return any(info.get("local") == address for link in links for info in link.get("addr_info", []))

    def kill_proxy(self):
        self.proxy.kill()
        self.proxy = None

    def stop_keepalived(self):
        self.ending, self.keepalived = self.keepalived, None
        self.ending.process.terminate()

    def sure(self):
        for child in (self.proxy, self.health, self.keepalived):
            check(child is None or child.alive(), f"{child and child.name} ended by itself:\n{child and child.text()[-2000:]}")

    def stop(self):
        for child in (self.keepalived, self.ending, self.health, self.proxy):
            if child:
                child.stop()


# The load

Request = collections.namedtuple("Request", "begin end address client keeping backend error cookie connection")


class Load:
    """What the clients saw, told by the process in the client's namespace as it happens."""

    def __init__(self, space, directory, addresses):
        command = [sys.executable, __file__, "_load", *addresses]
        self.child = Child("the load", space, command, directory / "load.log", stdout=subprocess.PIPE)
        self.requests = []
        threading.Thread(target=self.read, daemon=True).start()

    def read(self):
        for line in self.child.process.stdout:
            self.requests.append(Request(*json.loads(line)))

    def seen(self, address, since=0.0, until=float("inf")):
        check(self.child.alive(), f"the load ended:\n{self.child.text()[-2000:]}")
        return [request for request in list(self.requests) if request.address == address and since <= request.begin < until]

    def every_client(self, address, since):
        """Waits until every client was answered anew at this address."""

        def answered():
            return len({r.client for r in self.seen(address, since) if not r.error}) == CLIENTS

        wait_for(f"an answer for each of the {CLIENTS} clients of {address}", answered, 5.0)

    def settle(self, address, seconds=1.0):
        """Waits until that address had only answers, for all its clients, for so long."""

        def good():
            now = time.monotonic()
            recent = self.seen(address, now - seconds)
            return (
                len({r.client for r in recent}) == CLIENTS
                and not any(r.error for r in recent)
                and min(r.begin for r in recent) < now - seconds + 2 * PACE
            )

        wait_for(f"{seconds:g} s without an error at {address}", good)

    def silence(self, address, since):
        """The longest time without an answer."""
        before = [r.end for r in self.seen(address, 0.0) if not r.error and r.end <= since]
        ends = sorted(before[-1:] + [r.end for r in self.seen(address, since - 1.0) if not r.error and r.end > since])
        check(len(ends) > 1, f"nothing answered at {address}")
        return max(later - earlier for earlier, later in zip(ends, ends[1:]))

    def lost(self, address, since):
        return [r for r in self.seen(address, since - PATIENCE) if r.error and r.end >= since]

    def homes(self, address, since=0.0, until=float("inf")):
        """The last backend of each client."""
        return {r.client: r.backend for r in self.seen(address, since, until) if not r.error}


def load(addresses):
    """Runs in the client's namespace: clients that ask again and again, each with its cookie."""

    async def exchange(address, cookie, connection, keep):
        if connection is None:
            connection = await asyncio.open_connection(address, 80)
        reader, writer = connection
        head = f"GET / HTTP/1.1\r\nHost: {SITE}\r\nConnection: {'keep-alive' if keep else 'close'}\r\n"
        writer.write((head + (f"Cookie: {cookie}\r\n" if cookie else "") + "\r\n").encode())
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        length = int(re.search(r"(?i)\r\ncontent-length: *(\d+)", head)[1])
        body = (await reader.readexactly(length)).decode()
        given = re.search(r"(?i)\r\nset-cookie: *([^;\r]+)", head)
        return connection, head.split(" ")[1], body, given and given[1]

    async def client(address, number):
        keep, cookie, connection, made = number < KEEPING, None, None, 0
        await asyncio.sleep(random.random() * PACE)
        while True:
            begin, backend, error, given = time.monotonic(), None, None, None
            made += connection is None
            try:
                connection, status, body, given = await asyncio.wait_for(exchange(address, cookie, connection, keep), PATIENCE)
                if status == "200":
                    backend = body.strip()
                    cookie = given or cookie
                else:
                    error = f"status {status}"
            except asyncio.TimeoutError:
                error = "timeout"
            except (OSError, asyncio.IncompleteReadError, TypeError) as failure:
                error = type(failure).__name__
            if connection and (error or not keep):
                connection[1].transport.abort() if error else connection[1].close()
                connection = None
            end = time.monotonic()
            print(json.dumps([begin, end, address, number, keep, backend, error, bool(given), made]), flush=True)
            await asyncio.sleep(max(0.0, begin + PACE - time.monotonic()))

    async def everybody():
        await asyncio.gather(*(client(address, number) for address in addresses for number in range(CLIENTS)))

    asyncio.run(everybody())


def backend(name, port):
    """Runs in the backends' namespace: answers with its name."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1

        def do_GET(self):
            body = name.encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    class Server(http.server.ThreadingHTTPServer):
        request_queue_size = 512

    Server((APP, port), Handler).serve_forever()


# The scenarios


class Stage:
    """A network with everything in it, for one scenario."""

    def __init__(self, stack, options, config, addresses, unicast=False):
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix="failover-"))
        stack.callback(self.tidy, options.keep)
        options.made(self.directory)
        self.network = Network()
        stack.callback(self.network.remove)
        self.network.build()
        app = self.network.host("app", APP)
        self.client = self.network.host("client", CLIENT)
        self.nodes = [Node(name, self.network, self.directory, options, addresses, options.break_it) for name in NODES]
        for node in self.nodes:
            stack.callback(node.stop)
        for name, port in BACKENDS.items():
            child = Child(name, app, [sys.executable, __file__, "_backend", name, str(port)], self.directory / f"{name}.log")
            stack.callback(child.stop)
        self.addresses = addresses
        self.stack = stack
        self.text = (options.conf / config).read_text()
        if unicast:
            check("#unicast " in self.text, "the configuration has no lines for unicast")
            self.text = self.text.replace("#unicast ", "")

    def tidy(self, keep):
        if keep:
            print(f"      kept: {self.directory}")
        else:
            shutil.rmtree(self.directory, ignore_errors=True)

    def holders(self, address):
        return [node.name for node in self.nodes if node.has(address)]

    def wait_holder(self, address, name, timeout=15.0):
        def held():
            for node in self.nodes:
                node.sure()
            return self.holders(address) == [name]

        wait_for(f"{address} on {name} alone", held, timeout)
        return time.monotonic()

    def start(self):
        """keepalived first: no address may come up before a proxy is ready. Then lb0, then lb1."""
        for node in self.nodes:
            node.start_keepalived(self.text)
        if self.nodes[0].break_it != "health":
            for node in self.nodes:
                wait_for(f"keepalived on {node.name} to say that it may not serve", lambda: "FAULT" in node.keepalived.text())
            for address in self.addresses:
                check(self.holders(address) == [], f"{address} is served before a proxy is ready")
        for node in self.nodes:
            node.start_proxy()
            node.start_health()
            if node is self.nodes[0]:
                self.wait_holder(FIRST, "lb0", 20.0)
        wait_for("lb1's proxy to be ready", lambda: self.ready("lb1"))
        self.wait_holder(FIRST, "lb0")
        for address, name in zip(self.addresses, NODES):
            self.wait_holder(address, name, 20.0)
        self.load = Load(self.client, self.directory, self.addresses)
        self.stack.callback(self.load.child.stop)
        for address in self.addresses:
            self.load.settle(address)
            check(set(self.load.homes(address).values()) == set(BACKENDS), f"the clients of {address} are not spread over both backends")

    def node(self, name):
        return next(node for node in self.nodes if node.name == name)

    def ready(self, name):
        node = self.node(name)
        return node.track.exists() and node.track.read_text().strip() == "1"

    def away(self, what, address, name, act, most):
        """`act` takes a node away: how long until `name` answers at `address`, and what did the clients lose?"""
        load = self.load
        load.settle(address)
        begin = time.monotonic()
        homes = load.homes(address)
        connections = {a: {r.client: r.connection for r in load.seen(a) if r.keeping} for a in self.addresses}
        others = [other for other in self.addresses if other != address]
        act()
        moved = self.wait_holder(address, name) - begin
        load.every_client(address, time.monotonic())
        load.settle(address)
        silence, lost = load.silence(address, begin), load.lost(address, begin)
        now = load.homes(address, time.monotonic() - 1.0)
        kept = sum(now[client] == home for client, home in homes.items())
        new = sum(r.cookie for r in load.seen(address, begin))
        kinds = ", ".join(f"{count} {kind}" for kind, count in collections.Counter(r.error for r in lost).most_common())
        self.tell(
            f"{what}: {address} on {name} after {moved:.2f} s",
            f"{silence:.2f} s without an answer, {len(lost)} requests lost ({kinds or 'none'}; {sum(r.keeping for r in lost)} of them on "
            f"kept connections), {kept} of {len(homes)} clients kept their backend",
        )
        check(len(homes) == CLIENTS and kept == CLIENTS, f"only {kept} of {CLIENTS} clients kept their backend")
        check(new == 0, f"{new} clients got another cookie")
        check(silence <= most, f"{silence:.2f} s without an answer, {most:.2f} s are allowed")
        for other in others:
            self.unharmed("meanwhile", other, begin, connections[other])
        return silence, len(lost)

    def unharmed(self, what, address, begin, connections=None):
        """Requests and kept connections to an address that did not move: none may be lost."""
        lost, silence = self.load.lost(address, begin), self.load.silence(address, begin)
        count = len(self.load.seen(address, begin))
        now = {r.client: r.connection for r in self.load.seen(address) if r.keeping}
        again = sum(now[client] != made for client, made in connections.items())
        self.tell(f"    {what}, at {address}", f"{count} requests, {len(lost)} lost, {again} of {KEEPING} kept connections made anew")
        check(not lost, f"{len(lost)} requests to {address} were lost: it had nothing to do with it ({[r.error for r in lost[:3]]})")
        check(again == 0, f"{again} connections to {address} were lost")
        check(silence < 0.5, f"{silence:.2f} s without an answer at {address}")

    @staticmethod
    def tell(what, found):
        print(f"      {what}: {found}", flush=True)


def told(extra=0.0):
    """What a takeover may take that is told by an advert: less than one interval. A second is for a busy machine."""
    return ADVERT + 1.0 + extra


def vanished():
    """What it may take when adverts stop: four intervals."""
    return 4 * ADVERT + 1.0


def one_address(stack, options, unicast=False):
    stage = Stage(stack, options, "master-backup.conf", [FIRST], unicast)
    stage.start()
    lb0, lb1 = stage.nodes

    def back(node, act, sign):
        """The node comes back, and nobody may notice: the address stays where it is."""
        begin = time.monotonic()
        connections = {r.client: r.connection for r in stage.load.seen(FIRST) if r.keeping}
        seen = len(node.keepalived.text()) if node.keepalived else 0
        act()
        wait_for(f"keepalived on {node.name} to stand by", lambda: sign in node.keepalived.text()[seen:])
        # Longer than it would wait before it took the address, had it no `nopreempt`.
        until = time.monotonic() + 5 * ADVERT
        wait_for("five intervals", lambda: time.monotonic() > until)
        stage.load.settle(FIRST)
        other = lb1 if node is lb0 else lb0
        check(stage.holders(FIRST) == [other.name], f"{FIRST} is on {stage.holders(FIRST)}: {node.name} took it back despite `nopreempt`")
        stage.unharmed(f"{node.name} back", FIRST, begin, connections)

    def start_keepalived(node):
        wait_for(f"keepalived on {node.name} to end", lambda: not node.ending.alive())
        # A log of its own, so that its first words are seen.
        (node.directory / "keepalived.log").rename(node.directory / "keepalived-before.log")
        node.start_keepalived(stage.text)

    stage.away("lb0's proxy killed", FIRST, "lb1", lb0.kill_proxy, told())
    back(lb0, lb0.start_proxy, "Entering BACKUP STATE")
    stage.away("lb1's proxy killed", FIRST, "lb0", lb1.kill_proxy, told())
    back(lb1, lb1.start_proxy, "Entering BACKUP STATE")
    if unicast:
        return
    stage.away("lb0's cable cut", FIRST, "lb1", lambda: stage.network.cable("lb0", "down"), vanished())
    back(lb0, lambda: stage.network.cable("lb0", "up"), "Entering BACKUP STATE")
    stage.away("lb1's keepalived stopped", FIRST, "lb0", lb1.stop_keepalived, told())
    back(lb1, lambda: start_keepalived(lb1), "Entering BACKUP STATE")


def two_addresses(stack, options, unicast=False):
    stage = Stage(stack, options, "active-active.conf", [FIRST, SECOND], unicast)
    stage.start()
    for node, address, other in ((stage.nodes[0], FIRST, "lb1"), (stage.nodes[1], SECOND, "lb0")):
        stage.away(f"{node.name}'s proxy killed", address, other, node.kill_proxy, told())
        begin = time.monotonic()

        def ready():
            node.start_proxy()
            wait_for(f"{node.name}'s proxy to be ready", lambda: stage.ready(node.name))

        stage.away(f"{node.name}'s proxy back", address, node.name, ready, 0.5)
        taken = time.monotonic() - begin
        check(taken >= DELAY, f"{node.name} took {address} back after {taken:.1f} s: `preempt_delay` is {DELAY:g} s")
        for address in stage.addresses:
            check(len(stage.holders(address)) == 1, f"{address} is on {stage.holders(address)}")


def track_file(stack, options):
    """What keepalived makes of the file: anything but a number other than 0 takes the address away."""
    stage = Stage(stack, options, "master-backup.conf", [FIRST])
    node = stage.nodes[0]
    track = node.track

    def move(content):
        def act():
            new = track.with_suffix(".new")
            new.write_text(content)
            new.rename(track)

        return act

    def rewrite(content):
        return lambda: track.write_text(content)

    node.start_keepalived(stage.text)
    wait_for("FAULT without a file", lambda: "FAULT" in node.keepalived.text())
    check(not node.has(FIRST), f"{FIRST} is there without a track file")
    steps = [
        ("a file with 1 moved there", move("1\n"), True),
        ("a file with 0 moved over it", move("0\n"), False),
        ("1 written into it", rewrite("1"), True),
        ("removed", track.unlink, False),
        ("1 again", move("1\n"), True),
        ("emptied", rewrite(""), False),
        ("1 again", move("1\n"), True),
        ("a word", move("ready\n"), False),
    ]
    for what, act, has in steps:
        begin = time.monotonic()
        act()
        wait_for(f"{FIRST} {'to come' if has else 'to go'}: {what}", lambda: node.has(FIRST) == has, 5.0)
        stage.tell(what, f"the address {'comes' if has else 'goes'} after {time.monotonic() - begin:.2f} s")
        node.sure()


SCENARIOS = {
    "track-file": track_file,
    "master-backup": one_address,
    "active-active": two_addresses,
    "unicast": lambda stack, options: one_address(stack, options, unicast=True),
    "active-active-unicast": lambda stack, options: two_addresses(stack, options, unicast=True),
}


def run(name, options):
    print(name, flush=True)
    with contextlib.ExitStack() as stack:
        directories = []
        options.made = directories.append
        try:
            SCENARIOS[name](stack, options)
        except Failed as failure:
            print(f"FAILED {name}: {failure}", flush=True)
            for log in (log for directory in directories for log in sorted(directory.glob("lb*/*.log"))):
                print(f"--- the end of {log.relative_to(directories[0])}", *log.read_text(errors="replace").splitlines()[-8:], sep="\n    ")
            return False
    return True


def main():
    if sys.argv[1:2] == ["_load"]:
        return load(sys.argv[2:])
    if sys.argv[1:2] == ["_backend"]:
        return backend(sys.argv[2], int(sys.argv[3]))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--portcullis", metavar="PATH", required=True, help="the binary")
    parser.add_argument("--proxy", metavar="COMMAND", help="how the proxy is started: {config}, {track}, {dir}, {node} are filled in")
    parser.add_argument("--health", metavar="COMMAND", help="how its health command is started, likewise")
    parser.add_argument("--conf", type=pathlib.Path, default=HERE.parent.parent / "conf" / "keepalived", help="where the files of keepalived are")
    parser.add_argument("--only", action="append", choices=SCENARIOS, help="this scenario alone; may be repeated")
    parser.add_argument("--times", type=int, default=1, help="how often")
    parser.add_argument("--keep", action="store_true", help="leave the logs")
    parser.add_argument("--break", dest="break_it", choices=["secret", "health", "freebind"],
                        help="two secrets, no health command, no `freebind`: to see the test fail")
    options = parser.parse_args()
    binary = shlex.quote(str(pathlib.Path(options.portcullis).resolve()))
    options.proxy = options.proxy or f"{binary} run -c {{config}}"
    options.health = options.health or f"{binary} health -c {{config}} --track-file {{track}}"
    # What is built is taken down on the way out, however this ends.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    try:
        if os.geteuid() != 0:
            raise Unable("it needs root, for network namespaces")
        for program, package in (("ip", "iproute2"), ("keepalived", "keepalived")):
            if not shutil.which(program):
                raise Unable(f"`{program}` is missing: apt-get install {package}")
        version = subprocess.run(["keepalived", "--version"], capture_output=True, text=True).stderr.splitlines()[0]
        print(f"{version}; the proxy is {options.proxy.split(' run ')[0]}")
        good = [run(name, options) for _ in range(options.times) for name in options.only or SCENARIOS]
    except Unable as failure:
        print(f"{pathlib.Path(__file__).name}: {failure}", file=sys.stderr)
        return 2
    print("all good" if all(good) else f"{good.count(False)} of {len(good)} FAILED")
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
