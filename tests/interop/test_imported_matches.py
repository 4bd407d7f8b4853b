"""Matches of other programs: their files, their pixel frames, and the model that comes of them."""

from __future__ import annotations

import itertools
import pathlib
import pickle
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from edm_hloc import cli
from edm_hloc.base.errors import EdmHlocError
from edm_hloc.evaluation.models import compare
from edm_hloc.images.load import load_image
from edm_hloc.interop.imported_matches import (
    GivenMatches,
    ImportConfig,
    PointFrame,
    load_imported,
    photo_frames,
)
from edm_hloc.interop.match_files import PairSource, sources_in
from tests.scenes import TruthMatcher

POINTS0 = np.array([[0.0, 0.0], [30.25, 12.5], [63.0, 47.0]])
POINTS1 = np.array([[5.0, 4.0], [31.0, 13.0], [60.0, 40.5]])
SCORES = np.array([0.9, 0.5, 0.25])


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    (folder / "left").mkdir(parents=True)
    for name in ("left/a.jpg", "b_1.png", "c.jpg"):
        Image.fromarray(np.full((48, 64, 3), 90, np.uint8)).save(folder / name)
    return folder


def names(photos: Path) -> list[str]:
    return sorted(p.relative_to(photos).as_posix() for p in photos.rglob("*") if p.is_file())


def given(path: Path, photos: Path, frame: PointFrame | None = None) -> GivenMatches:
    found = GivenMatches(path, names(photos), frame or PointFrame())
    found.check(photo_frames(photos, names(photos)))
    return found


def write_torch(path: Path) -> None:
    torch.save(
        {
            "num_inliers": 2,
            "H": np.eye(3),
            "matched_kpts0": POINTS0.astype(np.float32),
            "matched_kpts1": torch.from_numpy(POINTS1),
            "matched_confidences": SCORES.astype(np.float32),
            "img0_path": pathlib.PurePosixPath("/elsewhere/left/a.jpg"),
            "img1_path": pathlib.PurePosixPath("/elsewhere/b_1.png"),
        },
        path,
    )


def write_pickle(path: Path) -> None:
    pixels = np.zeros((48, 64, 3), np.uint8)
    arrays = {"mkeypoints0_orig": POINTS0, "mkeypoints1_orig": POINTS1, "mconf": SCORES}
    path.write_bytes(pickle.dumps({"image0_orig": pixels, "image1_orig": pixels, **arrays}))


def write_superglue(path: Path) -> None:
    partner = np.array([2, -1, 0, 1])
    first = np.insert(POINTS0, 1, [7.0, 7.0], axis=0)
    second = POINTS1[[1, 2, 0]]
    confidence = np.insert(SCORES, 1, 0)
    arrays = {"keypoints0": first, "keypoints1": second, "matches": partner}
    np.savez(path, **arrays, match_confidence=confidence)


def write_lightglue(path: Path) -> None:
    """Its dictionaries with the axis of the batch: lists of pairs, no scores by keypoints."""
    first = np.insert(POINTS0, 1, [7.0, 7.0], axis=0)
    second = POINTS1[[1, 2, 0]]
    pairs = np.array([[0, 2], [2, 0], [3, 1]])
    keypoints = {"keypoints0": torch.tensor(first)[None], "keypoints1": torch.tensor(second)[None]}
    found = {"matches": [torch.tensor(pairs)], "scores": [torch.tensor(SCORES)], "stop": 9}
    torch.save({**keypoints, **found}, path)


def write_lightglue_partners(path: Path) -> None:
    partner = np.array([[2, -1, 0, 1]])
    first = np.insert(POINTS0, 1, [7.0, 7.0], axis=0)
    arrays = {"keypoints0": first[None], "keypoints1": POINTS1[None, [1, 2, 0]]}
    confidence = np.insert(SCORES, 1, 0)[None]
    np.savez(path, **arrays, matches0=partner, matching_scores0=confidence)


def write_rows(path: Path) -> None:
    rows = np.column_stack([POINTS0, POINTS1, SCORES])
    np.save(path, rows) if path.suffix == ".npy" else np.savetxt(path, rows, header="x0 y0 x1 y1 s")


