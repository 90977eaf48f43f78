"""What the tests of a machine have in common: commands, checks, and Debians of their own."""

import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

SOURCES = Path(__file__).resolve().parents[2]
SUITE = "bookworm"
MIRROR = "http://deb.debian.org/debian"


def run(*command, **options):
    options = {"check": True, "text": True, **options}
    return subprocess.run([str(part) for part in command], **options)


def ask(*command):
    return run(*command, stdout=subprocess.PIPE).stdout.strip()


def until(seconds, condition):
    """Waits for a condition; what it was at last."""
    end = time.monotonic() + seconds
    while not (met := condition()) and time.monotonic() < end:
        time.sleep(0.1)
    return met


class Checks:
    def __init__(self):
        self.failed = 0
        self.count = 0

    def that(self, what, holds, seen=""):
        self.count += 1
        self.failed += not holds
        # The end of what was seen: the log has its newest lines there.
        seen = f"  ({str(seen).strip()[-300:]})" if seen != "" and not holds else ""
        print(f"{'ok     ' if holds else 'FAILED '} {what}{seen}", flush=True)


def tree(cache, name, packages=()):
    """A Debian, made once."""
    kept = cache / f"{SUITE}-{name}"
    if not kept.is_dir():
        print(f"debootstrap: {kept}", flush=True)
        aside = Path(tempfile.mkdtemp(dir=cache, prefix=f"{name}."))
        include = [f"--include={','.join(packages)}"] if packages else []
        try:
            run("debootstrap", "--variant=minbase", *include, SUITE, aside, MIRROR, stdout=subprocess.DEVNULL)
            shutil.rmtree(aside / "var/cache/apt/archives", ignore_errors=True)
            aside.chmod(0o755)
            aside.rename(kept)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise
    return kept


def add_cache(parser):
    """The option that says where Debian is kept."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "portcullis/debian"
    cache = os.environ.get("PORTCULLIS_TEST_CACHE", cache)
    parser.add_argument("--cache", type=Path, default=cache, help="where Debian is kept (PORTCULLIS_TEST_CACHE; %(default)s)")
