"""What `edm-hloc doctor` tells."""

from __future__ import annotations

from pathlib import Path

import pycolmap
import pytest

from edm_hloc import cli
from edm_hloc.interop import doctor
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
    monkeypatch.setattr(doctor, "hloc_source", lambda module: source.get(module, ""))
    monkeypatch.setattr(doctor, "undefined_pairs_are_ignored", lambda: True)

    def problems() -> str:
        found = diagnose().breakages
        assert all(breakage.remedy for breakage in found)
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
