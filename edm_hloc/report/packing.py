"""Binary data as base64 text, the form in which a page holds arrays and pictures."""

from __future__ import annotations

import base64


def pack(data: bytes) -> str:
    """Base64 of `data`; `bytes()` in page.js is the inverse."""
    return base64.b64encode(data).decode("ascii")
