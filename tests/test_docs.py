"""Every command of README.md and docs/ runs on small rendered data, and every link leads somewhere.

A command is a line of a code block, or code in a sentence, that starts with `edm-hloc`, `python` or
`make`. It is run word for word in a folder where its inputs exist under the names that the
documents use. It must say what follows it in its block, `…` standing for any text, and must fail if
that starts with `edm-hloc:`. Other commands that fail, and words in capitals that are not explained
here, fail the test.
"""

from __future__ import annotations

import ast
import functools
import importlib
import itertools
import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pycolmap
import pytest
from PIL import ExifTags, Image

import edm_hloc
from edm_hloc import cli
from tests.interop.real_hloc import import_match_dense
from tests.scenes import made_once

ROOT = Path(__file__).parents[1]
DOCUMENTS = [
    "README.md",
    *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md")),
    "datasets/README.md",
    "edm_hloc/models/shipped/README.md",
]

# What stands for a number or a name.
VALUES = {
    "E": "2",
    "C": "8",
    "M": "0.1",
    "N": "1",
    "PRESET": "edm",
    "GB": "2",
    "W": "64",
    "H": "48",
}
# Written by the commands.
OUTPUTS = {"POSES", "RUN", "RUN2", "O", "VIEWS"}  # and OUT…
# Commands that take long even on small data, or need what only the network or nobody has here; they
# are parsed. Those with "run" run in the slow test.
ONLY_PARSED = {
    "edm-hloc mesh OUT mesh.html": "run",
    "edm-hloc evaluate homography HPATCHES": "run",
    "edm-hloc mesh OUT mesh.ply": "run",
    "edm-hloc reconstruct walk OUT3": "run",
    "edm-hloc refine-poses transforms.json IMAGES OUT_POSES": "run",
    "edm-hloc reconstruct IMAGES OUT2 --workers auto": "run",
    "edm-hloc match-shard OUT3 --all": "run",
    "edm-hloc merge OUT3": "run",
    "edm-hloc localize OUT3/model": "run",
    "edm-hloc aachen": "run",
    "edm-hloc inloc": "run",
    "edm-hloc synth": "run",
    "edm-hloc evaluate-poses": "run",
    "edm-hloc check-submission 'outputs/aachen_v1.1/Aachen-v1.1_*.txt'": "run",
    "edm-hloc check-submission 'outputs/inloc/InLoc_*.txt'": "run",
    "edm-hloc demo": "run",
    "edm-hloc ablate": "trains",
    "edm-hloc evaluate pose TRUTH IMAGES OUT --max-rotation 60 --beside network,sift": "run",
    "edm-hloc evaluate pose datasets/megadepth/index": "needs the data set",
    "edm-hloc evaluate pose datasets/scannet/index": "needs the data set",
    "edm-hloc evaluate homography datasets/hpatches-sequences-release": "needs the data set",
    "edm-hloc export": "run",
    "edm-hloc export-model OUT recording --for rerun": "needs rerun-sdk",
    "edm-hloc reconstruct IMAGES /data/OUT --ray": "needs a cluster",
    "edm-hloc match-shard /data/OUT --all --ray": "needs a cluster",
    "edm-hloc match-shard OUT --all --ray": "needs a cluster",
    "edm-hloc hloc MODULE": "stands for all of hloc's modules",
    "edm-hloc reconstruct VIEWS": "needs panoramas",
    "edm-hloc refine-model OUT/model VIEWS": "needs panoramas",
    "edm-hloc refine-model OUT/model IMAGES RIGID --rig": "needs a rig",
    "edm-hloc weights pull": "needs the network",
    "edm-hloc weights verify edm-outdoor": "needs the network",
    "edm-hloc plan s3://bucket/photos": "needs a bucket",
    "edm-hloc match-shard s3://bucket/run": "needs a bucket",
    "edm-hloc merge s3://bucket/run": "needs a bucket",
}
# Pages of measurements: what they run is run by the guides, too, in the same or nearly the same
# form, so that their commands are only parsed but in the slow test.
MEASUREMENTS = {
    *("docs/results.md", "docs/training.md", "docs/speed.md", "docs/tracks.md"),
    "docs/evaluation.md",
}
# What a sentence adds to a run that a block has made: what that run has done is not done again.
RUN_AGAIN = re.compile("edm-hloc reconstruct IMAGES OUT2 --(mesh|for|positions) ")
DONE: set[tuple[bool, str]] = set()  # commands in sentences, which stand for themselves
# Names of one and the same folder of photos.
PHOTOS = (
    *("IMAGES", "MY_PHOTOS", "PLACE", "NEW_PHOTOS", "PHOTOS", "DIR", "I"),
    *("datasets/photos", "datasets/my_photos", "QUERIES"),
)
OTHER_PROGRAMS = ("colmap ", "ns-train ", "InterfaceCOLMAP ", "examples/simple_trainer.py ")
FLAG = re.compile(r"--?[a-z][\w-]*")
CAPITALS = re.compile(r"[A-Z][A-Z0-9_]*$|[A-Z]$")
COMMAND = re.compile(r"(\w+=\S+ +)*(\.venv/bin/)?(edm-hloc|python|make)( |$)")


