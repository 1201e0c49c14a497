"""MLflow's system metrics (CPU, memory, disk, network, GPU), measured here and sent as any metric is.

MLflow's own monitor asks the server at each sample and stops for good when it is away; only its gauges are used.
"""

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

log = logging.getLogger(__name__)


class SystemWatch:
    """A thread that reads the gauges until `stop`. Steps count intervals since the run began, so that they grow over restarts."""

    def __init__(self, take: Callable[[dict[str, float], int], None], *, every_s: float, began_ms: int) -> None:
        self._take, self._every_s, self._began_ms = take, every_s, began_ms
        self._stopping = threading.Event()
        self._gauges = _gauges()
        self._thread = threading.Thread(target=self._run, name="system-metrics", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopping.wait(self._every_s):
            try:
                self._take(self._read(), int((time.time() * 1000 - self._began_ms) / (1000 * self._every_s)))
            except Exception as error:  # a gauge that breaks must not end training, and will not mend itself
                log.warning("system metrics end here: %s", error)
                return

    def _read(self) -> dict[str, float]:
        values: dict[str, float] = {}
        for gauge in self._gauges:
            gauge.collect_metrics()
            values |= {f"system/{name}": float(value) for name, value in gauge.aggregate_metrics().items()}
            gauge.clear_metrics()
        return values


def _gauges() -> list[Any]:
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

    gauges = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
    try:
        gauges.append(GPUMonitor())
    except Exception as error:  # no driver, no library: MLflow raises several kinds
        log.debug("no GPU is watched: %s", error)
    return gauges
