#!/usr/bin/env python3
"""Builds the image from docker/Dockerfile and runs it as a container engine would: PID 1, the image's user, a ConfigMap.

Needs root and buildah, debootstrap, curl, iproute2; neither a container engine nor a registry. The images that the Dockerfile
begins with are made by debootstrap and kept in --cache. The compiler is this machine's, its cargo home and target directory are
laid under the build (what the build writes is thrown away), so that only the program itself is compiled, in a minute or two. With
--cold its dependencies are, too; with --profile release it is compiled as images are that go out, which takes many minutes.

PORTCULLIS_BINARY=FILE spares the compile: `cargo` in the build is then a stand-in that hands over FILE. Everything else is the
same, but such a run says nothing about whether the Dockerfile compiles.
"""

import argparse
import contextlib
import json
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
from lab import SOURCES, Checks, ask, run, tree, until

# What rust:1-bookworm has and the Dockerfile relies on.
BUILD_PACKAGES = ["build-essential", "ca-certificates", "cmake"]
PORT, BACKEND_PORT = 8080, 9000
DRAIN = 30

BACKEND = f"""
import http.server, time
class Backend(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/slow":
            time.sleep(2)
        self.send_response(200)
        self.send_header("Content-Length", "7")
        self.end_headers()
        self.wfile.write(b"backend")
    def log_message(self, *args):
        pass
http.server.ThreadingHTTPServer(("127.0.0.1", {BACKEND_PORT}), Backend).serve_forever()
"""

# Runs as PID 1 of the new namespaces until it becomes the image's program.
# Arguments: root, configuration or "", "ro" or "rw", uid, gid, program...
ENTER = r"""
root=$1 config=$2 mode=$3 uid=$4 gid=$5; shift 5
ip link set lo up
mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
mount -t tmpfs tmpfs "$root/dev"
for device in null zero full random urandom; do : > "$root/dev/$device"; mount --bind "/dev/$device" "$root/dev/$device"; done
if [ -n "$config" ]; then mount --bind "$config" "$root/etc/portcullis"; mount -o remount,bind,ro "$root/etc/portcullis"; fi
if [ "$mode" = ro ]; then
    mount -t tmpfs -o "uid=$uid,gid=$gid,mode=0750" tmpfs "$root/run/portcullis"
    mount -t tmpfs -o "uid=$uid,gid=$gid,mode=0750" tmpfs "$root/var/lib/portcullis"
    mount -o remount,bind,ro "$root"
fi
exec chroot "$root" setpriv --reuid "$uid" --regid "$gid" --clear-groups --no-new-privs --bounding-set=-all --inh-caps=-all \
    env -i "$@"
"""


# === The images that the Dockerfile begins with ===


class Buildah:
    """Buildah with storage of its own."""

    def __init__(self, work):
        self.work = work
        (work / "tmp").mkdir()
        self.environment = {**os.environ, "TMPDIR": str(work / "tmp")}
        self.command = ["buildah", "--root", work / "root", "--runroot", work / "runroot", "--storage-driver", "vfs"]

    def __call__(self, *arguments, **options):
        return run(*self.command, *arguments, env=self.environment, **options)

    def ask(self, *arguments):
        return self(*arguments, stdout=subprocess.PIPE).stdout.strip()

    def image_of(self, directory, name, environment=()):
        container = self.ask("from", "scratch")
        run("cp", "-a", f"{directory}/.", self.ask("mount", container))
        settings = [part for pair in environment for part in ("--env", pair)]
        self("config", *settings, "--cmd", "/bin/sh", container)
        self("commit", "--quiet", "--disable-compression", "--format", "docker", container, name, stdout=subprocess.DEVNULL)
        self("rm", container, stdout=subprocess.DEVNULL)


