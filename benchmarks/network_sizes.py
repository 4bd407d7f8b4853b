"""What it costs and changes that the network sees photos smaller than they are refined.

    python benchmarks/network_sizes.py IMAGES OUT [--truth MODEL] [--sizes 1024 704] [OPTIONS]

Reconstructs the photos once with each --network-size, with the other options of `reconstruct`, and
prints a Markdown table: CPU time of the whole run, the model, and with --truth the errors of the
cameras (medians). OUT keeps the models. With a size of --resize or more the network sees the photos
as they are refined.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from reconstruct_rows import MODEL_COLUMNS, heading, model_cells, reconstruct, row

from edm_hloc.base.colmap import ModelStatistics
from edm_hloc.evaluation.models import ModelComparison, compare

COLUMNS = "network, px", "CPU s, all", "s a pair", "matches", "registered", *MODEL_COLUMNS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("images", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--truth", type=Path, help="COLMAP model with the true cameras")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1024, 832, 704, 576])
    args, options = parser.parse_known_args()
    print(heading(COLUMNS))
    for size in args.sizes:
        out = args.out / str(size)
        start = time.process_time()
        results = reconstruct(args.images, out, ["--network-size", str(size), *options])
        seconds = time.process_time() - start
        truth = None if args.truth is None else compare(out / "model", args.truth)
        print(row([str(size), f"{seconds:.0f}", *_cells(results, truth)]), flush=True)


def _cells(results: dict[str, Any], truth: ModelComparison | None) -> list[str]:
    matching, model = results["matching"], ModelStatistics(**results["mapped"]["statistics"])
    return [
        f"{matching['seconds'] / max(1, matching['matched']):.2f}",
        f"{results['keypoints']['matches']:,}",
        str(model.registered),
        *model_cells(model, truth, digits=4),
    ]


if __name__ == "__main__":
    main()
