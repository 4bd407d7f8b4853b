"""Messages quote no more than 200 characters of a file, and say all of our own sentences."""

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from edm_hloc.base.errors import EdmHlocError, shortened
from edm_hloc.cli import main
from edm_hloc.images.intrinsics import load_intrinsics
from edm_hloc.localization.poses import read_poses
from edm_hloc.localization.submission import check_submission
from edm_hloc.pairs.files import from_file, read_pairs
from edm_hloc.pairs.retrieval import RetrievalOptions, images_in_list
from edm_hloc.training.config import load_config

WORDS = "zz " * 100_000
WORD = "z" * 100_000


def _problems(path: Path) -> None:
    raise EdmHlocError("\n".join(check_submission(path, ["a.jpg"])))


@pytest.mark.parametrize("content", [WORDS, WORD, f"{WORD} {WORD}", "z/" * 50_000, "'z " * 90_000])
@pytest.mark.parametrize(
    "read",
    [
        lambda path: from_file(path, ["a.jpg", "b.jpg"]),
        lambda path: load_intrinsics(path, ["a.jpg"]),
        lambda path: load_intrinsics(path.rename(path.with_name("cameras.txt")), ["a.jpg"]),
        read_poses,
        _problems,
        lambda path: images_in_list(RetrievalOptions(str(path)), ["q.jpg"], ["a.jpg"]),
        lambda path: load_config(str(path)),
    ],
)
def test_messages_quote_little_of_a_file(
    content: str, read: Callable[[Path], object], tmp_path: Path
) -> None:
    path = tmp_path / "file.txt"
    path.write_text(content)
    with pytest.raises(EdmHlocError) as caught:
        read(path)
    for line in str(caught.value).splitlines():  # of a submission: one for each problem
        assert line.count("z") <= 2 * 200, len(line)
        assert len(line) < 1000


def test_settings_of_any_length(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    for values in ({WORD: 1}, {f"z{i}": 1 for i in range(50_000)}, {"model": WORD}, {"seed": WORD}):
        path.write_text(json.dumps(values))
        with pytest.raises(EdmHlocError) as caught:
            load_config(str(path))
        assert len(str(caught.value)) < 1500


def test_own_sentences_and_paths_stay() -> None:
    path = "/folder" * 60 + "/" + "n" * 200 + ".jpg"
    message = (
        f"{path}, line 3: expected 'name MODEL width height parameters', got 'x'. The weights' "
        f"photos are COLMAP's; give \"all\" photos' names (they're in {path})."
    )
    assert shortened(message) == message
    assert str(EdmHlocError(message)) == message
    assert shortened(f"got {WORD!r}: rename it") == f"got '{'z' * 200}…': rename it"


def test_control_characters_do_not_reach_the_terminal() -> None:
    assert str(EdmHlocError("a\x1b[2Jb\r\n\tc\x9b")) == "a\\x1b[2Jb\\r\n\tc\\x9b"


def test_warnings_quote_as_little(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def warn(*_: object) -> None:
        logging.getLogger("edm_hloc.somewhere").warning("%s: left out: %s", "list.txt", WORD)

    monkeypatch.setattr("edm_hloc.pairs.files.write_pairs", warn)
    monkeypatch.setattr("edm_hloc.cli.pair_options.list_pairs", lambda _: [])
    assert main(["pairs", str(tmp_path), str(tmp_path / "out.txt")]) == 0
    assert 150 < capsys.readouterr().err.count("z") <= 200


def test_pairs_of_names_that_hold_quotes(tmp_path: Path) -> None:
    path = tmp_path / "pairs.txt"
    path.write_text('it\'s.jpg "b".jpg\n')
    assert read_pairs(path) == [("it's.jpg", '"b".jpg')]
