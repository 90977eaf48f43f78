"""Reloads and upgrades under load lose nothing, and reloads of large configurations stay cheap.

`never_drop.py PORTCULLIS [--reloads 100] [--upgrades 20] [--sites 100 1000 10000] [--users 1000000]`

1. Reloads in a row, each of which changes a route, a backend group, a certificate and the listeners, under steady load: HTTP/1.1 on
   connections that stay and on new ones, plain and TLS, HTTP/2 over TLS, and WebSockets. Nothing may fail, close or be refused, and
   the memory of the process may not grow.
2. Upgrades under the same load, a quarter of them with a program that fails in one of five ways. WebSockets may be closed with 1001
   at the end of the drain, nothing else. TLS sessions from before are resumed after.
3. A table of what a reload costs with many sites and many users.

A number of 0 leaves a part out. Exit status 1: something was lost, or a bound does not hold; what, is printed at the end.
"""
import argparse
import asyncio
import base64
import collections
import contextlib
import ctypes
import hashlib
import itertools
import json
import os
import pathlib
import random
import signal
import socket
import ssl
import statistics
import struct
import subprocess
import sys
import tempfile
import time

DRAIN = 3.0
# What a 1001 may be away from the end of the drain: frames of a busy machine come late.
EARLY, LATE = 0.5, 1.5
# An answer that has not come by then does not come.
PATIENCE = 10.0
WEBSOCKETS = 50
# Sites that nobody asks for.
OTHERS = 20
# How much the memory at the end of all reloads may differ from that after the first ten.
GROWTH = 0.05
# The load alone takes and gives back some MiB until its connections and buffers are all there: that is not the reloads' doing.
SETTLING = 15.0
STEADY, MOVING = "steady.test", "moving.test"


# === What happened ===


class Tally:
    """What the clients of one part saw."""

    def __init__(self):
        self.began = time.monotonic()
        self.done = collections.Counter()
        self.failed = collections.Counter()
        # The first of each kind, with its time.
        self.examples = {}
        self.refused = self.raced = self.retried = self.going_away = 0
        self.closed = collections.Counter()
        self.origin_closed = collections.Counter()

    def note(self, counter, what):
        counter[what] += 1
        self.examples.setdefault(what, f"{time.monotonic() - self.began:.2f} s after the beginning")

    def fail(self, kind, error):
        # An error without words has a name.
        self.note(self.failed, f"{kind}: {str(error) or type(error).__name__}")

    def show(self):
        total = sum(self.done.values())
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(self.done.items()))
        print(f"  requests and messages done    {total} ({kinds})")
        print(f"  failed                        {sum(self.failed.values())}")
        print(f"  refused connections           {self.refused}")
        print(f"  raced (closed under a request) {self.raced}")
        print(f"  WebSockets closed wrongly     {sum(self.closed.values())} at clients, {sum(self.origin_closed.values())} at backends")
        print(f"  WebSockets closed with 1001 at the end of a drain {self.going_away}; HTTP/2 streams sent again after GOAWAY {self.retried}")
        for counter in (self.failed, self.closed, self.origin_closed):
            for what, count in counter.most_common(12):
                print(f"    {count} x {what} (first {self.examples[what]})")
        sys.stdout.flush()

    def faults(self, part):
        counts = {
            "failed requests": sum(self.failed.values()),
            "refused connections": self.refused,
            "raced requests": self.raced,
            "WebSockets closed wrongly": sum(self.closed.values()),
            "WebSockets closed wrongly at backends": sum(self.origin_closed.values()),
        }
        return [f"{part}: {count} {what}" for what, count in counts.items() if count]


# The tally of the part that runs.
tally = Tally()
FAULTS = []
# When connections of processes that have handed over are cut.
deadlines = []
# Whether closed connections are our own doing.
ending = False
# Cleared while the clients keep still, with their connections open.
busy = asyncio.Event()


def fault(text):
    FAULTS.append(text)
    print(f"  FAULT at {time.monotonic() - tally.began:.2f} s: {text}", flush=True)


def expect(good, text):
    if not good:
        fault(text)


# === HTTP/1.1 and WebSocket frames ===


class Failed(Exception):
    """Anything but the right answer."""


class Raced(Exception):
    """A connection was closed while a request was on its way."""


def client_context(version=None):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if version:
        context.minimum_version = context.maximum_version = version
    return context


HTTP1 = client_context()
HTTP1.set_alpn_protocols(["http/1.1"])
HTTP2 = client_context()
HTTP2.set_alpn_protocols(["h2"])


async def connect(port, host, context):
    """A connection; one that is refused is counted by whoever asked."""
    tls = {"ssl": context, "server_hostname": host} if context else {}
    try:
        return await asyncio.wait_for(asyncio.open_connection("127.0.0.1", port, **tls), PATIENCE)
    except ConnectionRefusedError:
        raise
    except asyncio.TimeoutError:
        raise Failed("no connection in time") from None
    except OSError as error:
        raise Failed(f"cannot connect: {type(error).__name__} {error}") from None


async def read_head(reader):
    """The first line and the headers, their names in lower case."""
    lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    pairs = (line.partition(":") for line in lines[1:] if line)
    return lines[0], {name.lower(): value.strip() for name, _, value in pairs}


async def read_body(reader, headers):
    if "chunked" in headers.get("transfer-encoding", ""):
        body = b""
        while size := int(await reader.readline(), 16):
            body += await reader.readexactly(size)
            await reader.readexactly(2)
        await reader.readexactly(2)
        return body
    return await reader.readexactly(int(headers.get("content-length", 0)))


