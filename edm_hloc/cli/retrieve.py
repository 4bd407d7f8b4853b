"""`edm-hloc retrieve`: the database photos most similar to each query, by global descriptors."""

from __future__ import annotations

import argparse
from pathlib import Path

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.cli import options


def register(command: options.AddCommand) -> None:
    sub = command("retrieve", _retrieve, "list the database photos most similar to each query")
    sub.add_argument("descriptors", type=Path, metavar="H5", help="global descriptors, as hloc's")
    sub.add_argument("out", type=Path, metavar="OUT", help="hloc's list of pairs, to be written")
    sub.add_argument(
        "--number", type=options.between(int, 1), default=50, help="database photos a query"
    )
    for side in ("query", "database"):
        photos = "the queries" if side == "query" else "the database photos"
        sub.add_argument(
            f"--{side}-prefix",
            nargs="+",
            default=(),
            help=f"how the names of {photos} begin; by default all photos of H5 are taken",
        )
        sub.add_argument(
            f"--{side}-list",
            type=Path,
            help=f"instead, a file with the names of {photos}, one a line",
        )


def _retrieve(args: argparse.Namespace) -> None:
    from edm_hloc.pairs.descriptors import DescriptorReader
    from edm_hloc.pairs.files import write_pairs, write_scores
    from edm_hloc.pairs.retrieval import most_similar, select_names

    scores = args.out.parent / f"scores-{args.out.name}"
    for path in (args.out, scores):
        options.check_output(path, args.descriptors, args.query_list, args.database_list)
    with DescriptorReader(args.descriptors) as reader:
        names = reader.names()
    queries = select_names(names, args.query_prefix, args.query_list)
    database = select_names(names, args.database_prefix, args.database_list)
    found = most_similar(args.descriptors, queries, database, args.number)
    if not found:
        raise EdmHlocError(f"There is no pair of two different images in {args.descriptors}.")
    write_pairs(args.out, [(query, image) for query, image, _ in found])
    write_scores(scores, found)
    number = len({query for query, *_ in found})
    of_all = "" if number == len(queries) else f" (of {len(queries):,})"
    print(f"Written     {args.out}, {len(found):,} pairs of {number:,}{of_all} queries; {scores}")
