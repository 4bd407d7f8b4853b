"""Matching by several processes: the same bits, dead workers replaced, interrupted runs resumed."""

from __future__ import annotations

import multiprocessing
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from edm_hloc.matching.engine import MatchingConfig, match_pairs
from edm_hloc.pairs.rules import Pair, exhaustive
from edm_hloc.pipelines import workers
from edm_hloc.pipelines.workers import match_with_workers
from edm_hloc.refinement.load import MatcherRecipe
from tests.fakes import FakeMatcher
from tests.h5_files import stored

RECIPE = MatcherRecipe(resize=160, refine="none")


@pytest.fixture
def pairs(scene: Path) -> list[Pair]:
    return exhaustive(sorted(photo.name for photo in (scene / "images").iterdir()))


@pytest.mark.slow
def test_two_workers_give_what_one_process_gives(
    scene: Path, pairs: list[Pair], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "_FEWEST_PAIRS", 3)
    matcher = RECIPE.load("cpu")
    match_pairs(scene / "images", pairs, matcher, tmp_path / "alone")
    out = tmp_path / "out"
    config = MatchingConfig(workers=2)
    done = match_with_workers(out, scene / "images", pairs, matcher, config)
    assert done is not None
    assert done.matched == len(pairs)
    assert done.encoded >= done.images == 7
    assert done.matches == sum(
        len(scores) // 4 for *_, scores in stored(out / "raw_matches").values()
    )
    assert stored(out / "raw_matches") == stored(tmp_path / "alone")
    assert [path.name for path in (out / "plan").iterdir()] == [".lock"]
    assert match_with_workers(out, scene / "images", pairs, matcher, config) is None


def test_pairs_that_are_too_few_for_workers_are_matched_here_with_a_word(
    scene: Path, pairs: list[Pair], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = MatchingConfig(ray="auto")
    found = match_with_workers(tmp_path, scene / "images", pairs[:2], FakeMatcher(), config)
    assert found is None
    assert "No workers are started for 2 pairs: matched here." in capsys.readouterr().err


@pytest.mark.slow
def test_a_worker_that_dies_is_replaced(
    scene: Path, pairs: list[Pair], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "_FEWEST_PAIRS", 3)
    matcher = RECIPE.load("cpu")
    killed = []

    def kill_one() -> None:
        deadline = time.monotonic() + 60
        while not killed and time.monotonic() < deadline:
            for child in multiprocessing.active_children():
                child.kill()
                killed.append(child.name)
                return
            time.sleep(0.05)

    killer = threading.Thread(target=kill_one)
    killer.start()
    found = match_with_workers(
        tmp_path, scene / "images", pairs, matcher, MatchingConfig(workers=2)
    )
    killer.join()
    assert killed
    assert found is not None
    assert found.matched == len(pairs)
    assert len(stored(tmp_path / "raw_matches")) == len(pairs)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_ctrl_c_stops_all_and_keeps_what_is_matched(
    scene: Path, tmp_path: Path, pairs: list[Pair]
) -> None:
    (tmp_path / "pairs.txt").write_text("".join(f"{a} {b}\n" for a, b in pairs))
    program = (
        "import sys; from edm_hloc.pipelines import workers; workers._FEWEST_PAIRS = 1; "
        "from edm_hloc.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [
        *(sys.executable, "-c", f"if __name__ == '__main__': {program}"),
        *("match-pairs", str(scene / "images"), str(tmp_path / "pairs.txt"), str(tmp_path / "out")),
        *("--resize=160", "--refine=none", "--workers=2"),
    ]
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
        # Jobs in the background of a shell ignore the signal, and so would their children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 90
    while not list((tmp_path / "out" / "plan").glob("matches-*.h5")):
        assert process.poll() is None, process.stderr and process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130
    deadline = time.monotonic() + 20
    while alive := members_of(process.pid):  # no worker lives on
        assert time.monotonic() < deadline, alive
        time.sleep(0.1)
    done = len(list((tmp_path / "out" / "plan").glob("matches-*.h5")))
    assert done >= 1
    assert subprocess.run(command, stdout=subprocess.DEVNULL).returncode == 0
    assert len(stored(tmp_path / "out" / "raw_matches")) == len(pairs)


def members_of(group: int) -> list[str]:
    """The processes of a group that have not ended."""
    listed = subprocess.run(["ps", "-eo", "pgid=,stat=,comm="], capture_output=True, text=True)
    lines = [line.split(maxsplit=2) for line in listed.stdout.splitlines()]
    return [name for pgid, state, name in lines if pgid == str(group) and state[0] != "Z"]
