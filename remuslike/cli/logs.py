"""Structured logs on standard error: one line an event, JSON or for people."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import MutableMapping
from datetime import UTC, datetime
from typing import Any

import structlog

from remuslike.config import LogSettings


def configure_logs(settings: LogSettings) -> None:
    """Send structlog's and the standard library's records the same way."""
    shared: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        _add_time,
        structlog.processors.format_exc_info,
    ]
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if settings.format == "json"
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(settings.level),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    logging.basicConfig(handlers=[handler], level=settings.level.upper(), force=True)
    # pyroute2 logs each netlink message at debug; at warning it says what concerns an operator.
    level = logging.getLevelNamesMapping()[settings.level.upper()]
    logging.getLogger("pyroute2").setLevel(max(level, logging.WARNING))


def _add_time(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Wall-clock time for people, and the monotonic one that intervals are made of."""
    event["time"] = datetime.now(UTC).isoformat(timespec="microseconds")
    event["monotonic"] = round(time.monotonic(), 6)
    return event
