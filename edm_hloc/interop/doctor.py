"""What is installed, and which known breakages of hloc apply to it."""

from __future__ import annotations

import platform
import re
from dataclasses import dataclass
from importlib import metadata

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.version import __version__
from edm_hloc.interop.breakages import (
    BROKEN_PYCOLMAP,
    INSTALL_OLDER,
    SOURCE_CHECKS,
    Breakage,
    hloc_folders,
    hloc_source,
    leaves_pairs_undefined,
    no_points,
)


@dataclass(frozen=True)
class Diagnosis:
    """What `diagnose` found.

    Attributes:
        versions: version of each library, by its name; None if it is not installed.
        breakages: those that apply: what edm_hloc itself lacks, that hloc cannot be imported, that
            it triangulates no points, then those of single modules.
    """

    versions: dict[str, str | None]
    breakages: tuple[Breakage, ...]


def diagnose() -> Diagnosis:
    """Look at what is installed, whatever it is. Takes a second or two, mostly to import hloc."""
    versions = {
        "edm_hloc": __version__,
        "Python": platform.python_version(),
        "torch": _torch(),
        "pycolmap": _pycolmap(),
        "h5py": _version("h5py"),
        "numpy": _version("numpy"),
        "hloc": hloc_version(),
        "torchvision": _version("torchvision"),
        "kornia": _version("kornia"),
        "transformers": _version("transformers"),
    }
    breakages = unmet_needs()
    if versions["hloc"] is not None:
        breakages += _breakages_of_hloc()
    return Diagnosis(versions, tuple(breakages))


def unmet_needs() -> list[Breakage]:
    """What edm_hloc itself needs and does not find: a library, or another version of it."""
    found = []
    for line in _requirements():
        needed, _, marker = line.partition(";")
        match = re.match(r"\s*([\w.-]+)(?:\[.*?\])?\s*\(?([^()@]*)\)?\s*$", needed)
        if match is None:  # of an address
            continue
        name, wanted = match[1], match[2].strip()
        version = _version(name)
        if "extra" in marker and (version is None or _is_of_development(marker)):
            continue
        if version is not None and _satisfies(version, wanted):
            continue
        found.append(_unmet(name, wanted, version))
    return found


def _unmet(name: str, wanted: str, version: str | None) -> Breakage:
    if (name, version) == ("pycolmap", BROKEN_PYCOLMAP):
        return Breakage(
            f"edm_hloc needs {name}{wanted}, and {version} is installed: hloc's triangulation "
            "gives 0 points with it, while edm-hloc's own commands work.",
            f"{INSTALL_OLDER}",
        )
    there = "it is not installed" if version is None else f"{version} is installed"
    return Breakage(f"edm_hloc needs {name}{wanted}, and {there}.", f'pip install "{name}{wanted}"')


def _breakages_of_hloc() -> list[Breakage]:
    """The breakages that apply to the installed hloc."""
    found = []
    try:
        from edm_hloc.interop import hloc_plugin

        hloc_plugin.import_hloc("match_dense")
    except EdmHlocError as error:
        remedy = "Install versions of the libraries that fit each other, then try again."
        found.append(Breakage(str(error), remedy))
    except Exception as error:  # of another library, whatever it is
        problem = f"The plug-in cannot be imported: {type(error).__name__}: {error}"
        remedy = "Install the libraries that edm_hloc needs: pip install . in its folder."
        found.append(Breakage(problem, remedy))
    if leaves_pairs_undefined() and undefined_pairs_are_ignored():
        found.append(no_points())
    found += [c.breakage for c in SOURCE_CHECKS if c.applies(hloc_source(c.module))]
    return found


def undefined_pairs_are_ignored() -> bool:
    """Whether the installed pycolmap triangulates nothing from hloc's pairs; False if too old."""
    try:
        from edm_hloc.interop import repair

        return repair.undefined_pairs_are_ignored()
    except Exception:  # pycolmap is not there, or has no synthetic data sets yet
        return False


def hloc_version() -> str | None:
    """Version and folder of hloc, or why it cannot be imported; None if it is not installed."""
    folders = hloc_folders()
    if not folders:
        return None
    try:
        import hloc
    except Exception as error:  # the user wants to know of it, whatever it is
        return f"in {folders[0]}, cannot be imported: {error}"
    return f"{getattr(hloc, '__version__', 'of unknown version')} in {folders[0]}"


def _requirements() -> list[str]:
    """The requirements of edm_hloc as installed; none where it is only on the path."""
    try:
        return metadata.requires("edm_hloc") or []
    except metadata.PackageNotFoundError:
        return []


def _is_of_development(marker: str) -> bool:
    return re.search(r"""extra\s*==\s*['"]dev['"]""", marker) is not None


def _satisfies(version: str, wanted: str) -> bool:
    """Whether a version such as 4.2.1 satisfies a list such as ">=4.0,!=4.2.1"."""
    return all(_compares(version, part.strip()) for part in wanted.split(",") if part.strip())


def _compares(version: str, part: str) -> bool:
    match = re.match(r"(>=|<=|==|!=|>|<)\s*([\d.]+)$", part)
    if match is None:  # a form that we do not use, such as ~=
        return True
    here, there = _numbers(version), _numbers(match[2])
    return {
        ">=": here >= there,
        "<=": here <= there,
        "==": here == there,
        "!=": here != there,
        ">": here > there,
        "<": here < there,
    }[match[1]]


def _numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a version, without zeros at their end: 4.2.0.dev1 is 4.2."""
    match = re.match(r"\d+(\.\d+)*", version)
    numbers = [int(number) for number in match[0].split(".")] if match else []
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


def _version(library: str) -> str | None:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return None


def _pycolmap() -> str | None:
    """The version of pycolmap, also of one that is not installed but on the path."""
    try:
        import pycolmap
    except Exception as error:
        version = _version("pycolmap")
        return version and f"{version}, cannot be imported: {error}"
    return str(getattr(pycolmap, "__version__", None) or _version("pycolmap") or "unknown")


def _torch() -> str | None:
    try:
        import torch

        if torch.cuda.is_available():
            device = torch.cuda.get_device_name()
        else:
            device = "mps" if torch.backends.mps.is_available() else "CPU only"
        return f"{torch.__version__}, {device}"
    except Exception as error:
        version = _version("torch")
        return version and f"{version}, cannot be imported: {error}"
