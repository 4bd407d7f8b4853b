"""Pairs by themselves: neighbours in time and space, and the rounds that follow the graph."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edm_hloc.images.capture import Capture, read_capture
from edm_hloc.pairs.automatic import FEW_PHOTOS, ROUNDS, AutomaticPairs
from edm_hloc.pairs.neighbours import near_in_space, near_in_time
from edm_hloc.pairs.rules import Pair
from edm_hloc.pairs.selection import PairSelection, select_pairs

MAKE, MODEL, EXIF_IFD, GPS_IFD = 271, 272, 0x8769, 0x8825
ORIGINAL, SUBSECOND, CHANGED = 36867, 37521, 306


def save(
    path: Path, tags: dict[int, object], exif: dict[int, object], gps: dict[int, object]
) -> None:
    header = Image.Exif()
    header.update(tags)
    header.get_ifd(EXIF_IFD).update(exif)
    header.get_ifd(GPS_IFD).update(gps)
    Image.new("L", (8, 8)).save(path, exif=header)


def test_when_and_where_a_photo_was_taken(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    south_west = {1: "S", 2: (33.0, 30.0, 36.0), 3: "W", 4: (70.0, 0.0, 0.0)}
    exif = {ORIGINAL: "1970:01:02 00:00:01", SUBSECOND: "25"}
    save(path, {MAKE: "ACME", MODEL: "One", CHANGED: "2020:01:01 00:00:00"}, exif, south_west)
    capture = read_capture(path)
    assert capture == Capture("ACME One", 86401.25, capture.place)
    assert capture.place == pytest.approx((-33.51, -70.0))

    no_fix = {1: "N", 2: (0.0, 0.0, 0.0), 3: "E", 4: (0.0, 0.0, 0.0)}
    save(path, {CHANGED: "1970:01:01 00:01:00"}, {ORIGINAL: "    :  :     :  :  "}, no_fix)
    assert read_capture(path) == Capture("", 60.0, None)
    Image.new("L", (8, 8)).save(path, exif=b"Exif\0\0garbage that is no TIFF header")
    assert read_capture(path) == Capture()
    path.write_bytes(b"no photo")
    assert read_capture(path) == read_capture(tmp_path / "none.jpg") == Capture()


def test_neighbours_in_time() -> None:
    times = {"b": 0.0, "a": 5.0, "c": 7.0, "late": 5000.0, "other": 6.0}
    captures = {n: Capture("two" if n == "other" else "one", t) for n, t in times.items()}
    assert near_in_time(sorted(times), captures) == [("b", "a"), ("b", "c"), ("a", "c")]
    names = ["IMG_10.jpg", "IMG_9.jpg", "IMG_40.jpg", "x.jpg", "y.jpg", "sub/IMG_11.jpg"]
    assert near_in_time(names, {}) == [("IMG_9.jpg", "IMG_10.jpg")]
    numbered = ["IMG_1.jp2", "IMG_2.jp2", "IMG_30.jp2", "x.jp2", "y.jp2"]
    assert near_in_time(numbered, {}) == [("IMG_1.jp2", "IMG_2.jp2")]
    together = {name: Capture("one", 3.0) for name in ("f2", "f10", "f1")}
    assert near_in_time(list(together), together) == [("f1", "f2"), ("f1", "f10"), ("f2", "f10")]


def test_neighbours_in_space() -> None:
    """A row along a parallel: 1e-4° of longitude is 5.6 m at 60° north, 11.1 m at the equator."""
    row = {f"{i}": Capture(place=(60.0, 1e-4 * i)) for i in range(8)}
    pairs = {frozenset(p) for p in near_in_space(list(row), row)}
    assert {frozenset(("3", str(j))) for j in (1, 2, 4, 5)} <= pairs
    assert frozenset(("0", "5")) not in pairs
    across = {**row, "north": Capture(place=(60.00006, 0.0)), "none": Capture()}
    # 6.7 m to the north of 0: it is farther from it than 1 is, nearer than 2
    nearest = [b for a, b in near_in_space(list(across), across) if a == "0"]
    assert nearest == ["1", "north", "2", "3"]
    dateline = {"w": Capture(place=(0.0, 179.9999)), "e": Capture(place=(0.0, -179.9999))}
    far = {str(i): Capture(place=(0.0, 10.0 * i)) for i in range(9)}
    nearest = [b for a, b in near_in_space(list(dateline | far), dateline | far) if a == "w"]
    assert nearest[0] == "e"
    same = dict.fromkeys("abc", Capture(place=(1.0, 1.0)))
    assert near_in_space(list(same), same) == []
    assert near_in_space(["a"], {"a": Capture(place=(1.0, 1.0))}) == []


# --------------------------------------------------------------------------- rounds


def play(
    photos: AutomaticPairs, ranked: dict[str, list[str]], agree: set[frozenset[str]]
) -> tuple[list[list[Pair]], dict[str, int]]:
    """The pairs of all rounds, and the number of partners that every photo has in the end."""
    tried: list[dict[Pair, bool]] = []
    rounds = []
    new = photos.first(ranked, [])
    while new and len(rounds) < ROUNDS:
        before = {frozenset(p) for pairs in rounds for p in pairs}
        assert before.isdisjoint(frozenset(p) for p in new)
        rounds.append(new)
        tried.append({pair: frozenset(pair) in agree for pair in new})
        new = photos.further(ranked, tried)
    yes = [pair for pairs in tried for pair, agrees in pairs.items() if agrees]
    return rounds, {name: sum(name in pair for pair in yes) for name in photos.names}


def ring(number: int, reach: int) -> tuple[list[str], set[frozenset[str]]]:
    """Photos around an object, each of which sees the same as `reach` others on both sides."""
    names = [f"{i:03d}" for i in range(number)]
    agree = {
        frozenset((names[i], names[(i + step) % number]))
        for i in range(number)
        for step in range(1, reach + 1)
    }
    return names, agree


def test_no_more_pairs_where_all_photos_have_their_partners() -> None:
    names, agree = ring(60, 6)
    ranked = {
        name: sorted(names, key=lambda n, i=i: min((int(n) - i) % 60, (i - int(n)) % 60))[1:41]
        for i, name in enumerate(names)
    }
    rounds, partners = play(AutomaticPairs(tuple(names), partners=4), ranked, agree)
    # three partners ahead in the list of each photo are both neighbours and one more
    assert 60 * 1.5 <= len(rounds[0]) <= 60 * 2
    assert sum(map(len, rounds)) <= 60 * 4
    assert min(partners.values()) >= 4


def test_partners_of_partners_come_first_where_looks_mislead() -> None:
    names, agree = ring(60, 5)
    rng = np.random.default_rng(0)
    # the first three are right, all others are of the far side
    ranked = {}
    for i, name in enumerate(names):
        near = [names[(i + step) % 60] for step in (1, -1, 2)]
        far = [names[(i + step) % 60] for step in range(20, 41)]
        ranked[name] = near + list(rng.permutation(far))
    rounds, partners = play(AutomaticPairs(tuple(names), partners=6), ranked, agree)
    tried = [frozenset(pair) for new in rounds[1:] for pair in new]
    assert np.mean([pair in agree for pair in tried]) > 0.9
    assert min(partners.values()) >= 6


def test_nobody_asks_on_where_there_are_no_more_partners() -> None:
    """Four partners a photo are all there is: one round of the nearest others says so."""
    names, agree = ring(60, 2)
    ranked = {
        name: sorted(names, key=lambda n, i=i: min((int(n) - i) % 60, (i - int(n)) % 60))[1:41]
        for i, name in enumerate(names)
    }
    rounds, partners = play(AutomaticPairs(tuple(names), partners=6), ranked, agree)
    assert set(partners.values()) == {4}
    # those three places away have two partners in common with a photo, those farther away one
    assert {frozenset((n, names[(i + 3) % 60])) for i, n in enumerate(names)} == {
        frozenset(pair) for pair in rounds[1]
    }
    assert len(rounds) == 2


def test_a_photo_with_one_partner_asks_twice() -> None:
    """It shows the same as one other photo, and looks like all of them."""
    names, agree = ring(60, 6)
    ranked = {
        name: sorted(names, key=lambda n, i=i: min((int(n) - i) % 60, (i - int(n)) % 60))[1:41]
        for i, name in enumerate(names)
    }
    ranked["end"] = names[:40]
    agree.add(frozenset(("end", names[0])))
    rounds, partners = play(AutomaticPairs((*names, "end"), partners=4), ranked, agree)
    assert partners["end"] == 1
    assert [sum(pair[0] == "end" for pair in pairs) for pairs in rounds] == [3, 3, 3]


def test_parts_are_joined() -> None:
    """Two rows of photos that look like their own row only, with one passage between them."""
    names = [f"{row}{i:02d}" for row in "ab" for i in range(20)]
    agree = {
        frozenset((f"{row}{i:02d}", f"{row}{j:02d}"))
        for row in "ab"
        for i in range(20)
        for j in range(i + 1, min(20, i + 4))
    }
    agree.add(frozenset(("a19", "b07")))
    ranked = {}
    for name in names:
        own = [n for n in names if n[0] == name[0] and n != name]
        own.sort(key=lambda n, i=int(name[1:]): abs(int(n[1:]) - i))
        others = [n for n in names if n[0] != name[0]]
        if name in ("a19", "b07"):
            others.sort(key=lambda n: n not in ("a19", "b07"))
        place = 8 if name == "b07" else 15
        ranked[name] = own[:place] + others + own[place:]
    photos = AutomaticPairs(tuple(names), partners=4)
    rounds, _ = play(photos, ranked, agree)
    assert frozenset(("a19", "b07")) in {frozenset(p) for p in rounds[1]}
    alone = AutomaticPairs((*names, "bad"), partners=4).further(
        ranked | {"bad": names}, [dict.fromkeys(photos.first(ranked, []), True)], ["bad"]
    )
    assert not any("bad" in pair for pair in alone)


def test_photos_that_cannot_be_read_take_no_place_of_those_that_may_connect_parts() -> None:
    group, damaged = [f"{i}" for i in range(6)], [f"x{i}" for i in range(10)]
    tried = {(a, b): True for a in group for b in group if a < b}
    ranked = {name: [] for name in [*group, *damaged]} | {"far": [*damaged, "0"]}
    photos = AutomaticPairs((*group, *damaged, "far"))
    # without partners it asks for itself at first; then, in vain, only parts are joined
    in_vain = {("far", "1"): False}
    assert photos.further(ranked, [tried, in_vain, in_vain], damaged) == [("far", "0")]


@pytest.mark.parametrize("far", [2, 5])
def test_parts_that_a_single_photo_connects_are_joined(far: int) -> None:
    """Two groups of photos with all their partners, and one photo that both have in common."""
    a, b = [f"a{i}" for i in range(8)], [f"b{i}" for i in range(far)]
    names = [*a, "joint", *b]
    agree = {
        frozenset(pair)
        for group in ([*a, "joint"], ["joint", *b])
        for pair in itertools.combinations(group, 2)
    }
    agree.add(frozenset(("a3", "b1")))
    ranked = {}
    for name in names:
        own = a if name in a else b if name in b else []
        others = [n for n in names if n not in own]
        ranked[name] = [n for n in [*own, "joint", *others] if n != name]
        ranked[name] = list(dict.fromkeys(ranked[name]))
    tried = dict.fromkeys((tuple(sorted(pair)) for pair in agree - {frozenset(("a3", "b1"))}), True)
    new = AutomaticPairs(tuple(names), partners=1).further(ranked, [tried])
    across = {pair for pair in new if {name[0] for name in pair} == {"a", "b"}}
    assert len(across) == len(new)
    assert len(across) == (10 if far >= 3 else 0)  # fewer ask for partners themselves
    joined = AutomaticPairs(tuple(names), partners=1).further(
        ranked, [{**tried, ("a3", "b1"): True}]
    )
    assert joined == []


def test_few_photos_are_all_paired_and_many_are_not() -> None:
    names = [f"{i}.jpg" for i in range(FEW_PHOTOS + 1)]
    few = select_pairs(Path("photos"), names[:-1], PairSelection())
    assert len(few) == FEW_PHOTOS * (FEW_PHOTOS - 1) // 2
    many = select_pairs(Path("photos"), names, PairSelection())
    assert isinstance(many, AutomaticPairs)
    assert many.names == tuple(names)
    fewer = select_pairs(Path("photos"), names[:9], PairSelection(partners=4))
    assert isinstance(fewer, AutomaticPairs)
    assert fewer.partners == 4
    every = select_pairs(Path("photos"), names, PairSelection("exhaustive"))
    assert len(every) == (FEW_PHOTOS + 1) * FEW_PHOTOS // 2
