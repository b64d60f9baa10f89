"""python -m tests.fuzz: see the package."""

import argparse
import random
import sys

from tests.fuzz.explore import main, names

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Damage files and settings at random.")
    parser.add_argument("--minutes", type=float, default=5.0, help="of all targets together, default 5")
    parser.add_argument("--seed", type=int, help="of the cases, default another each time")
    parser.add_argument("--only", action="append", choices=names(), help="this target; may be given again")
    parser.add_argument("--case", type=int, help="one case alone, by the seed that was printed for it")
    options = parser.parse_args()
    if options.case is not None and len(options.only or ()) != 1:
        parser.error("--case asks for --only TARGET")
    seed = random.SystemRandom().getrandbits(32) if options.seed is None else options.seed
    sys.exit(main(options.only or names(), options.minutes, seed, options.case))
