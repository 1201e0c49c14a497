"""Notices under Ray Train: a request to stop on its way from the driver to the workers, and what Ray knows of their machines."""

import logging
import threading
import time
from typing import Any

from training.run.stop import LOOK_EVERY_S, Notices

log = logging.getLogger(__name__)


class StopDesk:
    """An actor between the driver, who is told to stop, and the workers, who can."""

    def __init__(self) -> None:
        self.asked = False

    def ask(self) -> None:
        self.asked = True

    def is_asked(self) -> bool:
        return self.asked


def carry_stop(notices: Notices, desk: Any, over: threading.Event) -> None:
    """In the driver: takes a request to stop to the desk."""
    import ray

    while not over.wait(0.2):
        if notices.stopping:
            log.info("asked to stop: the workers save and end")
            ray.get(desk.ask.remote())
            return


class DeskNotices(Notices):
    """In a process of Ray's: it watches the desk."""

    def __init__(self, desk: Any, *, watches: bool = True) -> None:
        super().__init__()
        if watches:
            threading.Thread(target=self._watch, args=(desk,), name="stop", daemon=True).start()

    def _watch(self, desk: Any) -> None:
        import ray

        while not self.stopping:
            try:
                if ray.get(desk.is_asked.remote()):
                    self.stop()
            except ray.exceptions.RayActorError:  # the driver is gone, and Ray ends this process next
                return
            time.sleep(LOOK_EVERY_S)


class TrainNotices(DeskNotices):
    """In a worker of Ray Train: the leader watches the desk, and all ask Ray about their machines."""

    def __init__(self, desk: Any, leads: bool) -> None:
        super().__init__(desk, watches=leads)

    def leaving(self) -> bool:
        import ray.train

        return ray.train.get_preemption_info() is not None
