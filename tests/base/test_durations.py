"""Durations for people."""

from __future__ import annotations

from edm_hloc.base.text import format_duration


def test_times_for_people() -> None:
    said = [format_duration(seconds) for seconds in (3.14, 42.0, 119.7, 3600.0, 9000.0)]
    assert said == ["3.1 s", "42 s", "2 min 0 s", "1 h 0 min", "2 h 30 min"]