@dataclass(frozen=True)
class Command:
    text: str
    said: tuple[str, ...]  # lines that it must say, the last ones if they are an error
    in_block: bool


def commands(document: str) -> list[Command]:
    """All commands of a document: first those of its blocks, in their order."""
    text = (ROOT / document).read_text("utf-8")
    in_sentences = re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)
    in_sentences = re.sub(r"^    .*$", "", in_sentences, flags=re.M)
    fenced = re.findall(r"^```(?!python|diff|json)\w*\n(.*?)^```", text, re.S | re.M)
    without = re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)
    indented = re.findall(r"((?:^    .*\n)+)", without, re.M)
    found = []
    for block in fenced + indented:
        lines = [line.split(" #")[0].strip() for line in block.replace("\\\n", " ").splitlines()]
        for i, line in enumerate(lines):
            if COMMAND.match(line):
                said: list[str] = []
                for after in lines[i + 1 :]:
                    if not after or COMMAND.match(after):
                        break
                    said.append(after)
                found.append(Command(" ".join(line.split()), tuple(said), True))
    for code in re.findall(r"`([^`]+)`", in_sentences):
        line = " ".join(code.split())
        if COMMAND.match(line) and " " in line and "\n\n" not in code:
            found.append(Command(line, (), False))
    return found


def words(command: Command) -> list[str]:
    """Of the command line, without environment, ellipses and the brackets of a usage line."""
    found = shlex.split(re.sub(r"^(\w+=\S+ +)*(\.venv/bin/)?", "", command.text))
    found = [word.rstrip("…") for word in found]
    return [VALUES.get(word, word) for word in found if word]


def test_documents_have_commands() -> None:
    """The finder of commands finds those known to be there."""
    texts = {command.text for document in DOCUMENTS for command in commands(document)}
    assert "edm-hloc reconstruct IMAGES OUT" in texts
    assert any(text.startswith(".venv/bin/edm-hloc reconstruct") for text in texts)
    assert sum(text.startswith("edm-hloc ") for text in texts) > 40


# --------------------------------------------------------------------------- small data


