"""`edm-hloc report`, and the page that other commands leave when they end."""

from __future__ import annotations

import argparse
import contextlib
import logging
import signal
from collections.abc import Iterator
from pathlib import Path

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.cli import options

logger = logging.getLogger(__name__)


def register(command: options.AddCommand) -> None:
    sub = command("report", _report, "make the page that shows a run, finished or not")
    sub.add_argument("out", type=Path, metavar="OUT", help="folder of the run")
    sub.add_argument("--images", type=Path, help="folder of the photos, if they have moved")


def _report(args: argparse.Namespace) -> None:
    from edm_hloc.report.page import make_report

    print(f"Report      {make_report(args.out, args.images)}")


@contextlib.contextmanager
def reporting(out: Path) -> Iterator[None]:
    """Makes the page of the run in `out` when the block ends, also when it fails.

    Nothing that goes wrong here fails the run.
    """
    try:
        yield
    except EdmHlocError as error:
        if _is_recorded(out, error):
            _try(out)
        raise
    _try(out)


def end_quietly() -> None:
    """Lets a kill, as of a scheduler whose time is up, end the program without a stack trace, which
    pycolmap would print from its import on: commands that take long begin with this."""
    import edm_hloc.base.colmap  # noqa: F401

    with contextlib.suppress(ValueError):  # not in the main thread
        if signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _is_recorded(out: Path, error: EdmHlocError) -> bool:
    """Whether the run in `out` ended so: wrong arguments leave an older run as it is."""
    from edm_hloc.report.collect import read_record

    try:
        return bool(read_record(out).get("error") == str(error))
    except EdmHlocError:
        return False


def _try(out: Path) -> None:
    try:
        from edm_hloc.report.page import make_report

        folders = [out / "sfm"] if (out / "sfm" / "run.json").is_file() else []
        for folder in [*folders, out]:
            print(f"Report      {make_report(folder)}")
    except Exception as error:  # what was computed is worth more than the page
        logger.debug("The report", exc_info=True)
        logger.warning(
            "The report could not be made (%s: %s). All results are there; try again: "
            "edm-hloc report %s",
            type(error).__name__,
            error,
            out,
        )
