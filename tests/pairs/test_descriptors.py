"""Files of global descriptors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.pairs.descriptors import DescriptorReader, DescriptorWriter
from tests.h5_files import (
    PROVENANCE,
)


def test_damage_within_descriptors_is_named(tmp_path: Path) -> None:
    path = tmp_path / "global.h5"
    names = [f"{i}.jpg" for i in range(200)]
    with DescriptorWriter(path, PROVENANCE) as writer:
        for name in names:
            writer.add(name, np.ones(64))
        with pytest.raises(EdmHlocError, match="cannot be stored in an H5 file"):
            writer.add("a//b.jpg", np.ones(64))
        with pytest.raises(EdmHlocError, match="written once"):
            writer.add("0.jpg", np.ones(64))
    with DescriptorReader(path) as reader:
        assert reader.names() == sorted(names)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2].ljust(len(data), b"\0"))
    with DescriptorReader(path) as reader:
        with pytest.raises(EdmHlocError, match=r"global\.h5 is damaged"):
            reader.names()
        with pytest.raises(EdmHlocError, match=r"global\.h5"):
            reader.read(names)