async def read_frame(reader):
    first, second = await reader.readexactly(2)
    length = second & 0x7F
    if length == 126:
        (length,) = struct.unpack(">H", await reader.readexactly(2))
    mask = await reader.readexactly(4) if second & 0x80 else b"\0\0\0\0"
    content = await reader.readexactly(length)
    if any(mask):
        pad = (mask * (length // 4 + 1))[:length]
        content = (int.from_bytes(content, "big") ^ int.from_bytes(pad, "big")).to_bytes(length, "big")
    return first & 0x0F, content


def frame(opcode, content, masked=False):
    """A whole message. A mask of zeros is a mask."""
    mask, bit = (b"\0\0\0\0", 0x80) if masked else (b"", 0)
    length = len(content)
    head = bytes([0x80 | opcode, bit | length]) if length < 126 else struct.pack(">BBH", 0x80 | opcode, bit | 126, length)
    return head + mask + content


def accept_key(key):
    return base64.b64encode(hashlib.sha1(key.encode() + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()).decode()


# === The backends ===


async def origin():
    """Answers with the path that it was asked for, slowly under `/slow/`, and echoes WebSockets. Gives its port."""
    server = await asyncio.start_server(origin_connection, "127.0.0.1", 0, backlog=1024)
    return server, server.sockets[0].getsockname()[1]


async def origin_connection(reader, writer):
    # At the end of the program it is cancelled, which is nothing to tell of.
    with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
        while True:
            line, headers = await read_head(reader)
            path = line.split()[1]
            if headers.get("upgrade", "").lower() == "websocket":
                answer = f"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept_key(headers['sec-websocket-key'])}\r\n\r\n"
                writer.write(answer.encode())
                await echo(reader, writer)
                break
            body = await read_body(reader, headers)
            text = f"{path} {len(body)}".encode()
            if path.startswith("/slow/"):
                writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
                for piece in (text[:4], text[4:]):
                    await asyncio.sleep(0.6)
                    writer.write(b"%x\r\n%s\r\n" % (len(piece), piece))
                writer.write(b"0\r\n\r\n")
            else:
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(text), text))
            await writer.drain()
    writer.close()


async def echo(reader, writer):
    try:
        while True:
            opcode, content = await read_frame(reader)
            writer.write(frame(opcode, content))
            if opcode == 8:
                if content[:2] != b"\x03\xe9" and not ending:
                    tally.note(tally.origin_closed, f"backend: close frame with {content[:2].hex()}")
                return
    except (OSError, asyncio.IncompleteReadError) as error:
        if not ending:
            tally.note(tally.origin_closed, f"backend: {type(error).__name__} instead of a close frame")


# === The clients ===


class Http1:
    """A client with one connection, which it keeps if it may."""

    def __init__(self, kind, port, host, context, keep=True):
        self.kind, self.port, self.host, self.context, self.keep = kind, port, host, context, keep
        self.reader = self.writer = None
        self.used = False

    def drop(self):
        if self.writer:
            self.writer.close()
        self.reader = self.writer = None

    async def request(self, path, pieces=()):
        # Closed while idle, before anything was sent: that is a server's right.
        if self.reader and (self.reader.at_eof() or self.reader.exception()):
            self.drop()
        if not self.reader:
            self.reader, self.writer = await connect(self.port, self.host, self.context)
            self.used = False
        method, length = ("POST", f"Content-Length: {sum(map(len, pieces))}\r\n") if pieces else ("GET", "")
        close = "" if self.keep else "Connection: close\r\n"
        begun = False
        try:
            self.writer.write(f"{method} {path} HTTP/1.1\r\nHost: {self.host}\r\n{length}{close}\r\n".encode())
            for piece in pieces:
                self.writer.write(piece)
                await self.writer.drain()
                await asyncio.sleep(0.05)
            line, headers = await read_head(self.reader)
            begun = True
            body = await read_body(self.reader, headers)
        except (OSError, asyncio.IncompleteReadError) as error:
            cut = isinstance(error, asyncio.IncompleteReadError) and error.partial
            if self.used and not begun and not cut:
                raise Raced from None
            where = "in the middle of an answer" if begun or cut else "on a new connection before the answer"
            raise Failed(f"{type(error).__name__} {where}") from None
        status = line.split()[1]
        if status != "200" or body != f"{path} {sum(map(len, pieces))}".encode():
            raise Failed(f"{line!r} instead of the answer ({body[:60]!r})")
        self.used = True
        if headers.get("connection", "").lower() == "close" or not self.keep:
            self.drop()


async def rest(pause):
    await asyncio.sleep(random.uniform(*pause))
    await busy.wait()


async def http1_client(client, pause, path, pieces=()):
    for n in itertools.count():
        try:
            await asyncio.wait_for(client.request(f"{path}{n}", pieces), PATIENCE)
            tally.done[client.kind] += 1
        except ConnectionRefusedError:
            tally.refused += 1
        except Raced:
            tally.raced += 1
            client.drop()
        except (Failed, asyncio.TimeoutError) as error:
            tally.fail(client.kind, error if str(error) else "no answer in time")
            client.drop()
        await rest(pause)


async def knocker(port):
    """Connects and leaves, again and again: whether anybody is home."""
    while True:
        try:
            _, writer = await connect(port, None, None)
            writer.close()
            tally.done["bare connections"] += 1
        except ConnectionRefusedError:
            tally.refused += 1
        except Failed as error:
            tally.fail("bare connections", error)
        await rest((0.005, 0.02))


class Refused(Exception):
    """A stream that the server has not looked at, by its GOAWAY."""


class Http2:
    """One HTTP/2 connection, as much of it as small requests need.

    Requests are encoded without a table; of answers the status must be the static table's 200, and the body is compared as a whole.
    """

    def __init__(self, reader, writer, host):
        self.reader, self.writer, self.host = reader, writer, host
        self.next, self.last, self.goes = 1, 2**31, False
        self.open = {}
        settings = struct.pack(">HI", 2, 0)  # no pushes
        self.writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + self.frame(4, 0, 0, settings) + self.frame(8, 0, 0, struct.pack(">I", 2**31 - 1 - 65535)))
        self.task = asyncio.create_task(self.read())

    @staticmethod
    def frame(kind, flags, stream, content=b""):
        return struct.pack(">I", len(content))[1:] + struct.pack(">BBI", kind, flags, stream) + content

    async def request(self, path):
        stream, self.next = self.next, self.next + 2
        answer = asyncio.get_running_loop().create_future()
        self.open[stream] = [answer, None, b""]
        text = lambda prefix, value: bytes([prefix, len(value)]) + value.encode()
        # GET, https, and :path and :authority as they are.
        head = b"\x82\x87" + text(4, path) + text(1, self.host)
        self.writer.write(self.frame(1, 0x5, stream, head))
        return await answer

    async def read(self):
        why = "ended"
        try:
            while True:
                head = await self.reader.readexactly(9)
                content = await self.reader.readexactly(int.from_bytes(head[:3], "big"))
                self.take(head[3], head[4], int.from_bytes(head[5:], "big"), content)
        except (OSError, asyncio.IncompleteReadError) as error:
            why = type(error).__name__
        self.goes = True
        for stream in list(self.open):
            self.settle(stream, Refused() if stream > self.last else Failed(f"{why} of the connection with the stream open, GOAWAY {self.last}"))
        self.writer.close()

    def take(self, kind, flags, stream, content):
        if kind == 4 and not flags & 1:
            self.writer.write(self.frame(4, 1, 0))
        elif kind == 6 and not flags & 1:
            self.writer.write(self.frame(6, 1, 0, content))
        elif kind == 7:
            self.goes, self.last = True, int.from_bytes(content[:4], "big") & 0x7FFFFFFF
            if code := int.from_bytes(content[4:8], "big"):
                tally.fail("HTTP/2", f"GOAWAY with error {code}")
            for own in [own for own in self.open if own > self.last]:
                self.settle(own, Refused())
        elif kind == 3:
            self.settle(stream, Failed(f"RST_STREAM {int.from_bytes(content, 'big')}"))
        elif kind in (0, 1) and stream in self.open:
            state = self.open[stream]
            if kind == 0:
                state[2] += content
            elif state[1] is None:
                # Changes of the table's size come first.
                state[1] = content.lstrip(bytes(range(0x20, 0x40)))[:6]
            if flags & 1:
                self.settle(stream, None)
        if self.goes and not self.open:
            self.writer.close()

    def settle(self, stream, error):
        answer, head, body = self.open.pop(stream, (None, None, None))
        if answer is None or answer.done():
            return
        if error is None and (not head or head[0] != 0x88):
            error = Failed(f"status {head.hex() if head else None} instead of 200")
        answer.set_exception(error) if error else answer.set_result(body)


