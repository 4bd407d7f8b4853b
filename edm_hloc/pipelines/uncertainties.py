"""The files beside a run's model that tell how sure it is, moved where the model is moved."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edm_hloc.base.fingerprint import fingerprint_of
from edm_hloc.mapping.output import holds_only_models
from edm_hloc.pipelines.run import Run
from edm_hloc.tracks.refine import uncertainty_files


@contextlib.contextmanager
def uncertainties_aside(run: Run, model: Path) -> Iterator[None]:
    """Sets aside those of an earlier model while a new one is made, and removes them with it.

    Args:
        run: its step "model" is at work, and has set the earlier model aside, if there is one.
        model: folder of the new model.

    Raises:
        EdmHlocError: another file has the name that one of them gets.
    """
    aside = run.set_aside("model")
    place = aside[1].get(model.name) if aside else None
    kept = uncertainty_files(place) if place else ()
    run.claim(*(file.name for file in kept))
    for file, beside in zip(uncertainty_files(model), kept, strict=False):
        if file.exists() and not beside.exists():  # else it is of a model that was not finished
            file.replace(beside)
    for file in uncertainty_files(model):
        file.unlink(missing_ok=True)
    yield
    if place and holds_only_models(place):
        for beside in kept:
            beside.unlink(missing_ok=True)


def bring_uncertainties_back(run: Run, model: Path, depends_on: Any) -> None:
    """Gives those of the model that the step "model" is about to bring back their names again.

    Args:
        run: the run.
        model: folder of the model.
        depends_on: what the step depends on.
    """
    aside = run.set_aside("model", fingerprint_of(depends_on))
    place = aside[1].get(model.name) if aside else None
    if place:
        for file, beside in zip(uncertainty_files(model), uncertainty_files(place), strict=True):
            if beside.exists():
                beside.replace(file)
