"""Fuzz every reader: `python tests/fuzz/run.py --minutes 60 --seed 1`.

Prints a table of readers with the number of inputs and their outcomes; saves each finding in a folder.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from random import Random

sys.path.insert(0, str(Path(__file__).parents[1]))

from fuzz.mutate import spoil
from fuzz.readers import READERS
from fuzz.seeds import seeds
from fuzz.target import Target


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--readers", nargs="+", choices=sorted(READERS), default=sorted(READERS))
    parser.add_argument("--findings", type=Path, default=Path("fuzz-findings"), help="where they are kept")
    arguments = parser.parse_args()
    random, made, began = Random(arguments.seed), seeds(), time.monotonic()
    with Target() as target:
        try:
            while time.monotonic() - began < 60 * arguments.minutes:
                for reader in arguments.readers:
                    target.read(reader, spoil(random, made[reader], sorted(made[reader])))
        finally:
            target.save_findings(arguments.findings)
        print(f"seed {arguments.seed}, {(time.monotonic() - began) / 60:.1f} minutes")
        print(f"{'reader':<14}{'inputs':>9}{'read':>9}{'refused':>9}{'findings':>9}{'slowest':>9}")
        for reader in arguments.readers:
            found = target.counts[reader]
            print(f"{reader:<14}{sum(found.values()):>9,}{found['read']:>9,}{found['refused']:>9,}"
                  f"{found['finding']:>9,}{target.slowest[reader]:>8.2f}s")
        print(f"{'all':<14}{sum(sum(found.values()) for found in target.counts.values()):>9,}")
        for name, (_, told) in sorted(target.findings.items()):
            print(f"\n{name}\n  " + "\n  ".join(told.strip().splitlines()[-3:]))
        return 1 if target.findings else 0


if __name__ == "__main__":
    sys.exit(main())
