"""A trial tells its metric after each epoch, and the study's pruner says whether to go on: from any process."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from snnexp.errors import SnnexpError
from snnexp.search.conf import SearchConf
from snnexp.search.study import import_optuna, make_pruner, opened
from snnexp.tracking.reasons import telling_line

log = logging.getLogger(__name__)


def report_and_ask(conf: SearchConf, storage: str, max_epochs: int, points: Sequence[tuple[int, float]]) -> bool:
    """Report the (epoch, value) points that the study has not got yet; True if the trial is to be pruned.

    A study that cannot be reached prunes nothing: the training that has been done is worth more.
    """
    optuna = import_optuna()
    pruner = make_pruner(conf, max_epochs)
    try:
        with opened(storage) as database:
            # a sampler that draws nothing: the values of this trial are there
            study = optuna.load_study(
                study_name=conf.study, storage=database, sampler=optuna.samplers.RandomSampler(), pruner=pruner
            )
            frozen = study.get_trials(deepcopy=False)[conf.trial or 0]
            mine = optuna.trial.Trial(study, frozen._trial_id)
            for epoch, value in points:
                if epoch not in frozen.intermediate_values:
                    mine.report(value, epoch)
            return bool(mine.should_prune())
    except Exception as error:
        reason = str(error) if isinstance(error, SnnexpError) else telling_line(error)
        log.warning("trial %d could not be reported, and so it goes on: %s", conf.trial, reason)
        return False