def _make_inputs(scene: Path) -> None:
    from edm_hloc.base.colmap import read_model
    from edm_hloc.interop.exports import export_nerfstudio
    from edm_hloc.localization.poses import write_poses
    from edm_hloc.matching.reader import RawMatchReader
    from edm_hloc.synthetic.photo_collection import make_photo_collection

    make_photo_collection(scene, views=5, size=(256, 192), seed=3)
    photos = sorted((scene / "images").iterdir())
    run = scene / "run"
    assert cli.main(["reconstruct", str(scene / "images"), str(run)]) == 0
    _bad_photos(scene, photos)
    poses = {
        image.name: image.cam_from_world() for image in read_model(run / "model").images.values()
    }
    write_poses(scene / "poses.txt", poses)
    export_nerfstudio(run / "model", scene / "transforms.json")
    (scene / "MATCHES").mkdir()
    with RawMatchReader(run / "raw_matches") as raw:
        for a, b in raw.pairs():
            path = scene / "MATCHES" / f"{Path(a).stem}__{Path(b).stem}.npz"
            np.savez(path, **raw.read(a, b).arrays())
    _places(scene)
    _film(scene / "FILM", photos)


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], None]:
    """Fills a folder with the inputs, under the names that the documents use."""
    scene = made_once(tmp_path_factory, "docs", _make_inputs)
    run, photos = scene / "run", sorted((scene / "images").iterdir())

    def fill(folder: Path) -> None:
        for name in PHOTOS:
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).symlink_to(scene / "images")
        for name in ("MATCHES", "transforms.json"):
            (folder / name).symlink_to(scene / name)
        for name in ("MODEL", "TRUTH"):
            (folder / name).symlink_to(scene / "truth")
        (folder / "FINISHED").symlink_to(run)
        _hpatches(folder / "HPATCHES", photos[0])
        for name, photo in (("A", photos[0]), ("B", photos[1])):
            (folder / name).symlink_to(photo)
            (folder / f"{name}.jpg").symlink_to(photo)
        names = [photo.name for photo in photos]
        pairs = "".join(f"{a} {b}\n" for a, b in itertools.pairwise(names))
        for name in ("PAIRS", "P"):
            (folder / name).write_text(pairs)
        (folder / "LIST").write_text("".join(f"{name}\n" for name in names))
        shutil.copy(scene / "poses.txt", folder / "FILE")
        shutil.copy(run / "database.db", folder / "DATABASE")
        (folder / "O").mkdir()
        (folder / "WRONG_PAIRS").write_text(f"{names[0]} other.jpg\n")
        camera = "PINHOLE 480 640 500 500 240 320"
        (folder / "WRONG_SIZE").write_text("".join(f"{name} {camera}\n" for name in names))
        for name in ("ONE", "BROKEN", "SIDEWAYS", "UNRELATED"):
            (folder / name).symlink_to(scene / name)
        (folder / "WEIGHTS").touch()
        (folder / "PANORAMAS").mkdir()
        Image.effect_noise((256, 128), 60).convert("RGB").save(folder / "PANORAMAS" / "a.jpg")
        for name in ("POSITIONS", "SURVEY", "CONTROL_POINTS", "FILM"):
            shutil.copy(scene / name, folder)
        (folder / "COLMAP_PROJECT").mkdir()
        (folder / "COLMAP_PROJECT" / "database.db").touch()

    return fill


def _hpatches(folder: Path, photo: Path) -> None:
    """A sequence in HPatches' layout: the same photo, shifted by whole pixels."""
    (folder / "v_scene").mkdir(parents=True)
    whole = Image.open(photo)
    for number in range(1, 7):
        x = 2 * (number - 1)
        part = whole.crop((x, 0, x + whole.width - 10, whole.height))
        part.save(folder / "v_scene" / f"{number}.ppm")
        if number > 1:
            (folder / "v_scene" / f"H_1_{number}").write_text(f"1 0 {-x}\n0 1 0\n0 0 1\n")


def _places(scene: Path) -> None:
    """The true cameras on Earth, in degrees and in UTM, and three points that the photos show."""
    from edm_hloc.base.colmap import posed_images, read_model
    from edm_hloc.mapping.georeference import camera_centres, to_earth

    def on_earth(xyz: np.ndarray) -> np.ndarray:
        return to_earth(xyz[..., [0, 2, 1]] * [1, 1, -1], (47.37, 8.54, 410.0))

    truth = read_model(scene / "truth")
    lines = {"POSITIONS": ["name,latitude,longitude,altitude"], "SURVEY": ["name,x,y,z"]}
    for name, xyz in camera_centres(truth).items():
        (place,) = on_earth(xyz)
        lines["POSITIONS"].append(",".join(map(str, (name, *place))))
        east, north = xyz[0] + 465_000, xyz[2] + 5_246_000
        lines["SURVEY"].append(f"{name},{east},{north},{410 - xyz[1]}")
    lines["CONTROL_POINTS"] = ["EPSG:4326"]
    run = read_model(scene / "run" / "model")
    points = sorted(run.points3D.values(), key=lambda p: -p.track.length())[::40]
    for number, point in enumerate(points[:8]):
        own = [run.images[e.image_id] for e in point.track.elements]
        seen = [
            i.points2D[e.point2D_idx].xy for i, e in zip(own, point.track.elements, strict=True)
        ]
        true = posed_images(truth)
        answer = pycolmap.estimate_triangulation(
            np.array(seen),
            [true[i.name].cam_from_world() for i in own],
            [truth.cameras[true[i.name].camera_id] for i in own],
        )
        ((latitude, longitude, altitude),) = on_earth(np.array(answer["xyz"]))
        for image, (x, y) in zip(own, seen, strict=True):
            place = f"{longitude} {latitude} {altitude} {x} {y} {image.name} p{number}"
            lines["CONTROL_POINTS"].append(place)
    for name, rows in lines.items():
        (scene / name).write_text("\n".join(rows) + "\n")


