"""What worker processes make the same matcher from."""

from __future__ import annotations

from pathlib import Path

import pytest

from edm_hloc.refinement.load import MatcherRecipe


@pytest.mark.parametrize(
    ("matcher", "name"),
    [
        ("edm", "edm_s"),
        ("loftr", "outdoor"),
        ("eloftr", "zju-community/efficientloftr"),
        ("edm", None),
    ],
)
def test_names_of_weights_are_names_everywhere(
    matcher: str, name: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = MatcherRecipe(matcher, weights=name, onnx="graphs")
    assert recipe.anywhere() == MatcherRecipe(
        matcher, weights=name, onnx=str(tmp_path.resolve() / "graphs")
    )


@pytest.mark.parametrize(
    ("matcher", "name"), [("edm", "edm_s"), ("loftr", "outdoor"), ("eloftr", "hub/model")]
)
def test_what_is_loaded_of_a_folder_and_a_file_with_the_name_of_weights(
    matcher: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run of that name, say; only EfficientLoFTR is loaded from folders."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path.resolve() / name
    path.mkdir(parents=True)
    expected = str(path) if matcher == "eloftr" else name
    assert MatcherRecipe(matcher, weights=name).anywhere().weights == expected
    path.rmdir()
    path.write_bytes(b"")
    if matcher != "eloftr":
        assert MatcherRecipe(matcher, weights=name).anywhere().weights == str(path)
