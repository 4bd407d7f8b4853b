"""The layout of the paper's tables of runtime, from measurements as `speed.py` makes them."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType


def paper_tables() -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks" / "paper_tables.py"
    spec = importlib.util.spec_from_file_location("paper_tables", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_tables_in_the_papers_layout() -> None:
    stages = ("encode, one image", "correlation injection", "coarse matching", "refinement")
    results = {
        "machine": {"device": "a CPU", "threads": 2},
        "weights": "edm_s",
        "a": [
            {"stage (640×480)": stage, "naive ms": 10.0 * i, "ms": float(i)}
            for i, stage in enumerate(stages, start=1)
        ],
        "b": [
            {
                "size": "480×480",
                "naive ms": None,
                "lone pair ms": 5.0,
                "20 partners, ms a pair": 2.0,
            }
        ],
        "i": [
            {
                "matcher (640×480)": "sift",
                "encode ms an image": 2.0,
                "match ms a pair": 3.0,
                "lone pair ms": 7.0,
                "matches": 9,
            }
        ],
        "c": [{"pairs (640×480)": 4, "encode ms an image": 3.0, "match ms a pair": 1.5}],
    }
    said = paper_tables().paper_tables(results)
    assert "Machine: device a CPU, threads 2; weights edm_s" in said
    assert "| as trained, a lone pair | – |" in said
    assert "| edm_hloc, photos with 20 partners | 2.0 |" in said
    assert "| edm_hloc | 2.0 | 2.0 | 3.0 | 4.0 | 11.0 |" in said  # two images, then the sum
    assert "| as trained | 20.0 | 20.0 | 30.0 | 40.0 | 110.0 |" in said
    assert "| ms a pair at 640×480 | 7.5 |" in said
    assert "| matcher (Table 10), at 640×480 | encode ms an image |" in said
    assert "| sift | 2.0 | 3.0 | 7.0 |" in said
    assert "Table 12" not in said
