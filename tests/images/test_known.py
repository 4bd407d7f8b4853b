"""Photos of equal content keep the stamp that they had first."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edm_hloc.images import known
from edm_hloc.images.find import image_stamps
from edm_hloc.images.known import KnownPhotos

NAMES = ["a b/é.jpg", "c.jpg", "d.jpg"]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    root = tmp_path / "photos"
    for i, name in enumerate(NAMES):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"photo %d" % i)
    return root


def touch(path: Path, time: int) -> None:
    os.utime(path, ns=(time, time))


def test_equal_content_keeps_its_first_stamp(photos: Path, tmp_path: Path) -> None:
    """So it does from one time to the next; other content of equal size does not."""
    folder, before = tmp_path / "raw", image_stamps(photos, NAMES)
    KnownPhotos(folder).note(photos, [*NAMES, "none.jpg"])
    for time in (10**18, 2 * 10**18):
        touch(photos / NAMES[0], time)
        now = KnownPhotos(folder)
        assert now.stamps(photos, NAMES)[NAMES[0]] == image_stamps(photos, NAMES)[NAMES[0]]
        now.note(photos, NAMES)
        assert now.stamps(photos, NAMES) == KnownPhotos(folder).stamps(photos, NAMES) == before
    (photos / NAMES[1]).write_bytes(b"photo 7")
    touch(photos / NAMES[1], 3 * 10**18)
    now.note(photos, NAMES)
    assert now.stamps(photos, NAMES) == {**before, NAMES[1]: (7, 3 * 10**18)}
    touch(photos / NAMES[1], 4 * 10**18)
    now.note(photos, NAMES)
    assert now.stamps(photos, NAMES) == {**before, NAMES[1]: (7, 3 * 10**18)}
    assert now.first(NAMES[1], (7, 4 * 10**18)) == (7, 3 * 10**18)
    assert now.first(NAMES[1], None) is None
    assert now.first("none.jpg", (1, 2)) == (1, 2)


def test_photos_of_known_stamps_are_not_read(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []

    def noted(path: Path) -> str:
        read.append(path)
        return checksum(path) or ""

    checksum = known.content_checksum
    monkeypatch.setattr(known, "content_checksum", noted)
    KnownPhotos(tmp_path / "raw").note(photos, NAMES)
    assert read == [photos / name for name in NAMES]
    read.clear()
    written = (tmp_path / "raw" / known.NAME).stat().st_mtime_ns
    KnownPhotos(tmp_path / "raw").note(photos, NAMES)
    assert not read
    assert (tmp_path / "raw" / known.NAME).stat().st_mtime_ns == written
    touch(photos / NAMES[2], 10**18)
    KnownPhotos(tmp_path / "raw").note(photos, NAMES)
    assert read == [photos / NAMES[2]]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"photos": [["a.jpg", 1]]}'])
def test_without_checksums_size_and_time_count(photos: Path, tmp_path: Path, content: str) -> None:
    """As of what older versions have matched; a damaged file is replaced."""
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / known.NAME).write_text(content)
    before = image_stamps(photos, NAMES)
    assert KnownPhotos(tmp_path / "raw").stamps(photos, NAMES) == before
    touch(photos / NAMES[0], 10**18)
    assert KnownPhotos(tmp_path / "raw").stamps(photos, NAMES) != before
    KnownPhotos(tmp_path / "raw").note(photos, NAMES)
    touch(photos / NAMES[0], 2 * 10**18)
    KnownPhotos(tmp_path / "raw").note(photos, NAMES)
    first = KnownPhotos(tmp_path / "raw").stamps(photos, NAMES)
    assert first == {**before, NAMES[0]: (before[NAMES[0]][0], 10**18)}
