"""Runs worlds by their seeds: `python tests/sim/replay.py SEED --trace` shows what happened in one of them.

Prints each seed that found something, and the digest of all traces if asked; the exit code is 1 if any did.
"""

from __future__ import annotations

import argparse
import sys
import traceback
from collections import deque
from hashlib import sha256

from bequest.sim import World
from checkers import all_checkers

LAST_LINES = 40


def run(seed: int, tell=None) -> World:
    world = World(seed, all_checkers(), tell)
    world.run()
    return world


def command(seed: int) -> str:
    return f"python tests/sim/replay.py {seed} --trace"


def replay(seed: int) -> bool:
    """Shows the end of its trace; whether it found nothing."""
    lines: deque[str] = deque(maxlen=LAST_LINES)
    try:
        run(seed, lines.append)
    except Exception:
        print("\n".join(lines), traceback.format_exc(), f"seed {seed}: {command(seed)}", sep="\n")
        return False
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("seed", type=int)
    parser.add_argument("--count", type=int, default=1, help="so many seeds, from this one on")
    parser.add_argument("--trace", action="store_true", help="print all that happens")
    parser.add_argument("--digest", action="store_true", help="print the digest of the traces")
    options = parser.parse_args()
    digest = sha256()
    failed = 0
    for seed in range(options.seed, options.seed + options.count):
        try:
            tell = print if options.trace else (lambda line: None) if options.digest else None
            digest.update(run(seed, tell).digest.encode())
        except Exception as error:
            failed += 1
            if options.trace:
                traceback.print_exc()
            else:
                print(f"seed {seed}: {type(error).__name__}: {error}\n    {command(seed)}", flush=True)
    if options.digest:
        print(digest.hexdigest())
    print(f"{options.count} seeds from {options.seed} on, {failed} of them found something", file=sys.stderr)
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
