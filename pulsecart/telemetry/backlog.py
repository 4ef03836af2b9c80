"""A bound for log records that wait for their export. It needs the SDK."""

import logging
import threading
from collections.abc import Callable
from typing import Any

from opentelemetry.sdk._logs import ReadWriteLogRecord
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor

__all__ = ["BoundedProcessor"]

_log = logging.getLogger("pulsecart")


class BoundedProcessor(BatchLogRecordProcessor):
    """The SDK's processor, which counts what is lost: records beyond `most` waiting ones, and those of failed exports.

    The SDK's own queue drops the oldest records without a count. Here it never fills.
    """

    def __init__(self, exporter: Any, most: int) -> None:
        # Reentrant, because a finalizer or a signal handler may log at any moment.
        self._counts = threading.RLock()
        self._most = most
        self._waiting = 0
        self._lost = 0
        self._warned = False
        exporter.export = self._counted(exporter.export)
        super().__init__(exporter, max_queue_size=most)

    def on_emit(self, log_record: ReadWriteLogRecord) -> None:
        """Queue a record, or count it. The first that is lost is logged."""
        with self._counts:
            full = self._waiting >= self._most
            first = full and not self._warned
            if full:
                self._lost += 1
                self._warned = True
            else:
                self._waiting += 1
        if not full:
            super().on_emit(log_record)
        if first:  # this line makes a record of its own, which is lost without another line
            _log.warning("Log records are dropped: they come faster than their collector takes them")

    def take_lost(self) -> int:
        """Return how many records have been lost since the last call."""
        with self._counts:
            lost, self._lost = self._lost, 0
        return lost

    def report_lost(self) -> None:
        """Log how many records have not reached their collector. The process ends: those that wait are lost, too."""
        if lost := self.take_lost() + self._waiting:
            _log.warning("%d log records did not reach their collector", lost)

    def _counted(self, export: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def export_and_count(batch: Any) -> Any:
            failed = True
            try:
                result = export(batch)
                failed = result.name != "SUCCESS"
            finally:
                with self._counts:
                    self._waiting -= len(batch)
                    self._lost += len(batch) if failed else 0
            return result

        return export_and_count
