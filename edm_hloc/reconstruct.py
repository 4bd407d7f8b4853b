"""A folder of photos → a 3D model: matching, keypoints, verification and mapping, in order.

Every step leaves its files in the output folder and is done again only if something it depends
on has changed, so a run that was interrupted goes on, and another mapping reuses the matches:

    OUT/pairs.txt         the pairs, two names a line
    OUT/raw_matches/      what the matcher found, crash-safe
    OUT/features.h5       keypoints, as hloc writes them
    OUT/matches.h5        match indices, as hloc writes them
    OUT/database.db       COLMAP database with verified pairs
    OUT/model/            COLMAP model
    OUT/run.json          settings, versions, what was skipped, times and results
    OUT/report.html       all of it to look at (made by the command line)
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy
import pycolmap
import torch

import edm_hloc
from edm_hloc.aggregate import aggregate
from edm_hloc.cameras import CameraOptions, check_cameras
from edm_hloc.colmap import check_model
from edm_hloc.dense import DenseConfig, match_pairs, run_provenance
from edm_hloc.errors import EdmHlocError
from edm_hloc.files import FolderLock, write_whole
from edm_hloc.keypoints import QuantizationConfig
from edm_hloc.mapping import MappingOptions, check_known
from edm_hloc.masks import MaskedMatchReader, find_masks
from edm_hloc.matchers.base import Matcher
from edm_hloc.pairs import Pair, names_in, write_pairs
from edm_hloc.sfm import build_database, map_database, triangulate
from edm_hloc.store import check_provenance

logger = logging.getLogger(__name__)

# Merging within 2 px, the matches of all pairs in agreement: long tracks at a small error.
RECONSTRUCTION_KEYPOINTS = QuantizationConfig(
    max_error=2.0, cell_size=2.0, max_kps=8192, position="adjusted"
)


@dataclass
class Run:
    """The record of one run; written to `run.json` as it grows.

    Attributes:
        out: output folder.
        settings: what the run was asked for, and by which "command".
        done: fingerprints of the steps whose files are in `out`.
        sizes: bytes of the files of those steps, by name.
        results: one entry a step.
        seconds: wall-clock time of each step when it was last done.
        memory_mib: peak memory of the process by the end of each of these steps.
        peak_memory_mib: of this process, at the last write.
        error: why it ended, where it failed.
    """

    out: Path
    settings: dict[str, Any]
    done: dict[str, str] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    results: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    memory_mib: dict[str, float | None] = field(default_factory=dict)
    peak_memory_mib: float | None = None
    error: str | None = None

    @property
    def path(self) -> Path:
        return self.out / "run.json"

    @classmethod
    @contextlib.contextmanager
    def begin(
        cls, out: Path, settings: dict[str, Any], matcher: Matcher, *, overwrite: bool
    ) -> Iterator[Run]:
        """Start or continue the run in `out`, which no other process writes into meanwhile.

        An EdmHlocError that ends the block is recorded.

        Raises:
            EdmHlocError: the folder cannot be made, another process is at work there, or its
                files are another command's, or its matches were made with other settings; an
                older record stays as it is.
        """
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise EdmHlocError(f"Cannot make the folder {out}: {error.strerror}.") from error
        with FolderLock(out):
            run = cls(out, {"matcher": dict(matcher.provenance), **settings})
            if not overwrite:
                before = run._before()
                run._check_command(before["settings"].get("command"))
                check_provenance(out / "raw_matches", run_provenance(matcher))
                run._continue(before)
            run.write()
            try:
                yield run
            except EdmHlocError as error:
                run.error = str(error)
                with contextlib.suppress(EdmHlocError):
                    run.write()
                raise

    def _before(self) -> dict[str, dict[str, Any]]:
        """What an earlier run recorded; empty without a whole record, and then every step but the
        matching is done again."""
        try:
            record = json.loads(self.path.read_text("utf-8"))
            parts = {"sizes": {}, "memory_mib": {}, **record}  # which the oldest have not
        except (OSError, ValueError, TypeError):
            parts = {}
        names = ("settings", "done", "sizes", "results", "seconds", "memory_mib")
        whole = all(isinstance(parts.get(name), dict) for name in names)
        return {name: parts[name] if whole else {} for name in names}

    def _check_command(self, before: str | None) -> None:
        """Raises EdmHlocError if another command made the files; the oldest records name none."""
        now = self.settings.get("command")
        if before not in (None, now):
            raise EdmHlocError(
                f"{self.out} holds what edm-hloc {before} made, and edm-hloc {now} would write "
                "over it. Choose another output folder, or run with --overwrite."
            )

    def _continue(self, before: dict[str, dict[str, Any]]) -> None:
        self.done, self.sizes = before["done"], before["sizes"]
        self.results = before["results"]
        self.seconds, self.memory_mib = before["seconds"], before["memory_mib"]

    def step(
        self,
        name: str,
        depends_on: Any,
        files: Sequence[Path],
        work: Callable[[], dict[str, Any]],
    ) -> str:
        """Do `work` unless its files are there, whole, and were made from the same things.

        Args:
            name: of the step.
            depends_on: everything that decides the files' content.
            files: what the step writes.
            work: gives its summaries (dataclasses), by the name they get in `results`.

        Returns:
            The step's fingerprint, for the steps that depend on it.
        """
        fingerprint = fingerprint_of(depends_on)
        if self.done.get(name) == fingerprint:
            changed = [file for file in files if not self._is_whole(file)]
            if not changed:
                return fingerprint
            logger.warning("Made again, as it is not what this run had left: %s", changed[0])
        if self.done.pop(name, None) is not None:
            self.write()  # a kill from here on must not leave the step as done
        start = time.monotonic()
        self.results |= {key: asdict(summary) for key, summary in work().items()}
        self.measure(name, start)
        self.done[name] = fingerprint
        self.sizes |= {file.name: _size(file) for file in files}
        self.write()
        return fingerprint

    def _is_whole(self, file: Path) -> bool:
        return file.exists() and self.sizes.get(file.name) in (None, _size(file))

    def measure(self, name: str, start: float) -> None:
        """Notes the time since `start` (monotonic) and the memory of a step that is done."""
        self.seconds[name] = time.monotonic() - start
        self.memory_mib[name] = peak_memory_mib()

    def write(self) -> None:
        self.peak_memory_mib = peak_memory_mib()
        record: dict[str, Any] = {
            "settings": self.settings,
            "versions": versions(),
            "done": self.done,
            "sizes": self.sizes,
            "results": self.results,
            "seconds": self.seconds,
            "memory_mib": self.memory_mib,
            "peak_memory_mib": self.peak_memory_mib,
        }
        if self.error is not None:
            record["error"] = self.error
        write_whole(self.path, json.dumps(record, indent=2, default=str))


def _size(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    files = [path] if path.is_file() else path.rglob("*")
    return sum(file.stat().st_size for file in files if file.is_file())


def fingerprint_of(depends_on: Any) -> str:
    """Names what a step depends on, this package's version included."""
    text = json.dumps(depends_on, sort_keys=True, default=str)
    return hashlib.sha256(f"{edm_hloc.__version__} {text}".encode()).hexdigest()


