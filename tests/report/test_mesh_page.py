"""`edm-hloc mesh OUT mesh.html`: a page that holds the whole mesh."""

from __future__ import annotations

import base64
import html
import re
from pathlib import Path

import pytest

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.report.meshes import WrittenMesh, check_mesh_file, mesh_page

DATA = bytes(range(256)) * 3


def test_the_page_holds_the_file_and_loads_nothing(tmp_path: Path) -> None:
    page = mesh_page(DATA, "</title><script>alert(1)</script>", WrittenMesh(1234, 10, 99))
    found = re.search(r'<script type="text/plain" id="mesh-data">([^<]*)</script>', page)
    assert found is not None
    assert base64.b64decode(found[1]) == DATA
    assert "alert(1)</script>" not in page
    assert "1,234 triangles from 99 matches" in page
    assert "default-src 'none'" in html.unescape(page)
    text = re.sub(r"<script>.*?</script>", "", page, flags=re.S)
    assert not re.search(r"(src|href)=[\"'](?!data:)", text)


def test_its_own_page_is_written_over_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "mesh.html"
    path.write_text(mesh_page(DATA, "mesh", WrittenMesh(1, 1, 1)), "utf-8")
    check_mesh_file(path)
    path.write_text("<title>My thesis</title>")
    with pytest.raises(EdmHlocError, match="not made by edm-hloc"):
        check_mesh_file(path)
    with pytest.raises(EdmHlocError, match=r"\.glb"):
        check_mesh_file(tmp_path / "mesh.obj")
