"""Photos and shards in object storage, on a server of this computer that speaks S3."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from edm_hloc.base.errors import EdmHlocError, ImageError
from edm_hloc.base.storage import Store, is_url
from edm_hloc.cli import main
from edm_hloc.images import cloud
from edm_hloc.images.cloud import CloudFolder
from edm_hloc.images.find import find_images, image_stamps
from edm_hloc.images.roots import photo_root, root_from_json, root_to_json
from edm_hloc.matching.engine import match_pairs
from edm_hloc.pipelines.cloud_plan import get_plan, get_shards, is_put, put_plan, put_shard
from edm_hloc.pipelines.shard_plan import make_plan
from edm_hloc.pipelines.shards import match_shard, merge_shards
from tests.fakes import FakeMatcher
from tests.h5_files import stored

pytest.importorskip("s3fs", reason="object storage needs s3fs: pip install 'edm_hloc[cloud]'")
server = pytest.importorskip("moto.server", reason="an S3 server needs moto, flask and flask-cors")

NAMES = [f"a b/é {i}.png" for i in range(6)]
PAIRS = list(itertools.combinations(NAMES, 2))


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    yield f"http://{host}:{port}"
    running.stop()


@pytest.fixture
def bucket(address: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """The address of an empty bucket."""
    import s3fs

    for name, value in {
        "AWS_ENDPOINT_URL": address,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "EDM_HLOC_CACHE": str(tmp_path / "cache"),
    }.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    name = tmp_path.name.replace("_", "-").lower()[:60].strip("-")
    s3fs.S3FileSystem().mkdir(name)
    return f"s3://{name}"


@pytest.fixture
def photos(bucket: str, tmp_path: Path) -> Path:
    """Six grey photos on the disk and in bucket/photos; the level of photo i is 10 + i."""
    root = tmp_path / "photos"
    (root / "a b").mkdir(parents=True)
    store = Store(f"{bucket}/photos")
    for i, name in enumerate(NAMES):
        Image.new("L", (40 + i, 50), 10 + i).save(root / name)
        store.put(root / name, name)
    return root


def test_shards_in_a_bucket_give_what_one_process_gives(
    bucket: str, photos: Path, tmp_path: Path
) -> None:
    match_pairs(photos, PAIRS, FakeMatcher(), tmp_path / "alone")
    root, store = CloudFolder(f"{bucket}/photos"), Store(f"{bucket}/run")
    made = put_plan(store, root, PAIRS, FakeMatcher(), shards=3)
    assert list(store.objects()) == [*(made.list_of(k).name for k in (1, 2, 3)), "plan.json"]
    for shard in (3, 1, 2):
        plan = get_plan(store, shard)
        assert not is_put(store, plan, shard)
        assert match_shard(plan, shard, FakeMatcher()).matched == plan.pairs[shard - 1]
        if shard == 1:  # it is matched twice, by a worker that does not know of the first one
            first = plan.file_of(1).read_bytes()
            put_shard(store, plan, 1)
            plan = get_plan(store, 1)
            match_shard(plan, 1, FakeMatcher())
            assert plan.file_of(1).read_bytes() == first
        put_shard(store, plan, shard)
        assert is_put(store, get_plan(store, shard), shard)
        if shard == 3:
            with pytest.raises(EdmHlocError, match=r"2 of 3 shards.*\n  1: not matched yet"):
                merge_shards(get_shards(store, tmp_path / "into"))
    merged = merge_shards(get_shards(store, tmp_path / "into"))
    assert merged.pairs == len(PAIRS)
    assert stored(tmp_path / "into" / "raw_matches") == stored(tmp_path / "alone")
    for name, (_, time) in image_stamps(root, NAMES).items():  # as aws s3 sync leaves them
        os.utime(photos / name, ns=(time, time))
    again = match_pairs(photos, PAIRS, FakeMatcher(), tmp_path / "into" / "raw_matches")
    assert (again.matched, again.resumed) == (0, len(PAIRS))
    assert not list((tmp_path / "cache").rglob("*.h5"))  # workers keep nothing that is stored


def test_a_plan_in_a_bucket_is_kept_or_refused(bucket: str, photos: Path) -> None:
    root, store = CloudFolder(f"{bucket}/photos"), Store(f"{bucket}/run")
    plan = put_plan(store, root, PAIRS, FakeMatcher(), shards=2)
    assert put_plan(store, root, PAIRS, FakeMatcher(), shards=2).digests == plan.digests
    with pytest.raises(EdmHlocError, match=r"s3://\S+/run holds the plan of \d+ pairs in 2 shards"):
        put_plan(store, root, PAIRS[:4], FakeMatcher(), shards=2)
    put_plan(store, photos, PAIRS, FakeMatcher(), shards=2)  # they were moved
    mine = get_plan(store, 1)
    assert mine.image_root == photos
    match_shard(mine, 1, FakeMatcher())
    put_shard(store, mine, 1)
    put_plan(store, root, PAIRS[:4], FakeMatcher(), shards=1, overwrite=True)
    assert sorted(store.objects()) == ["pairs-0001.txt", "plan.json"]
    assert get_plan(store, 1).folder != mine.folder


def match_in_store(store: Store, shard: int) -> bool:
    """`edm-hloc match-shard` without a network; whether there was something to do."""
    plan = get_plan(store, shard)
    if is_put(store, plan, shard):
        return False
    match_shard(plan, shard, FakeMatcher())
    put_shard(store, plan, shard)
    return True


def test_shards_in_a_bucket_are_made_again_where_that_is_needed(
    bucket: str, photos: Path, tmp_path: Path
) -> None:
    root, store, into = CloudFolder(f"{bucket}/photos"), Store(f"{bucket}/run"), tmp_path / "into"
    put_plan(store, root, PAIRS, FakeMatcher(), shards=2)
    assert [match_in_store(store, shard) for shard in (1, 2, 1, 2)] == [1, 1, 0, 0]
    plan = get_shards(store, into)
    for path in (1, 2):  # as if the objects had been put long ago
        os.utime(plan.file_of(path), (1, 1))
    rotten = bytearray(plan.file_of(1).read_bytes())
    rotten[len(rotten) // 2] ^= 255
    (tmp_path / "rotten").write_bytes(rotten)
    store.put(tmp_path / "rotten", plan.file_of(1).name)
    with pytest.raises(EdmHlocError, match="1 of 2 shards cannot be merged"):
        merge_shards(get_shards(store, into))
    os.utime(plan.file_of(1), (1, 1))
    assert [match_in_store(store, shard) for shard in (1, 2)] == [1, 0]
    assert merge_shards(get_shards(store, into)).pairs == len(PAIRS)
    Image.new("L", (90, 80), 99).save(photos / NAMES[0])
    store_of_photos = Store(f"{bucket}/photos")
    store_of_photos.put(photos / NAMES[0], NAMES[0])
    assert sum(match_in_store(store, shard) for shard in (1, 2)) > 0
    assert sum(match_in_store(store, shard) for shard in (1, 2)) == 0
    assert not list((tmp_path / "cache").rglob("*.h5"))


def test_a_shard_in_a_bucket_that_skipped_a_photo_is_made_again_once_it_can_be_read(
    bucket: str, photos: Path, tmp_path: Path
) -> None:
    store_of_photos, name = Store(f"{bucket}/photos"), NAMES[0]
    root, store, into = CloudFolder(f"{bucket}/photos"), Store(f"{bucket}/run"), tmp_path / "into"
    (tmp_path / "none").write_bytes(b"no photo")
    store_of_photos.put(tmp_path / "none", name)
    put_plan(store, root, PAIRS, FakeMatcher(), shards=1)
    assert [match_in_store(store, 1) for _ in range(2)] == [1, 0]
    assert merge_shards(get_shards(store, into)).skipped.keys() == {name}
    store_of_photos.put(photos / name, name)
    assert [match_in_store(store, 1) for _ in range(2)] == [1, 0]
    assert merge_shards(get_shards(store, into)).pairs == len(PAIRS)


def test_a_new_plan_in_a_bucket_replaces_what_was_fetched_of_the_old_one(
    bucket: str, photos: Path, tmp_path: Path
) -> None:
    root, store, into = CloudFolder(f"{bucket}/photos"), Store(f"{bucket}/run"), tmp_path / "into"
    first, second = PAIRS[:6], [pair[::-1] for pair in PAIRS[:6]]  # lists of equal size
    put_plan(store, root, first, FakeMatcher(), shards=2)
    match_in_store(store, 1)
    with pytest.raises(EdmHlocError, match="2: not matched yet"):
        merge_shards(get_shards(store, into))
    put_plan(store, root, second, FakeMatcher(), shards=2, overwrite=True)
    match_in_store(store, 2)
    with pytest.raises(EdmHlocError, match=r"1 of 2 shards.*\n  1: not matched yet"):
        merge_shards(get_shards(store, into))
    match_in_store(store, 1)
    assert merge_shards(get_shards(store, into)).pairs == 6
    mine = make_plan(tmp_path / "mine", photos, PAIRS, FakeMatcher(), shards=2)
    match_shard(mine, 1, FakeMatcher())
    with pytest.raises(EdmHlocError, match=r"mine/plan holds another plan than s3://.*as INTO"):
        get_shards(store, tmp_path / "mine")
    assert mine.left() == [2]
    match_shard(mine, 2, FakeMatcher())
    merge_shards(mine)
    assert get_shards(store, tmp_path / "mine").pairs == (3, 3)  # as mine is merged
    own = tmp_path / "own" / "plan" / "pairs-0001.txt"
    own.parent.mkdir(parents=True)
    own.write_text("mine")
    for _ in range(2):
        with pytest.raises(EdmHlocError, match=rf"{own} .* was not made by edm-hloc"):
            get_shards(store, tmp_path / "own")
    assert own.read_text() == "mine"


def test_workers_of_one_computer_fetch_a_plan_at_the_same_time(
    bucket: str, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, rename, plans = Store(f"{bucket}/run"), Path.replace, []
    put_plan(store, CloudFolder(f"{bucket}/photos"), PAIRS, FakeMatcher(), shards=2)

    def overtaken(path: Path, target: Path) -> Path:
        if target.parent.name == "plan" and not plans:
            plans.append(None)
            plans.append(get_plan(store))  # of another worker
        return rename(path, target)

    monkeypatch.setattr(Path, "replace", overtaken)
    plan = get_plan(store)
    assert plans[1].folder == plan.folder
    assert [path.name for path in plan.folder.iterdir()] == ["plan.json"]


def test_photos_in_a_bucket(bucket: str, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = photo_root(f"{bucket}/photos/")
    assert isinstance(root, CloudFolder)
    assert find_images(root) == NAMES
    stat = Store.stat
    asked: list[str] = []
    monkeypatch.setattr(Store, "stat", lambda store, name: asked.append(name) or stat(store, name))
    stamps = image_stamps(root, [*NAMES, "none.png"])
    assert asked == ["none.png"]  # the others were listed with their sizes and times
    assert stamps == image_stamps(CloudFolder(f"{bucket}/photos"), NAMES)
    assert {name: size for name, (size, _) in stamps.items()} == {
        name: (photos / name).stat().st_size for name in NAMES
    }
    assert str(root_from_json(root_to_json(root))) == f"{bucket}/photos"
    assert (root / NAMES[2]).read_bytes() == (photos / NAMES[2]).read_bytes()
    assert (root / NAMES[2]).stat().st_mtime_ns == stamps[NAMES[2]][1]
    with pytest.raises(ImageError, match="There is no photo"):
        root / "none.png"


def test_the_cache_of_photos_is_bounded(
    bucket: str, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cloud, "_NEVER_REMOVED", 2)
    size = sum((photos / name).stat().st_size for name in NAMES[:3])
    root = CloudFolder(f"{bucket}/photos", cache_bytes=size + 10)
    paths = {name: root / name for name in NAMES[:3]}
    assert (root / NAMES[0]) == paths[NAMES[0]]  # used again: now 1 is the oldest
    root / NAMES[3]
    assert [name for name in NAMES[:3] if paths[name].exists()] == [NAMES[0], NAMES[2]]
    assert (root / NAMES[1]).read_bytes() == (photos / NAMES[1]).read_bytes()


def test_16_bit_photos_in_a_bucket_are_refused(bucket: str, photos: Path, tmp_path: Path) -> None:
    deep = tmp_path / "deep.png"
    Image.new("I;16", (40, 50), 300).save(deep)
    Store(f"{bucket}/photos").put(deep, "deep.png")
    with pytest.raises(EdmHlocError, match=r"deep.png has more than 8 bits.*copy s3://\S+ to"):
        match_pairs(
            CloudFolder(f"{bucket}/photos"),
            [("deep.png", NAMES[0])],
            FakeMatcher(),
            tmp_path / "raw",
        )


def test_commands(bucket: str, scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    images = sorted((scene / "images").iterdir())[:3]
    store = Store(f"{bucket}/photos")
    for path in images:
        store.put(path, path.name)
    pairs = tmp_path / "pairs.txt"
    pairs.write_text("".join(f"{a.name} {b.name}\n" for a, b in itertools.combinations(images, 2)))
    out = f"{bucket}/run"
    settings = ["--resize=160", "--refine=none"]
    assert main(["plan", f"{bucket}/photos", str(pairs), out, "--shards=2", *settings]) == 0
    assert f"edm-hloc merge {out} INTO" in capsys.readouterr().out
    for shard in ("1", "2", "2"):
        assert main(["match-shard", out, shard]) == 0
    assert "2 of 2 was matched already" in capsys.readouterr().out
    assert main(["merge", out]) == 1
    assert "folder of this computer as INTO" in capsys.readouterr().err
    assert main(["merge", out, str(tmp_path / "into")]) == 0
    assert len(stored(tmp_path / "into" / "raw_matches")) == 3
    assert main(["match-shard", f"{bucket}/none", "1"]) == 1
    assert "There is no" in capsys.readouterr().err


# --------------------------------------------------------------------------- one sentence each


def test_a_missing_bucket(bucket: str) -> None:
    with pytest.raises(
        EdmHlocError, match=r"There is no s3://no-such-bucket/run .*make the bucket"
    ):
        Store("s3://no-such-bucket/run").objects()
    with pytest.raises(EdmHlocError, match=r"There is nothing in s3://\S+/empty"):
        CloudFolder(f"{bucket}/empty").names()


def test_no_credentials(bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import s3fs

    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(EdmHlocError, match=r"There are no credentials for .*AWS_ACCESS_KEY_ID"):
        Store(f"{bucket}/run").objects()


def test_no_network(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import s3fs

    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(EdmHlocError, match=r"cannot be reached .*is there a network"):
        Store(f"{bucket}/run").objects()


def test_missing_libraries_are_named() -> None:
    code = (
        "import sys; from edm_hloc.cli import main\n"
        "for library in ('fsspec', 's3fs'):\n"
        "    sys.modules[library] = None\n"
        "    assert main(['match-shard', 's3://b/run', '1']) == 1\n"
        "    del sys.modules[library]"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("pip install 'edm_hloc[cloud]'") == 2, done.stderr
    assert "Traceback" not in done.stderr
    with pytest.raises(EdmHlocError, match=r"foo://b cannot be used .*give a folder, s3://"):
        Store("foo://b")
    assert not is_url("/data/photos")
    assert not is_url("C:/photos")
