"""Messages that are given once a process."""

from __future__ import annotations

import functools
import logging

logger = logging.getLogger(__name__)


@functools.cache  # however often a photo is loaded, or a folder listed
def warn_once(text: str) -> None:
    logger.warning("%s", text)
