"""What every matcher promises: EDM with the shipped weights, the others with random ones.

"refined" is EDM as it is used by default: with a second look, and refined by the photos.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from edm_hloc import cli
from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.frames import PixelTransform
from edm_hloc.base.matches import Matches
from edm_hloc.images.load import NetworkImage, load_image
from edm_hloc.matchers import registry
from edm_hloc.matchers.base import Features, Matcher, MatcherConfig, MatcherInfo, Preprocessing
from edm_hloc.matchers.eloftr import ELoFTRMatcher
from edm_hloc.matching.engine import match_pairs
from edm_hloc.refinement.config import RefinementConfig
from edm_hloc.refinement.load import load_matcher
from edm_hloc.refinement.matcher import RefinedMatcher
from tests.golden import reference_weights

NAMES = registry.NAMES


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Weights of each matcher, made when first asked for."""
    folder = tmp_path_factory.mktemp("matchers")

    class Made(dict[str, str]):
        def __missing__(self, name: str) -> str:
            torch.manual_seed(0)
            self[name] = {"edm": _shipped, "eloftr": _tiny_eloftr, "loftr": _random_loftr}[name](
                folder
            )
            return self[name]

    return Made()


def _shipped(folder: Path) -> str:
    return "edm_s"


def _tiny_eloftr(folder: Path) -> str:
    transformers = pytest.importorskip("transformers", reason="EfficientLoFTR needs transformers")
    config = transformers.EfficientLoFTRConfig(
        stage_num_blocks=[1, 1, 1, 1],
        out_features=[16, 16, 32, 64],
        hidden_size=64,
        num_attention_layers=2,
        fine_matching_slice_dim=4,
        coarse_matching_threshold=0.0,
        coarse_matching_border_removal=1,
    )
    model = transformers.EfficientLoFTRForKeypointMatching(config).eval()
    for module in model.modules():  # as the library initialises them, all images look alike
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
        elif isinstance(module, (torch.nn.Conv2d, torch.nn.Linear)):
            torch.nn.init.kaiming_normal_(module.weight)
    model.save_pretrained(folder / "eloftr")
    return str(folder / "eloftr")


def _random_loftr(folder: Path) -> str:
    loftr = pytest.importorskip("kornia.feature", reason="LoFTR needs kornia")
    torch.save({"state_dict": loftr.LoFTR(None).state_dict()}, folder / "loftr.ckpt")
    return str(folder / "loftr.ckpt")


@pytest.fixture(scope="module")
def matchers(weights: dict[str, str]) -> dict[str, Matcher]:
    class Made(dict[str, Matcher]):
        def __missing__(self, name: str) -> Matcher:
            self[name] = make(name, weights)
            return self[name]

    return Made()


def make(name: str, weights: dict[str, str], **options: object) -> Matcher:
    if name == "loftr":  # full-size, and slow; its random weights are never sure
        options = {"threshold": 0.0, "preprocessing": Preprocessing(resize_max=192), **options}
    if name == "refined":
        return load_matcher("edm", weights="edm_s", device="cpu", **options)
    return registry.make_matcher(name, weights=weights[name], device="cpu", **options)


@pytest.fixture(params=[*NAMES, "refined"])
def matcher(request: pytest.FixtureRequest, matchers: dict[str, Matcher]) -> Matcher:
    return matchers[request.param]


def texture(width: int, height: int, seed: int = 0) -> np.ndarray:
    """(H, W) uint8 with structure at several scales."""
    rng = np.random.default_rng(seed)
    total = np.zeros((height, width))
    for cells in (6, 24, 96):
        noise = rng.random((cells, cells))
        total += cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(total / 3 * 255, 0, 255).astype(np.uint8)


def write(path: Path, pixels: np.ndarray) -> Path:
    assert cv2.imwrite(str(path), pixels)
    return path


def encode(matcher: Matcher, folder: Path, pixels: np.ndarray) -> Features:
    p = matcher.info.preprocessing
    path = write(folder / "image.png", pixels)
    return matcher.encode(load_image(path, resize_max=p.resize_max, divisor=p.divisor))