class Http2Client:
    """Sends requests on one connection, and on the next one when that is to end."""

    def __init__(self, port, host):
        self.port, self.host, self.connection = port, host, None
        self.one = asyncio.Lock()

    async def connected(self):
        async with self.one:
            if self.connection is None or self.connection.goes:
                reader, writer = await connect(self.port, self.host, HTTP2)
                if writer.get_extra_info("ssl_object").selected_alpn_protocol() != "h2":
                    raise Failed("no HTTP/2 in the handshake")
                self.connection = Http2(reader, writer, self.host)
            return self.connection

    async def request(self, path):
        for _ in range(5):
            connection = await self.connected()
            try:
                body = await connection.request(path)
            except Refused:
                tally.retried += 1
                continue
            if body != f"{path} 0".encode():
                raise Failed(f"wrong body {body[:60]!r}")
            return
        raise Failed("five connections in a row refused the stream")

    async def go(self, pause, path):
        for n in itertools.count():
            try:
                await asyncio.wait_for(self.request(f"{path}{n}"), PATIENCE)
                tally.done["HTTP/2"] += 1
            except ConnectionRefusedError:
                tally.refused += 1
            except (Failed, asyncio.TimeoutError) as error:
                tally.fail("HTTP/2", error if str(error) else "no answer in time")
            await rest(pause)


async def websocket(port, host, context, number):
    while True:
        try:
            await asyncio.wait_for(asyncio.shield(opened := asyncio.ensure_future(open_websocket(port, host, context))), PATIENCE)
        except ConnectionRefusedError:
            tally.refused += 1
            await asyncio.sleep(0.1)
            continue
        except (Failed, OSError, asyncio.IncompleteReadError, asyncio.TimeoutError) as error:
            tally.fail("WebSocket handshake", f"{type(error).__name__} {error}")
            await asyncio.sleep(0.1)
            continue
        reader, writer = opened.result()
        messages = asyncio.Queue()
        task = asyncio.create_task(frames_of(reader, messages))
        try:
            await talk(writer, messages, number)
        finally:
            task.cancel()
            writer.close()


