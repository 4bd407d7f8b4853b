"""Known positions straighten a chain of photos that bends without them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pycolmap

from edm_hloc.base.colmap import read_model
from edm_hloc.images.cameras import CameraOptions
from edm_hloc.mapping.database import build_database
from edm_hloc.mapping.georeference import camera_centres
from edm_hloc.mapping.mappers import map_database
from edm_hloc.mapping.priors import PositionPriors
from tests.mapping.scenes import THREADS
from tests.mapping.walk import Walk

PHOTOS, STEP, DEVIATION = 24, 2.0, 0.1


def chain(folder: Path) -> tuple[Walk, np.ndarray]:
    """Photos along a façade, each matched with the next two; noise of 2 px."""
    number = np.arange(PHOTOS)
    length = PHOTOS * STEP
    rng = np.random.default_rng(0)
    points = rng.uniform([-6, -4, 9], [length + 6, 4, 12], (int(16 * length), 3))
    centres = np.stack([STEP * number, 0.3 * np.sin(number), 0.3 * np.cos(1.7 * number)], axis=1)
    turns = np.stack([2 * np.sin(number), 0 * number, 0 * number], axis=1)
    walk = Walk(folder, points, turns, centres, noise=2.0)
    names = walk.names
    walk.matched = replace(
        walk.matched, pairs=[p for k in (1, 2) for p in zip(names, names[k:], strict=False)]
    )
    return walk, centres


def test_priors_straighten_a_chain(tmp_path: Path) -> None:
    walk, centres = chain(tmp_path)
    truth = dict(zip(walk.names, centres, strict=True))
    database = tmp_path / "d.db"
    build_database(database, walk.matched, CameraOptions(mode="single"), THREADS)
    rng = np.random.default_rng(1)
    wrong = set(walk.names[3::7])
    priors = PositionPriors(
        {
            name: (xyz + rng.normal(0, DEVIATION, 3) + 25 * (name in wrong)).tolist()
            for name, xyz in truth.items()
        },
        dict.fromkeys(walk.names, [DEVIATION] * 3),
    )

    def errors(priors: PositionPriors | None) -> tuple[float, float]:
        """The largest distance from the truth after the best similarity, and without any."""
        out = tmp_path / "model"
        summary = map_database(database, walk.matched.image_root, out, THREADS, (), priors)
        assert summary.statistics.registered == PHOTOS
        found = camera_centres(read_model(out))
        here, there = (np.array([places[name] for name in found]) for places in (found, truth))
        best = pycolmap.estimate_sim3d(here, there).matrix()
        fitted = here @ best[:, :3].T + best[:, 3]
        return tuple(float(np.linalg.norm(x - there, axis=1).max()) for x in (fitted, here))

    bent, _ = errors(None)
    straight, in_frame = errors(priors)
    assert bent > 0.4
    assert straight < bent / 4
    assert in_frame < 3 * DEVIATION
    with pycolmap.Database.open(database) as db:
        assert db.num_pose_priors() == 0  # the run's own database stays as it was