def check(found: Matches, image0: np.ndarray, image1: np.ndarray) -> None:
    number = len(found.scores)
    for keypoints, image in ((found.keypoints0, image0), (found.keypoints1, image1)):
        assert keypoints.shape == (number, 2)
        assert keypoints.dtype == np.float32
        # inside, but for one of the network's pixels
        height, width = image.shape
        slack = [max(1, side / 32) for side in (width, height)]
        assert (keypoints >= np.negative(slack)).all()
        assert (keypoints <= np.add(slack, [width, height])).all()
    assert found.scores.shape == (number,)
    assert found.scores.dtype == np.float32
    assert ((found.scores >= 0) & (found.scores <= 1)).all()
    assert len(np.unique(np.hstack([found.keypoints0, found.keypoints1]), axis=0)) == number


@pytest.mark.parametrize(
    ("size0", "size1"),
    [((313, 471), (313, 471)), ((313, 471), (200, 150)), ((97, 131), (130, 33)), ((32, 32),) * 2],
)
def test_any_sizes(matcher: Matcher, tmp_path: Path, size0: tuple, size1: tuple) -> None:
    image0, image1 = texture(*size0), texture(*size1)
    features0, features1 = (encode(matcher, tmp_path, image) for image in (image0, image1))
    check(matcher.match(features0, features1), image0, image1)
    check(matcher.match(features1, features0), image1, image0)


@pytest.mark.parametrize("value", [0, 128, 255])
def test_constant_images(matcher: Matcher, tmp_path: Path, value: int) -> None:
    flat, other = np.full((90, 130), value, np.uint8), texture(130, 90)
    features, others = encode(matcher, tmp_path, flat), encode(matcher, tmp_path, other)
    check(matcher.match(features, features), flat, flat)
    check(matcher.match(features, others), flat, other)
    check(matcher.match(others, features), other, flat)


@pytest.mark.parametrize("size", [(1, 200), (200, 1), (1, 1)])
def test_one_pixel_wide(matcher: Matcher, tmp_path: Path, size: tuple[int, int]) -> None:
    thin, other = texture(*size), texture(130, 90)
    features, others = encode(matcher, tmp_path, thin), encode(matcher, tmp_path, other)
    check(matcher.match(features, features), thin, thin)
    check(matcher.match(features, others), thin, other)
    check(matcher.match(others, features), other, thin)


def test_identical_images_and_no_overlap(matcher: Matcher, tmp_path: Path) -> None:
    image, other = texture(192, 128), texture(192, 128, seed=1)
    features, others = encode(matcher, tmp_path, image), encode(matcher, tmp_path, other)
    same = matcher.match(features, features)
    check(same, image, image)
    assert len(same.scores) > 20
    distance = np.linalg.norm(same.keypoints1 - same.keypoints0, axis=1)
    assert np.median(distance) < 8  # the same cell even for random weights
    different = matcher.match(features, others)
    check(different, image, other)
    assert different.scores.sum() < 0.5 * same.scores.sum()


def test_shift(matcher: Matcher, tmp_path: Path) -> None:
    """By two cells, which no weights can miss, along x and not y."""
    wide = texture(208, 128)
    left, right = wide[:, :192], wide[:, 16:]
    found = matcher.match(encode(matcher, tmp_path, left), encode(matcher, tmp_path, right))
    shift = np.median(found.keypoints1 - found.keypoints0, axis=0)
    np.testing.assert_allclose(shift, [-16, 0], atol=4 if matcher.info.name == "loftr" else 0.5)


def test_known_homography(matchers: dict[str, Matcher], tmp_path: Path) -> None:
    """A turn of 8°, a scale of 1.1 and some perspective, EDM with the shipped weights."""
    image = texture(416, 320)
    angle = np.deg2rad(8)
    c, s = 1.1 * np.cos(angle), 1.1 * np.sin(angle)
    H = np.array([[c, -s, 10.0], [s, c, -40.0], [1e-4, 5e-5, 1.0]])
    warped = cv2.warpPerspective(image, H, (352, 313), flags=cv2.INTER_LINEAR)
    matcher = matchers["edm"]
    features = [encode(matcher, tmp_path, pixels) for pixels in (image, warped)]
    found = matcher.match(*features)
    projected = cv2.perspectiveTransform(found.keypoints0[:, None].astype(float), H)[:, 0]
    error = np.linalg.norm(projected - found.keypoints1, axis=1)
    assert len(error) > 300
    assert np.median(error) < 1.0
    assert (error < 3).mean() > 0.9


