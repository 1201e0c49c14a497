"""When a trial of a sweep is pruned: asynchronous successive halving (Li et al. 2020), on the share of the budget that is used.

Ray Tune's own stop ends a trial's process before it has saved and told MLflow, so the decision goes to the trial by a desk, and the trial
ends itself as any training does that is asked to.
"""

from collections.abc import Callable
from typing import Any

from ray.tune.schedulers import ASHAScheduler

from training.run.ray_stop import StopDesk


class TrialDesk(StopDesk):
    """An actor between the driver and the trials: who is asked to stop, and which are pruned."""

    def __init__(self) -> None:
        super().__init__()
        self._pruned: set[str] = set()

    def prune(self, trial: str) -> None:
        self._pruned.add(trial)

    def goes_on(self, trial: str) -> bool:
        return trial not in self._pruned


# Of the budget; Tune takes `done` for the end of a trial.
SHARE = "share"


class Rung(dict[str, float]):
    """The losses of those that came to one rung. Who passed it without a report counts as recorded, but holds no loss: Tune would else
    take a later report for it, and compare losses of different age."""

    def __init__(self) -> None:
        super().__init__()
        self.passed: set[str] = set()

    def __contains__(self, trial: object) -> bool:
        return super().__contains__(trial) or trial in self.passed


class Rungs(ASHAScheduler):
    """A rung at `grace`, and at each doubling of it: who comes there with a loss above the median of those before is pruned."""

    def __init__(self, grace: float, prune: Callable[[str], object]) -> None:
        """prune: takes the trial's name."""
        super().__init__(time_attr=SHARE, metric="loss", mode="min", max_t=1, grace_period=grace, reduction_factor=2)  # type: ignore[arg-type]
        self._prune = prune
        (bracket,) = self._brackets
        self._rungs = [(share, Rung()) for share, _ in bracket._rungs]
        bracket._rungs = self._rungs  # type: ignore[assignment]

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        if super().on_trial_result(tune_controller, trial, result) == self.STOP:
            self._prune(trial.config["trial"])
        for share, rung in self._rungs:
            if result.get(SHARE, 0.0) >= share:
                rung.passed.add(trial.trial_id)
        return str(self.CONTINUE)
