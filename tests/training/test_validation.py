"""Validation on rendered and on real pairs."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.models.edm import EDM
from edm_hloc.models.types import EDMMatches
from edm_hloc.training.sources import SyntheticSource
from edm_hloc.training.step import PairBatch
from edm_hloc.training.supervision import (
    DepthMap,
    grid_points,
    supervise,
)
from edm_hloc.training.validation import (
    judge_matches,
    load_real_pairs,
    validate,
    validate_real,
)
from tests.training.tools import (
    TINY,
    rendered_pair,
    shifted,
    write_jpeg,
)


def test_validation_on_real_pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """True matches in place of the network's have no epipolar errors, shifted ones do."""
    pair = rendered_pair(192, 256)
    for i, image in enumerate((pair.image0, pair.image1)):
        write_jpeg(tmp_path / f"{i}.jpg", (image[0, 0].numpy() * 255).astype(np.uint8))
    values = [*pair.K0.flatten().tolist(), *pair.K1.flatten().tolist()]
    values += pair.T_0to1.flatten().tolist()
    line = "0.jpg 1.jpg 0 0 " + " ".join(f"{v:.9g}" for v in values)
    (tmp_path / "pairs.txt").write_text(line + "\n\n")
    pairs = load_real_pairs(tmp_path / "pairs.txt", tmp_path, longest=128)
    assert pairs[0].image0.shape == (1, 1, 96, 128)
    truth = supervise(DepthMap(pair.depth0, pair.K0), DepthMap(pair.depth1, pair.K1), pair.T_0to1)
    x0 = grid_points(truth.grid0)[truth.visible0[0]][None]
    x1 = truth.warped0[truth.visible0][None]
    half = [(x + 0.5) / 2 - 0.5 for x in (x0, x1)]  # at 128 px
    moved = half[1] + torch.tensor([0.0, 30.0])
    model = EDM(TINY)
    for x, right in ((half[1], True), (moved, False)):
        valid = torch.ones(x.shape[:2], dtype=torch.bool)
        matches = EDMMatches(half[0], x, valid.float(), valid.float(), valid)
        monkeypatch.setattr(model, "match", lambda *a, m=matches, **k: m)
        result = validate_real(model, pairs, 0.2)
        in_corner = matches._replace(keypoints0=half[0] + 0.5, keypoints1=x + 0.5)
        monkeypatch.setattr(model, "match", lambda *a, m=in_corner, **k: m)
        assert validate_real(model, pairs, 0.2, "corner") == pytest.approx(result, abs=0.01)
        assert result["matches"] == len(x0[0]) > 50
        assert result["precision"] > 0.99 if right else result["precision"] < 0.3
    (tmp_path / "pairs.txt").write_text("a b 0 0 1 2\n")
    with pytest.raises(EdmHlocError, match="line 1"):
        load_real_pairs(tmp_path / "pairs.txt", tmp_path)


def test_validation_of_a_perfect_and_a_blind_matcher(scenes: SyntheticSource) -> None:
    batch = scenes.batch(2, 96, 96, 5)
    same = scenes.batch(2, 96, 96, 5)
    truth = supervise(
        DepthMap(torch.ones(2, 96, 96), torch.eye(3).expand(2, 3, 3)),
        DepthMap(torch.ones(2, 96, 96), torch.eye(3).expand(2, 3, 3)),
        torch.eye(4).expand(2, 4, 4),
    )
    torch.manual_seed(0)
    model = EDM(TINY).eval()
    # The untrained network finds no match of an image with itself at a high threshold.
    result = validate(model, [PairBatch(same.image0, same.image0, truth)], threshold=0.999)
    assert result["matches"] == 0
    assert math.isnan(result["fine_error"])
    everything = validate(model, [batch], threshold=-1.0)
    assert 0 < everything["matches"] <= 144
    assert 0 <= everything["coarse_precision"] < 0.3


def test_matches_are_judged_by_the_truth(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three right matches of two cells, one 24 px off, one of a point that is not seen."""
    truth = shifted(10.0)  # to the right: the last column leaves the image
    points = grid_points(truth.grid0)
    cells = torch.tensor([20, 20, 37, 40, truth.grid0[1] - 1])
    x0 = points[cells][None]
    x1 = x0 + torch.tensor([10.0, 0.0])
    x1[0, 1, 0] += 2.0
    x1[0, 3, 1] += 24.0
    x1[0, 4, 0] -= 10.0
    scores = torch.tensor([[0.9, 0.3, 0.6, 0.8, 0.7]])
    valid = torch.ones(1, 5, dtype=torch.bool)
    model = EDM(TINY).eval()
    out = EDMMatches(x0, x1, scores, scores, valid)
    monkeypatch.setattr(model, "match", lambda *a, **k: out)
    monkeypatch.setattr(model, "encode", lambda *a: None)
    images = torch.zeros(1, 1, 96, 128)
    judged = judge_matches(model, PairBatch(images, images, truth), 0.2)
    assert judged.near.tolist() == [True, True, True, False, False]
    assert judged.wrong.tolist() == [False, False, False, True, False]
    torch.testing.assert_close(judged.error, torch.tensor([0.0, 2.0, 0.0]))
    torch.testing.assert_close(judged.found, torch.tensor([0.9, 0.6]))
    assert judged.known == int((truth.partner >= 0).sum())
    result = validate(model, [PairBatch(images, images, truth)], 0.2)
    assert result["coarse_precision"] == pytest.approx(0.6)
    assert result["coarse_recall"] == pytest.approx(2 / judged.known)
    assert result["matches"] == 5
