"""A million damaged files for the readers: `python tests/soak_fuzz.py [--cases 1000000] [--seed S]`. See fuzzing.py.

Each reader has an equal share of them, in a process of its own that may take 256 MiB of memory more than it has at its
start, and 10 seconds for a file. A failure names its case, and `--only TARGET --seed S --first CASE --cases 1` repeats
it.
"""

from __future__ import annotations

import argparse
import random
import resource
import signal
import sys
import tempfile
import time
from multiprocessing import get_context
from pathlib import Path

from fuzzing import TARGETS

MEMORY, SECONDS = 256 << 20, 10


class Hang(BaseException):  # no Exception, which a reader might turn into an InputError
    pass


def fuzz(name: str, first: int, cases: int, seed: int) -> None:
    # In memory, where the system has a folder for that: a million files are written.
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None) as folder:
        target = TARGETS[name](Path(folder) / "files")
        for case in range(first, first + 20):  # so that what is allocated once is there
            target.case(random.Random(f"{seed} {name} {case}"))
        limit_memory()
        signal.signal(signal.SIGALRM, hang)
        start, before, accepted = time.monotonic(), peak(), 0
        for case in range(first, first + cases):
            signal.setitimer(signal.ITIMER_REAL, SECONDS)
            try:
                accepted += target.case(random.Random(f"{seed} {name} {case}"))
            except BaseException:
                print(f"{name}: case {case} of seed {seed}", file=sys.stderr, flush=True)
                raise
        signal.setitimer(signal.ITIMER_REAL, 0)
        more, took = peak() - before, time.monotonic() - start
        found = f"{accepted} read, {cases - accepted} refused"
        print(f"{name}: {cases} files, {found}, {took:.0f} s, {more >> 20} MiB more memory", flush=True)
        assert more < MEMORY


def limit_memory() -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, resource.RLIM_INFINITY))


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def hang(*_: object) -> None:
    raise Hang(f"more than {SECONDS} s")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cases", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=None, help="by default another one each time")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--only", choices=TARGETS)
    options = parser.parse_args()
    seed = random.randrange(2**32) if options.seed is None else options.seed
    names = [options.only] if options.only else list(TARGETS)
    print(f"seed {seed}", flush=True)
    share = -(-options.cases // len(names))
    # One after the other, each forked from here: to import torch for each takes seconds. Safe as long as this process
    # has not computed with it.
    codes = []
    for name in names:
        process = get_context("fork").Process(target=fuzz, args=(name, options.first, share, seed))
        process.start()
        process.join()
        codes.append(process.exitcode)
    return 1 if any(codes) else 0


if __name__ == "__main__":
    sys.exit(main())
