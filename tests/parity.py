"""Compare our models with a folder of golden outputs: `python tests/parity.py FOLDER`.

Prints one line per case (its worst array, error / tolerance) and exits 1 if any comparison misses its tolerance.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path

if __name__ == "__main__":  # `tests` becomes importable, and `tests/packaging` no longer hides `packaging`
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from tests.parity_cases.common import Comparison

# One module per folder format; each has matches(folder) and run(folder), which yields comparisons case by case.
FORMATS = ("vim", "umamba", "s4nd", "ss2d", "vmamba", "fusion", "fusion_metrics", "nnunet_plans")


def run_folder(folder: Path) -> Iterator[Comparison]:
    """All comparisons of a golden folder, in the manifest's order.

    Raises:
        SystemExit: the folder's format is unknown.
    """
    for name in FORMATS:
        module = importlib.import_module(f"tests.parity_cases.{name}")
        if module.matches(folder):
            yield from module.run(folder)
            return
    raise SystemExit(f"{folder}: no golden folder of a known format ({', '.join(FORMATS)})")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("-v", "--verbose", action="store_true", help="a line for every array")
    args = parser.parse_args()
    missed = cases = 0
    for case, group in itertools.groupby(run_folder(args.folder), key=lambda c: c.case):
        comparisons = list(group)
        worst = max(comparisons, key=lambda c: (not c.passed, c.error / max(c.tolerance, 1e-300)))
        failed = [c for c in comparisons if not c.passed]
        for c in comparisons if args.verbose else failed or [worst]:
            verdict = "ok  " if c.passed else "MISS"
            print(
                f"{verdict} {case}  {c.array}  {c.error:.2e} / {c.tolerance:.2e}  ({len(comparisons)} arrays)",
                flush=True,
            )
        cases += 1
        missed += bool(failed)
    print(f"{cases - missed} of {cases} cases within tolerance")
    return 1 if missed or not cases else 0


if __name__ == "__main__":
    raise SystemExit(main())