def compiler(work, cold):
    """The volumes and the environment that the compile stage needs; `:O` throws away what is written."""
    given = os.environ.get("PORTCULLIS_BINARY")
    if given:
        print(f"NOT COMPILED: the image gets {given}", flush=True)
        stand_in = work / "stand-in"
        stand_in.mkdir()
        cargo = stand_in / "cargo"
        cargo.write_text('#!/bin/sh\nfor profile in debug release; do mkdir -p "${CARGO_TARGET_DIR:-target}/$profile"\n'
                         'cp /stand-in/binary "${CARGO_TARGET_DIR:-target}/$profile/portcullis"; done\n')
        cargo.chmod(0o755)
        shutil.copy(given, stand_in / "binary")
        return ["-v", f"{stand_in}:/stand-in:ro"], ["PATH=/stand-in:/usr/sbin:/usr/bin:/sbin:/bin"]
    toolchain = ask("rustc", "--print", "sysroot")
    home = os.environ.get("CARGO_HOME") or Path.home() / ".cargo"
    # The same paths as outside: build scripts have written them down.
    volumes = ["-v", f"{toolchain}:{toolchain}:ro", "-v", f"{home}:{home}:O"]
    environment = [f"PATH={toolchain}/bin:/usr/sbin:/usr/bin:/sbin:/bin", f"CARGO_HOME={home}"]
    if cold:
        return volumes, environment
    target = os.environ.get("CARGO_TARGET_DIR")
    if not target:
        metadata = ask("cargo", "metadata", "--format-version", "1", "--no-deps", "--manifest-path", SOURCES / "Cargo.toml")
        target = json.loads(metadata)["target_directory"]
    Path(target).mkdir(parents=True, exist_ok=True)
    return [*volumes, "-v", f"{target}:{target}:O"], [*environment, f"CARGO_TARGET_DIR={target}"]


def build(buildah, options):
    cache = options.cache
    volumes, environment = compiler(buildah.work, options.cold)
    buildah.image_of(tree(cache, "base"), "localhost/base")
    buildah.image_of(tree(cache, "build", BUILD_PACKAGES), "localhost/build", environment)
    began = time.monotonic()
    buildah("bud", "--format", "docker", "--isolation", "chroot", "--pull-never", *volumes,
            "--build-arg", "BUILD_IMAGE=localhost/build", "--build-arg", "BASE_IMAGE=localhost/base",
            "--build-arg", f"PROFILE={options.profile}",
            "-f", SOURCES / "docker/Dockerfile", "-t", "localhost/portcullis", SOURCES)
    print(f"built in {time.monotonic() - began:.0f} s", flush=True)
    return json.loads(buildah.ask("inspect", "--type", "image", "localhost/portcullis"))["Docker"]["config"]


# === A configuration as Kubernetes mounts it ===


class ConfigMap:
    """Files are links to `..data/FILE`, `..data` is a link to a directory that is replaced as a whole."""

    def __init__(self, directory, files):
        self.directory = directory
        self.number = 0
        directory.mkdir()
        self.swap(files)
        for name in files:
            (directory / name).symlink_to(f"..data/{name}")

    def swap(self, files):
        self.number += 1
        fresh = self.directory / f"..2026_01_01_00_00_{self.number:02}.{self.number:010}"
        fresh.mkdir()
        for name, text in files.items():
            (fresh / name).write_text(text)
        data, aside = self.directory / "..data", self.directory / "..data_tmp"
        old = data.resolve() if data.exists() else None
        aside.symlink_to(fresh.name)
        aside.rename(data)
        if old:
            shutil.rmtree(old)


def configuration(version, extra=""):
    return {
        "portcullis.yaml": f'listeners:\n  - address: ":{PORT}"\nsites: site-*.yaml\n{extra}',
        "site-shop.yaml": "domains: [shop.test]\n"
        f"backends: [127.0.0.1:{BACKEND_PORT}]\n"
        f'routes:\n  - {{ path: =/version, respond: {{ body: "{version}" }} }}\n',
    }


# === The container ===