def versions() -> dict[str, str]:
    """Of what decides results."""
    return {
        "edm_hloc": edm_hloc.__version__,
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "pycolmap": pycolmap.__version__,
        "numpy": numpy.__version__,
        "h5py": h5py.__version__,
    }


def peak_memory_mib() -> float | None:
    """Largest resident memory of this process so far; None where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)


def duration(seconds: float) -> str:
    """For people."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def match_and_quantize(
    run: Run,
    image_root: Path,
    pairs: Sequence[Pair],
    matcher: Matcher,
    quantization: QuantizationConfig,
    dense: DenseConfig | None = None,
    *,
    reference_features: Path | None = None,
    masks: Mapping[str, Path] | None = None,
    overwrite: bool = False,
) -> str:
    """Pairs of photos → `features.h5` and `matches.h5` in the run's folder; their fingerprint.

    Images of `reference_features`, an H5 file of keypoints, keep those: their matches are indices
    into them, and `features.h5` holds the other images only. Matches do not count where the
    mask of a photo is black (see `masks.py`).

    Raises:
        EdmHlocError: from any step; what was matched is kept.
    """
    out = run.out
    write_pairs(out / "pairs.txt", pairs)
    start = time.monotonic()
    summary = match_pairs(
        image_root, pairs, matcher, out / "raw_matches", dense, overwrite=overwrite
    )
    run.results["matching"] = asdict(summary)
    if summary.matched:
        run.measure("matching", start)
    run.write()

    features, matches = out / "features.h5", out / "matches.h5"

    def quantize() -> dict[str, Any]:
        raw = MaskedMatchReader(out / "raw_matches", masks or {}, image_root)
        with raw:
            summary = aggregate(
                raw, pairs, features, matches, quantization, reference_features=reference_features
            )
            if raw.hidden and not raw.shown:
                raise EdmHlocError(
                    "The masks leave none of the matches: photos count where their masks are "
                    "white. Are these black there?"
                )
            return {"keypoints": summary}

    shards = sorted((p.name, p.stat().st_mtime_ns) for p in (out / "raw_matches").glob("*.h5"))
    depends_on: list[Any] = [shards, pairs, asdict(quantization)]
    if reference_features is not None:
        depends_on.append((str(reference_features), reference_features.stat().st_mtime_ns))
    run.results.pop("masks", None)
    if masks:
        depends_on.append({name: (str(m), m.stat().st_mtime_ns) for name, m in masks.items()})
        run.results["masks"] = {"photos": len(masks)}
    return run.step(
        "keypoints",
        depends_on,
        [features, matches],
        quantize,
    )


