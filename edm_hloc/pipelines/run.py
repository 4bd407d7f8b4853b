"""The record of a run in its output folder: settings, finished steps, times and results."""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import time
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.files import FolderLock, make_folder, write_whole
from edm_hloc.base.fingerprint import fingerprint_of
from edm_hloc.base.process import peak_memory_mib, versions
from edm_hloc.matchers.base import Matcher
from edm_hloc.matching.engine import run_provenance
from edm_hloc.matching.shards import check_folder_provenance

logger = logging.getLogger(__name__)

_RESUMED = ("settings", "done", "sizes", "results", "seconds", "memory_mib")


@dataclass
class Run:
    """The record of a run, written to `run.json` after every step.

    A step is skipped if its fingerprint is the recorded one and its files are as the step left
    them, so that an interrupted run continues and a changed setting repeats only the steps that
    depend on it.

    Attributes:
        out: output folder.
        settings: the run's settings, with the name of the "command" that made it.
        done: fingerprint of each finished step.
        sizes: size in bytes of each file and folder that these steps wrote, by name.
        results: summaries of the steps, by name.
        seconds: wall-clock time of each step when it was last done.
        memory_mib: peak memory of the process at the end of each of these steps, in MiB.
        peak_memory_mib: peak memory of this process when the record was last written, in MiB.
        error: message of the error that ended the run, if one did.
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
        """Starts a run in `out`, or continues the one that is there.

        The folder is locked against other processes until the block ends. An EdmHlocError that
        ends the block is recorded.

        Args:
            out: output folder; it is made if there is none.
            settings: recorded settings, with the "command".
            matcher: its settings are recorded, and checked against those of the raw matches in the
                folder.
            overwrite: remove what an earlier run made, instead of continuing it.

        Raises:
            EdmHlocError: the folder cannot be made; another process writes into it; its files were
                made by another command, or its matches with other settings. An older record stays
                as it is.
        """
        make_folder(out)
        with FolderLock(out):
            run = cls(out, {"matcher": dict(matcher.provenance), **settings})
            earlier = run._read_record()
            if overwrite:
                run._remove(earlier["sizes"])
            else:
                run._check_command(earlier["settings"].get("command"))
                check_folder_provenance(out / "raw_matches", run_provenance(matcher))
                run._continue(earlier)
            run.write()
            try:
                yield run
            except EdmHlocError as error:
                run.error = str(error)
                with contextlib.suppress(EdmHlocError):
                    run.write()
                raise

    def _read_record(self) -> dict[str, dict[str, Any]]:
        """The record of an earlier run; empty if there is none or it is damaged.

        Without a record every step but the matching is done again.
        """
        try:
            record = json.loads(self.path.read_text("utf-8"))
            parts = {"sizes": {}, "memory_mib": {}, **record}  # missing in the oldest records
        except (OSError, ValueError, TypeError, RecursionError):
            parts = {}
        valid = all(isinstance(parts.get(name), dict) for name in _RESUMED)
        if not valid and self.path.exists():
            logger.warning(
                "%s is damaged or no record of a run: all but the matching is done again.",
                self.path,
            )
        return {name: parts[name] if valid else {} for name in _RESUMED}

    def _remove(self, names: Container[str]) -> None:
        """Removes the files and folders of an earlier run, maybe of another command.

        Only entries of the folder itself are removed, whatever names the record holds.
        """
        for path in self.out.iterdir():
            if path.name in names:
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def _check_command(self, earlier: str | None) -> None:
        """Raises EdmHlocError if another command made the files; the oldest records name none."""
        command = self.settings.get("command")
        if earlier not in (None, command):
            raise EdmHlocError(
                f"{self.out} holds what edm-hloc {earlier} made, and edm-hloc {command} would "
                "write over it. Choose another output folder, or run with --overwrite."
            )

    def _continue(self, earlier: dict[str, dict[str, Any]]) -> None:
        self.done, self.sizes = earlier["done"], earlier["sizes"]
        self.results = earlier["results"]
        self.seconds, self.memory_mib = earlier["seconds"], earlier["memory_mib"]

    def step(
        self,
        name: str,
        depends_on: Any,
        files: Sequence[Path],
        work: Callable[[], dict[str, Any]],
    ) -> str:
        """Does `work` unless its files are complete and were made from the same inputs.

        Args:
            name: of the step, in `done`, `seconds` and `memory_mib`.
            depends_on: everything that decides the content of the files, JSON-serialisable.
            files: the files and folders that the step writes.
            work: writes them; returns its summaries (dataclasses) by their name in `results`.

        Returns:
            The fingerprint of the step, for the steps that depend on it.
        """
        fingerprint = fingerprint_of(depends_on)
        if self.done.get(name) == fingerprint:
            changed = [file for file in files if not self._is_complete(file)]
            if not changed:
                return fingerprint
            logger.warning("Made again, as it has changed since this run wrote it: %s", changed[0])
        if self.done.pop(name, None) is not None:
            self.write()  # if the process is killed from here on, the step is not done
        start = time.monotonic()
        self.results |= {key: asdict(summary) for key, summary in work().items()}
        self.measure(name, start)
        self.done[name] = fingerprint
        self.sizes |= {file.name: _size(file) for file in files}
        self.write()
        return fingerprint

    def _is_complete(self, file: Path) -> bool:
        """Whether a file has the recorded size; where none is recorded, whether it exists."""
        return file.exists() and self.sizes.get(file.name) in (None, _size(file))

    def measure(self, name: str, start: float) -> None:
        """Records the time since `start` (`time.monotonic`) and the peak memory of a step."""
        self.seconds[name] = time.monotonic() - start
        self.memory_mib[name] = peak_memory_mib()

    def write(self) -> None:
        """Writes `run.json`. Raises EdmHlocError if it cannot be written."""
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
    """Size in bytes of a file, or of all files in a folder."""
    files = [path] if path.is_file() else path.rglob("*")
    return sum(file.stat().st_size for file in files if file.is_file())
