"""Warnings that are logged once per process."""

from __future__ import annotations

import functools
import logging

logger = logging.getLogger(__name__)


@functools.cache
def warn_once(text: str) -> None:
    """Logs a warning, unless this process has logged the same text before."""
    logger.warning("%s", text)
