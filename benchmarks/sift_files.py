"""COLMAP's SIFT of listed pairs as hloc's H5 files, to take our own steps from there on."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pycolmap

from edm_hloc.base.colmap import quiet_colmap
from edm_hloc.keypoints.h5 import FeatureWriter, MatchWriter
from edm_hloc.pairs.rules import Pair, unique_pairs


def write_sift(
    images: Path, pairs: Sequence[Pair], features: Path, matches: Path, max_size: int = 1024
) -> None:
    """Extracts up to 8,192 SIFT keypoints a photo and matches the pairs, as COLMAP does by default.

    Matches are mutual nearest neighbours that pass the ratio test, without geometry, as hloc's.
    """
    names = sorted({name for pair in pairs for name in pair})
    with tempfile.TemporaryDirectory() as folder, quiet_colmap():
        database, listed = Path(folder) / "sift.db", Path(folder) / "pairs.txt"
        extraction = pycolmap.FeatureExtractionOptions()
        extraction.max_image_size = max_size
        pycolmap.extract_features(
            database,
            images,
            image_names=names,
            camera_mode=pycolmap.CameraMode.PER_IMAGE,
            extraction_options=extraction,
            device=pycolmap.Device.cpu,
        )
        unique = unique_pairs(pairs)
        listed.write_text("".join(f"{a} {b}\n" for a, b in unique))
        pairing = pycolmap.ImportedPairingOptions()
        pairing.match_list_path = listed
        pycolmap.match_image_pairs(database, pairing_options=pairing, device=pycolmap.Device.cpu)
        db = pycolmap.Database.open(database)
        ids = {image.name: image.image_id for image in db.read_all_images()}
        number: dict[str, int] = {}
        with FeatureWriter(features, {"features": "sift"}) as writer:
            for name in names:
                keypoints = db.read_keypoints(ids[name])[:, :2] - 0.5
                number[name] = len(keypoints)
                writer.add(name, keypoints, np.ones(len(keypoints)))
        with MatchWriter(matches, {"features": "sift"}) as writer:
            for a, b in unique:
                found = np.asarray(db.read_matches(ids[a], ids[b]), np.int64)
                matches0 = np.full(number[a], -1, np.int32)
                matches0[found[:, 0]] = found[:, 1]
                writer.add(a, b, matches0, (matches0 >= 0).astype(np.float32))
        db.close()
