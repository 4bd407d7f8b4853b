"""`edm-hloc report`, and the report that other commands write when they end."""

from __future__ import annotations

import argparse
import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.cli import options

logger = logging.getLogger(__name__)


def register(command: options.AddCommand) -> None:
    sub = command("report", _report, "make the page that shows a run, finished or not")
    sub.add_argument("out", type=Path, metavar="OUT", help="output folder of the run")
    sub.add_argument(
        "--images",
        type=Path,
        help="folder of the photos, if moved; for localize, one with query/ and database/",
    )


def _report(args: argparse.Namespace) -> None:
    from edm_hloc.report.page import make_report

    print(f"Report      {make_report(args.out, args.images)}")


@contextlib.contextmanager
def reporting(out: Path) -> Iterator[None]:
    """Writes the report of the run in `out` at the end of the block, also after an EdmHlocError.

    An error of the report itself is only logged: it does not fail the run.
    """
    try:
        yield
    except EdmHlocError as error:
        from edm_hloc.report.collect import is_recorded

        if is_recorded(out, error):
            _write_report(out)
        raise
    except OSError as error:
        if error.filename is None:  # what the run has done could not be printed, as after `| head`
            _write_report(out)
        raise
    _write_report(out)


def _write_report(out: Path) -> None:
    pages = []
    try:
        from edm_hloc.report.page import make_report

        folders = [out / "sfm"] if (out / "sfm" / "run.json").is_file() else []
        for folder in [*folders, out]:
            pages.append(make_report(folder))
    except Exception as error:  # the results matter more than the report
        logger.debug("While making the report", exc_info=True)
        logger.warning(
            "The report could not be made (%s: %s). The results are as they are without it; try "
            "again: edm-hloc report %s",
            type(error).__name__,
            error,
            out,
        )
    for page in pages:
        print(f"Report      {page}")