class Container:
    """The image's program in namespaces of its own, without capabilities and without a way to get any."""

    def __init__(self, image, root, work, config=None, read_only=False):
        self.uid, self.gid = image["User"].split(":")
        self.environment = image["Env"]
        self.output = work / f"output.{time.monotonic_ns()}"
        program = [*image["Entrypoint"], *image["Cmd"]]
        mode = "ro" if read_only else "rw"
        namespaces = ["unshare", "--pid", "--mount", "--net", "--uts", "--ipc", "--fork", "--kill-child"]
        arguments = ["sh", "-ec", ENTER, "enter", root, config or "", mode, self.uid, self.gid, *self.environment, *program]
        with open(self.output, "wb") as output:
            command = [str(part) for part in (*namespaces, *arguments)]
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        child = until(10, lambda: self.ended() or children.read_text().split())
        # 0 when it ended at once: every check of it fails then, with its log.
        self.pid = int(child[0]) if isinstance(child, list) else 0
        # A handle: its number may be somebody else's once it has ended.
        self.handle = None
        with contextlib.suppress(ProcessLookupError):
            self.handle = os.pidfd_open(self.pid) if self.pid else None
        # Its first programs are the shell and its helpers.
        until(10, lambda: self.ended() or self.name() == Path(program[0]).name)
        backend = ["nsenter", "-t", str(self.pid), "--net", sys.executable, "-c", BACKEND]
        self.backend = None if self.ended() else subprocess.Popen(backend, stderr=subprocess.DEVNULL)

    def ended(self):
        return self.process.poll() is not None

    def name(self):
        with contextlib.suppress(OSError):
            return Path(f"/proc/{self.pid}/comm").read_text().strip()
        return ""

    def status(self, key):
        with contextlib.suppress(OSError):
            return re.search(rf"^{key}:\s*(.*)$", Path(f"/proc/{self.pid}/status").read_text(), re.M)[1]
        return ""

    def log(self):
        return self.output.read_text(errors="replace")

    def curl(self, path, host="shop.test"):
        """Status and body; status 0 if there was no answer."""
        if self.ended():
            return 0, "it has ended"
        command = ["nsenter", "-t", str(self.pid), "--net", "curl", "-s", "-m", "10", "-w", "\n%{http_code}", "-H", f"Host: {host}"]
        body, _, status = run(*command, f"http://127.0.0.1:{PORT}{path}", check=False, stdout=subprocess.PIPE,
                              stderr=subprocess.DEVNULL).stdout.rpartition("\n")
        return int(status or 0), body

    def execute(self, *program):
        """As `docker exec` does."""
        if self.ended():
            return subprocess.CompletedProcess(program, -1, "it has ended")
        command = ["nsenter", "-t", self.pid, "--pid", "--mount", "--net", "--uts", "--ipc", "--root", "--wd=/",
                   "--setuid", self.uid, "--setgid", self.gid, "env", "-i", *self.environment, *program]
        # A program that waits for what does not come must not hold up the others.
        with contextlib.suppress(subprocess.TimeoutExpired):
            return run(*command, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=30)
        return subprocess.CompletedProcess(command, -1, "no end within 30 s")

    def serves(self, version, seconds):
        return until(seconds, lambda: self.ended() or self.curl("/version") == (200, version)) and not self.ended()

    def kill(self, number):
        if self.handle is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.handle, number)

    def close(self):
        # `unshare` ends with its child, not the other way round: the child's change of user undoes --kill-child.
        self.kill(signal.SIGKILL)
        for process in (self.backend, self.process):
            if process:
                process.kill()
                process.wait()
        if self.handle is not None:
            os.close(self.handle)
            self.handle = None


# === What is checked ===


def as_it_is(check, image, root, work):
    """The image without a configuration of the user's."""
    with contextlib.closing(Container(image, root, work)) as container:
        status = until(15, lambda: container.curl("/")[0])
        check.that("the image runs as it is, and answers", status == 404, (status, container.log()))
        check.that("it is PID 1", container.status("NSpid").split()[-1:] == ["1"], container.status("NSpid"))
        uid = container.status("Uid").split()[:1]
        check.that("its user is a number other than 0", uid == [container.uid] and uid != ["0"], uid)
        check.that("it has no capability", container.status("CapEff").strip("0") == "", container.status("CapEff"))
        # Lines are written by a thread of their own.
        written = until(5, lambda: '"GET / HTTP/1.1" 404' in container.log())
        check.that("the access log goes to standard output", written, container.log())


def reloading(check, image, root, work):
    """A ConfigMap without `watch`, on a root that cannot be written."""
    map_ = ConfigMap(work / "map", configuration("one"))
    with contextlib.closing(Container(image, root, work, map_.directory, read_only=True)) as container:
        check.that("a ConfigMap is served", container.serves("one", 15), container.log())
        answer = until(10, lambda: (got := container.curl("/"))[0] == 200 and got) or container.curl("/")
        check.that("a backend is asked", answer == (200, "backend"), answer)
        probe = image.get("Healthcheck", {}).get("Test") or ["CMD", "false"]
        health = container.execute(*probe[1:])
        check.that(f"the image's health check `{' '.join(probe[1:])}` says 0", health.returncode == 0, health.stdout)

        map_.swap(configuration("two"))
        time.sleep(2)
        check.that("without `watch` a swap alone changes nothing", container.curl("/version") == (200, "one"))
        reload = container.execute("portcullis", "reload")
        seen = container.curl("/version")
        check.that("`portcullis reload` puts it in force before it ends", (reload.returncode, seen) == (0, (200, "two")),
                   (reload.returncode, reload.stdout, seen))

        map_.swap(configuration("three"))
        container.kill(signal.SIGHUP)
        check.that("so does SIGHUP", container.serves("three", 10), container.log())

        map_.swap(configuration("four", "nonsense: 1\n"))
        reload = container.execute("portcullis", "reload")
        seen = container.curl("/version")
        check.that("a bad main file is refused with 78, and nothing changes", (reload.returncode, seen) == (78, (200, "three")),
                   (reload.returncode, reload.stdout, seen))

        upgrade = container.execute("portcullis", "upgrade")
        told = re.search(r"PID 1|container|image", upgrade.stdout, re.I)
        check.that("`portcullis upgrade` is refused, with the reason", upgrade.returncode != 0 and told, upgrade.stdout)
        container.kill(signal.SIGUSR2)
        told = until(5, lambda: "no upgrade (asked by SIGUSR2)" in container.log())
        check.that("so is SIGUSR2, which the log tells, and PID 1 goes on", told and container.serves("three", 5), container.log())
        stop(check, image, container)


