"""The command line `edm-hloc`: parses arguments, calls the pipelines, prints summaries."""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edm_hloc.base.errors import EdmHlocError, WorkLeftError, missing_library, shortened
from edm_hloc.base.version import __version__
from edm_hloc.cli import (
    ablate,
    benchmarks,
    demo,
    earth,
    evaluate,
    export,
    frames,
    handover,
    hloc,
    import_matches,
    localize,
    match,
    mesh,
    options,
    reconstruct,
    refine_poses,
    report,
    retrieve,
    shards,
    show,
    streams,
    weights,
    workers,
)

COMMANDS = (
    reconstruct,
    localize,
    import_matches,
    refine_poses,
    benchmarks,
    retrieve,
    match,
    shards,
    report,
    show,
    handover,
    mesh,
    earth,
    frames,
    demo,
    evaluate,
    ablate,
    weights,
    export,
    hloc,
)
"""The modules of the commands, in the order of --help."""

# torch and pycolmap are imported by the commands that need them, so that --help and errors in the
# arguments take no time.


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns:
        The exit code: 0 success, 1 an `EdmHlocError`, whose message is printed, or standard output
        that cannot be written, 3 work is left to others, 130 Ctrl-C. Wrong arguments end the
        program with 2.
    """
    streams.give_missing()
    try:
        code = _run(argv)
    except SystemExit as end:  # of argparse, also with --help
        if not streams.output_is_written() and not end.code:
            return 1
        raise
    return code if streams.output_is_written() else code or 1


def _run(argv: Sequence[str] | None) -> int:
    try:
        _run_command(argv)
    except EdmHlocError as error:
        streams.complain(f"edm-hloc: {error}")
        return 1
    except WorkLeftError as left:
        with contextlib.suppress(OSError):
            print(left)
        return 3
    except OSError as error:
        if error.filename is not None:
            reason = error.strerror or type(error).__name__
            streams.complain(f"edm-hloc: Cannot use {error.filename}: {reason}.")
        elif streams.output_is_written(end="\n"):  # neither of a file nor of what was printed
            raise
        return 1
    except (KeyboardInterrupt, Exception) as error:
        if not _is_interrupt(error):
            raise
        streams.complain(
            "\nedm-hloc: interrupted. A run keeps what was finished; the same command goes on from "
            "there."
        )
        return 130
    return 0


def _run_command(argv: Sequence[str] | None) -> None:
    parser = build_parser()
    args, rest = parser.parse_known_args(argv)
    if args.command is _train:
        args.arguments = rest
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    # Before torch is imported: waiting OpenMP threads must not keep the cores from the threads that
    # decode photos or from other programs (on a busy computer a pair took half the time).
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    _log_to_terminal(args.verbose)
    # A name that the output cannot show, as in a file on Windows, is no reason to end.
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")
    _check_working_folder()
    workers.check_ray(args)
    _end_quietly()
    args.command(args)
    sys.stdout.flush()


def _end_quietly() -> None:
    """Makes SIGTERM end the program without a stack trace, as at a scheduler's time limit.

    pycolmap installs a handler that prints one when it is imported, so this imports it first. A
    SIGTERM that comes meanwhile waits until that handler is gone.
    """
    blockable = hasattr(signal, "pthread_sigmask")  # not on Windows
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM}) if blockable else None
    try:
        import edm_hloc.base.colmap  # noqa: F401

        if signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
    except (ValueError, ImportError, RuntimeError) as error:
        if _is_interrupt(error):
            raise
        # not in the main thread; or the command is going to tell what is wrong with pycolmap
    finally:
        if before is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _is_interrupt(error: BaseException | None) -> bool:
    """Whether Ctrl-C is behind an error: while it is imported, pycolmap makes it its own error."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def _check_working_folder() -> None:
    """Raises EdmHlocError if this folder was removed, where PyTorch's libraries end the process."""
    try:
        Path.cwd()
    except OSError as error:
        raise EdmHlocError(
            f"The folder in which this was started is not there any more ({error.strerror}): "
            "change to another one, or to the one that has its name now, then run again."
        ) from error


class _CommandParser(argparse.ArgumentParser):
    """Takes an optional positional argument also behind options, as in `match-shard OUT -v 1`.

    Texts and paths must not be empty.
    """

    _again = False

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.register("type", None, options.filled)
        self.register("type", Path, lambda text: Path(options.filled(text)))

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        found, rest = super().parse_known_args(args, namespace)
        optional = any(a.nargs == "?" and not a.option_strings for a in self._actions)
        if not (rest and optional) or self._again:
            return found, rest
        self._again = True  # as the method called here calls this one
        try:
            return self.parse_known_intermixed_args(args)
        finally:
            self._again = False


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="edm-hloc",
        description="From photographs to a 3D model and camera poses with the EDM matcher.",
        epilog="For the options of a command: edm-hloc COMMAND --help",
    )
    parser.add_argument("--version", action="version", version=f"edm_hloc {__version__}")
    common = _CommandParser(add_help=False)
    common.add_argument("-v", "--verbose", action="store_true", help="print more messages")
    commands = parser.add_subparsers(
        title="commands", metavar="COMMAND", required=True, parser_class=_CommandParser
    )

    def command(name: str, function: options.Command, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name,
            help=text,
            description=text[0].upper() + text[1:] + ".",
            parents=[common],
            formatter_class=options.HelpFormatter,
        )
        sub.set_defaults(command=function)
        return sub

    for module in COMMANDS:
        module.register(command)

    # The trainer parses its own arguments, including --help.
    sub = commands.add_parser("train", help="train the network, or resume training", add_help=False)
    sub.set_defaults(command=_train, verbose=True)
    return parser


def _train(args: argparse.Namespace) -> None:
    from edm_hloc.training.command import main as train

    try:
        train(args.arguments)
    except ModuleNotFoundError as error:
        raise missing_library("Training", error, "train") from None


class _TqdmHandler(logging.StreamHandler):
    """Prints messages above a running progress bar instead of into it."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        with contextlib.suppress(OSError):  # a full disk must not end what is at work
            tqdm.write(shortened(self.format(record)), file=sys.stderr)


def _log_to_terminal(verbose: bool) -> None:
    handler = _TqdmHandler()
    handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    root = logging.getLogger("edm_hloc")
    root.handlers = [handler]
    root.setLevel(logging.INFO if verbose else logging.WARNING)
