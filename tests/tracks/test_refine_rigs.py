"""A model refined in rigs whose distances a file tells."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pycolmap
import pytest

from edm_hloc.base.colmap import posed_images
from edm_hloc.cli.summaries import print_tracks
from edm_hloc.evaluation.models import compare
from edm_hloc.tracks.adjustment import Kept
from edm_hloc.tracks.refine import refine_model
from tests.tracks import test_refine
from tests.tracks.test_refine import THREADS, Roof

roof = test_refine.roof


def test_distances_in_a_rig_stay_as_its_file_tells(
    roof: Roof, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truth = posed_images(pycolmap.Reconstruction(roof.truth))
    first, second = (name for name in [*truth][1:3])
    pose = truth[second].cam_from_world() * truth[first].cam_from_world().inverse()
    x, y, z, w = pose.rotation.quat
    told = (3 * pose.translation).tolist()
    entry = {"cam_from_rig_rotation": [w, x, y, z], "cam_from_rig_translation": told}
    cameras = [
        {"image_prefix": first.partition(".")[0], "ref_sensor": True},
        {"image_prefix": second.partition(".")[0]} | entry,
    ]
    (tmp_path / "rig.json").write_text(json.dumps([{"cameras": cameras}]))
    kept = Kept(intrinsics=True, rigs=tmp_path / "rig.json")
    summary = refine_model(roof.model, roof.images, tmp_path / "refined", kept, THREADS)
    assert summary.rigs is not None
    assert summary.rigs.scale == pytest.approx(3, rel=0.05)
    assert summary.before.points == pycolmap.Reconstruction(roof.model).num_points3D()
    refined = pycolmap.Reconstruction(tmp_path / "refined")
    poses = [p for rig in refined.rigs.values() for p in rig.non_ref_sensors.values()]
    assert [p.translation for p in poses] == [pytest.approx(told, rel=1e-9)]
    assert compare(tmp_path / "refined", roof.truth).position_median < 0.1
    print_tracks(asdict(replace(summary, rigs=replace(summary.rigs, off=("2.png",)))))
    said = capsys.readouterr().out
    assert "2 photos in 1 frames" in said
    assert "Far worse in it: 2.png. The camera moved in its rig" in said
