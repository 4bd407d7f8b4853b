"""The record of a run: settings, the steps that are done, times and results; and its lock."""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import sys
import time
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy
import pycolmap
import torch

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.files import FolderLock, write_whole
from edm_hloc.base.fingerprint import fingerprint_of
from edm_hloc.base.version import __version__
from edm_hloc.matchers.base import Matcher
from edm_hloc.matching.engine import run_provenance
from edm_hloc.matching.shards import check_folder_provenance

logger = logging.getLogger(__name__)


@dataclass
class Run:
    """The record of one run; written to `run.json` as it grows.

    Attributes:
        out: output folder.
        settings: what the run was asked for, and by which "command".
        done: fingerprints of the steps whose files are in `out`.
        sizes: bytes of the files of those steps, by name.
        results: one entry a step.
        seconds: wall-clock time of each step when it was last done.
        memory_mib: peak memory of the process by the end of each of these steps.
        peak_memory_mib: of this process, at the last write.
        error: why it ended, where it failed.
    """

    out: Path
    settings: dict[str, Any]
    done: dict[str, str] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    results: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    memory_mib: dict[str, float | None] = field(default_factory=dict)
    peak_memory_mib: float | None = None
    error: str | None = None

    @property
    def path(self) -> Path:
        return self.out / "run.json"

    @classmethod
    @contextlib.contextmanager
    def begin(
        cls, out: Path, settings: dict[str, Any], matcher: Matcher, *, overwrite: bool
    ) -> Iterator[Run]:
        """Start or continue the run in `out`, which no other process writes into meanwhile.

        An EdmHlocError that ends the block is recorded.

        Raises:
            EdmHlocError: the folder cannot be made, another process is at work there, or its
                files are another command's, or its matches were made with other settings; an
                older record stays as it is.
        """
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise EdmHlocError(f"Cannot make the folder {out}: {error.strerror}.") from error
        with FolderLock(out):
            run = cls(out, {"matcher": dict(matcher.provenance), **settings})
            before = run._before()
            if overwrite:
                run._remove(before["sizes"])
            else:
                run._check_command(before["settings"].get("command"))
                check_folder_provenance(out / "raw_matches", run_provenance(matcher))
                run._continue(before)
            run.write()
            try:
                yield run
            except EdmHlocError as error:
                run.error = str(error)
                with contextlib.suppress(EdmHlocError):
                    run.write()
                raise

    def _before(self) -> dict[str, dict[str, Any]]:
        """What an earlier run recorded; empty without a whole record, and then every step but the
        matching is done again."""
        try:
            record = json.loads(self.path.read_text("utf-8"))
            parts = {"sizes": {}, "memory_mib": {}, **record}  # which the oldest have not
        except (OSError, ValueError, TypeError):
            parts = {}
        names = ("settings", "done", "sizes", "results", "seconds", "memory_mib")
        whole = all(isinstance(parts.get(name), dict) for name in names)
        return {name: parts[name] if whole else {} for name in names}

    def _remove(self, names: Container[str]) -> None:
        """Removes what an earlier run, perhaps of another command, had made by its record, and
        nothing outside the folder, whatever the record says."""
        for path in self.out.iterdir():
            if path.name in names:
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def _check_command(self, before: str | None) -> None:
        """Raises EdmHlocError if another command made the files; the oldest records name none."""
        now = self.settings.get("command")
        if before not in (None, now):
            raise EdmHlocError(
                f"{self.out} holds what edm-hloc {before} made, and edm-hloc {now} would write "
                "over it. Choose another output folder, or run with --overwrite."
            )

    def _continue(self, before: dict[str, dict[str, Any]]) -> None:
        self.done, self.sizes = before["done"], before["sizes"]
        self.results = before["results"]
        self.seconds, self.memory_mib = before["seconds"], before["memory_mib"]

    def step(
        self,
        name: str,
        depends_on: Any,
        files: Sequence[Path],
        work: Callable[[], dict[str, Any]],
    ) -> str:
        """Do `work` unless its files are there, whole, and were made from the same things.

        Args:
            name: of the step.
            depends_on: everything that decides the files' content.
            files: what the step writes.
            work: gives its summaries (dataclasses), by the name they get in `results`.

        Returns:
            The step's fingerprint, for the steps that depend on it.
        """
        fingerprint = fingerprint_of(depends_on)
        if self.done.get(name) == fingerprint:
            changed = [file for file in files if not self._is_whole(file)]
            if not changed:
                return fingerprint
            logger.warning("Made again, as it is not what this run had left: %s", changed[0])
        if self.done.pop(name, None) is not None:
            self.write()  # a kill from here on must not leave the step as done
        start = time.monotonic()
        self.results |= {key: asdict(summary) for key, summary in work().items()}
        self.measure(name, start)
        self.done[name] = fingerprint
        self.sizes |= {file.name: _size(file) for file in files}
        self.write()
        return fingerprint

    def _is_whole(self, file: Path) -> bool:
        return file.exists() and self.sizes.get(file.name) in (None, _size(file))

    def measure(self, name: str, start: float) -> None:
        """Notes the time since `start` (monotonic) and the memory of a step that is done."""
        self.seconds[name] = time.monotonic() - start
        self.memory_mib[name] = peak_memory_mib()

    def write(self) -> None:
        self.peak_memory_mib = peak_memory_mib()
        record: dict[str, Any] = {
            "settings": self.settings,
            "versions": versions(),
            "done": self.done,
            "sizes": self.sizes,
            "results": self.results,
            "seconds": self.seconds,
            "memory_mib": self.memory_mib,
            "peak_memory_mib": self.peak_memory_mib,
        }
        if self.error is not None:
            record["error"] = self.error
        write_whole(self.path, json.dumps(record, indent=2, default=str))


def _size(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    files = [path] if path.is_file() else path.rglob("*")
    return sum(file.stat().st_size for file in files if file.is_file())


def versions() -> dict[str, str]:
    """Of what decides results."""
    return {
        "edm_hloc": __version__,
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "pycolmap": pycolmap.__version__,
        "numpy": numpy.__version__,
        "h5py": h5py.__version__,
    }


def peak_memory_mib() -> float | None:
    """Largest resident memory of this process so far; None where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)


def duration(seconds: float) -> str:
    """For people."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