async def open_websocket(port, host, context):
    reader, writer = await connect(port, host, context)
    key = base64.b64encode(os.urandom(16)).decode()
    writer.write(f"GET /echo HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n".encode())
    line, headers = await read_head(reader)
    if line.split()[1] != "101" or headers.get("sec-websocket-accept") != accept_key(key):
        raise Failed(line)
    return reader, writer


async def frames_of(reader, messages):
    try:
        while True:
            messages.put_nowait(await read_frame(reader))
    except (OSError, asyncio.IncompleteReadError) as error:
        messages.put_nowait((None, type(error).__name__.encode()))


async def talk(writer, messages, number):
    """Sends messages and gets them back until the connection ends."""
    for n in itertools.count():
        text = f"{number}:{n}:".encode() + b"x" * random.choice((10, 100, 2000))
        writer.write(frame(1, text, masked=True))
        try:
            opcode, content = await asyncio.wait_for(messages.get(), PATIENCE)
        except asyncio.TimeoutError:
            tally.note(tally.closed, "client: no echo in time")
            return
        if opcode == 1 and content == text:
            tally.done["messages"] += 1
            with contextlib.suppress(asyncio.TimeoutError):
                opcode, content = await asyncio.wait_for(messages.get(), random.uniform(0.1, 0.4))
                await closed(writer, messages, opcode, content)
                return
            await busy.wait()
        else:
            await closed(writer, messages, opcode, content)
            return


async def closed(writer, messages, opcode, content):
    now = time.monotonic()
    if opcode != 8:
        tally.note(tally.closed, f"client: {'ended without a close frame' if opcode is None else f'unexpected frame {opcode}'} ({content[:40]!r})")
        return
    if content[:2] != b"\x03\xe9":
        tally.note(tally.closed, f"client: close frame with {content[:2].hex()}")
    elif not any(-EARLY < now - deadline < LATE for deadline in deadlines):
        last = f"{now - deadlines[-1]:+.1f} s from the last end of a drain" if deadlines else "before any upgrade"
        tally.note(tally.closed, f"client: 1001 at the wrong time ({last})")
    else:
        tally.going_away += 1
    # The client says goodbye too, and the connection ends.
    writer.write(frame(8, content[:2], masked=True))
    with contextlib.suppress(asyncio.TimeoutError):
        opcode, _ = await asyncio.wait_for(messages.get(), 3)
        expect(opcode is None, f"a frame {opcode} after a close frame")
        return
    tally.note(tally.closed, "client: the connection does not end after the close frames")


