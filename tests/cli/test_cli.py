"""The command line as a user meets it: summaries, files, exit codes, messages without traceback."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file

from edm_hloc import cli
from edm_hloc.base.colmap import posed_images, read_model
from edm_hloc.cli.match import names_in_file
from edm_hloc.images.find import find_images
from edm_hloc.keypoints.h5 import FeatureReader, MatchReader
from edm_hloc.pairs.files import write_pairs
from edm_hloc.pipelines.reconstruct import triangulate_model
from edm_hloc.pipelines.run import Run
from tests.models.test_edm_golden import reference_state
from tests.scenes import TruthMatcher


@pytest.fixture(scope="session")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Weights that load and match nothing in particular."""
    path = tmp_path_factory.mktemp("weights") / "untrained.safetensors"
    save_file(reference_state("edm_s"), path)
    return str(path)


@pytest.fixture
def truth(scene: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A matcher that knows the scene, in place of the network."""

    def make(args: object) -> TruthMatcher:
        return TruthMatcher(scene)

    monkeypatch.setattr(cli.options, "make_matcher", make)


def run(*arguments: object) -> int:
    return cli.main([str(argument) for argument in arguments])


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["reconstruct"],
        ["match"],
        ["match-pairs"],
        ["triangulate"],
        ["pairs"],
        ["compare"],
        ["demo"],
        ["train"],
        ["weights"],
        ["report"],
        ["show"],
        ["export-model"],
    ],
)
def test_help(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        run(*arguments, "--help")
    assert exit_.value.code == 0
    assert "usage: edm-hloc" in capsys.readouterr().out


def parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """A parser and those of its commands, at any depth."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for sub in action.choices.values():
                yield from parsers(sub)


def test_help_explains_every_option_and_names_defaults_that_are_there() -> None:
    for parser in parsers(cli.build_parser()):
        unexplained = [a.option_strings or a.dest for a in parser._actions if not a.help]
        assert not unexplained or parser._subparsers, f"{parser.prog}: {unexplained}"
        text = parser.format_help()
        assert not re.search(r"\(default:\s+(None|False|\[\]|\(\))", text), parser.prog
    assert "(default: 0)" in help_of("demo")


def help_of(command: str) -> str:
    (parser,) = (p for p in parsers(cli.build_parser()) if p.prog == f"edm-hloc {command}")
    return " ".join(parser.format_help().split())


@pytest.mark.parametrize(
    ("command", "default"),
    [
        ("reconstruct", "by default auto --from-model"),
        ("triangulate", "by default --from-model MODEL, with the model that is given"),
        ("refine-poses", "by default near cameras and neighbours by name"),
        ("pairs", "by default exhaustive"),
    ],
)
def test_help_names_the_pairs_that_a_command_matches_by_default(command: str, default: str) -> None:
    text = help_of(command)
    assert default in text
    assert ("auto (all pairs" in text) == ("--retrieval HOW" in text) == (command != "pairs")


def test_help_is_quick_and_the_module_runs() -> None:
    """No torch, no pycolmap for --help; no torch for a list of weights, no Lightning for a help."""
    code = (
        "import sys, edm_hloc.cli as c\n"
        "try: c.main(['--help'])\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'pycolmap', 'cv2'} & sys.modules.keys()\n"
        "assert c.main(['weights', 'list']) == 0\n"
        "assert 'torch' not in sys.modules\n"
        "try: c.main(['train', '--help'])\n"
        "except SystemExit: pass\n"
        "assert 'lightning' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    version = subprocess.run(
        [sys.executable, "-m", "edm_hloc", "--version"], check=True, capture_output=True, text=True
    )
    assert version.stdout.startswith("edm_hloc 0.")


def test_training_without_its_library_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, "edm_hloc.training.trainer", raising=False)
    monkeypatch.setitem(sys.modules, "lightning.fabric", None)
    assert cli.main(["train", "edm_s", "--steps", "1", "--out", str(tmp_path / "run")]) == 1
    said = capsys.readouterr().err
    assert "lightning" in said
    assert "[train]" in said
    assert not (tmp_path / "run").exists()


