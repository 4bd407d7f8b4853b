"""Which photos a command takes, and sizes that it refuses."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from PIL import Image

from edm_hloc import cli
from edm_hloc.images.find import find_images
from edm_hloc.pairs.files import read_pairs
from tests.scenes import TruthMatcher


def run(*arguments: object) -> int:
    return cli.main([str(argument) for argument in arguments])


def test_pictures_beyond_reason_are_refused(
    scene: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for size in ((8192, 8192), (99_999_999, 20), (4, 4)):
        assert run("show", scene / "truth", "--size", *size) == 1
        assert "--size must be" in capsys.readouterr().err


def test_photos_of_a_list_without_the_output_and_masks_among_them(
    scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli.options, "make_matcher", lambda args: TruthMatcher(scene))
    photos = tmp_path / "photos"
    shutil.copytree(scene / "images", photos)
    names = find_images(photos)
    (photos / "masks").mkdir()
    for name in names:
        Image.new("L", (8, 6), 255).save(photos / "masks" / f"{name}.png")
    listed = tmp_path / "list.txt"
    listed.write_text("\n".join(names[:4]))
    (photos / "out" / "views").mkdir(parents=True)
    Image.new("L", (8, 6)).save(photos / "out" / "views" / "top.png")
    out = tmp_path / "pairs.txt"
    assert run("pairs", photos, out, "--image-list", listed, "--pairs", "sequential") == 0
    assert "Photos      4 in" in capsys.readouterr().out
    arguments = ["--masks", photos / "masks", "--known", scene / "truth"]
    assert run("reconstruct", photos, photos / "out", *arguments) in (0, 1)
    assert f"Photos      {len(names)} in {photos}, 21 pairs" in capsys.readouterr().out
    assert len(read_pairs(photos / "out" / "pairs.txt")) == 21
