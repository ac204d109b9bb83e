"""`./dev bench NAME …`: measure a running instance (`./dev run`), named by --url and --token."""

import sys

from tests.acceptance import readers, stops

BENCHMARKS = {"readers": readers, "stops": stops}


def main() -> int:
    name = sys.argv[1] if len(sys.argv) > 1 else "help"
    benchmark = BENCHMARKS.get(name)
    if benchmark is None:
        known = "\n".join(
            f"  {name:<8} {(module.__doc__ or '').splitlines()[0]}" for name, module in BENCHMARKS.items()
        )
        sys.stdout.write(f"./dev bench NAME --url URL --token TOKEN [options]; NAME --help lists them\n{known}\n")
        return 0 if name in ("help", "--help", "-h") else 2
    sys.argv = [f"./dev bench {name}", *sys.argv[2:]]
    benchmark.main()
    return 0


if __name__ == "__main__":
    sys.exit(main())
