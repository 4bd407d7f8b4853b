"""What `edm-hloc doctor` tells."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pycolmap
import pytest

from edm_hloc import cli
from edm_hloc.interop import breakages, doctor
from edm_hloc.interop.breakages import about_to_happen
from edm_hloc.interop.doctor import diagnose


def test_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor"]) == 0
    assert f"pycolmap      {pycolmap.__version__}" in capsys.readouterr().out


def test_breakages_follow_from_what_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = {
        "triangulation": "geometry = pycolmap.TwoViewGeometry(inlier_matches=matches)",
        "localize_inloc": "mkpq, mkpr = kpq[v], kpr[m[v]]",
        "pipelines.Aachen_v1_1.pipeline_loftr": 'if __name__ == "__main__":\n    parse()\n',
    }
    monkeypatch.setattr(doctor, "hloc_version", lambda: "1.5 in somewhere")
    for place in (doctor, breakages):
        monkeypatch.setattr(place, "hloc_source", lambda module: source.get(module, ""))
    monkeypatch.setattr(doctor, "undefined_pairs_are_ignored", lambda: True)

    monkeypatch.setattr(doctor, "unmet_needs", lambda: [])

    def problems() -> str:
        found = diagnose().breakages
        assert all(breakage.remedy for breakage in found)
        remedies = "".join(breakage.remedy for breakage in found if "0 points" in breakage.problem)
        assert not remedies or remedies.startswith('pip install "pycolmap<4.2.1"')
        return "\n".join(breakage.problem for breakage in found)

    assert "0 points" in problems()
    assert "localize_inloc" in problems()
    assert "pipeline_loftr" in problems()
    assert "mapper_options" not in problems()

    monkeypatch.setattr(doctor, "undefined_pairs_are_ignored", lambda: False)  # another pycolmap
    assert "0 points" not in problems()
    monkeypatch.setattr(doctor, "undefined_pairs_are_ignored", lambda: True)
    source["triangulation"] += "config = pycolmap.TwoViewGeometryConfiguration.CALIBRATED"
    source["localize_inloc"] = ""
    source["pipelines.Aachen_v1_1.pipeline_loftr"] += "    run(args)\n"
    assert "0 points" not in problems()
    assert "localize_inloc" not in problems()
    assert "pipeline_loftr" not in problems()
    source["match_dense"] = 'if "scores" in fd: use(fd)\nsave("score")'
    assert "vote alike" in problems()
    source["match_dense"] = 'if "scores" in fd: use(fd)\nsave("scores")'
    assert "vote alike" not in problems()
    source["triangulation"] = 'args.pop("mapper_options")'
    assert "KeyError: 'mapper_options'" in problems()

    monkeypatch.setattr(doctor, "hloc_version", lambda: None)
    assert diagnose().breakages == ()
    assert diagnose().versions["hloc"] is None


INSTALLED = """
    torch>=2.6
    pycolmap>=4.2,!=4.2.1
    nothing-of-this-name>=1
    h5py
    transformers>=5.24; extra == "eloftr"
    onnx>=1.17; extra == "onnx"
    edm_hloc[eloftr]; extra == "dev"
    ruff>=99; extra == "dev"
    hloc @ git+https://github.com/cvg/Hierarchical-Localization ; extra == "hloc"
"""


def needs(versions: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The remedies by the library that is named in the problem."""

    def version(name: str) -> str:
        if name not in versions:
            raise doctor.metadata.PackageNotFoundError(name)
        return versions[name]

    lines = [line.strip() for line in INSTALLED.strip().splitlines()]
    monkeypatch.setattr(doctor.metadata, "requires", lambda name: lines)
    monkeypatch.setattr(doctor.metadata, "version", version)
    return {b.problem.partition(" needs ")[2]: b.remedy for b in doctor.unmet_needs()}