def test_batch_gives_what_single_gives(matcher: Matcher, tmp_path: Path) -> None:
    images = [texture(130, 90, seed) for seed in range(3)] + [texture(130, 90)[:, ::-1]]
    features = [encode(matcher, tmp_path, image) for image in images]
    pairs = [(features[i], features[j]) for i, j in ((0, 1), (0, 3), (2, 2))]
    for batched, pair in zip(matcher.match_batch(pairs), pairs, strict=True):
        single = matcher.match(*pair)
        assert len(batched.scores) == len(single.scores)
        by_place = [
            np.lexsort(np.hstack([m.keypoints1, m.keypoints0]).T) for m in (batched, single)
        ]
        for ours, theirs in zip(batched.arrays().values(), single.arrays().values(), strict=True):
            np.testing.assert_allclose(ours[by_place[0]], theirs[by_place[1]], atol=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_determinism(name: str, weights: dict[str, str], tmp_path: Path) -> None:
    images = texture(128, 96), texture(96, 64, seed=1)
    runs = []
    for _ in range(2):
        matcher = make(name, weights)
        features = [encode(matcher, tmp_path, image) for image in images]
        runs.append((matcher.match(*features), matcher.match(*features), dict(matcher.provenance)))
    for again in (runs[0][1], *runs[1][:2]):
        for array, other in zip(runs[0][0].arrays().values(), again.arrays().values(), strict=True):
            np.testing.assert_array_equal(array, other)
    assert runs[0][2] == runs[1][2]


def test_cores_change_matches_by_rounding_and_the_provenance_not(
    matcher: Matcher, tmp_path: Path
) -> None:
    """Or else workers, with fewer cores each, could not do the work of one process."""
    images = texture(128, 96), texture(96, 64, seed=1)
    before, found, provenances = torch.get_num_threads(), [], []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(matcher.match(*(encode(matcher, tmp_path, image) for image in images)))
            provenances.append(dict(matcher.provenance))
    finally:
        torch.set_num_threads(before)
    assert provenances[0] == provenances[1]
    for one, three in zip(*(matches.arrays().values() for matches in found), strict=True):
        np.testing.assert_allclose(one, three, atol=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_provenance_and_options(name: str, weights: dict[str, str], tmp_path: Path) -> None:
    usual = make(name, weights)
    assert json.loads(json.dumps(dict(usual.provenance))) == usual.provenance
    assert usual.provenance["matcher"] == usual.info.name == name
    assert len(usual.provenance["weights_sha256"]) == 64
    few, strict = make(name, weights, topk=5), make(name, weights, threshold=0.999)
    assert len({json.dumps(dict(m.provenance)) for m in (usual, few, strict)}) == 3
    image = texture(128, 96, seed=1)
    features = encode(few, tmp_path, image)
    best = few.match(features, features)
    assert len(best.scores) == 5
    everything = usual.match(features, features).scores
    np.testing.assert_allclose(np.sort(best.scores), np.sort(everything)[-5:], atol=1e-6)
    assert len(strict.match(features, features).scores) < len(everything)


def test_each_image_is_encoded_once(matcher: Matcher, tmp_path: Path) -> None:
    for i in range(3):
        write(tmp_path / f"{i}.png", texture(100 + 10 * i, 90, seed=i))
    pairs = [("0.png", "1.png"), ("0.png", "2.png"), ("1.png", "2.png")]
    summary = match_pairs(tmp_path, pairs, matcher, tmp_path / "raw")
    assert (summary.matched, summary.encoded) == (3, 3)
    features = encode(matcher, tmp_path, texture(64, 64))
    assert features.nbytes > 64 * 64


# --------------------------------------------------------------------------- the single matchers


def _golden_weights(model: torch.nn.Module) -> None:
    """Those of tests/golden/eloftr.npz, with gains that keep random features in a useful range."""
    for name, tensor in model.state_dict().items():
        values = reference_weights.fill(name, tuple(tensor.shape))
        if "backbone" in name and values.ndim == 1 and name.endswith("weight"):
            values *= 0.78
        elif name.endswith("mlp.layer_norm.weight"):
            values *= 5
        elif name.endswith("out_conv_layers.1.out_conv3.weight"):
            values *= 40
        tensor.copy_(torch.from_numpy(np.asarray(values)))


def test_eloftr_equals_the_authors_implementation() -> None:
    """Matches of the authors' code (zju3dv/EfficientLoFTR, with its position scaling set to the
    longest side where that exceeds 832) on crops of one image, for the same random weights."""
    transformers = pytest.importorskip("transformers")
    model = transformers.EfficientLoFTRForKeypointMatching(transformers.EfficientLoFTRConfig())
    with torch.no_grad():
        _golden_weights(model)
    matcher = ELoFTRMatcher.__new__(ELoFTRMatcher)
    matcher.model, matcher.threshold = model.eval(), 0.0
    matcher.config, matcher.info = MatcherConfig(), MatcherInfo("eloftr", Preprocessing())
    golden = np.load(Path(__file__).parents[1] / "golden" / "eloftr.npz")
    pixels = torch.from_numpy(reference_weights.image(7, 256, 928)).float() / 255
    for case in ("same", "mixed", "long"):
        crops = [pixels[None, y : y + h, x : x + w] for y, x, h, w in golden[f"{case}_crops"]]
        features = [
            matcher.encode(NetworkImage(crop, PixelTransform((1.0, 1.0)), crop.shape[2:0:-1]))
            for crop in crops
        ]
        found = matcher.match(features[1], features[0])  # the authors refine the second image
        ours = np.column_stack([found.keypoints1, found.keypoints0]) + 0.5
        theirs = np.column_stack([golden[f"{case}_points0"], golden[f"{case}_points1"]])
        places = [np.lexsort(points[:, :2].round().T) for points in (ours, theirs)]
        assert len(ours) == len(theirs) > 10
        np.testing.assert_allclose(ours[places[0]], theirs[places[1]], atol=2e-3)
        scores = found.scores[places[0]], golden[f"{case}_scores"][places[1]]
        np.testing.assert_allclose(*scores, rtol=1e-2, atol=1e-4)


def test_eloftr_refines_image_0_by_its_own_channels(matchers: dict[str, Matcher]) -> None:
    """One match whose windows agree at known pixels, and whose fine channels pull to the right."""
    matcher = matchers["eloftr"]
    fine = matcher.model.config.fine_matching_slice_dim
    torch.manual_seed(0)
    code = torch.nn.functional.normalize(torch.randn(64 + fine), dim=0)
    code[64:] = 0
    query, reference = torch.zeros(1, 64, 64 + fine), torch.zeros(1, 100, 64 + fine)
    query[0, 3 * 8 + 6] = 300 * code  # row 3, column 6 of the cell
    reference[0, (2 + 1) * 10 + (4 + 1)] = 300 * code  # row 2, column 4, behind the border
    pixel0, pixel1 = matcher._refine(query, reference)
    assert pixel0.tolist() == [[6, 3]]
    assert pixel1.tolist() == [[4, 2]]
    query[..., 64:] = 1.0
    # in the frame of the border the 3 × 3 pixels are rows 1 to 3 and columns 3 to 5
    for row in (1, 2, 3):
        reference[0, row * 10 + 5, 64:] = 20.0
    _, pixel1 = matcher._refine(query, reference)
    x, y = pixel1[0].tolist()
    heat = np.exp(20 * fine / fine**0.5 / matcher.model.config.fine_matching_regress_temperature)
    assert x == pytest.approx(4 + (heat - 1) / (heat + 2), abs=1e-4)
    assert y == pytest.approx(2, abs=1e-5)


@pytest.mark.parametrize("kept_in", [torch.float16, torch.bfloat16])
def test_eloftr_saved_in_half_precision(
    kept_in: torch.dtype, weights: dict[str, str], matchers: dict[str, Matcher], tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    model = transformers.EfficientLoFTRForKeypointMatching.from_pretrained(weights["eloftr"])
    model.to(kept_in).save_pretrained(tmp_path)
    matcher = registry.make_matcher("eloftr", weights=str(tmp_path), device="cpu")
    whole = matchers["eloftr"].model.state_dict()
    for key, value in matcher.model.state_dict().items():
        torch.testing.assert_close(value, whole[key].to(kept_in).to(whole[key].dtype))
    frequencies = [
        m.model.efficientloftr.rotary_emb.inv_freq for m in (matcher, matchers["eloftr"])
    ]
    torch.testing.assert_close(*frequencies)
    features = encode(matcher, tmp_path, texture(192, 128))
    assert len(matcher.match(features, features)) > 20


@pytest.mark.parametrize("name", ["eloftr", "loftr"])
def test_image_0_leaves_the_grid(name: str, matchers: dict[str, Matcher], tmp_path: Path) -> None:
    matcher = matchers[name]
    features = [encode(matcher, tmp_path, texture(192, 128)) for _ in range(2)]
    found = matcher.match(*features)
    step, start = (1, 0) if name == "eloftr" else (8, -0.5)
    np.testing.assert_allclose((found.keypoints1 - start) % step, 0, atol=1e-4)
    assert (np.abs((found.keypoints0 - start) % step) > 1e-3).mean() > 0.9


def test_several_photos_are_encoded_at_once_each_with_memory_of_its_own(
    weights: dict[str, str], tmp_path: Path
) -> None:
    matcher = make("edm", weights, batch_size=2)
    shots = [texture(96, 64, 0), texture(64, 96, 1), texture(96, 64, 2), texture(96, 64, 3)]
    images = [load_image(write(tmp_path / f"{i}.png", s)) for i, s in enumerate(shots)]
    for image, features in zip(images, matcher.encode_batch(images), strict=True):
        alone = matcher.encode(image)
        assert features.transform == alone.transform
        assert features.nbytes == alone.nbytes
        for one, same in zip(features.data[:4], alone.data[:4], strict=True):
            np.testing.assert_allclose(one.numpy(), same.numpy(), atol=1e-4)
            assert one.untyped_storage().nbytes() == one.nbytes
    assert matcher.encode_batch([]) == []


@pytest.mark.parametrize("name", NAMES)
def test_refined_matches_have_a_corner_of_either_photo(
    name: str, matchers: dict[str, Matcher], tmp_path: Path
) -> None:
    matcher = matchers[name]
    refined = RefinedMatcher(
        matcher,
        RefinementConfig(
            min_correlation=-1, min_support=0, min_aligned_support=0, min_matches_to_grow=10_000
        ),
    )
    wide = texture(209, 128)
    between = (wide[:, 16:-1] / 2 + wide[:, 17:] / 2).astype(np.uint8)  # by half a pixel
    pair = []
    for pixels in (wide[:, :192], between):
        path = write(tmp_path / "image.png", pixels)
        resize_max = matcher.info.preprocessing.resize_max
        pair.append(refined.encode(load_image(path, resize_max=resize_max)))
    found = refined.match(*pair)
    assert len(found.scores) > 4

    def kept(side: int) -> float:
        corners = pair[side].transform.to_original(pair[side].data.corners.points.reshape(-1, 2))
        places = {tuple(point) for point in np.round(corners, 3)}
        return float(
            np.mean(
                [
                    tuple(point) in places
                    for point in np.round((found.keypoints0, found.keypoints1)[side], 3)
                ]
            )
        )

    # half of them of one, half of the other; now and then the two fall together
    assert 0.95 < kept(0) + kept(1) < 1.5
    assert min(kept(0), kept(1)) > 0.3


def test_candidates_are_the_matches_and_weaker_ones(
    weights: dict[str, str], tmp_path: Path
) -> None:
    pixels = texture(192, 128)
    small = cv2.resize(pixels, (128, 96), interpolation=cv2.INTER_AREA)  # harder to match
    plain, more = (
        registry.make_matcher("edm", weights=weights["edm"], topk=999, device="cpu", candidates=c)
        for c in (False, True)
    )
    found, candidates = (
        matcher.match(encode(matcher, tmp_path, pixels), encode(matcher, tmp_path, small))
        for matcher in (plain, more)
    )
    assert more.info.confident == plain.info.confident == plain.threshold > more.threshold
    trusted = candidates.scores >= more.info.confident
    assert 0 < trusted.sum() < len(trusted)
    # What is evaluated exactly depends on the threshold: sums differ in the fourth digit.
    np.testing.assert_allclose(found.scores, candidates.scores[trusted], rtol=2e-3)
    assert plain.provenance != more.provenance


def test_cells_of_the_confident_matches(matchers: dict[str, Matcher], tmp_path: Path) -> None:
    pixels = texture(192, 128)
    for matcher in matchers.values():
        pair = encode(matcher, tmp_path, pixels), encode(matcher, tmp_path, pixels[:, 8:])
        found, cells = matcher.match_pixels([pair])[0], matcher.match_cells([pair])[0]
        assert len(found) <= len(cells)
        if matcher.info.name == "edm":  # the others have random weights
            # refinement moves a few out of the photo
            assert len(found) > 50
            assert len(cells) < 1.1 * len(found)
        place = np.searchsorted(-cells.scores, -found.scores)
        np.testing.assert_array_equal(cells.scores[place], found.scores)
        for side in ("keypoints0", "keypoints1"):
            assert np.abs(getattr(cells, side)[place] - getattr(found, side)).max() <= 4.01


def test_a_photo_shows_by_itself_what_it_repeats(
    matchers: dict[str, Matcher], tmp_path: Path
) -> None:
    """The left half of the photo is seen again in its right half, but for a strip in the middle."""
    rng = np.random.default_rng(8)
    once = _blurred(rng, 192, 128)
    pixels = np.hstack([once, _blurred(rng, 192, 64), once])
    cv2.imwrite(str(tmp_path / "a.png"), pixels)
    image = load_image(tmp_path / "a.png")
    edm = matchers["edm"]
    found = edm.distinctness(edm.encode(image))
    assert found is not None
    assert found.shape == (12, 20)
    assert np.median(found[2:-2, 9:11]) > 2 * np.median(found[2:-2, 2:6])


def test_padding_is_no_place_of_a_photo(matchers: dict[str, Matcher], tmp_path: Path) -> None:
    edm = matchers["edm"]
    cv2.imwrite(str(tmp_path / "a.png"), _blurred(np.random.default_rng(8), 192, 320))
    image = load_image(tmp_path / "a.png")
    padded = replace(image, tensor=torch.nn.functional.pad(image.tensor, (0, 64, 0, 32)))
    found = edm.distinctness(edm.encode(padded))
    assert found is not None
    assert found.shape == (12, 20)


def _blurred(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    noise = rng.integers(0, 256, (height // 4, width // 4), dtype=np.uint8)
    return cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)


def test_missing_library(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, module, extra in (
        ("eloftr", "transformers", "eloftr"),
        ("loftr", "kornia.feature.loftr.loftr", "kornia"),
    ):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(EdmHlocError, match=rf"pip install 'edm_hloc\[{extra}\]'"):
            registry.make_matcher(name)
    with pytest.raises(EdmHlocError, match="edm, eloftr, loftr"):
        registry.make_matcher("superglue")


@pytest.mark.parametrize("device", ["gpu", "meta:x", "cuda:99"])
def test_wrong_device(device: str) -> None:
    with pytest.raises(EdmHlocError, match=f"no device '{device}' here .*give cpu"):
        registry.make_matcher("edm", device=device)


def test_offline_without_a_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def no_network(*args: object, **kwargs: object) -> None:
        raise OSError("Name or service not known")

    loftr = pytest.importorskip("kornia.feature.loftr.loftr")
    monkeypatch.setattr(loftr, "load_state_dict_from_url", no_network)
    with pytest.raises(EdmHlocError, match="cannot be downloaded: run once with network"):
        registry.make_matcher("loftr", device="cpu")
    with pytest.raises(EdmHlocError, match="no weights 'outdor'"):
        registry.make_matcher("loftr", weights="outdor", device="cpu")

    transformers = pytest.importorskip("transformers")
    model = transformers.EfficientLoFTRForKeypointMatching
    monkeypatch.setattr(model, "from_pretrained", no_network)
    with pytest.raises(EdmHlocError, match="cannot be downloaded: run once with network"):
        registry.make_matcher("eloftr", device="cpu")
    with pytest.raises(EdmHlocError, match=f"{tmp_path} cannot be loaded as an EfficientLoFTR"):
        registry.make_matcher("eloftr", weights=str(tmp_path), device="cpu")


def test_wrong_checkpoint(tmp_path: Path) -> None:
    pytest.importorskip("kornia.feature")
    torch.save({"state_dict": {"x": torch.zeros(1)}}, tmp_path / "other.ckpt")
    with pytest.raises(EdmHlocError, match="other entries than LoFTR"):
        registry.make_matcher("loftr", weights=str(tmp_path / "other.ckpt"), device="cpu")


def test_command_line_takes_every_matcher(
    weights: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.options.MATCHERS == NAMES
    for i in range(2):
        write(tmp_path / f"{i}.png", texture(96, 64))
    photos = [str(tmp_path / f"{i}.png") for i in range(2)]
    out = ["--out", str(tmp_path / "m.png"), "--device", "cpu", "--threshold", "0"]
    for name in ("edm", "loftr"):
        arguments = ["--matcher", name, "--weights", weights[name], *out]
        assert cli.main(["match", *photos, *arguments]) == 0
        said = capsys.readouterr().out
        assert str(weights[name]) in said
        assert "Matches     0" not in said