FILES = {
    "left-a.jpg__b_1.png.npz": lambda path: np.savez(
        path, keypoints0=POINTS0, keypoints1=POINTS1, scores=SCORES
    ),
    "a_b_1.npy": write_rows,
    "a-b_1.txt": write_rows,
    "output_0_result.torch": write_torch,
    "left_a__b_1.pkl": write_pickle,
    "a_b_1_.npz": write_superglue,
    "a__b_1.pt": write_lightglue,
    "a__b_1.npz": write_lightglue_partners,
}


@pytest.mark.parametrize("name", FILES)
def test_files_of_a_pair_are_read(name: str, photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "matches"
    folder.mkdir()
    FILES[name](folder / name.replace("_.npz", ".npz"))
    found = given(folder, photos)
    assert found.pairs == [("left/a.jpg", "b_1.png")]
    frames = photo_frames(photos, names(photos))
    matches = found.matches(found.pairs[0], (frames["left/a.jpg"], frames["b_1.png"]))
    np.testing.assert_allclose(matches.keypoints0, POINTS0, atol=1e-5)
    np.testing.assert_allclose(matches.keypoints1, POINTS1, atol=1e-5)
    np.testing.assert_allclose(matches.scores, SCORES, atol=1e-6)


def test_matches_of_photos_that_are_elsewhere_are_of_no_others(
    photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Two cameras' photos have the same file names, and those of one camera are at hand."""
    folder = tmp_path / "matches"
    folder.mkdir()
    for number, (side, points) in enumerate({"right": POINTS0[:2], "left": POINTS0}.items()):
        images = {"image0": f"/data/{side}/a.jpg", "image1": "/data/b_1.png"}
        np.savez(folder / f"{number}.npz", keypoints0=points, keypoints1=points, **images)
    found = given(folder, photos)
    frames = photo_frames(photos, names(photos))
    assert found.pairs == [("left/a.jpg", "b_1.png")]
    matches = found.matches(found.pairs[0], (frames["left/a.jpg"], frames["b_1.png"]))
    assert len(matches) == len(POINTS0)
    assert "1 of 2 files or groups do not name two of the photos" in caplog.text


@pytest.mark.parametrize("number", [0, 3])
@pytest.mark.parametrize("form", ["torch", "old torch", "pickle", "Python 2's pickle"])
def test_pickled_arrays_may_be_empty(form: str, number: int, tmp_path: Path) -> None:
    points = POINTS0[:number]
    content = {"mkpts0": points, "mkpts1": points.astype(np.float32), "mconf": SCORES[:number]}
    path = tmp_path / ("a__b.pt" if "torch" in form else "a__b.pkl")
    if "torch" in form:
        torch.save(content, path, _use_new_zipfile_serialization=form == "torch")
    else:
        path.write_bytes(pickle.dumps(content, 4 if form == "pickle" else 2))
    found = PairSource(path).read()
    np.testing.assert_array_equal(found.points0, points)
    assert found.points1.shape == (number, 2)
    assert len(found.scores) == number


def test_h5_files_hold_many_pairs_in_either_order(photos: Path, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "all.h5", "w") as h5:
        group = h5.create_group("left-a.jpg/b_1.png")
        group["keypoints0"], group["keypoints1"] = POINTS0, POINTS1
        h5["c_b_1"] = np.column_stack([POINTS0, POINTS1])
        h5["b_1.png/left-a.jpg"] = np.column_stack([POINTS1 + 1, POINTS0])[:2]
    found = given(tmp_path / "all.h5", photos)
    frames = photo_frames(photos, names(photos))
    assert len(found.pairs) == 2
    pair = next(p for p in found.pairs if "left/a.jpg" in p)
    matches = found.matches(pair, (frames[pair[0]], frames[pair[1]]))
    assert len(matches) == 5
    ours = matches if pair[0] == "left/a.jpg" else matches.swapped()
    assert sorted(map(tuple, ours.keypoints0)) == sorted(map(tuple, [*POINTS0, *POINTS0[:2]]))
    assert (matches.scores == 1).all()


@pytest.mark.parametrize("length", [0, 2, 3, 7])
def test_hlocs_dense_matches_have_indices_of_another_file_beside_them(
    length: int, photos: Path, tmp_path: Path
) -> None:
    path = tmp_path / "matches.h5"
    indices = np.arange(length) - 1
    with h5py.File(path, "w") as h5:
        group = h5.create_group("left-a.jpg/b_1.png")
        for name, array in {"keypoints0": POINTS0, "keypoints1": POINTS1, "scores": SCORES}.items():
            group[name] = array.astype(np.float16)
        group["matches0"], group["matching_scores0"] = indices, np.zeros(length, np.float16)
    found = given(path, photos)
    frames = photo_frames(photos, names(photos))
    matches = found.matches(found.pairs[0], (frames["left/a.jpg"], frames["b_1.png"]))
    np.testing.assert_array_equal(matches.keypoints1, POINTS1)
    np.testing.assert_allclose(matches.scores, SCORES, atol=1e-3)


def test_lists_of_indices_may_end_with_the_last_match(photos: Path, tmp_path: Path) -> None:
    """As hloc's do, whose keypoints somebody has put beside them; or be empty."""
    folder = tmp_path / "matches"
    folder.mkdir()
    keypoints = {"keypoints0": POINTS0, "keypoints1": POINTS1}
    for key, indices, number in (("matches0", [2], 1), ("matches0", [], 0), ("matches", [], 0)):
        scores = np.full(len(indices), 0.5)
        np.savez(folder / "a__c.npz", **keypoints, **{key: indices}, matching_scores0=scores)
        source = PairSource(folder / "a__c.npz")
        points = source.read()
        np.testing.assert_array_equal(points.points0, POINTS0[:number])
        np.testing.assert_array_equal(points.points1, POINTS1[[2]][:number])
        assert len(points.scores) == number
    np.savez(folder / "a__c.npz", **keypoints, matches0=[0, 1, 2], matching_scores0=[0.5])
    with pytest.raises(EdmHlocError, match="matches0 are of other keypoints than these"):
        given(folder, photos)


def test_groups_may_be_called_like_arrays(photos: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.h5"
    with h5py.File(path, "w") as h5:
        h5["scene/matches/a_c"] = np.column_stack([POINTS0, POINTS1])
    assert [source.key for source in sources_in(path)] == ["scene/matches/a_c"]


def test_the_content_of_a_file_says_whose_points_are_whose(photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "matches"
    folder.mkdir()
    points = {"keypoints0": POINTS0, "keypoints1": POINTS1}
    np.savez(folder / "a__c.npz", **points, image0="c.jpg", image1="left/a.jpg")
    found = given(folder, photos)
    frames = photo_frames(photos, names(photos))
    (pair,) = found.pairs
    matches = found.matches(pair, (frames[pair[0]], frames[pair[1]]))
    of_c = matches.keypoints0 if pair[0] == "c.jpg" else matches.keypoints1
    np.testing.assert_allclose(of_c, POINTS0, atol=1e-5)


def test_points_of_squeezed_copies_and_of_corners_are_brought_to_the_photo(
    photos: Path, tmp_path: Path
) -> None:
    """vismatch squeezes photos into squares and multiplies by the factor, as from the corner."""
    content = {"matched_kpts0": np.array([[16.0, 16.0]]), "matched_kpts1": np.array([[0.5, 0.5]])}
    paths = {"img0_path": pathlib.PosixPath("left/a.jpg"), "img1_path": pathlib.PosixPath("c.jpg")}
    folder = tmp_path / "matches"
    folder.mkdir()
    torch.save({**content, **paths, "im_size": 32}, folder / "output_0_result.torch")
    found = given(folder, photos, PointFrame("corner"))
    frame = photo_frames(photos, ["c.jpg"])["c.jpg"]
    matches = found.matches(("left/a.jpg", "c.jpg"), (frame, frame))
    np.testing.assert_allclose(matches.keypoints0, [[31.5, 23.5]])  # the middle of 64 × 48
    np.testing.assert_allclose(matches.keypoints1, [[0.5, 0.25]])


def test_a_corrected_import_is_another(photos: Path, tmp_path: Path) -> None:
    """Raw matches of the first must not stand for the second, though the points are the same."""
    folder = tmp_path / "matches"
    folder.mkdir()
    points = {"keypoints0": POINTS0, "keypoints1": POINTS1}
    np.savez(folder / "a__c.npz", **points)
    first = given(folder, photos).content
    assert given(folder, photos).content == first
    np.savez(folder / "a__c.npz", **points, size0=[128, 96], size1=[128, 96])
    sized = given(folder, photos).content
    (folder / "a__c.npz").rename(folder / "a__b_1.npz")
    assert len({first, sized, given(folder, photos).content}) == 3


def test_points_of_upright_photos_are_turned_back(photos: Path, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.open(photos / "c.jpg").save(photos / "c.jpg", exif=exif)
    folder = tmp_path / "matches"
    folder.mkdir()
    tall = np.array([[0.0, 0.0], [47.0, 0.0], [10.0, 60.0]])
    np.savez(folder / "a__c.npz", keypoints0=POINTS0, keypoints1=tall)
    with pytest.raises(EdmHlocError, match="turned by its EXIF orientation: give --upright"):
        given(folder, photos)
    sizes = {"size0": [64, 48], "size1": [48, 64]}
    np.savez(folder / "a__c.npz", keypoints0=POINTS0, keypoints1=tall, **sizes)
    with pytest.raises(EdmHlocError, match=r"are of 48 × 64 pixels, .* give --upright"):
        given(folder, photos)
    found = given(folder, photos, PointFrame(upright=True))
    frames = photo_frames(photos, names(photos))
    matches = found.matches(("left/a.jpg", "c.jpg"), (frames["left/a.jpg"], frames["c.jpg"]))
    # shown turned by 90° to the right: its top-left corner is stored at the bottom left
    np.testing.assert_allclose(matches.keypoints1, [[0, 47], [0, 0], [60, 37]])


@pytest.mark.parametrize("size", [(24, 32), (51, 68), (30, 40), (32, 40)])
def test_points_of_reduced_copies_of_upright_photos_are_not_stretched(
    size: tuple[int, int], photos: Path, tmp_path: Path
) -> None:
    """Reduced, exactly or to what networks need."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.open(photos / "c.jpg").save(photos / "c.jpg", exif=exif)
    folder = tmp_path / "matches"
    folder.mkdir()
    points = {"keypoints0": POINTS0, "keypoints1": np.zeros((3, 2)) + 9}

    def sized(size: tuple[int, int]) -> None:
        np.savez(folder / "a__c.npz", **points, size0=[64, 48], size1=size)

    sized(size)
    with pytest.raises(EdmHlocError, match=rf"c.jpg are of {size[0]} × {size[1]} .* give --upr"):
        given(folder, photos)
    given(folder, photos, PointFrame(upright=True))
    sized((size[1], size[0]))
    given(folder, photos)
    with pytest.raises(EdmHlocError, match=r"as it is stored, .*: leave --upright out"):
        given(folder, photos, PointFrame(upright=True))
    for upright in (False, True):
        sized((32, 32))  # squeezed: the size does not tell
        given(folder, photos, PointFrame(upright=upright))
    Image.new("RGB", (48, 48)).save(photos / "c.jpg", exif=exif)
    given(folder, photos)


def test_tensors_of_half_precision_and_sizes_as_pairs_are_read(
    photos: Path, tmp_path: Path
) -> None:
    file = tmp_path / "a__c.torch"
    paths = {"img0_path": "left/a.jpg", "img1_path": "c.jpg"}
    for dtype in (torch.bfloat16, torch.float16):
        tensors = {"matched_kpts0": torch.ones(1, 2), "matched_kpts1": torch.full((1, 2), 2.5)}
        tensors |= {"matched_confidences": torch.full((1,), 0.5)}
        content = {name: tensor.to(dtype) for name, tensor in tensors.items()}
        torch.save({**content, **paths, "im_size": (32, 32)}, file)
        found = PairSource(file).read()
        assert (found.points1.tolist(), found.scores.tolist()) == ([[2.5, 2.5]], [0.5])
        assert found.sizes == ((32, 32), (32, 32))
    torch.save({**content, **paths, "im_size": (32, 24)}, file)
    with pytest.raises(EdmHlocError, match=r"a__c.torch: im_size is \[32, 24\], no square"):
        PairSource(file).read()


class Harmful:
    def __reduce__(self) -> tuple:
        return pathlib.Path.touch, (pathlib.Path("harm"),)


def test_a_wrong_file_gets_one_sentence(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "matches"
    folder.mkdir()
    file = folder / "a__c.npz"

    def refused(message: str) -> None:
        with pytest.raises(EdmHlocError, match=message) as error:
            given(folder, photos)
        assert "\n" not in str(error.value)
        for left in folder.iterdir():
            left.unlink()

    refused("holds no matches")
    np.savez(folder / "x__y.npz", keypoints0=POINTS0, keypoints1=POINTS1)
    refused("None of the 1 files .* names two of the 3 photos: call them A__B")
    file.write_bytes(b"PK\x03\x04 nothing")
    refused("a__c.npz holds no matches that can be read")
    np.savez(file, keypoints0=POINTS0, keypoints1=POINTS1[:2])
    refused("3 points of the first photo, 2 of the second")
    np.savez(file, keypoints0=np.ones((3, 3)), keypoints1=POINTS1)
    refused(r"keypoints0 is an array of shape \(3, 3\); expected \(N, 2\), x and y")
    (folder / "a__c.npy").write_bytes(b"nothing")
    refused("it is no file of NumPy's")
    (folder / "a__c.torch").write_bytes(b"PK\x03\x04")
    refused("it is damaged")
    with h5py.File(folder / "m.h5", "w") as h5:
        h5["a.jpg/c.jpg/matches0"] = np.zeros(3, int)
    refused("holds indices of keypoints, as hloc's files of matches do")
    (folder / "m.h5").write_bytes(b"\x89HDF")
    refused("m.h5 is damaged or no H5 file: write it again")
    np.savez(file, keypoints0=POINTS0, keypoints1=POINTS1, size0=[0, 0], size1=[64, 48])
    refused(r"no image is of size \(0, 0\)")
    for wrong in (np.array([[0, 1], [2, 3]]), np.array([[0, 1, -1, -1]]), np.array([[0, -1]])):
        np.savez(file, keypoints0=POINTS0, keypoints1=POINTS1, matches=wrong)
        refused("matches are of other keypoints than these")
    np.savez(file, descriptors=POINTS0)
    refused("has no two arrays of points .* but descriptors")
    np.savez(file, keypoints0=POINTS0 * 10, keypoints1=POINTS1)
    refused(r"lie outside of its 64 × 48 pixels, up to \(630, 470\); give the size")
    np.savez(file, keypoints0=POINTS0, keypoints1=POINTS1, size0=["a", "b"], size1=[64, 48])
    refused("a__c.npz holds no matches that can be read .*'a'")
    torch.save({"keypoints0": torch.ones(3, 2).to_sparse(), "keypoints1": POINTS1}, file)
    file.rename(folder / "a__c.pt")
    refused("a__c.pt holds no matches that can be read")
    (folder / "a__c.txt").write_text("1 2 3 4\n1 2 3\n")
    refused(r"lines of \[3, 4\] numbers")
    (folder / "a__c.pkl").write_bytes(pickle.dumps({"keypoints0": Harmful()}))
    refused("a__c.pkl holds no matches that can be read")
    assert not (tmp_path / "harm").exists()


def test_points_of_reduced_copies_are_said_to_be_wrong(
    photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "matches"
    folder.mkdir()
    np.savez(folder / "a__c.npz", keypoints0=POINTS0 / 4, keypoints1=POINTS1 / 4)
    given(folder, photos)
    assert "were they found in reduced copies" in caplog.text


def sampled(scene: Path, folder: Path, samples: int, noise: float) -> None:
    """Matches of all pairs at points that differ from pair to pair."""
    matcher = TruthMatcher(scene, noise=0.0, outliers=0.0)
    every = sorted((scene / "images").iterdir())
    features = {p: matcher.encode(load_image(p, resize_max=None)) for p in every}
    rng = np.random.default_rng(1)
    folder.mkdir()
    for first, second in itertools.combinations(every, 2):
        found = matcher.find(features[first], features[second])
        # the local maps of a grid, so that points may lie anywhere
        step = rng.uniform(-3.9, 3.9, (len(found), 2))
        maps = _maps(found.keypoints0, found.keypoints1)
        points0 = found.keypoints0 + step + rng.normal(0, noise, step.shape)
        points1 = found.keypoints1 + np.einsum("nij,nj->ni", maps, step)
        points1 += rng.normal(0, noise, step.shape)
        inside = (points0 >= 0) & (points0 <= [319, 239]) & (points1 >= 0) & (points1 <= [319, 239])
        chosen = rng.permutation(np.flatnonzero(inside.all(axis=1)))[:samples]
        file = folder / f"{first.stem}__{second.stem}.npz"
        np.savez(file, keypoints0=points0[chosen], keypoints1=points1[chosen])


def _maps(points0: np.ndarray, points1: np.ndarray) -> np.ndarray:
    from edm_hloc.refinement.affine import local_affine_maps

    return local_affine_maps(points0, points1, 8)


def test_dense_matches_at_different_points_in_every_pair_register_all_photos(
    scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sampled(scene, tmp_path / "matches", samples=500, noise=0.7)
    out, images = tmp_path / "matches" / "out", str(scene / "images")
    words = ["import-matches", str(tmp_path / "matches"), str(out), "--images", images]
    assert cli.main([*words, "--camera-mode", "single"]) == 0
    found = compare(out / "model", scene / "truth")
    assert found.registered == 7
    assert found.rotation_max < 0.5
    assert found.position_max < 1.0
    assert found.mean_track_length > 2.8
    assert (out / "report.html").is_file()
    capsys.readouterr()
    # other steps go on from what is there
    assert cli.main([*words, "--camera-mode", "single", "--max-keypoints", "500"]) == 0
    assert "0 pairs now, 21 before" in capsys.readouterr().out
    # other matches are not mixed with these
    sampled(scene, tmp_path / "others", samples=400, noise=0.7)
    assert cli.main(["import-matches", str(tmp_path / "others"), *words[2:]]) == 1
    assert "imported_content" in capsys.readouterr().err


def test_the_same_matches_are_the_same_whether_all_photos_can_be_read(
    photos: Path, tmp_path: Path
) -> None:
    """A run that has begun goes on where a photo is damaged, and where it is whole again."""
    for other in ("c", "b_1"):
        np.savez(tmp_path / f"a__{other}.npz", keypoints0=POINTS0, keypoints1=POINTS1)
    before = given(tmp_path, photos).content
    (photos / "c.jpg").write_bytes(b"none")
    found = given(tmp_path, photos)
    assert (len(found.pairs), found.content) == (2, before)


def test_hidden_files_and_outputs_among_the_matches_are_left_out(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "matches"
    for inside in ("", "more", ".hidden", "run", "killed"):
        (folder / inside).mkdir(exist_ok=True)
        np.savez(folder / inside / "a__c.npz", keypoints0=POINTS0, keypoints1=POINTS1)
        (folder / inside / "._a__c.npz").write_bytes(b"\0\5\26\7Mac OS X")
    (folder / "run" / "run.json").write_text('{\n "settings": {}}')
    found = [source.path.parent.name for source in sources_in(folder, [folder / "killed"])]
    assert found == ["matches", "more"]
    (folder / "killed" / "matches.h5").write_bytes(b"half a file")
    words = ["import-matches", str(folder), str(folder / "killed"), "--images", str(photos)]
    assert cli.main(words) == 1
    assert f"{folder / 'killed' / 'matches.h5'} is there already" in capsys.readouterr().err
    words[2] = words[1]
    assert cli.main(words) == 1
    assert f"give another folder as OUT, such as {folder}/out." in capsys.readouterr().err


def test_matches_that_are_not_refined_stay_as_they_are(photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "matches"
    folder.mkdir()
    np.savez(folder / "a__c.npz", keypoints0=POINTS0, keypoints1=POINTS1)
    config = ImportConfig(refine="none", resize=32, device="cpu")
    matcher, pairs = load_imported(folder, photos, names(photos), config)
    images = [load_image(photos / name, resize_max=32) for name in pairs[0]]
    matches = matcher.match(*matcher.encode_batch(images))
    np.testing.assert_array_equal(matches.keypoints0, POINTS0.astype(np.float32))
    np.testing.assert_array_equal(matches.keypoints1, POINTS1.astype(np.float32))
