"""Warnings of one run: logged at once, and kept for its report."""

from __future__ import annotations

import logging
from typing import TypeAlias

Log: TypeAlias = "logging.Logger | RunLog"


class RunLog:
    """Logs each warning of a run once, and keeps it.

    Args:
        logger: where warnings go at once.

    Attributes:
        warnings: one sentence each.
    """

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self.warnings: list[str] = []

    def warning(self, text: str, *values: object) -> None:
        """Log a sentence, as logging.Logger.warning; the same one is logged once."""
        said = text % values if values else text
        if said not in self.warnings:
            self.warnings.append(said)
            self._logger.warning("%s", said)