def test_wrong_arguments() -> None:
    for arguments in ([], ["recontsruct"], ["reconstruct", "only-one"], ["pairs", "a", "b", "--x"]):
        with pytest.raises(SystemExit) as exit_:
            run(*arguments)
        assert exit_.value.code == 2


@pytest.mark.parametrize(
    ("option", "wrong", "right"),
    [
        ("--topk", ["0", "-3", "many"], ["1"]),
        ("--threshold", ["2", "1", "-0.1", "nan", "inf"], ["0", "0.99"]),
        ("--seed", ["-1", "99999999999999", "2147483648"], ["0", "2147483647"]),
        ("--cache", ["nan", "-1", "inf", "16000000000", "1e300"], ["0", "0.5"]),
    ],
)
def test_numbers_out_of_range(
    option: str, wrong: list[str], right: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    for command in (["reconstruct", "a", "b"], ["localize", "a", "b", "c", "d"]):
        for number in wrong:
            with pytest.raises(SystemExit) as exit_:
                run(*command, f"{option}={number}")
            assert exit_.value.code == 2
            assert f"argument {option}: " in capsys.readouterr().err
        for number in right:
            cli.build_parser().parse_args([*command, f"{option}={number}"])


@pytest.mark.parametrize(
    ("command", "option", "number"),
    [
        (["retrieve", "a", "b"], "--number", "0"),
        (["localize", "a", "b", "c", "d"], "--retrieved", "0"),
        (["inloc", "a", "b"], "--ransac", "0"),
        (["inloc", "a", "b"], "--min-inliers", "0"),
        (["inloc", "a", "b"], "--min-matches", "-1"),
        (["aachen", "a", "b"], "--covisible", "0"),
    ],
)
def test_numbers_without_a_meaning_are_refused(
    command: list[str], option: str, number: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        run(*command, f"{option}={number}")
    assert exit_.value.code == 2
    assert f"argument {option}: must be at least" in capsys.readouterr().err


def test_numbers_of_all_commands_have_bounds() -> None:
    plain = {
        action.dest
        for parser in parsers(cli.build_parser())
        for action in parser._actions
        if action.type in (int, float)
    }
    # which are refused where they are used
    assert plain == {"resize", "max_error", "cell_size", "max_keypoints", "size", "shard"}


@pytest.mark.usefixtures("truth")
def test_reconstruct_and_compare(
    scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = tmp_path / "my photos"
    shutil.copytree(scene / "images", photos)
    (photos / "empty.jpg").write_bytes(b"")
    out = tmp_path / "out"
    assert run("reconstruct", photos, out, "--known", scene / "truth") == 0
    said = capsys.readouterr()
    assert "7 of 7 photos" in said.out
    assert "empty.jpg: the file is empty" in said.out
    assert f"Written     {out / 'model'}" in said.out
    assert run("compare", out / "model", scene / "truth", "--json", tmp_path / "c.json") == 0
    assert "7 of 7 images" in capsys.readouterr().out
    numbers = json.loads((tmp_path / "c.json").read_text())
    assert numbers["registered"] == 7
    assert numbers["rotation_median"] < 0.15

    assert run("reconstruct", photos, out, "--known", scene / "truth") == 0
    assert "0 pairs now, 21 before" in capsys.readouterr().out


@pytest.mark.slow
def test_reconstruct_with_the_shipped_weights(
    scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("EDM_HLOC_WEIGHTS", raising=False)
    arguments = ["--weights", "edm_s", "--known", scene / "truth", "--device", "cpu"]
    assert run("reconstruct", scene / "images", tmp_path / "out", *arguments) == 0
    assert "7 of 7 photos" in capsys.readouterr().out
    assert (
        run("compare", tmp_path / "out" / "model", scene / "truth", "--json", tmp_path / "c") == 0
    )
    numbers = json.loads((tmp_path / "c").read_text())
    # the photos are tiny; untrained weights do not even give a model
    assert numbers["rotation_median"] < 1.5
    assert numbers["position_median"] < 2.0


@pytest.mark.usefixtures("truth")
def test_triangulate(scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = scene / "images"
    assert run("triangulate", scene / "truth", images, tmp_path, "--partners", 4) == 0
    assert "7 of 7 photos" in capsys.readouterr().out


@pytest.mark.usefixtures("truth")
def test_match_pairs_writes_what_hloc_reads(
    scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    listed = tmp_path / "pairs.txt"
    assert run("pairs", scene / "images", listed, "--pairs", "sequential", "--overlap", 2) == 0
    pairs = [line.split() for line in listed.read_text().splitlines()]
    assert len(pairs) == 11
    out = tmp_path / "out"
    options = ["--max-error", 1, "--cell-size", 1, "--max-keypoints", 0, "--position", "bin"]
    assert run("match-pairs", scene / "images", listed, out, *options) == 0
    assert "as hloc reads them" in capsys.readouterr().out
    with FeatureReader(out / "features.h5") as features, MatchReader(out / "matches.h5") as matches:
        for a, b in pairs:
            index, _ = matches.matches(a, b)
            assert len(index) > 50
            assert index[:, 0].max() < len(features.keypoints(a))
            assert index[:, 1].max() < len(features.keypoints(b))
        whole = features.keypoints(pairs[0][0])
        np.testing.assert_array_equal(whole % 1, 0.5)  # the centres of bins of one pixel


def test_match_writes_h5_and_picture(
    scene: Path, tmp_path: Path, untrained: str, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = sorted((scene / "images").iterdir())[:2]
    picture = tmp_path / "new folder" / "m.png"
    assert (
        run(
            *("match", a, b, "--weights", untrained, "--refine", "none", "--out", picture),
            *("--threshold", 0, "--topk", 50),
        )
        == 0
    )
    assert "untrained" in capsys.readouterr().out
    with Image.open(picture) as image:
        assert image.size == (320 + 10 + 320, 240 + 52)  # a legend below the photos
        assert len(image.convert("RGB").getcolors(1 << 20)) > 1000
    with h5py.File(picture.with_suffix(".h5")) as h5:
        group = h5[f"{a.name}/{b.name}"]
        assert group["keypoints0"].shape == (len(group["scores"]), 2)
        assert 0 < len(group["scores"]) <= 50
    assert run("match", a, b, "--weights", untrained, "--out", tmp_path / "m.xyz") == 1
    assert "m.xyz" in capsys.readouterr().err


def test_untrained_weights_give_a_diagnosis(
    scene: Path, tmp_path: Path, untrained: str, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for path in sorted((scene / "images").iterdir())[:3]:
        shutil.copy(path, photos)
    arguments = ["reconstruct", photos, tmp_path / "out", "--weights", untrained, "--resize", 128]
    assert run(*arguments, "--threshold", 0) == 1
    error = capsys.readouterr().err
    assert "No model could be made of the 3 photos" in error
    assert "Traceback" not in error


def test_user_errors(
    tmp_path: Path, scene: Path, untrained: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "one").mkdir()
    shutil.copy(next((scene / "images").iterdir()), tmp_path / "one")
    (tmp_path / "bad.txt").write_text("a.jpg\n")
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8broken")
    out, images = tmp_path / "out", scene / "images"
    photo = next(images.iterdir())
    cases = [
        (["reconstruct", tmp_path / "nowhere", out], "nowhere"),
        (["reconstruct", tmp_path / "empty", out], "No images in"),
        (["reconstruct", tmp_path / "one", out], "holds 1 photo"),
        (["reconstruct", images, out, "--pairs", tmp_path / "no.txt"], r"no.txt"),
        (["reconstruct", images, out, "--pairs", tmp_path / "bad.txt"], "two image names"),
        (["reconstruct", images, out, "--weights", "edm-indoor"], "edm-outdoor"),
        (["reconstruct", images, out, "--weights", tmp_path / "w.ckpt"], "w.ckpt"),
        (["reconstruct", images, out, "--weights", untrained, "--resize", 8], "--resize"),
        (["reconstruct", images, out, "--weights", untrained, "--max-error", 0], "max_error"),
        (["reconstruct", images, out, "--known", tmp_path / "k.txt"], "k.txt"),
        (["match", photo, tmp_path / "broken.jpg", "--weights", untrained], "broken.jpg"),
        (["match", photo, tmp_path / "gone.jpg", "--weights", untrained], "gone.jpg"),
        (["compare", tmp_path / "empty", scene / "truth"], "No COLMAP model in"),
        (["triangulate", tmp_path / "empty", images, out], "No COLMAP model in"),
        (["weights", "pull"], "Known names"),
        (["weights", "verify", "edm-indoor"], "edm-outdoor"),
    ]
    for arguments, message in cases:
        assert run(*arguments) == 1, arguments
        error = capsys.readouterr().err
        assert message in error, arguments
        assert "Traceback" not in error


@pytest.fixture(scope="module")
def model(scene: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of the scene with points."""
    out = tmp_path_factory.mktemp("model")
    names = find_images(scene / "images")
    pairs = list(itertools.combinations(names, 2))
    triangulate_model(scene / "truth", scene / "images", out, pairs, TruthMatcher(scene))
    return out / "model"


@pytest.mark.usefixtures("truth")
def test_queries_that_cannot_be_read_are_told_once_by_their_path(
    scene: Path,
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    queries, out = tmp_path / "q", tmp_path / "out"
    queries.mkdir()
    photo = scene / "images" / "view_00.jpg"
    shutil.copy(photo, queries / "good.jpg")
    (queries / "zero.jpg").write_bytes(b"")
    (queries / "short.jpg").write_bytes(photo.read_bytes()[:3000])
    assert run("localize", model, scene / "images", queries, out) == 0
    said = capsys.readouterr().out
    assert "Localized   1 of 3 queries" in said
    assert f"zero.jpg: Cannot read image {queries}/zero.jpg" in said
    assert f"short.jpg: Cannot read image {queries}/short.jpg" in said
    assert caplog.text.count("zero.jpg") == 1

    record = (out / "run.json").read_bytes()
    assert run("reconstruct", scene / "images", out) == 1
    assert f"{out} holds what edm-hloc localize made" in capsys.readouterr().err
    assert (out / "run.json").read_bytes() == record


@pytest.mark.usefixtures("truth")
def test_no_query_localized_is_an_error(
    scene: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, out = scene / "images", tmp_path / "out"
    assert run("localize", model, images, images, out, "--min-inliers", 10**6) == 1
    said = capsys.readouterr()
    assert "Localized   0 of 7 queries" in said.out
    assert "None of the 7 queries was localized" in said.err
    assert (out / "poses.txt").is_file()
    assert (out / "report.html").is_file()


@pytest.mark.usefixtures("truth")
def test_poses_of_an_earlier_run_are_not_taken_for_those_of_one_that_failed(
    scene: Path, model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images, queries, out = tmp_path / "images", tmp_path / "queries", tmp_path / "out"
    for folder, names in ((images, ("00", "01", "02")), (queries, ("03", "04"))):
        folder.mkdir()
        for name in names:
            shutil.copy2(scene / "images" / f"view_{name}.jpg", folder)
    command = ["localize", model, images, queries, out]
    assert run(*command) == 0
    assert "4 of the 7 photos of" in caplog.text
    assert "such as view_03.jpg: no query is matched with them" in caplog.text
    poses, log = ((out / name).read_bytes() for name in ("poses.txt", "queries.jsonl"))
    shutil.rmtree(tmp_path / "queries")
    queries.mkdir()
    (queries / "broken.jpg").touch()
    for _ in range(2):
        assert run(*command) == 1
        assert not {"poses.txt", "queries.jsonl"} & {path.name for path in out.iterdir()}
        assert (out / "poses_earlier.txt").read_bytes() == poses
        assert "localized" not in json.loads((out / "run.json").read_text())["results"]
    (queries / "broken.jpg").unlink()
    for name in ("03", "04"):
        shutil.copy2(scene / "images" / f"view_{name}.jpg", queries)
    assert run(*command) == 0
    assert (out / "poses.txt").read_bytes() == poses
    assert (out / "queries.jsonl").read_bytes() == log
    assert not list(out.glob("*_earlier*"))


def test_options_for_other_lists_of_pairs_are_not_ignored(
    scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, out, model = scene / "images", tmp_path / "list.txt", scene / "truth"
    for wrong, message in (
        (["--overlap", 3], "--overlap is for --pairs sequential only"),
        (["--loop-step", 3, "--from-model", model], "--loop-step is for --pairs sequential only"),
        (["--partners", 3, "--pairs", "sequential"], "--partners is for --from-model and --pairs"),
        (["--pairs", "retrieval"], "--pairs retrieval is for reconstruct, triangulate and"),
        (["--pairs", "auto"], "--pairs auto is for reconstruct, triangulate and"),
    ):
        assert run("pairs", images, out, *wrong) == 1
        assert message in capsys.readouterr().err
    no_run = [tmp_path / "no_run", "--pairs", "sequential", "--retrieval", "edm"]
    assert run("reconstruct", images, *no_run) == 1
    assert "--retrieval is for --pairs auto and retrieval only" in capsys.readouterr().err
    assert run("refine-poses", model, images, tmp_path / "no_run", "--retrieval", "edm") == 1
    assert "--retrieval is for --pairs auto and retrieval only" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run("pairs", images, out, "--from-model", model, "--pairs", "sequential")
    assert "not allowed with" in capsys.readouterr().err
    assert not out.exists()

    (tmp_path / "renamed").mkdir()
    for number in range(2):
        shutil.copy(images / f"view_0{number}.jpg", tmp_path / "renamed" / f"{number}.jpg")
    assert run("pairs", tmp_path / "renamed", out, "--from-model", model) == 1
    assert "It names 'view_00.jpg', which is not there" in capsys.readouterr().err


@pytest.mark.usefixtures("truth")
def test_refine_poses_ignores_no_option_of_the_pairs(
    scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["refine-poses", scene / "truth", scene / "images", tmp_path / "out"]
    for wrong in (["--overlap", 3], ["--loop-step", 3], ["--retrieval", "sift"]):
        assert run(*given, *wrong) == 1
        assert f"{wrong[0]} is for --pairs" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    listed = [f"view_0{number}.jpg" for number in range(4)]
    (tmp_path / "list.txt").write_text("\n".join(listed))
    assert run(*given, "--image-list", tmp_path / "list.txt") == 0
    assert "of 4 of 4 photos" in capsys.readouterr().out
    for model in ("given_poses", "model"):
        assert set(posed_images(read_model(tmp_path / "out" / model))) == set(listed)


def test_copies_without_a_program_for_them_are_refused(
    scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("reconstruct", scene / "images", tmp_path / "out", "--copies", 2, 4) == 1
    assert "--copies goes with undistorted photos: add --for" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_demo_does_not_write_over_a_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run.json").write_text("{}")
    assert run("demo", tmp_path) == 1
    assert f"{tmp_path} holds another run" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_wrong_paths_are_told_before_weights_are_loaded(
    scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def load(args: object) -> None:
        raise AssertionError("loaded")

    monkeypatch.setattr(cli.options, "make_matcher", load)
    listed, none = tmp_path / "pairs.txt", tmp_path / "none"
    model, images, out = scene / "truth", scene / "images", tmp_path / "out"
    write_pairs(listed, [tuple(sorted(p.name for p in images.iterdir())[:2])])
    for arguments in (
        ["localize", none, images, images, out],
        ["localize", model, none, images, out],
        ["localize", model, images, none, out],
        ["localize", model, images, images, out, "--known", none],
        ["triangulate", none, images, out, "--pairs", listed],
    ):
        assert run(*arguments) == 1
        assert str(none) in capsys.readouterr().err


def test_weights_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("weights", "list") == 0
    said = capsys.readouterr().out
    assert "edm-outdoor" in said
    assert "Apache-2.0" in said


def test_output_that_nobody_reads_leaves_no_stack_trace() -> None:
    """As with ``edm-hloc … | head -3``."""
    command = [sys.executable, "-m", "edm_hloc", "weights", "list"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as run:
        assert run.stdout is not None
        assert run.stderr is not None
        run.stdout.close()
        assert run.stderr.read() == b""
    assert run.returncode == 1


def test_the_pipe_of_something_else_is_no_end_of_the_output(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(args: object) -> None:
        raise BrokenPipeError  # as of a worker process

    monkeypatch.setattr(cli.weights, "_weights", broken)
    with pytest.raises(BrokenPipeError):
        run("weights", "list")


def test_interrupt(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.weights, "_weights", interrupted)
    assert run("weights", "list") == 130
    assert "goes on from there" in capsys.readouterr().err

    def importing(args: object) -> None:  # as pycolmap ends
        try:
            try:
                raise KeyboardInterrupt
            except KeyboardInterrupt as error:
                raise ImportError("initialization failed") from error
        except ImportError as error:
            raise RuntimeError("Cannot import the C++ backend") from error

    monkeypatch.setattr(cli.weights, "_weights", importing)
    assert run("weights", "list") == 130
    assert "goes on from there" in capsys.readouterr().err
    monkeypatch.setattr(cli, "build_parser", lambda: interrupted(None))
    assert run("weights", "list") == 130
    assert "goes on from there" in capsys.readouterr().err


KILLED = {
    "reconstruct I O": "cli.pair_options.choose_pairs",
    "match-pairs I P O": "cli.pair_options.choose_pairs",
    "triangulate M I O": "base.colmap.check_model",
    "localize M I Q O": "base.colmap.check_model",
    "demo O": "cli.options.make_matcher",
    "evaluate pose T I O": "evaluation.pose_pairs.read_pose_pairs",
    "mesh O F.glb": "interop.targets.registry.largest_model",
    "export-model M F.ply": "interop.targets.registry.largest_model",
}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize(
    "commands", [["export-model M F.ply"], pytest.param(list(KILLED), marks=pytest.mark.slow)]
)
def test_a_kill_leaves_no_stack_trace(commands: list[str], tmp_path: Path) -> None:
    """Each command in a child of one process, which has imported what takes seconds."""
    heavy = ("evaluation.pose", "pipelines.localize", "pipelines.reconstruct", "refinement.load")
    imports = ", ".join(f"edm_hloc.{module}" for module in heavy if len(commands) > 1)
    program = (
        f"import importlib, os, signal, sys, {imports or 'edm_hloc'}\n"
        "from edm_hloc import cli\n"
        "places = [word.rpartition('.') for word in sys.argv[2::2]]\n"
        "modules = [importlib.import_module(f'edm_hloc.{module}') for module, _, _ in places]\n"
        "for command, module, (_, _, name) in zip(sys.argv[1::2], modules, places):\n"
        "    child = os.fork()\n"
        "    if not child:\n"
        "        setattr(module, name, lambda *_: os.kill(os.getpid(), signal.SIGTERM))\n"
        "        cli.main(command.split())\n"
        "        os._exit(0)\n"
        "    status = os.waitpid(child, 0)[1]\n"
        "    print(command, os.WIFSIGNALED(status) and os.WTERMSIG(status), flush=True)\n"
    )
    words = [word for command in commands for word in (command, KILLED[command])]
    command = [sys.executable, "-c", program, *words]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert ended.stderr == ""
    said = [f"{command} {int(signal.SIGTERM)}" for command in commands]
    assert [line for line in ended.stdout.splitlines() if line[-2:] == "15"] == said


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="cannot be held back there")
def test_a_kill_while_pycolmap_is_imported_waits_until_its_handler_is_gone(tmp_path: Path) -> None:
    (tmp_path / "pycolmap.py").write_text(
        "import os, signal\n"
        "os.kill(os.getpid(), signal.SIGTERM)\n"
        "print('imported', flush=True)\n"
        "raise ImportError\n"
    )
    program = "from edm_hloc import cli\ncli.main(['report', 'nowhere'])"
    command = [sys.executable, "-c", program]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert (ended.returncode, ended.stdout) == (-signal.SIGTERM, "imported\n")


@pytest.mark.slow
def test_training_needs_no_pycolmap() -> None:
    program = (
        "import sys\n"
        "sys.modules['pycolmap'] = None\n"
        "from edm_hloc import cli\n"
        "cli.main(['train', '--help'])"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ended.returncode == 0
    assert "--minutes" in ended.stdout


@pytest.mark.usefixtures("truth")
def test_a_refused_command_leaves_a_run_at_work_alone(
    scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    with Run.begin(out, {}, TruthMatcher(scene), [], overwrite=False):
        before = (out / "run.json").read_bytes()
        assert run("reconstruct", scene / "images", out) == 1
        assert f"Another process is writing into {out}:" in capsys.readouterr().err
        assert (out / "run.json").read_bytes() == before
        assert not (out / "report.html").exists()


def test_masks_that_are_not_there_leave_a_run_alone(
    scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = tmp_path / "masks"
    empty.mkdir()
    for command in (
        ["reconstruct", scene / "images", tmp_path / "out"],
        ["triangulate", scene / "truth", scene / "images", tmp_path / "out"],
    ):
        assert cli.main([*map(str, command), "--masks", str(empty)]) == 1
        assert f"{empty} has masks for none of the 7 photos" in capsys.readouterr().err
        assert not (tmp_path / "out").exists()


def test_photos_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    a, b = tmp_path / "a" / "x.jpg", tmp_path / "b" / "c" / "x.jpg"
    assert names_in_file(a, b) == ("a/x.jpg", "b/c/x.jpg")
    assert names_in_file(a, tmp_path / "b" / ".." / "a" / "x.jpg") == ("x.jpg", "x.jpg")
    assert names_in_file(a, tmp_path / "x.jpg") == ("a/x.jpg", "x.jpg")
    assert names_in_file(a, tmp_path / "a" / "y.jpg") == ("x.jpg", "y.jpg")


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("match-shard OUT --device cpu 1", {"out": "OUT", "shard": 1, "device": "cpu"}),
        ("match-shard --device cpu OUT 1", {"out": "OUT", "shard": 1, "device": "cpu"}),
        ("match-shard OUT -v -- 1", {"out": "OUT", "shard": 1, "verbose": True}),
        ("match-shard OUT --all", {"out": "OUT", "shard": None, "all": True}),
        ("merge s3://b/run -v INTO", {"out": "s3://b/run", "into": Path("INTO"), "verbose": True}),
        ("weights pull -v NAME", {"action": "pull", "name": "NAME", "verbose": True}),
    ],
)
def test_optional_positional_arguments_may_stand_behind_options(
    words: str, found: dict[str, object]
) -> None:
    args, rest = cli.build_parser().parse_known_args(words.split())
    assert not rest
    assert {name: getattr(args, name) for name in found} == found


@pytest.mark.parametrize("words", ["match-shard OUT -v 1 2", "merge OUT INTO -v --nope"])
def test_arguments_that_no_command_takes_are_named(
    words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        cli.main(words.split())
    assert f"unrecognized arguments: {words.split()[-1]}" in capsys.readouterr().err
