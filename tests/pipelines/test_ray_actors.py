"""Workers that are actors of Ray, which is really started: two cores, a small object store."""

from __future__ import annotations

import itertools
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.matching.engine import MatchingConfig
from edm_hloc.pipelines import ray_actors, workers
from edm_hloc.pipelines.ray_actors import RayCrew
from edm_hloc.pipelines.shard_plan import make_plan
from edm_hloc.pipelines.shard_worker import ShardWorker, WorkerSettings
from edm_hloc.pipelines.workers import match_in_processes, match_plan
from tests.fakes import FakeMatcher
from tests.pipelines.fake_workers import (
    DyingWorker,
    FakeWorker,
    SlowWorker,
    make_grey_photos,
    noted,
)
from tests.pipelines.test_processes import shard_files

NAMES = [f"{i:03d}.png" for i in range(12)]
PAIRS = list(itertools.combinations(NAMES, 2))
CONFIG = MatchingConfig(cache_bytes=1 << 20, host_cache_bytes=1 << 20)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    make_grey_photos(tmp_path / "photos", len(NAMES))
    return tmp_path / "photos"


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    return pytest.importorskip("ray", reason="Ray is not installed")


def match_all(photos: Path, out: Path, crew: RayCrew, shards: int) -> dict[str, bytes]:
    plan = make_plan(out, photos, PAIRS, FakeMatcher(), shards=shards)
    match_plan(plan, crew)
    return shard_files(out)


def one_process(photos: Path, out: Path, shards: int) -> dict[str, bytes]:
    from edm_hloc.pipelines.shards import match_shard

    plan = make_plan(out, photos, PAIRS, FakeMatcher(), shards=shards)
    for shard in range(1, shards + 1):
        match_shard(plan, shard, FakeMatcher())
    return shard_files(out)


@pytest.fixture
def two_cores(ray: object) -> Iterator[None]:
    """A cluster of Ray with two cores, which does not outlive the test."""
    import ray as library

    library.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=80 << 20,
        log_to_driver=False,
    )
    yield
    library.shutdown()


@pytest.mark.slow
@pytest.mark.usefixtures("two_cores")
def test_actors_match_what_one_process_matches(photos: Path, tmp_path: Path) -> None:
    settings = WorkerSettings(tmp_path / "out", None, 1, CONFIG)
    (tmp_path / "out").mkdir()
    with RayCrew(settings, "local", 2, FakeWorker) as crew:
        assert crew.workers == 2
        found = match_all(photos, tmp_path / "out", crew, 6)
    assert found == one_process(photos, tmp_path / "alone", 6)
    assert set(noted(tmp_path / "out").values()) == {1}


@pytest.mark.slow
@pytest.mark.usefixtures("two_cores")
def test_a_pair_at_which_actors_die_is_left_out_and_named(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "ShardWorker", DyingWorker)
    raw = tmp_path / "dying" / "raw_matches"
    config = MatchingConfig(cache_bytes=1 << 20, workers=2, ray="local")
    summary = match_in_processes(photos, PAIRS, FakeMatcher(), raw, config)
    assert summary.matched == len(PAIRS) - 1
    (named,) = summary.left_out
    assert named == "002.png and 007.png: the worker died (it was killed or has crashed)"


def test_a_folder_that_an_actor_does_not_see_is_named(tmp_path: Path) -> None:
    from edm_hloc.pipelines.shard_queue import Failure, Piece

    worker = ShardWorker(WorkerSettings(tmp_path / "elsewhere", "cpu", 1, CONFIG))
    answer = worker.work(Piece(1))
    assert isinstance(answer, Failure)
    assert answer.kind == "error"
    assert "does not see" in answer.reason
    assert "elsewhere" in answer.reason


def test_ray_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(EdmHlocError, match=r"pip install 'edm_hloc\[ray\]'"):
        RayCrew(WorkerSettings(tmp_path, None, 1, CONFIG), "local", 1)


class TokenError(Exception):
    """As Ray's errors: of no built-in kind."""


@pytest.mark.parametrize("open_port", [False, True])
def test_a_cluster_that_cannot_be_reached_is_named_at_once(
    open_port: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def init(**_: object) -> None:  # it asks a port at which nobody listens for minutes
        assert open_port
        signal.signal(signal.SIGTERM, lambda *_: None)
        raise TokenError("no token was found")

    exceptions = SimpleNamespace(RayError=TokenError)
    library = SimpleNamespace(is_initialized=lambda: False, init=init, exceptions=exceptions)
    monkeypatch.setattr(ray_actors, "_import_ray", lambda: library)
    on_sigterm = signal.getsignal(signal.SIGTERM)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        if open_port:
            listener.listen()
        with pytest.raises(EdmHlocError, match=f"Cannot reach the Ray cluster at '{address}'") as e:
            RayCrew(WorkerSettings(tmp_path, None, 1, CONFIG), address, 1)
    assert ("no token was found" in str(e.value)) == open_port
    assert ("RAY_AUTH_MODE=token" in str(e.value)) == open_port
    assert signal.getsignal(signal.SIGTERM) == on_sigterm


@pytest.mark.slow
def test_computers_that_leave_and_join_lose_nothing(
    ray: object, photos: Path, tmp_path: Path
) -> None:
    import ray as library
    from ray.cluster_utils import Cluster

    small = {"num_cpus": 1, "object_store_memory": 80 << 20}
    cluster = Cluster(initialize_head=True, head_node_args={**small, "include_dashboard": False})
    nodes = [cluster.add_node(**small)]
    removed = 0
    library.init(address=cluster.address, log_to_driver=False)
    (tmp_path / "out").mkdir()
    try:
        settings = WorkerSettings(tmp_path / "out", None, 1, CONFIG)
        with (
            RayCrew(settings, cluster.address, 0, SlowestWorker) as crew,
            ThreadPoolExecutor(1) as pool,
        ):
            assert crew.workers == 2
            matching = pool.submit(match_all, photos, tmp_path / "out", crew, 12)
            while not matching.done() and removed < 3:  # in the main thread, as Ray wants it
                time.sleep(1.0)
                if list((tmp_path / "out").glob("notes/*.txt")):
                    cluster.remove_node(nodes.pop())
                    removed += 1
                    nodes.append(cluster.add_node(**small))
            found = matching.result()
    finally:
        library.shutdown()
        cluster.shutdown()
    assert removed
    assert found == one_process(photos, tmp_path / "alone", 12)
    often = noted(tmp_path / "out")
    assert len(often) == len(PAIRS)
    assert max(often.values()) <= 1 + removed


class SlowestWorker(SlowWorker):
    seconds = 0.3
