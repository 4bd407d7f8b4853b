"""The measurements of `speed.py` in the layout of the tables of EDM's paper (arXiv 2503.05122)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from edm_hloc.evaluation.areas import markdown_table

Row = Mapping[str, object]

SECTIONS = "abcei"
"""The measurements that the tables need."""


def paper_tables(results: Mapping[str, object]) -> str:
    """Tables 5, 6, 10, 11 and 12 as far as a machine can fill them, headed by the machine's name.

    Args:
        results: of `speed.py`: `machine`, `weights`, and the rows of the measurements by letter;
            those that are missing have no table.
    """
    machine = results["machine"]
    assert isinstance(machine, dict)
    name = ", ".join(f"{key} {value}" for key, value in machine.items() if value is not None)
    parts = [f"Machine: {name}; weights {results['weights']}"]
    for letter, make in (
        ("b", _sizes),
        ("a", _stages),
        ("i", _others),
        ("c", _batches),
        ("e", _efficiency),
    ):
        rows = results.get(letter)
        if isinstance(rows, list) and rows:
            parts.append(make(rows))
    return "\n\n".join(parts)


def _sizes(rows: Sequence[Row]) -> str:
    """A column for each image size."""
    columns = ["time ms (Table 5)", *(str(row["size"]) for row in rows)]
    ways = {
        "as trained, a lone pair": "naive ms",
        "edm_hloc, a lone pair": "lone pair ms",
        "edm_hloc, photos with 20 partners": "20 partners, ms a pair",
    }
    return _table(columns, [[way, *(row[key] for row in rows)] for way, key in ways.items()])


def _stages(rows: Sequence[Row]) -> str:
    """A column for each process; features are of both images."""
    by_name = {str(row["stage (640×480)"]): row for row in rows}
    stages = ("encode, one image", "correlation injection", "coarse matching", "refinement")
    columns = ["process (Table 6), ms at 640×480", "features", "CIM", "coarse", "fine", "total"]
    lines = []
    for way, key in (("as trained", "naive ms"), ("edm_hloc", "ms")):
        times = [float(str(by_name[stage][key])) for stage in stages]
        times[0] *= 2
        lines.append([way, *times, sum(times)])
    return _table(columns, lines)


def _others(rows: Sequence[Row]) -> str:
    """A row for each matcher."""
    keys = ("encode ms an image", "match ms a pair", "lone pair ms")
    columns = ["matcher (Table 10), at 640×480", *keys]
    name = next(iter(rows[0]))
    return _table(columns, [[row[name], *(row[key] for key in keys)] for row in rows])


def _batches(rows: Sequence[Row]) -> str:
    columns = ["batch size (Table 11)", *(str(row["pairs (640×480)"]) for row in rows)]
    times = [
        2 * float(str(row["encode ms an image"])) + float(str(row["match ms a pair"]))
        for row in rows
    ]
    return _table(columns, [["ms a pair at 640×480", *times]])


def _efficiency(rows: Sequence[Row]) -> str:
    columns = ["efficiency (Table 12)", *(str(row["size"]) for row in rows)]
    operations = [
        2 * float(str(row["GFLOP an image"])) + float(str(row["GFLOP a pair"])) for row in rows
    ]
    lines = [
        ["parameters, millions", *(row["million parameters"] for row in rows)],
        ["GFLOP, a lone pair", *operations],
        ["coarse matching MiB", *(row["coarse MiB"] for row in rows)],
        ["coarse matching MiB, as trained", *(row["naive coarse MiB"] for row in rows)],
    ]
    return _table(columns, lines)


def _table(columns: Sequence[str], lines: Sequence[Sequence[object]]) -> str:
    return markdown_table(columns, [[_text(v) for v in line] for line in lines])


def _text(value: object) -> str:
    if value is None:
        return "–"
    return f"{value:,.1f}" if isinstance(value, float) else str(value)