def stop(check, image, container):
    """The image's signal ends it with 0, with a request under way finished."""
    if container.ended():
        check.that("it runs until it is stopped", False, container.log())
        return
    command = ["nsenter", "-t", str(container.pid), "--net", "curl", "-s", "-m", "20", "-H", "Host: shop.test"]
    slow = subprocess.Popen([*command, f"http://127.0.0.1:{PORT}/slow"], stdout=subprocess.PIPE, text=True)
    time.sleep(0.7)
    began = time.monotonic()
    container.kill(signal.Signals[image.get("StopSignal") or "SIGTERM"])
    body = slow.communicate()[0]
    with contextlib.suppress(subprocess.TimeoutExpired):
        container.process.wait(DRAIN + 5)
    took = time.monotonic() - began
    status = container.process.poll()
    check.that(f"{image.get('StopSignal')}: status 0 within the drain time", status == 0 and took < DRAIN, (status, took))
    check.that("the request that was under way got its answer", body == "backend", body)


def watching(check, image, root, work):
    """`watch: true`, and a second start in the same file system after the first was killed."""
    watch = "watch: true\n"
    map_ = ConfigMap(work / "watched", configuration("one", watch))
    with contextlib.closing(Container(image, root, work, map_.directory)) as container:
        check.that("a ConfigMap with `watch: true` is served", container.serves("one", 15), container.log())
        for version in ("two", "three"):
            map_.swap(configuration(version, watch))
            check.that(f"swap to {version}: in force by itself", container.serves(version, 30), container.log())
        container.kill(signal.SIGKILL)
        container.process.wait()
    with contextlib.closing(Container(image, root, work, map_.directory)) as container:
        again = container.serves("three", 15) and container.execute("portcullis", "health").returncode == 0
        check.that("killed and started again, it is healthy", again, container.log())


def with_init(check, image, root, work):
    """What `docker run --init` does: number 1 is a program that ends with the one it has started."""
    shutil.copy(root / "bin/sh", root / "usr/bin/tini")
    map_ = ConfigMap(work / "init", configuration("one"))
    image = {**image, "Entrypoint": ["/usr/bin/tini", "-c", "portcullis run; exit $?"], "Cmd": []}
    with contextlib.closing(Container(image, root, work, map_.directory)) as container:
        check.that("below an init it serves", container.serves("one", 15), container.log())
        upgrade = container.execute("portcullis", "upgrade")
        check.that("and an upgrade is refused there too", upgrade.returncode != 0 and "container" in upgrade.stdout, upgrade.stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    lab.add_cache(parser)
    parser.add_argument("--profile", default="dev", choices=["dev", "release"], help="how the program is compiled (%(default)s)")
    parser.add_argument("--cold", action="store_true", help="compile everything")
    options = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("container.py: needs root, for namespaces and debootstrap")
    options.cache.mkdir(parents=True, exist_ok=True)
    # A signal unwinds like any failure, so that what was started is ended.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    work = Path(tempfile.mkdtemp(prefix="portcullis-container."))
    work.chmod(0o755)
    check = Checks()
    try:
        buildah = Buildah(work)
        image = build(buildah, options)
        container = buildah.ask("from", "--pull-never", "localhost/portcullis")
        root = Path(buildah.ask("mount", container))
        for line in buildah.ask("images", "--format", "{{.Name}} {{.Size}}").splitlines():
            print(f"image  {line}")
        bundle = root / "etc/ssl/certs/ca-certificates.crt"
        check.that("the image has authorities for backends' certificates", bundle.is_file() and bundle.stat().st_size > 100_000)
        print(f"binary {(root / 'usr/bin/portcullis').stat().st_size / 1e6:.1f} MB")
        for checks in (as_it_is, reloading, watching, with_init):
            checks(check, image, root, work)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    print(f"{check.count - check.failed} of {check.count} checks hold")
    sys.exit(1 if check.failed else 0)


if __name__ == "__main__":
    main()