def reconstruct(
    image_root: Path,
    out: Path,
    pairs: Sequence[Pair],
    matcher: Matcher,
    *,
    quantization: QuantizationConfig = RECONSTRUCTION_KEYPOINTS,
    dense: DenseConfig | None = None,
    cameras: CameraOptions | None = None,
    mapping: MappingOptions | None = None,
    masks: Path | None = None,
    overwrite: bool = False,
) -> Run:
    """Reconstruct the photos under `image_root` into `out`; see the module for its files.

    Args:
        image_root: folder of the photos.
        out: output folder; a run that is there already is continued.
        pairs: which photos to match.
        matcher: with what.
        quantization: how points become keypoints.
        dense: memory and threads of the matching.
        cameras: which photos share a camera, and known intrinsics.
        mapping: options of the geometry.
        masks: folder of images that are black where photos do not count (see `masks.py`).
        overwrite: do everything again.

    Returns:
        The record of the run: `results["mapped"]["statistics"]` and so on.

    Raises:
        EdmHlocError: bad input, or no model, with the reason; what was computed is kept.
    """
    cameras, mapping = cameras or CameraOptions(), mapping or MappingOptions()
    known = {name: str(camera.todict()) for name, camera in (cameras.known or {}).items()}
    settings = {
        "command": "reconstruct",
        "images": str(image_root),
        "quantization": asdict(quantization),
        "cameras": {"mode": cameras.mode, "model": cameras.model, "known": len(known)},
        "mapping": asdict(mapping),
        "masks": None if masks is None else str(masks),
    }
    names = names_in(pairs)
    check_known(known, names, mapping)
    check_cameras(image_root, names, cameras)
    mask_of = find_masks(masks, pairs, image_root)
    with Run.begin(out, settings, matcher, overwrite=overwrite) as run:
        matched = match_and_quantize(
            run, image_root, pairs, matcher, quantization, dense, masks=mask_of, overwrite=overwrite
        )
        features, matches = out / "features.h5", out / "matches.h5"
        database, model = out / "database.db", out / "model"

        def verify() -> dict[str, Any]:
            imported, verified = build_database(
                database, image_root, features, matches, pairs, cameras, mapping
            )
            return {"imported": imported, "verified": verified}

        def map_photos() -> dict[str, Any]:
            return {"mapped": map_database(database, image_root, model, mapping, known=known)}

        verified = run.step(
            "database",
            [matched, cameras.mode, cameras.model, known, asdict(mapping)],
            [database],
            verify,
        )
        run.step("model", [verified], [model], map_photos)
        return run


def triangulate_model(
    reference: Path,
    image_root: Path,
    out: Path,
    pairs: Sequence[Pair],
    matcher: Matcher,
    *,
    quantization: QuantizationConfig = RECONSTRUCTION_KEYPOINTS,
    dense: DenseConfig | None = None,
    mapping: MappingOptions | None = None,
    masks: Path | None = None,
    overwrite: bool = False,
) -> Run:
    """Match `pairs` and triangulate points with the poses of the COLMAP model `reference`.

    Files and record are those of `reconstruct`.

    Raises:
        EdmHlocError: bad input; what was computed is kept.
    """
    check_model(reference)
    mapping = mapping or MappingOptions()
    settings = {
        "command": "triangulate",
        "reference": str(reference),
        "images": str(image_root),
        "quantization": asdict(quantization),
        "mapping": asdict(mapping),
        "masks": None if masks is None else str(masks),
    }
    mask_of = find_masks(masks, pairs, image_root)
    with Run.begin(out, settings, matcher, overwrite=overwrite) as run:
        matched = match_and_quantize(
            run, image_root, pairs, matcher, quantization, dense, masks=mask_of, overwrite=overwrite
        )
        stamps = sorted((p.name, p.stat().st_mtime_ns) for p in reference.iterdir())
        features, matches = out / "features.h5", out / "matches.h5"
        database, model = out / "database.db", out / "model"

        def make_points() -> dict[str, Any]:
            verified, mapped = triangulate(
                reference, image_root, features, matches, pairs, database, model, mapping
            )
            return {"verified": verified, "mapped": mapped}

        depends_on = [matched, str(reference), stamps, asdict(mapping)]
        run.step("model", depends_on, [model, database], make_points)
        return run