def load(plain, tls):
    """All the clients, as tasks."""
    quick, fresh, seldom = (0.005, 0.02), (0.01, 0.03), (0.05, 0.1)
    clients = []
    for n, host in enumerate([STEADY, MOVING] * 2):
        clients += [
            http1_client(Http1("HTTP/1.1", plain, host, None), quick, f"/p{n}/"),
            http1_client(Http1("HTTP/1.1 over TLS", tls, host, HTTP1), quick, f"/t{n}/"),
        ]
    for n, host in enumerate([STEADY, MOVING]):
        clients += [
            http1_client(Http1("new connections", plain, host, None, keep=False), fresh, f"/n{n}/"),
            http1_client(Http1("new connections over TLS", tls, host, HTTP1, keep=False), fresh, f"/m{n}/"),
            http1_client(Http1("slow answers", plain, host, None), seldom, f"/slow/p{n}/"),
            http1_client(Http1("slow answers", tls, host, HTTP1), seldom, f"/slow/t{n}/"),
            http1_client(Http1("uploads", tls, host, HTTP1), seldom, f"/up{n}/", [bytes(16 << 10)] * 4),
        ]
        multiplexed = Http2Client(tls, host)
        clients += [multiplexed.go(quick, f"/h{n}-{stream}/") for stream in range(3)] + [multiplexed.go(seldom, f"/slow/h{n}/")]
    clients += [knocker(plain), knocker(tls)]
    for n in range(WEBSOCKETS):
        port, context = (plain, None) if n % 2 else (tls, HTTP1)
        clients.append(websocket(port, (STEADY, MOVING)[n // 2 % 2], context, n))
    return [asyncio.create_task(client) for client in clients]


# === The proxy ===


def become_reaper():
    """A process whose parent has ended becomes our child: nothing that was started here is lost sight of."""
    ctypes.CDLL(None, use_errno=True).prctl(36, 1, 0, 0, 0)


def processes(parent):
    """The living children of a process: number and name."""
    found = {}
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                name, _, rest = (entry / "stat").read_text().partition(") ")
                state, own = rest.split()[:2]
                if int(own) == parent and state != "Z":
                    found[int(entry.name)] = name.partition("(")[2]
    return found


def kill_all():
    """Whatever was started and still runs."""
    until = time.monotonic() + 10
    while (left := processes(os.getpid())) and time.monotonic() < until:
        for pid in left:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(OSError):
                os.waitpid(pid, 0)


def free_port(taken=set()):
    """A port below those that the kernel gives to clients: none of them takes it while nobody listens there."""
    while True:
        port = random.randrange(12000, 32000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            if port not in taken:
                taken.add(port)
                return port


def resident(pid):
    """MiB."""
    lines = pathlib.Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))


class Proxy:
    def __init__(self, binary, folder):
        self.binary, self.folder, self.main, self.log = binary, folder, folder / "main.yaml", folder / "log"

    def start(self):
        with open(self.log, "ab") as log:
            process = subprocess.Popen([self.binary, "run", "-c", str(self.main)], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        until = time.monotonic() + 120
        while " is ready" not in self.log.read_text():
            if process.poll() is not None or time.monotonic() > until:
                sys.exit(f"the proxy does not start:\n{self.log.read_text()[-3000:]}")
            time.sleep(0.02)
        self.process = process
        return process.pid

    async def tell(self, *words):
        """A command: its exit status, what it printed, and how long it took."""
        began = time.monotonic()
        words = [self.binary, words[0], "-c", str(self.main), *words[1:]]
        process = await asyncio.create_subprocess_exec(*words, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT)
        try:
            said, _ = await asyncio.wait_for(process.communicate(), 120)
        except asyncio.TimeoutError:
            process.kill()
            return None, "the command does not end", time.monotonic() - began
        return process.returncode, said.decode(), time.monotonic() - began

    async def status(self):
        """`None`: nobody answers."""
        code, said, _ = await self.tell("status", "--format", "json")
        if code != 0:
            return None, said.strip()
        return json.loads(said), ""

    def troubles(self):
        """Lines of the log that tell of more than usual."""
        lines = [line for line in self.log.read_text(errors="replace").splitlines() if any(word in line for word in ("ERROR", "WARN", "error", "panicked"))]
        return collections.Counter(line.split(" ", 1)[-1] for line in lines).most_common(25)


def certificates(folder, count):
    """Self-signed, each with its own key. Gives their digests."""
    folder.mkdir()
    digests = []
    for n in range(count):
        name = str(folder / f"c{n}")
        words = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "90"]
        words += ["-keyout", f"{name}.key", "-out", f"{name}.pem", "-subj", f"/CN={MOVING}", "-addext", f"subjectAltName=DNS:{MOVING},DNS:{STEADY}"]
        subprocess.run(words, check=True, capture_output=True)
        os.chmod(f"{name}.key", 0o600)
        digests.append(hashlib.sha256(ssl.PEM_cert_to_DER_cert(pathlib.Path(f"{name}.pem").read_text())).hexdigest())
    return digests


class Stage:
    """The configuration that parts 1 and 2 change, and what must be seen of each version of it."""

    CERTIFICATES = 8

    def __init__(self, folder, origins):
        self.folder, self.origins = folder, origins
        self.plain, self.tls, self.extra = free_port(), free_port(), free_port()
        self.digests = certificates(folder / "certs", self.CERTIFICATES)
        (folder / "sites.d").mkdir()
        (folder / "sites.d/steady.yaml").write_text(
            f"domains: [{STEADY}]\ntls: {{ cert: ../certs/c0.pem, key: ../certs/c0.key }}\nhttps_redirect: false\ngroup: steady\nroutes: [{{ path: /up0/, group: moving }}]\n"
        )
        for n in range(OTHERS):
            (folder / f"sites.d/other{n}.yaml").write_text(f"domains: [other{n}.test]\ngroup: steady\nroutes: [{{ path: /a/, group: moving }}]\n")

    def write(self, n, extra):
        """Version `n`: a route, a group, a certificate and the listeners differ from those of the version before."""
        one, two = (f"127.0.0.1:{port}" for port in self.origins)
        backends = ([f"'{one}'"], [f"'{one}'", f"'{two}'"], [f"'{two}'"], [f"{{ address: '{two}', weight: 3 }}", f"'{one}'"])[n % 4]
        more = f"  - {{ address: '127.0.0.1:{self.extra}' }}\n" if extra else ""
        (self.folder / "main.yaml").write_text(
            f"listeners:\n  - {{ address: '127.0.0.1:{self.plain}', max_header_size: {self.header_limit(n)}KiB }}\n"
            f"  - {{ address: '127.0.0.1:{self.tls}', tls: true }}\n{more}"
            f"state_dir: state\nadmin: {{ socket: admin.sock }}\naccess_log: off\ndrain_timeout: {DRAIN:.0f}s\nsites: sites.d/*.yaml\n"
            f"backend_groups:\n  steady: {{ backends: ['{one}'] }}\n  moving: {{ backends: [{', '.join(backends)}] }}\n"
        )
        (self.folder / "sites.d/moving.yaml").write_text(
            f"domains: [{MOVING}]\ntls: {{ cert: ../certs/c{n % self.CERTIFICATES}.pem, key: ../certs/c{n % self.CERTIFICATES}.key }}\n"
            f"https_redirect: false\ngroup: moving\nroutes: [{{ path: '=/version', respond: {{ body: '{n}' }} }}, {{ path: '=/version{n}', respond: {{ body: own }} }}]\n"
        )

    @staticmethod
    def header_limit(n):
        return (16, 48)[n % 2]

    async def is_in_force(self, n, extra):
        """Looks at everything that version `n` changes, once and at once."""
        body, digest = await ask(self.tls, "/version", HTTP1)
        expect(body == str(n), f"version {n}: the changed route answers {body!r}")
        expect(digest == self.digests[n % self.CERTIFICATES], f"version {n}: the certificate is another one")
        body, _ = await ask(self.plain, f"/version{n - 1}")
        expect(body == f"/version{n - 1} 0", f"version {n}: a route of the version before answers {body!r}")
        body, _ = await ask(self.plain, "/big", more=f"X-Big: {'x' * (24 << 10)}\r\n")
        expect(body.startswith("/big") == (self.header_limit(n) == 48), f"version {n}: the listener's limit for headers is the old one")
        if extra:
            body, _ = await ask(self.extra, "/version")
            expect(body == str(n), f"version {n}: the added listener answers {body!r}")

    async def is_closed(self, when):
        """The removed listener refuses. Whoever waits in its queue is served before it closes."""
        until = time.monotonic() + 1
        while (body := (await ask(self.extra, "/version", patience=1))[0]) != "refused" and time.monotonic() < until:
            await asyncio.sleep(0.02)
        expect(body == "refused", f"{when}: the removed listener does not refuse: {body!r}")


async def ask(port, path, context=None, more="", patience=PATIENCE):
    """The body of one answer, or what came instead; with the certificate's digest."""
    try:
        reader, writer = await connect(port, MOVING, context)
        shown = context and writer.get_extra_info("ssl_object").getpeercert(True)
        writer.write(f"GET {path} HTTP/1.1\r\nHost: {MOVING}\r\n{more}Connection: close\r\n\r\n".encode())
        _, headers = await asyncio.wait_for(read_head(reader), patience)
        body = await asyncio.wait_for(read_body(reader, headers), patience)
        writer.close()
        return body.decode("latin-1"), shown and hashlib.sha256(shown).hexdigest()
    except ConnectionRefusedError:
        return "refused", None
    except (Failed, OSError, asyncio.IncompleteReadError, asyncio.TimeoutError) as error:
        return f"{type(error).__name__} {error}".strip(), None


async def quiet_memory(pid):
    """What stays, without what passes: the least of several readings while everybody is connected and nobody asks."""
    busy.clear()
    await asyncio.sleep(1.5)
    readings = []
    for _ in range(20):
        readings.append(resident(pid))
        await asyncio.sleep(0.05)
    busy.set()
    return min(readings)


# === 1. Reloads ===


async def reloads(proxy, stage, pid, count):
    print(f"1. {count} reloads under load", flush=True)
    memory, took = {}, []
    await asyncio.sleep(SETTLING)
    # Single readings differ by what allocators keep at that moment; what leaks is in the least of several, too.
    first, last = range(8, 14, 2), range(count - 4, count + 1, 2)
    looked_at = {*first, *last, count // 2} if count > 18 else {count}
    for n in range(1, count + 1):
        extra = n % 2 == 1
        stage.write(n, extra)
        code, said, seconds = await proxy.tell("reload")
        took.append(seconds)
        expect(code == 0, f"reload {n}: exit status {code}: {said.strip()[-300:]}")
        for what in ("listener", "backend group moving changed", "site moving changed"):
            expect(what in said, f"reload {n} does not tell of the {what!r}: {said.strip()[-300:]}")
        await stage.is_in_force(n, extra)
        if not extra:
            await stage.is_closed(f"reload {n}")
        await asyncio.sleep(0.15)
        if n in looked_at:
            memory[n] = await quiet_memory(pid)
    print(f"  reload command, median         {statistics.median(took) * 1000:.0f} ms (longest {max(took) * 1000:.0f} ms)")
    print(f"  resident after reload          {', '.join(f'{n}: {mib:.1f} MiB' for n, mib in memory.items())}")
    if count > 18:
        early, late = min(memory[n] for n in first), min(memory[n] for n in last)
        print(f"  from reloads around 10 to {count}   {(late / early - 1) * 100:+.1f} %")
        expect(abs(late / early - 1) <= GROWTH, f"memory goes from {early:.1f} MiB around reload 10 to {late:.1f} MiB")


# === 2. Upgrades ===

FAKE = """#!{python}
# Speaks the hand-over as a new process does, accepts nothing, and ends when it should not.
import json, os, socket, sys, time
line = socket.socket(fileno=0)
def hear():
    message, sockets, *_ = socket.recv_fds(line, 65536, 4)
    for number in sockets:
        os.close(number)
    return json.loads(message)
def word():
    while (heard := hear()) == 'Predecessor':
        pass
    return heard
def say(message):
    line.send(json.dumps(message).encode())
hello = hear()["Hello"]
for _ in range(hello["listeners"] + hello["plain_admin"]):
    hear()
say({{"Ready": {{"version": "fake"}}}})
{rest}
"""
SERVES_AND_DIES = "serves and dies while the old one drains"


def failing_programs(folder):
    """Programs that take over badly, each with what the command must say of it."""
    folder.mkdir()
    fake = lambda rest: FAKE.format(python=sys.executable, rest=rest)
    programs = {
        "ends at once": ("#!/bin/sh\nexit 1\n", "the upgrade failed"),
        "hangs": ("#!/bin/sh\nexec sleep 600\n", "said nothing for 2s"),
        "is ready and ends": (fake("sys.exit(3)"), "the new process"),
        "gets the word and ends": (fake("assert word() == 'Yours'\nsys.exit(3)"), "ended before it served"),
        SERVES_AND_DIES: (fake("assert word() == 'Yours'\nsay('Serving')\ntime.sleep(0.3)\nsys.exit(3)"), "has taken over"),
    }
    for n, (text, _) in enumerate(programs.values()):
        (folder / f"fake{n}").write_text(text)
        os.chmod(folder / f"fake{n}", 0o755)
    return [(what, folder / f"fake{n}", said) for n, (what, (_, said)) in enumerate(programs.items())]


class Sessions:
    """TLS sessions that are resumed later."""

    VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}

    def __init__(self, port):
        self.port, self.kept = port, []
        self.contexts = {name: client_context(version) for name, version in self.VERSIONS.items()}
        self.resumed, self.tried = collections.Counter(), collections.Counter()

    def visit(self, name, host, session=None):
        """A request; gives the session that it leaves, and whether the one before was resumed."""
        with socket.create_connection(("127.0.0.1", self.port), PATIENCE) as tcp:
            with self.contexts[name].wrap_socket(tcp, server_hostname=host, session=session) as tls:
                tls.sendall(f"GET /session HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
                while tls.recv(4096):
                    pass
                return tls.session, tls.session_reused

    def obtain(self):
        self.kept = [(name, host, self.visit(name, host)[0]) for name in self.VERSIONS for host in (STEADY, MOVING, STEADY)]

    def resume(self):
        for name, host, session in self.kept:
            self.tried[name] += 1
            try:
                self.resumed[name] += self.visit(name, host, session)[1]
            except OSError as error:
                tally.fail(f"TLS {name} session", error)


async def upgrades(proxy, stage, pid, count, version, apart):
    print(f"2. {count} upgrades under load", flush=True)
    programs = failing_programs(stage.folder / "programs")
    sessions = Sessions(stage.tls)
    # That they are resumed at all, without an upgrade.
    await asyncio.to_thread(sessions.obtain)
    await asyncio.to_thread(sessions.resume)
    print(f"  TLS sessions resumed before any upgrade {dict(sessions.resumed)} of {dict(sessions.tried)}", flush=True)
    sessions.resumed.clear(), sessions.tried.clear()
    took, failures = [], 0
    for n in range(count):
        await asyncio.to_thread(sessions.obtain)
        # One in four fails. Of the others two come while processes of before still finish.
        if n % 4 == 3:
            await failing_upgrade(proxy, pid, *programs[failures % len(programs)])
            failures += 1
        else:
            version += 1
            # Every third takes a listener away, and the next one brings it back.
            extra = n % 4 != 2
            stage.write(version, extra)
            pid, seconds = await good_upgrade(proxy, stage, n, pid, version, extra, settle=apart or n % 4 == 2)
            took += [seconds] if seconds is not None else []
        await asyncio.to_thread(sessions.resume)
    await asyncio.sleep(max(0, (deadlines or [0])[-1] + 1.2 - time.monotonic()))
    await only_one(pid, "at the end")
    # What an upgrade has handed over is closed by a reload like anything else.
    for extra in (True, False):
        version += 1
        stage.write(version, extra)
        code, said, _ = await proxy.tell("reload")
        expect(code == 0, f"reload after the upgrades: exit status {code}: {said.strip()[-300:]}")
        if code == 0:
            await stage.is_in_force(version, extra)
    await stage.is_closed("a reload after the upgrades")
    print(f"  good upgrades                  {len(took)}, median {statistics.median(took or [0]) * 1000:.0f} ms; {failures} that failed as they should have")
    for name in Sessions.VERSIONS:
        print(f"  TLS {name} sessions resumed      {sessions.resumed[name]} of {sessions.tried[name]}")
        expect(sessions.resumed[name] == sessions.tried[name] > 0, f"TLS {name} sessions are not resumed after an upgrade")


async def good_upgrade(proxy, stage, n, pid, version, extra, settle):
    code, said, seconds = await proxy.tell("upgrade")
    deadlines.append(time.monotonic() + DRAIN)
    if code != 0:
        fault(f"upgrade {n}: exit status {code}: {said.strip()[-400:]}")
        # What else it leaves behind is told at the end.
        return pid, None
    status, why = await proxy.status()
    if status is None:
        fault(f"upgrade {n}: no status right after it: {why}")
        await asyncio.sleep(0.3)
        status, why = await proxy.status()
    new = status["pid"] if status else pid
    expect(new != pid and f"process {new} " in said, f"upgrade {n}: {said.strip()!r}, but process {new} has the admin socket (it was {pid})")
    expect(status and status["state"] == "ready", f"upgrade {n}: {status and status['state']} instead of ready")
    await stage.is_in_force(version, extra)
    if settle:
        # Until everybody before has finished.
        await asyncio.sleep(DRAIN + 1.2)
        await only_one(new, f"upgrade {n}")
        if not extra:
            await stage.is_closed(f"upgrade {n}")
    else:
        await asyncio.sleep(0.5)
    return new, seconds


async def failing_upgrade(proxy, pid, what, program, wanted):
    before = time.monotonic()
    code, said, _ = await proxy.tell("upgrade", "--binary", str(program), "--timeout", "2s")
    print(f"  a program that {what}: exit status {code}: {said.strip()}", flush=True)
    # The one that serves has taken over, as far as anybody can know at that moment.
    served = what == SERVES_AND_DIES
    expect(code == (0 if served else 1) and wanted in said, f"a program that {what}: the command says something else")
    status, why = await proxy.status()
    if served:
        until = time.monotonic() + 2
        while status is None and time.monotonic() < until:
            await asyncio.sleep(0.05)
            status, why = await proxy.status()
    expect(status is not None, f"a program that {what}: no status afterwards: {why}")
    if status:
        expect(status["pid"] == pid, f"a program that {what}: the process is {status['pid']}, not {pid}")
        expect(status["state"] == "ready", f"a program that {what}: {status['state']} instead of ready after {time.monotonic() - before:.1f} s")
    # Nobody may be cut off at the time at which a drain would have ended.
    await asyncio.sleep(DRAIN + 1 if served else 0.5)
    await only_one(pid, f"a program that {what}")


async def only_one(pid, when):
    own = processes(os.getpid())
    expect(list(own) == [pid], f"{when}: processes {own} instead of {pid} alone")
    left = processes(pid)
    expect(not left, f"{when}: the proxy still has children: {left}")


# === 3. Large configurations ===


def large(binary, folder, sites, users):
    """One line of the table."""
    (folder / "sites.d").mkdir(parents=True)
    groups = "".join(f"  node{n}: {{ backends: ['127.0.0.1:9'], health_check: off }}\n" for n in range(50))
    more = "users: users.yaml\n" if users else ""
    (folder / "main.yaml").write_text(
        f"listeners: [{{ address: '127.0.0.1:{free_port()}' }}]\nstate_dir: state\nadmin: {{ socket: admin.sock }}\naccess_log: off\nsites: sites.d/*.yaml\n{more}backend_groups:\n{groups}"
    )
    site = lambda n, version: (folder / f"sites.d/s{n:06}.yaml").write_text(
        f"domains: [d{n}.example.com]\ngroup: node{n % 50}\nroutes:\n  - {{ path: /api/, group: node{(n + 1) % 50} }}\n  - {{ path: /old/, redirect: '/new{version}{{path}}' }}\n"
    )
    for n in range(sites):
        site(n, 0)
    if users:
        with open(folder / "users.yaml", "w") as file:
            file.write("apps: { phpmyadmin: { role: mysql }, roundcube: { role: mail } }\nusers:\n")
            file.writelines(f"  user{n}: {{ mysql: node{n % 8}, mail: node{n % 7} }}\n" for n in range(users))
        (folder / "sites.d/panel.yaml").write_text("domains: [panel.test]\nroutes: [{ path: '/{user}/{app}/', users: true, strip: '/{user}' }]\n")
    proxy = Proxy(binary, folder)
    pid = proxy.start()
    before, took = resident(pid), []
    for version in range(1, 4):
        site(0, version)
        code, said, seconds = asyncio.run(proxy.tell("reload"))
        expect(code == 0, f"{sites} sites, {users} users: reload: exit status {code}: {said.strip()[-300:]}")
        took.append(seconds)
    after = resident(pid)
    proxy.process.kill()
    proxy.process.wait()
    print(f"  {sites:>8} {users:>9} {statistics.median(took):>10.3f} {max(took):>10.3f} {before:>11.1f} {after:>11.1f}", flush=True)


def table(binary, folder, sizes, users):
    print("3. reloads of large configurations")
    print(f"  {'sites':>8} {'users':>9} {'reload s':>10} {'longest s':>10} {'MiB before':>11} {'MiB after 3':>11}", flush=True)
    for sites in sizes:
        large(binary, folder / f"sites{sites}", sites, 0)
    if users:
        large(binary, folder / "users", 1, users)


# === All of it ===


async def under_load(options, folder):
    global tally, ending
    (_, one), (_, two) = origins = [await origin(), await origin()]
    stage = Stage(folder, [one, two])
    stage.write(0, extra=False)
    proxy = Proxy(options.binary, folder)
    pid = proxy.start()
    busy.set()
    clients = load(stage.plain, stage.tls)
    # Everybody is connected, and memory has what the load takes.
    await asyncio.sleep(3)
    try:
        for part, count, work in (
            ("reloads", options.reloads, lambda: reloads(proxy, stage, pid, options.reloads)),
            ("upgrades", options.upgrades, lambda: upgrades(proxy, stage, pid, options.upgrades, options.reloads, options.apart)),
        ):
            if count:
                began = time.monotonic()
                tally = Tally()
                await work()
                tally.show()
                print(f"  {time.monotonic() - began:.0f} s")
                FAULTS.extend(tally.faults(part))
    finally:
        ending = True
        left = set(clients)
        while left:
            # Again and again: `wait_for` may lose a cancellation that comes together with a result.
            for client in left:
                client.cancel()
            _, left = await asyncio.wait(left, timeout=0.5)
        FAULTS.extend(f"a client of this program ended: {client.exception()!r}" for client in clients if not client.cancelled())
        for server, _ in origins:
            server.close()
        if FAULTS:
            print("the proxy's log, lines that tell of more than usual:")
            for line, times in proxy.troubles():
                print(f"    {times} x {line}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary", type=os.path.abspath)
    parser.add_argument("--reloads", type=int, default=100)
    parser.add_argument("--upgrades", type=int, default=20)
    parser.add_argument("--sites", type=int, nargs="*", default=[100, 1_000, 10_000])
    parser.add_argument("--users", type=int, default=1_000_000)
    parser.add_argument("--apart", action="store_true", help="no upgrade while processes of before still finish")
    parser.add_argument("--keep", action="store_true", help="leaves the files of the run where they are")
    options = parser.parse_args()
    began = time.monotonic()
    become_reaper()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("told to stop"))
    temporary = tempfile.TemporaryDirectory(prefix="never-drop-")
    folder = pathlib.Path(temporary.name)
    try:
        if options.reloads or options.upgrades:
            (folder / "load").mkdir()
            asyncio.run(under_load(options, folder / "load"))
            kill_all()
        table(options.binary, folder, options.sites, options.users)
    finally:
        kill_all()
        if options.keep:
            temporary._finalizer.detach()
            print(f"files: {folder}")
        else:
            temporary.cleanup()
    print(f"{time.monotonic() - began:.0f} s in all")
    print("\n".join(FAULTS[:20]) or "nothing was lost")
    if len(FAULTS) > 20:
        print(f"and {len(FAULTS) - 20} more")
    sys.exit(bool(FAULTS))


if __name__ == "__main__":
    main()
