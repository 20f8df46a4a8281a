"""Check numbers, speed, host reads and memory on a GPU; one JSON line a check.

    python benchmarks/gpu.py --records gpu.jsonl        # at most 8 minutes on one H100
    python benchmarks/gpu.py --only host_reads,restore
    python benchmarks/gpu.py --tiny --device cpu        # does each check run at all?

A check that fails says why and ends no other. One that would not fit into `--minutes` is left out
and says so. Nothing is downloaded; networks have random weights, and images are made.
"""

import argparse
import json
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from gpu_checks import costs, numbers
from gpu_checks.bench import Bench, Found, rounded

CHECKS: dict[Callable[[Bench], Found], float] = {
    numbers.environment: 5, numbers.equals_cpu: 40, numbers.restore: 20, costs.host_reads: 30,
    numbers.resume_bits: 40, numbers.adapter: 10, numbers.one_rank: 20, costs.speed: 130,
    costs.memory_copies: 30, costs.lambda_max: 30, costs.landscape: 25, costs.command_line: 90,
}  # fmt: skip
"""The checks in order, with the seconds that each may take on a GPU."""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="the smallest sizes, for a CPU")
    parser.add_argument("--only", default="", help="names of checks, with commas between them")
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--records", type=Path, help="file that the lines are added to")
    args = parser.parse_args()
    known = {check.__name__: check for check in CHECKS}
    only = [name for name in args.only.split(",") if name] or list(known)
    if unknown := set(only) - set(known):
        parser.error(f"no check is called {', '.join(unknown)}; there are: {', '.join(known)}")
    bench, start, failed = Bench(args.device, args.tiny), time.monotonic(), 0
    for name in only:
        left = 60 * args.minutes - (time.monotonic() - start)
        line: Found = {"check": name}
        if not args.tiny and left < CHECKS[known[name]]:
            line |= {"left_out": f"{left:.0f} s are left"}
        else:
            line |= _tried(known[name], bench)
        failed += "error" in line or line.get("passed") is False
        text = json.dumps(line)
        print(text, flush=True)
        if args.records:
            with args.records.open("a", encoding="utf-8") as file:
                file.write(text + "\n")
    return min(failed, 1)


def _tried(check: Callable[[Bench], Found], bench: Bench) -> Found:
    """Return what a check found and its seconds, or the error and where it came from."""
    begun = time.monotonic()
    try:
        found = check(bench)
    # whatever one check meets, the others are still worth the machine's time
    except Exception as error:
        places = traceback.extract_tb(error.__traceback__)[-4:]
        found = {
            "error": f"{type(error).__name__}: {str(error)[:300]}",
            "at": [f"{Path(place.filename).name}:{place.lineno}" for place in places],
        }
    return found | {"seconds": rounded(time.monotonic() - begun)}


if __name__ == "__main__":
    sys.exit(main())