def test_our_own_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    right = {"torch": "2.13.0+cpu", "pycolmap": "4.2.0", "nothing-of-this-name": "1", "h5py": "3"}
    right |= {"ruff": "0.6"}  # for those who change this program only
    assert needs(right, monkeypatch) == {}
    for version in ("4.2", "4.2.0", "4.2.0.dev3", "4.2.2", "4.10.1", "5.0"):
        assert needs(right | {"pycolmap": version}, monkeypatch) == {}, version
    for version in ("0.6.1", "3.13.0", "4.1.1"):
        found = needs(right | {"pycolmap": version}, monkeypatch)
        assert found == {
            f"pycolmap>=4.2,!=4.2.1, and {version} is installed.": (
                'pip install "pycolmap>=4.2,!=4.2.1"'
            )
        }
    ((problem, remedy),) = needs(right | {"pycolmap": "4.2.1"}, monkeypatch).items()
    assert "0 points" in problem
    assert remedy == 'pip install "pycolmap<4.2.1"'
    found = needs({**right, "torch": "2.5.1", "transformers": "4.9"}, monkeypatch)
    assert [problem.partition(",")[0] for problem in found] == ["torch>=2.6", "transformers>=5.24"]
    del right["nothing-of-this-name"]
    ((problem, remedy),) = needs(right, monkeypatch).items()
    assert problem == "nothing-of-this-name>=1, and it is not installed."


@pytest.mark.parametrize(
    ("pycolmap_source", "said"),
    [
        pytest.param("__version__ = '0.6.0'", "pycolmap      0.6.0", marks=pytest.mark.slow),
        pytest.param(
            "raise ImportError('libcudart.so.12 is missing')",
            "cannot be imported: libcudart.so.12",
            marks=pytest.mark.slow,
        ),
        ("", "pycolmap      "),
    ],
)
def test_any_pycolmap_and_any_hloc(pycolmap_source: str, said: str, tmp_path: Path) -> None:
    """Neither a pycolmap without anything in it nor an hloc that raises ends the doctor."""
    (tmp_path / "pycolmap.py").write_text(pycolmap_source)
    (tmp_path / "hloc").mkdir()
    (tmp_path / "hloc/__init__.py").write_text("__version__ = '1.5'")
    (tmp_path / "hloc/match_dense.py").write_text("raise ValueError('numpy.dtype size changed')")
    (tmp_path / "hloc/triangulation.py").write_text("pycolmap.TwoViewGeometry()")
    root = Path(doctor.__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "edm_hloc", "doctor"],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{root}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert said in done.stdout
    assert "Traceback" not in done.stderr
    assert "numpy.dtype size changed" in " ".join(done.stdout.split()) or "pycolmap" in done.stdout


def test_what_a_command_is_about_to_run_into(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = {
        "match_dense": """
            pairs = find_unique_new_pairs(pairs, None if overwrite else match_path)
            def main(features_ref=None): return features_q, matches
            parser.add_argument("--matches", type=Path, default=confs["loftr"]["output"])""",
        "triangulation": 'parse(args.pop("mapper_options"))',
        "reconstruction": """
            parser.add_argument("--mapper_options")
            parse(args.pop("mapper_options"), pycolmap.IncrementalMapperOptions())""",
        "localize_inloc": "assert np.all(kp > -1) and np.all(kp < 1)",
        "pipelines.7Scenes.create_gt_sfm": "p2D = pycolmap_camera.img_from_cam(p2D_norm)",
        "pipelines.CMU.pipeline": 'add("--slices")\nif args.slice == "*": pass',
    }
    monkeypatch.setattr(breakages, "hloc_source", lambda module: source.get(module, ""))

    def problems(module: str, *arguments: str) -> str:
        return " ".join(b.problem for b in about_to_happen(module, arguments))

    assert "KeyError: 'mapper_options'" in problems("triangulation", "--sfm_dir", "a")
    assert problems("triangulation", "--help") == ""
    assert problems("reconstruction", "--sfm_dir", "a") == ""
    assert "AttributeError" in problems("reconstruction", "--mapper_options", "ba_refine=1")
    assert "AssertionError" in problems("localize_inloc")
    assert "args.slice" in problems("pipelines.CMU.pipeline", "--slices", "2-6")
    assert problems("pipelines.7Scenes.pipeline") == ""
    assert "img_from_cam" in problems("pipelines.7Scenes.pipeline", "--use_dense_depth")
    matches = tmp_path / "m.h5"
    assert "current folder" in problems("match_dense", "--pairs", "p")
    assert problems("match_dense", f"--matches={matches}") == ""
    matches.touch()
    assert "interrupted" in problems("match_dense", "--matches", str(matches))
    source["pipelines.CMU.pipeline"] = 'add("--slices")\nif args.slices == "*": pass'
    assert problems("pipelines.CMU.pipeline") == ""
    source["reconstruction"] += '{"mapper": options}'
    assert problems("reconstruction", "--mapper_options", "ba_refine=1") == ""
