"""What it costs and changes that the network sees photos smaller than they are refined.

    python benchmarks/network_sizes.py IMAGES OUT [--truth MODEL] [--sizes 1024 704] [OPTIONS]

Reconstructs the photos once with each --network-size, with the other options of `reconstruct`, and
prints a Markdown table: CPU time of the whole run, the model, and with --truth the errors of the
cameras (medians). OUT keeps the models. With a size of --resize or more the network sees the photos
as they are refined.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import time
from pathlib import Path

from edm_hloc import cli
from edm_hloc.evaluation.models import compare

COLUMNS = (
    "network, px",
    "CPU s, all",
    "s a pair",
    "matches",
    "registered",
    "points",
    "track",
    "error px",
    "rotation °",
    "position %",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("images", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--truth", type=Path, help="COLMAP model with the true cameras")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1024, 832, 704, 576])
    args, options = parser.parse_known_args()
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    for size in args.sizes:
        out = args.out / str(size)
        words = ["reconstruct", str(args.images), str(out), "--network-size", str(size), *options]
        start = time.process_time()
        with contextlib.redirect_stdout(io.StringIO()):
            code = cli.main(words)
        seconds = time.process_time() - start
        if code:
            raise SystemExit(code)
        results = json.loads((out / "run.json").read_text())["results"]
        print(f"| {' | '.join(_row(size, seconds, results, out, args.truth))} |", flush=True)


def _row(size: int, seconds: float, results: dict, out: Path, truth: Path | None) -> list[str]:
    matching, keypoints = results["matching"], results["keypoints"]
    model = results["mapped"]["statistics"]
    errors = ["", ""]
    if truth is not None:
        found = compare(out / "model", truth)
        errors = [f"{found.rotation_median:.4f}", f"{found.position_median:.4f}"]
    return [
        str(size),
        f"{seconds:.0f}",
        f"{matching['seconds'] / max(1, matching['matched']):.2f}",
        f"{keypoints['matches']:,}",
        str(model["registered"]),
        f"{model['points']:,}",
        f"{model['mean_track_length']:.2f}",
        f"{model['mean_reprojection_error']:.2f}",
        *errors,
    ]


if __name__ == "__main__":
    main()