def _film(path: Path, photos: list[Path]) -> None:
    named = path.with_suffix(".avi")
    writer = cv2.VideoWriter(str(named), cv2.VideoWriter_fourcc(*"MJPG"), 25, (256, 192))
    for photo in photos:
        for _ in range(10):  # from one to the next is as much as a cut
            writer.write(cv2.imread(str(photo)))
    writer.release()
    named.rename(path)


def _bad_photos(scene: Path, photos: list[Path]) -> None:
    for name in ("ONE", "BROKEN", "SIDEWAYS", "UNRELATED"):
        (scene / name).mkdir()
        for photo in photos if name in ("BROKEN", "SIDEWAYS") else photos[: name == "ONE"]:
            shutil.copy(photo, scene / name)
    broken = scene / "BROKEN" / photos[2].name
    broken.write_bytes(broken.read_bytes()[:300])
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    turned = Image.open(photos[-1]).transpose(Image.Transpose.ROTATE_90)
    turned.save(scene / "SIDEWAYS" / photos[-1].name, exif=exif, quality=95)
    for i in range(4):  # a wall, the floor, the sky …
        shades = np.linspace(40 * i, 40 * i + 60, 192, dtype=np.uint8)
        plain = np.repeat(shades[:, None], 256, axis=1)
        Image.fromarray(plain if i % 2 else plain[::-1].copy()).save(scene / f"UNRELATED/{i}.jpg")


def provide(command: list[str], folder: Path) -> None:
    """A finished run where a command reads one that no earlier command has made."""
    for word in command:
        name, _, inside = word.partition("/")
        is_output = name in OUTPUTS or name.startswith("OUT")
        reads = inside or (
            command[1] in ("report", "mesh", "export-model", "georeference") and word == command[2]
        )
        if is_output and reads and not (folder / name).exists():
            shutil.copytree(folder / "FINISHED", folder / name)
        if CAPITALS.match(name) and not is_output and command[:2] != ["edm-hloc", "train"]:
            known = (folder / name).exists() or name.startswith("NO_")
            assert known, f"say in tests/test_docs.py what {name} stands for"


# --------------------------------------------------------------------------- running


def parse(command: list[str]) -> None:
    """Ends with SystemExit if the command is not as the parser wants it."""
    cli.build_parser().parse_args(command[1:])


