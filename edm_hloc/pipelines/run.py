"""The record of a run in its output folder: settings, finished steps, times and results."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.files import FolderLock, check_kinds, make_folder, remove_leftover, write_whole
from edm_hloc.base.fingerprint import fingerprint_of
from edm_hloc.base.journal import journal_path
from edm_hloc.base.log import warn_once
from edm_hloc.base.process import peak_memory_mib, versions
from edm_hloc.matchers.base import Matcher
from edm_hloc.matching.engine import run_provenance
from edm_hloc.matching.shards import check_folder_provenance, shard_paths
from edm_hloc.pipelines.run_entries import (
    discard,
    earlier_name,
    is_set_aside,
    is_whole,
    is_written,
    keep_changed,
    size_of,
)

logger = logging.getLogger(__name__)

_RESUMED = ("settings", "done", "sizes", "results", "seconds", "memory_mib", "wrote", "earlier")
_IN_EVERY_RUN = ("run.json", "raw_matches", "pairs.txt", "report.html")
_SET_ASIDE = ("model", "poses", "georeference")  # steps whose files look like a run's result
_YOUNGER = ("sizes", "memory_mib", "wrote", "earlier")  # parts that the oldest records do not have


@dataclass
class Run:
    """The record of a run, written to `run.json` after every step.

    A step is skipped if its fingerprint is the recorded one and its files are as the step left
    them, so that an interrupted run continues and a changed setting repeats only the steps that
    depend on it.

    What the record does not name as made by this program is never written over or removed. Where a
    run fails, or its settings differ from those of the run before it, the older model and all files
    of its step are set aside under other names (`model_earlier`), so that they are not taken for
    those of this run; they come back when a run needs them again.

    Attributes:
        out: output folder.
        settings: the run's settings, with the name of the "command" that made it.
        done: fingerprint of each finished step.
        sizes: size in bytes of each file and folder that these steps wrote, by name.
        results: summaries of the steps, by name.
        seconds: wall-clock time of each step when it was last done.
        memory_mib: peak memory of the process at the end of each of these steps, in MiB.
        peak_memory_mib: peak memory of this process when the record was last written, in MiB.
        made: names in `out` that this run and earlier ones made or were about to; None for the
            oldest records, which do not tell.
        wrote: of each finished step the names of its "files" and of its "results".
        earlier: what is set aside, by step: its fingerprint, results, and files by their names.
        error: message of the error that ended the run, if one did.
        shards: number of shards in which steps are planned for other processes, see
            `pipelines/spreading.py`; 0 to do everything in this one.
    """

    out: Path
    settings: dict[str, Any]
    done: dict[str, str] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    results: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    memory_mib: dict[str, float | None] = field(default_factory=dict)
    peak_memory_mib: float | None = None
    made: list[str] | None = None
    wrote: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    earlier: dict[str, dict[str, Any]] = field(default_factory=dict)
    error: str | None = None
    shards: int = 0
    _unknown: bool = field(init=False, default=False)  # run.json is there, but is no record
    _confirmed: set[str] = field(init=False, default_factory=set)  # steps done or found done now
    _inner: float = field(init=False, default=0.0)  # seconds of the steps inside the one at work

    @property
    def path(self) -> Path:
        return self.out / "run.json"

    @classmethod
    @contextlib.contextmanager
    def begin(
        cls,
        out: Path,
        settings: dict[str, Any],
        matcher: Matcher,
        files: Sequence[str],
        *,
        overwrite: bool,
        shards: int = 0,
    ) -> Iterator[Run]:
        """Starts a run in `out`, or continues the one that is there.

        The folder is locked against other processes until the block ends. An EdmHlocError that
        ends the block is recorded.

        Args:
            out: output folder; it is made if there is none.
            settings: recorded settings, with the "command".
            matcher: its settings are recorded, and checked against those of the raw matches in the
                folder.
            files: names of the files and folders that the run is going to write.
            overwrite: remove what an earlier run made, instead of continuing it.
            shards: see `Run`; not with `overwrite`.

        Raises:
            EdmHlocError: the folder cannot be made; another process writes into it; it holds one of
                `files`, not made by this program, or a folder in place of a file; its files were
                made by another command, or its matches with other settings. An older record stays
                as it is.
        """
        if shards and overwrite:
            said = "With shards, overwrite would discard what they have done at each call"
            raise EdmHlocError(f"{said}: remove the output folder instead, or choose another one.")
        run = cls(out, {"matcher": dict(matcher.provenance), **settings}, shards=shards)
        check_kinds(out, (*_IN_EVERY_RUN, *files))
        run._read_record()
        run.check_own(*files)  # before anything is made in a folder of somebody else
        make_folder(out)
        with FolderLock(out):
            earlier = run._read_record()
            run.check_own(*files)
            if run._unknown:  # it may be of another program
                run._keep_record()
            if overwrite:
                aside = {p for e in earlier["earlier"].values() for p in e["places"].values()}
                run._remove(aside.union(earlier["sizes"]))
                for name in files:  # and what a killed run has left of them
                    remove_leftover(journal_path(out / name))
            else:
                run._check_command(earlier["settings"].get("command"))
                check_folder_provenance(out / "raw_matches", run_provenance(matcher))
                run._continue(earlier)
                if earlier["settings"] != json.loads(json.dumps(run.settings, default=str)):
                    run._set_stale_aside()
            run.write()
            try:
                yield run
            except EdmHlocError as error:
                run.error = str(error)
                with contextlib.suppress(EdmHlocError):
                    run._set_stale_aside()
                    run.write()
                raise

    def _read_record(self) -> dict[str, dict[str, Any]]:
        """The record of an earlier run; empty if there is none or it is damaged. Fills `made`.

        Without a record every step but the matching is done again. A damaged one counts as this
        program's if its name for the settings is in it, or raw matches lie beside it; otherwise
        nothing in the folder does.

        Raises:
            EdmHlocError: run.json cannot be read.
        """
        record: Any = None
        try:
            record = json.loads(self.path.read_text("utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            self.made = []
            return {name: {} for name in _RESUMED}
        except OSError as error:
            raise EdmHlocError(
                f"Cannot read {self.path}: {error.strerror or error}. Choose another output folder."
            ) from error
        except (ValueError, RecursionError):
            record = None
        ours = isinstance(record, dict) and "settings" in record
        parts = {**{name: {} for name in _YOUNGER}, **record} if ours else {}
        valid = all(isinstance(parts.get(name), dict) for name in _RESUMED)
        if not valid:
            warn_once(
                f"{self.path} is damaged or no record of a run: all but the matching is done again."
            )
        else:
            parts["wrote"] = {k: v for k, v in parts["wrote"].items() if is_written(v)}
            parts["earlier"] = {k: v for k, v in parts["earlier"].items() if is_set_aside(v)}
        made = parts.get("made")
        if isinstance(made, list) and valid:
            self.made = [str(name) for name in made]
        else:
            self.made = None if ours or shard_paths(self.out / "raw_matches") else []
        self._unknown = not ours
        return {name: parts[name] if valid else {} for name in _RESUMED}

    def _keep_record(self) -> None:
        """Renames a run.json that is no record, so that it is not written over."""
        kept = earlier_name(self.path.name, self.out)
        self._rename(self.path, kept)
        logger.warning("It is kept as %s.", self.out / kept)

    def check_own(self, *names: str) -> None:
        """Raises EdmHlocError if one of the names is in `out` already, but not made by a run."""
        for name in names:
            path = self.out / name
            if self.made is not None and name not in self.made and os.path.lexists(path):
                raise EdmHlocError(
                    f"{path} is there already and was not made by edm-hloc: {self.path} does not "
                    "name it. It is not written over, even with --overwrite. Choose another output "
                    "folder, or move it."
                )

    def claim(self, *names: str) -> None:
        """Records that this run is about to write files or folders in `out`.

        Raises:
            EdmHlocError: one is there already, but was not made by a run.
        """
        self.check_own(*names)
        if self.made is not None and not set(names) <= set(self.made):
            self.made = sorted({*self.made, *names})
            self.write()

    def _remove(self, names: Container[str]) -> None:
        """Removes the files and models of an earlier run, maybe of another command.

        Only entries of the folder itself are removed, whatever names the record holds, and no
        folder to which somebody has added something.
        """
        for path in [path for path in self.out.iterdir() if path.name in names]:
            discard(path)

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
        self.wrote, self.earlier = earlier["wrote"], earlier["earlier"]
        self.results = earlier["results"]
        self.seconds, self.memory_mib = earlier["seconds"], earlier["memory_mib"]

    def step(
        self,
        name: str,
        depends_on: Any,
        files: Sequence[Path],
        work: Callable[[], dict[str, Any]],
        *,
        maybe: Sequence[Path] = (),
    ) -> str:
        """Does `work` unless its files are complete and were made from the same inputs.

        Args:
            name: of the step, in `done`, `seconds` and `memory_mib`.
            depends_on: everything that decides the content of the files, JSON-serialisable.
            files: that the step writes; an earlier model is set aside until it has ended well.
            work: writes them; returns its summaries (dataclasses) by their name in `results`.
            maybe: files and folders that it writes in some cases only.

        Returns:
            The fingerprint of the step, for the steps that depend on it.

        Raises:
            EdmHlocError: one of the files is there already, but was not made by a run.
        """
        fingerprint, names = fingerprint_of(depends_on), [f.name for f in (*files, *maybe)]
        if self.earlier.get(name, {}).get("fingerprint") == fingerprint:
            self.bring_back(name)
        if self.done.get(name) == fingerprint:
            wrote = self.wrote.get(name, {}).get("files", ())
            due = [*files, *(file for file in maybe if file.name in wrote)]
            changed = [file for file in due if not self._is_complete(file)]
            if not changed:
                self._confirmed.add(name)
                self.discard_aside(name)  # which a killed run had not come to
                return fingerprint
            logger.warning("Made again, as it has changed since this run wrote it: %s", changed[0])
        self.claim(*names)
        self._set_aside(name, names)
        self.done.pop(name, None)
        if name in _SET_ASIDE:
            self.wrote[name] = {"files": names, "results": []}  # not done, but maybe there
        self.write()
        start, outer, self._inner = time.monotonic(), self._inner, 0.0
        results = {key: asdict(summary) for key, summary in work().items()}
        self.results |= results
        self.measure(name, start + self._inner)
        self._inner = outer + time.monotonic() - start
        self.done[name] = fingerprint
        self._confirmed.add(name)
        written = [file for file in (*files, *maybe) if file.exists()]
        self.sizes |= {file.name: size_of(file) for file in written}
        self.wrote[name] = {"files": [file.name for file in written], "results": list(results)}
        self.write()
        self.discard_aside(name)
        return fingerprint

    # ---- results of earlier runs

    def _set_stale_aside(self) -> None:
        """Sets aside the results of all steps that this run has not confirmed."""
        for step in [*self.wrote, *(self.earlier.keys() - self.wrote.keys())]:
            if step not in self._confirmed:
                self.put_aside(step)

    def put_aside(self, step: str) -> None:
        """Sets aside the files and results of a step of an earlier run, if there are any."""
        places = self.earlier.get(step, {}).get("places", ())
        self._set_aside(step, [*{*self.wrote.get(step, {}).get("files", ()), *places}])

    def _set_aside(self, step: str, names: Sequence[str]) -> None:
        """Renames the files of a result, and takes what the step has found out of the record.

        Those of other steps stay until they are replaced. A result of which a part is missing or
        has changed does not come back; a model that somebody has changed is kept for good.
        """
        if step not in _SET_ASIDE:
            return
        if step in self.earlier and step not in self.done:  # killed since they were set aside
            self._clear(step, names)
            return
        self.discard_aside(step)
        for name in names:
            keep_changed(self.out / name, self.sizes.get(name))
        there = [name for name in names if os.path.lexists(self.out / name)]
        places = {name: earlier_name(name, self.out) for name in there}
        self.claim(*places.values())
        wrote = self.wrote.pop(step, {})
        whole = all(self._is_complete(self.out / name) for name in wrote.get("files", there))
        fingerprint = self.done.pop(step, None)
        found = {k: self.results.pop(k) for k in wrote.get("results", ()) if k in self.results}
        if places:
            self.earlier[step] = {
                "fingerprint": fingerprint if whole else None,
                "results": found,
                "sizes": {name: self.sizes.pop(name, None) for name in places},
                "wrote": wrote,
                "places": places,
            }
        self.write()
        for name, place in places.items():
            self._rename(self.out / name, place)
            logger.info("Set aside, as it is of an earlier run: %s", self.out / place)

    def _clear(self, step: str, names: Sequence[str]) -> None:
        """Frees the names of a step that was killed after it had set the earlier files aside.

        What it has written itself is not whole, and is removed, unless somebody has added
        something to it. What is of the earlier run and was not renamed yet is renamed.
        """
        entry = self.earlier[step]
        self.wrote.pop(step, None)
        for path in (self.out / name for name in names if os.path.lexists(self.out / name)):
            place = entry["places"].get(path.name)
            waits = place is not None and not os.path.lexists(self.out / place)
            if waits and is_whole(path, entry["sizes"].get(path.name)):
                self._rename(path, place)
            elif not discard(path):
                kept = earlier_name(path.name, self.out, "interrupted")
                self.claim(kept)
                self._rename(path, kept)
                logger.warning("Of an interrupted run, but not all its own: %s", self.out / kept)

    def _rename(self, path: Path, name: str) -> None:
        try:
            path.rename(self.out / name)
        except OSError as error:
            raise EdmHlocError(f"Cannot rename {path}: {error.strerror or error}.") from error

    def set_aside(
        self, step: str, fingerprint: str | None = None
    ) -> tuple[dict[str, Any], dict[str, Path]] | None:
        """The results of a step of an earlier run, and its files by name, while set aside.

        Args:
            step: its name.
            fingerprint: that of the step, whose files must be as it wrote them; None for any.
        """
        entry = self.earlier.get(step)
        if entry is None:
            return None
        places = {name: self.out / place for name, place in entry["places"].items()}
        if fingerprint is not None:
            whole = all(is_whole(p, entry["sizes"].get(name)) for name, p in places.items())
            if not whole or fingerprint != entry["fingerprint"]:
                return None
        return dict(entry["results"]), places

    def bring_back(self, step: str) -> None:
        """Gives the files of a step their names again, and the record its results, if set aside."""
        if step not in self.earlier:
            return
        self._clear(step, list(self.earlier[step]["places"]))
        earlier = self.earlier.pop(step)
        for name, place in earlier["places"].items():
            if (self.out / place).exists() and not os.path.lexists(self.out / name):
                self._rename(self.out / place, name)
        if earlier["fingerprint"] is not None:
            self.done[step] = earlier["fingerprint"]
        if earlier["wrote"]:
            self.wrote[step] = earlier["wrote"]
        self.results |= earlier["results"]
        self.sizes |= {name: size for name, size in earlier["sizes"].items() if size is not None}
        self.write()

    def discard_aside(self, step: str) -> None:
        """Removes what was set aside, unless somebody has added something to it."""
        if step in self.earlier:
            for place in self.earlier[step]["places"].values():
                discard(self.out / place)
            del self.earlier[step]
            self.write()

    # ---- the record

    def _is_complete(self, file: Path) -> bool:
        """Whether a file of the run is there as it was written."""
        return is_whole(file, self.sizes.get(file.name))

    def measure(self, name: str, start: float) -> None:
        """Records the time since `start` (`time.monotonic`) and the peak memory of a step."""
        self.seconds[name], self.memory_mib[name] = time.monotonic() - start, peak_memory_mib()

    def write(self) -> None:
        """Writes `run.json`. Raises EdmHlocError if it cannot be written."""
        self.peak_memory_mib = peak_memory_mib()
        record: dict[str, Any] = {
            **{name: getattr(self, name) for name in _RESUMED if name != "earlier"},
            "versions": versions(),
            "peak_memory_mib": self.peak_memory_mib,
            "folder": str(self.out.resolve()),
        }
        if self.made is not None:
            record["made"] = self.made
        if self.earlier:
            record["earlier"] = self.earlier
        if self.error is not None:
            record["error"] = self.error
        write_whole(self.path, json.dumps(record, indent=2, default=str), durable=True)
