"""The network against reference outputs of EDM (tests/golden), and properties of any weights."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from edm_hloc.models.coarse import best_columns
from edm_hloc.models.edm import EDM
from edm_hloc.models.types import CONFIGS, MatchOptions
from tests.golden import reference_weights

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = ("same", "same_npe", "border", "mixed", "half")


def reference_state(variant: str) -> dict[str, torch.Tensor]:
    shapes = json.loads((GOLDEN / f"{variant}_state.json").read_text())
    return {
        k: torch.from_numpy(np.asarray(reference_weights.fill(k, tuple(s))))
        for k, s in shapes.items()
    }


@pytest.fixture(scope="module")
def reference_models() -> dict[str, EDM]:
    models = {}
    for variant in ("edm", "edm_s"):
        model = EDM(CONFIGS[variant])
        model.load_state_dict(reference_state(variant), strict=True)
        models[variant] = model.eval()
    return models


def golden_image(spec: np.ndarray) -> torch.Tensor:
    pixels = reference_weights.image(*(int(v) for v in spec))
    return torch.from_numpy(pixels)[None, None].float() / 255


@pytest.mark.parametrize("case", CASES)
def test_equals_reference(case: str, reference_models: dict[str, EDM]) -> None:
    golden = np.load(GOLDEN / f"{case}.npz")
    model = reference_models[str(golden["variant"])]
    scale = tuple(float(v) for v in golden["position_scale"])
    with torch.inference_mode():
        features0 = model.encode(golden_image(golden["image0"]), scale)
        features1 = model.encode(golden_image(golden["image1"]), scale)
        coarse0, coarse1 = model.interact(features0, features1)
        probability, column = best_columns(
            coarse0.flatten(2).mT, coarse1.flatten(2).mT, model.config.temperature
        )
        cells = model.coarse_match(coarse0, coarse1, int(golden["topk"]))
        offset, sigma = model.refine(features0, features1, coarse0, coarse1, cells)
        matches = model.match(
            features0,
            features1,
            MatchOptions(
                topk=int(golden["topk"]),
                threshold=float(golden["threshold"]),
                sigma_threshold=float(golden["sigma_threshold"]),
                border_cells=int(golden["border_cells"]),
            ),
        )

    close = {"atol": 1e-4, "rtol": 1e-4}
    for i, coarse in enumerate((coarse0, coarse1)):
        row, col = ((3, 5), (7, 2))[i]
        np.testing.assert_allclose(coarse.mean((2, 3))[0], golden[f"coarse{i}_mean"], **close)
        np.testing.assert_allclose(coarse[0, :, row, col], golden[f"coarse{i}_sample"], **close)
    np.testing.assert_allclose(probability[0], golden["row_max"], **close)
    assert (column[0].numpy() == golden["row_argmax"]).mean() >= 0.995

    expected = dict(
        zip(zip(golden["coarse_i"], golden["coarse_j"], strict=True), range(10**6), strict=False)
    )
    ours = list(zip(cells.cell0[0].tolist(), cells.cell1[0].tolist(), strict=True))
    k = len(ours)
    common = [(n, expected[cell]) for n, cell in enumerate(ours) if cell in expected]
    assert len(common) >= 0.995 * k == 0.995 * len(expected)
    n, m = np.array(common).T
    for first in (0, k):
        np.testing.assert_allclose(offset[0, first + n], golden["offset"][first + m], **close)
        score = 1 - sigma[0, first + n].mean(-1)
        np.testing.assert_allclose(score, golden["score"][first + m], **close)

    valid = matches.valid[0].numpy()
    found = np.concatenate(
        [matches.keypoints0[0], matches.keypoints1[0], matches.confidence[0, :, None]], axis=1
    )[valid]
    expected_rows = np.column_stack(
        [golden["keypoints0"], golden["keypoints1"], golden["confidence"]]
    )
    assert abs(len(found) - len(expected_rows)) <= 0.005 * len(expected_rows)
    distance = np.abs(found[:, None, :4] - expected_rows[None, :, :4]).max(-1)
    nearest = distance.argmin(1)
    same = distance[np.arange(len(found)), nearest] < 1e-3
    assert same.mean() >= 0.995
    assert len(np.unique(nearest[same])) == same.sum()
    np.testing.assert_allclose(found[same, 4], expected_rows[nearest[same], 4], **close)