def train(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """All of a training command but the training."""
    pytest.importorskip("lightning", reason="training needs lightning")
    from edm_hloc.training import command, trainer

    started = []
    monkeypatch.setattr(trainer, "run_training", lambda *args, **_: started.append(args))
    monkeypatch.setattr(command, "load_config", lambda *args: args)
    arguments = words[2:] if "--out" in words else [*words[2:], "--out", "RUN"]
    command.main(arguments)
    (((config, settings), *_),) = started
    monkeypatch.undo()
    if not config.startswith("RUN"):  # else the file of an earlier run
        command.load_config(config, settings)


def script_help(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """A script of the repository: its --help knows all the flags."""
    script = ROOT / command[1]
    assert script.is_file(), f"no script {command[1]}"
    before, path = sys.argv, sys.path
    sys.argv, sys.path = [str(script), "--help"], [str(script.parent), *path]
    try:
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(str(script), run_name="__main__")
        assert stop.value.code == 0
    finally:
        sys.argv, sys.path = before, path
    shown = FLAG.findall(capsys.readouterr().out)
    for flag in FLAG.findall(" ".join(command[2:])):
        if flag.startswith("--"):
            assert flag in shown, f"{command[1]} has no {flag}"


def meaning(command: Command) -> str:
    """The command with one name for the photos and one for its outputs."""
    text = re.sub(r"\bOUT\w*|\boutputs/\w+", "OUT", " ".join(words(command)))
    return " ".join("IMAGES" if word in PHOTOS else word for word in text.split())


@functools.cache
def in_blocks() -> set[str]:
    """What the blocks of all documents run: sentences that say the same are not run again."""
    return {meaning(c) for document in DOCUMENTS for c in commands(document) if c.in_block}


def is_mention(command: Command) -> bool:
    """`edm-hloc match-pairs` in a sentence names the command; so does one with a lone option."""
    rest = words(command)[2:]
    return not command.in_block and all(word.startswith("-") for word in rest[:1])


def check(
    command: Command,
    folder: Path,
    slow: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    *,
    only_parse: bool = False,
) -> None:
    line = words(command)
    known = next(
        (
            why
            for start, why in ONLY_PARSED.items()
            if f"{shlex.join(line)} ".startswith(f"{start} ")
        ),
        "run" if only_parse else None,
    )
    if line[0] == "make":
        if shutil.which("make"):
            subprocess.run(["make", "-n", *line[1:]], cwd=ROOT, check=True, capture_output=True)
    elif line[0] == "python":
        if line[1] != "-c":
            script_help(line, capsys)
    elif line[1] == "train":
        train(line, monkeypatch)
    elif is_mention(command):
        assert line[1] in commands_of_the_parser() or line[1].startswith("-")
        help_text = help_of(line[1], capsys) if not line[1].startswith("-") else line[1]
        for word in line[2:]:
            if word.startswith("--"):
                assert word.partition("=")[0] in help_text, f"{line[1]} has no {word}"
    elif (known and not (slow and known == "run")) or (line[1] == "hloc" and not hloc_is_there()):
        parse(line)
    else:
        provide(line, folder)
        expanded = [
            place
            for word in line
            for place in (sorted(str(p) for p in folder.glob(word)) if "*" in word else [word])
        ]
        expanded = [p.removeprefix(f"{folder}/") for p in expanded]
        monkeypatch.chdir(folder)
        code = cli.main(expanded[1:])
        captured = capsys.readouterr()
        said = " ".join(f"{captured.out} {captured.err}".split())
        fails = any(line.startswith("edm-hloc:") for line in command.said)
        assert (code != 0) == fails, f"{command.text}\n{said}"
        for expected in command.said:
            pattern = re.escape(" ".join(expected.split())).replace("…", ".*")
            assert re.search(pattern, said), f"{command.text}\n{said}"


def commands_of_the_parser() -> list[str]:
    (group,) = (a for a in cli.build_parser()._actions if a.choices)
    return list(group.choices or ())


def help_of(name: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit):
        cli.build_parser().parse_args([name, "--help"])
    return capsys.readouterr().out


def hloc_is_there() -> bool:
    try:
        import_match_dense()
    except Exception:
        return False
    return True


def run_all(
    document: str,
    fill: Callable[[Path], None],
    tmp_path: Path,
    slow: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    blocks = tmp_path / "blocks"  # the commands of the blocks build on each other
    blocks.mkdir()
    fill(blocks)
    for number, command in enumerate(commands(document)):
        only_parse = document in MEASUREMENTS and not slow
        again = (slow, meaning(command)) in DONE or meaning(command) in in_blocks()
        if not command.in_block and again:
            continue
        if not only_parse:
            DONE.add((slow, meaning(command)))
        folder = blocks
        if not command.in_block:
            folder = tmp_path / str(number)
            folder.mkdir()
            fill(folder)
            if not slow and RUN_AGAIN.match(command.text):
                shutil.copytree(folder / "FINISHED", folder / "OUT2")
        check(command, folder, slow, monkeypatch, capsys, only_parse=only_parse)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands(
    document: str,
    inputs: Callable[[Path], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run_all(document, inputs, tmp_path, False, monkeypatch, capsys)


@pytest.mark.slow
@pytest.mark.parametrize("document", DOCUMENTS)
def test_long_commands(
    document: str,
    inputs: Callable[[Path], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The same with the commands that take minutes, and with those of the measurements."""
    from edm_hloc.synthetic.aachen_miniature import make_aachen
    from edm_hloc.synthetic.inloc_miniature import make_inloc

    def fill(folder: Path) -> None:
        inputs(folder)
        make_aachen(folder / "datasets/aachen_v1.1", 6, (1, 1), (320, 240), 0)
        make_inloc(folder / "datasets/inloc", 16, 2, (320, 240), 0)  # fewer are not found
        for dataset, number in (("aachen_v1.1", 50), ("inloc", 40)):
            queries = [*_photos(folder / "datasets" / dataset, "query")]
            database = [*_photos(folder / "datasets" / dataset, "db", "database")]
            (folder / f"pairs-query-netvlad{number}.txt").write_text(
                "".join(f"{q} {d}\n" for q in queries for d in database)
            )

    long = any(f"{c.text} ".startswith(f"{s} ") for c in commands(document) for s in ONLY_PARSED)
    if long or document in MEASUREMENTS:
        run_all(document, fill, tmp_path, True, monkeypatch, capsys)


def _photos(dataset: Path, *kinds: str) -> Iterator[str]:
    root = next((r for r in (dataset / "images_upright",) if r.is_dir()), dataset)
    for kind in kinds:
        for path in sorted((root / kind).rglob("*")):
            if path.suffix in (".jpg", ".JPG", ".png"):
                yield path.relative_to(root).as_posix()


# --------------------------------------------------------------------------- the rest of the text


def test_a_wrong_command_is_noticed(
    inputs: Callable[[Path], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    inputs(tmp_path)
    for text, error in (
        ("edm-hloc reconstruct IMAGES", SystemExit),
        ("edm-hloc pairs IMAGES OUT --overlop 3", SystemExit),
        ("edm-hloc pairs UNEXPLAINED OUT", AssertionError),
        ("edm-hloc compare MODEL NO_MODEL", AssertionError),
        ("edm-hloc aachen datasets/aachen_v1.1 OUT --dri-run", SystemExit),
        ("python benchmarks/speed.py --none", AssertionError),
        ("python benchmarks/none.py", AssertionError),
        ("make none", subprocess.CalledProcessError if shutil.which("make") else None),
    ):
        if error:
            with pytest.raises(error):
                check(Command(text, (), True), tmp_path, False, monkeypatch, capsys)
    wrong = Command("edm-hloc compare MODEL NO_MODEL", ("edm-hloc: another … message",), True)
    with pytest.raises(AssertionError):
        check(wrong, tmp_path, False, monkeypatch, capsys)
    for text in ("edm-hloc reconstruckt", "edm-hloc match-pairs --positions"):
        with pytest.raises(AssertionError):
            check(Command(text, (), False), tmp_path, False, monkeypatch, capsys)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links(document: str) -> None:
    text = (ROOT / document).read_text("utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"\w+:", target):
            continue
        name, _, anchor = target.partition("#")
        path = ((ROOT / document).parent / name).resolve() if name else ROOT / document
        assert path.exists(), f"{document} links to {target}"
        if anchor:
            titles = re.findall(r"^#+ (.*)$", path.read_text("utf-8"), re.M)
            slugs = [re.sub(r"[^\w\- ]", "", t.lower()).replace(" ", "-") for t in titles]
            assert anchor in slugs, f"{document} links to {target}"


@functools.cache
def every_option() -> set[str]:
    """The options of all commands, of the training and of the benchmarks."""
    parsers, found = [cli.build_parser()], set[str]()
    for parser in parsers:
        for action in parser._actions:
            found.update(action.option_strings)
            if isinstance(action.choices, dict):
                parsers += action.choices.values()
    for script in (ROOT / "edm_hloc/training/command.py", *(ROOT / "benchmarks").glob("*.py")):
        found.update(re.findall(r'"(--[a-z][\w-]*)"', script.read_text("utf-8")))
    return found


@pytest.mark.parametrize("document", DOCUMENTS)
def test_code_in_sentences(document: str) -> None:
    """Options, files and names of this package that sentences speak of are there."""
    text = (ROOT / document).read_text("utf-8")
    text = re.sub(r"^```.*?^```|^    .*$", "", text, flags=re.S | re.M)
    for code in re.findall(r"`([^`]+)`", text):
        if not code.startswith(OTHER_PROGRAMS):
            unknown = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", code)) - every_option()
            assert not unknown, f"{document}: there is no {unknown}: {code}"
        if re.fullmatch(r"(tests|edm_hloc|benchmarks|pipelines|mapping)/[\w./]+", code):
            assert any((folder / code).exists() for folder in (ROOT, ROOT / "edm_hloc")), code
        if re.fullmatch(r"edm_hloc(\.\w+)+", code):
            module, _, name = code.rpartition(".")
            assert hasattr(importlib.import_module(module), name) or importlib.import_module(code)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_lines_of_the_summary(document: str) -> None:
    """What sentences say is in the summary of a run is among what it may print."""
    source = (ROOT / "edm_hloc/cli/summaries.py").read_text("utf-8")
    printed = re.sub(r"\{[^}]*\}", "", " ".join(re.findall(r'"([^"\n]*)"', source)))
    printed = f" {' '.join(re.sub(r'[^a-zA-Z ]', ' ', printed).split())} "
    text = (ROOT / document).read_text("utf-8")
    lines = [
        *re.findall(r"\*([A-Z][^*:…]+)\*\s+in the\s+summary", text),
        *re.findall(r"line \*([A-Z][^*]+)\* of the\s+summary", text),
        *re.findall(r"The\s+summary \(\*([A-Z][^*]+)\*\)", text),
    ]
    for line in lines:
        assert f" {line} " in printed, f"{document}: no summary says {line!r}"


def test_defaults_in_the_tables_of_options() -> None:
    """docs/presets.md has those of the commands."""
    text = (ROOT / "docs" / "presets.md").read_text("utf-8")
    checked = 0
    for part, commands_there in zip(
        text.split("\n## Localization\n"),
        (["reconstruct IMAGES OUT"], ["localize A B C D", "aachen A B", "inloc A B"]),
        strict=True,
    ):
        for option, cells in re.findall(r"^\| `--([\w-]+)` \|(.*)\|", part, re.M):
            told = [cell.strip() for cell in cells.split("|")]
            for command, default in zip(commands_there, told, strict=False):
                args = vars(cli.build_parser().parse_args(command.split()))
                value = args.get(option.replace("-", "_"))
                if value is not None:
                    assert f"{value}".removesuffix(".0") == default, f"--{option}: {value}"
                    checked += 1
    assert checked > 15


@pytest.mark.parametrize("document", DOCUMENTS)
def test_python_blocks(document: str) -> None:
    """They parse, and what they import from this package is there."""
    text = (ROOT / document).read_text("utf-8")
    for block in re.findall(r"^```python\n(.*?)^```", text, re.S | re.M):
        check_python(block)


def check_python(block: str) -> None:
    """It parses, and has what it imports from this package, or takes of `edm_hloc` itself."""
    for node in ast.walk(ast.parse(block)):
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("edm_hloc"):
            module = importlib.import_module(str(node.module))
            for name in node.names:
                assert hasattr(module, name.name), f"{node.module} has no {name.name}"
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "edm_hloc":
            assert hasattr(edm_hloc, node.attr), f"edm_hloc has no {node.attr}"


# --------------------------------------------------------------------------- the notebook


NOTEBOOK = ROOT / "docs" / "tour.ipynb"


def test_notebook_as_it_is_kept() -> None:
    """It was run from the top, and its outputs are small and name no place on a computer."""
    text = NOTEBOOK.read_text("utf-8")
    assert len(text) < 500_000
    assert not re.search(r"/(home|root|tmp|work|Users)/|\"ename\"", text)
    cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    pictures = [o for cell in cells for o in cell["outputs"] if "image/jpeg" in o.get("data", {})]
    assert len(pictures) == 3
    for cell in cells:
        check_python("".join(cell["source"]))
    for line in re.findall(r"`(edm-hloc [^`]+)`", text):
        parse(line.replace("\\n", " ").split())
    for target in re.findall(r"\]\(([^)\s:]+)\)", text):
        assert (NOTEBOOK.parent / target).exists()


@pytest.mark.slow
def test_notebook_runs(tmp_path: Path) -> None:
    """What it calls is called by tests/test_api.py, too."""
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    place = {"metadata": {"path": str(tmp_path)}}
    client = nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3", resources=place)
    client.execute()
    said = "".join(o.get("text", "") for cell in notebook.cells for o in cell.get("outputs", []))
    assert "7 of 7 photos registered, " in said
    assert "Registered    7 of 9 images" in said
    errors = [float(error) for error in re.findall(r"is ([\d.]+) cm off", said)]
    assert len(errors) == 2
    assert max(errors) < 50
