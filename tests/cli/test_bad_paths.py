"""Each path that a command reads in turn replaced by what is none: one sentence that names it."""

from __future__ import annotations

import itertools
import random
import shutil
import sqlite3
from pathlib import Path

import h5py
import numpy as np
import pycolmap
import pytest
from PIL import Image

from edm_hloc import cli
from edm_hloc.images.find import find_images
from edm_hloc.interop.exports import export_nerfstudio
from edm_hloc.localization.poses import write_poses
from tests.scenes import TruthMatcher

# "*": replaced in turn
COMMANDS = [
    "reconstruct *images OUT --pairs *pairs.txt --known *known.txt --masks *masks",
    "reconstruct images OUT --pairs sequential --image-list *list.txt",
    "reconstruct images OUT --from-model *truth",
    "reconstruct images OUT --pairs retrieval --retrieval *descriptors.h5",
    "match-pairs *images *pairs.txt OUT --masks *masks",
    "triangulate *truth *images OUT",
    "refine-model *truth images OUT",
    "localize *truth images images OUT",
    "refine-poses *transforms.json *images OUT --known *known.txt",
    "import-matches *matches.h5 OUT --images images",
    "match *images/view_00.jpg *images/view_01.jpg --out OUT.png",
    "pairs images OUT --image-list *list.txt",
    "plan images *pairs.txt OUT",
    "match-shard *truth 1",
    "merge *truth",
    "retrieve *descriptors.h5 OUT --query-list *list.txt --database-list *list.txt",
    "check-submission *poses.txt --queries *list.txt",
    "evaluate-poses *poses.txt *truth_poses",
    "georeference *truth OUT --positions *positions.csv",
    "georeference truth OUT --control-points *positions.csv",
    "compare *truth truth",
    "compare truth *truth",
    "show *truth --out OUT",
    "report *truth",
    "export-model *truth OUT",
    "export-model truth OUT --for gsplat --images *images --masks *masks",
    "frames *positions.csv OUT",
    "repair-database *database.db",
    "aachen *truth OUT --dry-run",
    "inloc *truth OUT --dry-run",
]


@pytest.fixture(scope="module")
def world(scene: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small files of every kind that commands read, and in `noise` their names with other bytes."""
    folder = tmp_path_factory.mktemp("world")
    for name in ("images", "truth"):
        shutil.copytree(scene / name, folder / name)
    names = find_images(folder / "images")
    images = pycolmap.Reconstruction(folder / "truth").images.values()
    texts = {
        "pairs.txt": [f"{a} {b}" for a, b in itertools.pairwise(names)],
        "list.txt": names,
        "known.txt": [f"{name} SIMPLE_PINHOLE 320 240 300 160 120" for name in names],
        "positions.csv": ["name,latitude,longitude,altitude", *(f"{n},47,8,400" for n in names)],
    }
    for name, lines in texts.items():
        (folder / name).write_text("\n".join(lines) + "\n")
    poses = {image.name: image.cam_from_world() for image in images}
    write_poses(folder / "poses.txt", poses)
    write_poses(folder / "truth_poses" / "day.txt", poses)
    export_nerfstudio(folder / "truth", folder / "transforms.json", folder / "images")
    (folder / "masks").mkdir()
    with h5py.File(folder / "descriptors.h5", "w") as h5, h5py.File(folder / "matches.h5", "w"):
        for number, name in enumerate(names):
            h5.create_group(name)["global_descriptor"] = np.eye(len(names))[number]
            Image.new("L", (32, 24), 255).save(folder / "masks" / f"{name}.png")
    sqlite3.connect(folder / "database.db").close()
    files = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    for file in files:
        (folder / "noise" / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / "noise" / file).write_bytes(random.Random(0).randbytes(500))
    (folder / "empty").mkdir()
    (folder / "text.txt").write_text("somebody's own text\n")
    return folder


def _content(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_path_that_is_none_is_named_and_nothing_is_changed(
    command: str,
    scene: Path,
    world: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(cli.options, "make_matcher", lambda args: TruthMatcher(scene))
    monkeypatch.chdir(world)
    before = _content(world)
    words = command.split()
    for place, word in enumerate(words):
        if not word.startswith("*"):
            continue
        path = Path(word[1:])
        (tmp_path / "empty").with_suffix(path.suffix).touch()
        bad = [Path("nowhere") / path, Path("noise") / path]
        if path.is_dir():
            bad += [Path("empty"), Path("text.txt")]
        else:
            bad += [(tmp_path / "empty").with_suffix(path.suffix), Path("empty")]
        for number, wrong in enumerate(bad):
            out = str(tmp_path / f"out{place}{number}")
            given = [w.removeprefix("*").replace("OUT", out) for w in words]
            given[place] = str(wrong)
            assert cli.main(given) == 1, given
            said = capsys.readouterr().err
            assert str(wrong) in said, given
            assert "Traceback" not in said
    assert _content(world) == before


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["reconstruct", "", "OUT"], "IMAGES"),
        (["reconstruct", "images", ""], "OUT"),
        (["reconstruct", "images", "OUT", "--masks="], "--masks"),
        (["reconstruct", "images", "OUT", "--pairs="], "--pairs"),
        (["plan", "", "pairs.txt", "OUT"], "IMAGES"),
        (["plan", "images", "pairs.txt", ""], "OUT"),
        (["match-shard", "", "1"], "OUT"),
        (["evaluate", "pose", "truth", "", "OUT"], "IMAGES"),
    ],
)
def test_an_empty_text_is_not_the_current_folder(
    words: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a variable of a shell that is not set."""
    with pytest.raises(SystemExit):
        cli.main(words)
    assert f"argument {named}: is empty: is a variable" in capsys.readouterr().err


def test_arguments_of_hloc_may_be_empty() -> None:
    args = cli.build_parser().parse_args(["hloc", "match_dense", "--x", ""])
    assert args.arguments == ["--x", ""]
