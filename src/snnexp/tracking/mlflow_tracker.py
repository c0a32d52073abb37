"""The MLflow tracker: the local record first, then the store; a store that goes away never stops or slows training.

While the store answers, each call is sent at once (one request per epoch). When a call fails, the tracker says so once
and is *behind*: later calls only write the local record, and now and then (30 s, doubling to 10 min) it tries to catch
up. Catching up compares with what the store holds, so that no (key, step) is ever sent twice, and is the same code that
continues an interrupted run, fills a store from a run that began with tracking=off, and sends what a finished run could
not (`unsent`). Files go a way of their own, often to another machine: where that is blocked, the rest goes on.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import time
from collections.abc import Callable, Iterable
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from snnexp.tracking import chart_view, links
from snnexp.tracking.address import engine_uri
from snnexp.tracking.database import file_identity
from snnexp.tracking.identity import is_bookkeeping
from snnexp.tracking.metrics_log import Entry
from snnexp.tracking.mlflow_runs import create_run, is_missing, is_refusal
from snnexp.tracking.mlflow_store import Store, connect, short_waits
from snnexp.tracking.note import run_note
from snnexp.tracking.reasons import telling_line
from snnexp.tracking.runs import RunFolder, Status
from snnexp.tracking.tracker import OffTracker

if TYPE_CHECKING:
    from snnexp.data.base import DataInfo

log = logging.getLogger(__name__)

RETRY_FIRST_S = 30.0
RETRY_LONGEST_S = 600.0
BATCH = 1000  # MLflow's limit of metrics per request; 100 for parameters and tags


class MlflowTracker(OffTracker):
    """See the module; `OffTracker` is the half that writes the local record."""

    def __init__(self, folder: RunFolder, store: Store, run_id: str) -> None:
        super().__init__(folder)
        self.folder = folder
        self.store = store
        self.run_id: str = run_id
        self._behind = False
        self._sending = False  # an interrupt in the middle of a request leaves it set
        self._files_blocked = self._files_named = False
        self.fresh = False  # made just now, and nothing is in it
        self._database = file_identity(store.uri)
        self._wait_s = RETRY_FIRST_S
        self._next_try = 0.0
        self._monitor: Any = None  # MLflow's sampler of system metrics
        self._inf_named: set[str] = set()

    # --- what the training loop calls ---

    def log_start(self, params: dict[str, Any], tags: dict[str, Any], data: DataInfo | None) -> None:
        """See `Tracker`. A run that was made just now has no parameters that could contradict these."""
        new = self.local.add_params(params)
        words = self.local.add_tags({**tags, "mlflow.note.content": self._note()})
        if data is not None:
            words |= self.local.add_dataset(data)
        known: dict[str, str] | None = {} if self.fresh else None

        def send() -> None:
            self._send_params(new, known, words)
            if data is not None:
                self._send_dataset()

        self._deliver(send)
        self.fresh = False

    def log_params(self, params: dict[str, Any]) -> None:
        """See `Tracker`."""
        new = self.local.add_params(params)
        self._deliver(lambda: self._send_params(new))

    def log_tags(self, tags: dict[str, Any]) -> None:
        """See `Tracker`."""
        new = self.local.add_tags(tags)
        self._deliver(lambda: self._send_tags(new))

    def log_dataset(self, info: DataInfo) -> None:
        """See `Tracker`."""
        tags = self.local.add_dataset(info)

        def send() -> None:
            self._send_dataset()
            self._send_tags(tags)

        self._deliver(send)

    def log_epoch(self, step: int, metrics: dict[str, float]) -> None:
        """See `Tracker`."""
        entry = self.local.add_metrics(step, metrics)
        self._deliver(lambda: self._send_metrics([entry]))

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """See `Tracker`."""
        self._deliver_file(self.local.add_file(path, folder))

    def log_text(self, text: str, name: str) -> None:
        """See `Tracker`."""
        self._deliver_file(self.local.add_text(text, name))

    def finish(self, status: Status) -> None:
        """See `Tracker`. If the store is still away, what is missing stays in the run's folder, and we say where."""
        if self._monitor is not None:
            self._monitor.finish()
            self._monitor = None
        tags = {"status": status, "mlflow.note.content": self._note()}
        try:
            tags = self.local.add_tags(tags)
        except OSError:  # a full disk here does not keep the store from knowing how it ended
            if status == "FINISHED":
                raise
        self._next_try = 0.0  # once more, whatever the back-off says
        self._behind = self._behind or self._sending
        self._files_blocked = False

        def send() -> None:
            self._send_tags(tags)
            self._try_files()
            self.store.client.set_terminated(self.run_id, status)

        with short_waits():  # there is nothing to compute in the meantime, and a user may be waiting for the end
            self._deliver(send)
        if self._behind:
            log.warning(
                "The tracking store %s is still away. Everything is kept in %s; the next snnexp run that uses this "
                "store sends it.",
                self.store.uri,
                self.folder.path,
            )

    def link(self) -> str | None:
        """See `Tracker`."""
        return links.run_link(self.store.uri, self.store.experiment_id, self.run_id)

    # --- keeping up with the store ---

    def _deliver(self, send: Callable[[], None]) -> None:
        if self._behind and time.monotonic() < self._next_try:
            return
        self._sending = True
        try:
            try:
                self._catch_up_and(send)
            except Exception as error:
                why = self._why_gone(error)
                if why is None:
                    raise
                self._begin_again(why)
                send()
        except Exception as error:  # whatever a network, a server or a database can raise
            self._fell_behind(error)
        else:
            self._is_up_to_date()
        self._sending = False

    def _catch_up_and(self, send: Callable[[], None]) -> None:
        if self._behind:
            with short_waits():  # a server that hangs takes 5 s of an epoch now and then, not 30
                self.store.client.get_run(self.run_id)
            self.catch_up()
        send()

    def _why_gone(self, error: Exception) -> str | None:
        if file_identity(self.store.uri) != self._database:
            return "the database was removed while it went on"
        return is_missing(self.store, self.run_id) if is_refusal(error) else None

    def _begin_again(self, why: str) -> None:
        """Send the whole record to a new MLflow run, because the one that this run had is gone."""
        log.warning("MLflow run %s: %s. Its record is sent again from %s.", self.run_id, why, self.folder.path)
        store = connect(self.store.uri, self.store.experiment)
        assert store is not None  # create=True
        self.store, self._database = store, file_identity(store.uri)
        self.run_id = create_run(store, self.folder, self.local)
        self.catch_up()

    def _deliver_file(self, name: str) -> None:
        self.local.unsent_files.add(name)
        self.local.save()
        self._deliver(self._try_files)

    def _fell_behind(self, error: Exception) -> None:
        if not self._behind:
            log.warning(
                "The tracking store %s does not answer (%s). Training goes on; metrics are kept in %s and sent later.",
                self.store.uri,
                telling_line(error),
                self.folder.metrics_path,
            )
            self._behind, self._wait_s = True, RETRY_FIRST_S
            with contextlib.suppress(OSError):  # the same full disk, perhaps; a status RUNNING says as much
                self.folder.update(unsent=True)
        else:
            self._wait_s = min(2 * self._wait_s, RETRY_LONGEST_S)
        self._next_try = time.monotonic() + self._wait_s

    def _is_up_to_date(self) -> None:
        if self._behind:
            log.info("The tracking store answers again; nothing is missing there.")
        self._behind = False
        if self.folder.record.unsent != bool(self.local.unsent_files):
            self.folder.update(unsent=bool(self.local.unsent_files))

    def catch_up(self) -> None:
        """Bring the store up to date with the local record; raises what the store raises."""
        run = self.store.client.get_run(self.run_id)
        self._send_params(self.local.params, known=run.data.params)
        self._send_tags(self.local.tags)
        self._send_dataset()
        there = set()
        for key in run.data.metrics:
            for point in self.store.client.get_metric_history(self.run_id, key):
                there.add((key, point.step))
                # a metrics.jsonl that was lost or damaged is completed, so that nothing is logged a second time
                self.local.metrics.append(point.step, {key: point.value})
        missing = []
        for entry in self.local.metrics.entries:
            new = {key: value for key, value in entry.metrics.items() if (key, entry.step) not in there}
            missing.append(Entry(entry.step, entry.time_ms, new))
        self._send_metrics(missing)
        self._try_files()

    # --- one kind each ---

    def _send_params(
        self, params: dict[str, str], known: dict[str, str] | None = None, tags: dict[str, str] | None = None
    ) -> None:
        """Parameters that the store lacks; `tags` go with them, as far as there is room."""
        from mlflow.entities import Param, RunTag

        if known is None:
            known = self.store.client.get_run(self.run_id).data.params
        for key in sorted(set(params) & set(known)):
            if params[key] != known[key] and not is_bookkeeping(key):
                log.warning("%s is %s, but its MLflow run says %s", key, params[key], known[key])
        new = [Param(key, value) for key, value in params.items() if key not in known]
        words = list(_batches([RunTag(key, value) for key, value in (tags or {}).items()], 100))
        for params_sent, tags_sent in zip_longest(_batches(new, 100), words, fillvalue=()):
            self.store.client.log_batch(self.run_id, params=list(params_sent), tags=list(tags_sent))

    def _send_tags(self, tags: dict[str, str]) -> None:
        from mlflow.entities import RunTag

        for batch in _batches([RunTag(key, value) for key, value in tags.items()], 100):
            self.store.client.log_batch(self.run_id, tags=batch)

    def _send_dataset(self) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        data = self.local.dataset
        if data is None:
            return
        is_address = data["source"].startswith(("http://", "https://"))
        source = {"url": data["source"]} if is_address else {"description": data["source"]}
        entity = Dataset(
            name=data["name"],
            digest=data["digest"],
            source_type="http" if is_address else "local",
            source=json.dumps(source),
            profile=json.dumps(data["profile"]),
        )
        context = [InputTag("mlflow.data.context", "train")]
        self.store.client.log_inputs(self.run_id, datasets=[DatasetInput(dataset=entity, tags=context)])

    def _send_metrics(self, entries: list[Entry]) -> None:
        from mlflow.entities import Metric

        points = []
        for entry in entries:
            # the page of a run lists metrics in the order in which they first came
            for key, value in sorted(entry.metrics.items(), key=lambda item: chart_view.importance(item[0])):
                if math.isinf(value):  # the store would keep 1.797e308
                    if key not in self._inf_named:
                        log.warning("%s is infinite at step %d; MLflow gets nan", key, entry.step)
                    self._inf_named.add(key)
                    value = math.nan
                points.append(Metric(key, value, entry.time_ms, entry.step))
        for batch in _batches(points, BATCH):
            self.store.client.log_batch(self.run_id, metrics=batch, synchronous=True)

    def _try_files(self) -> None:
        """Send the files that are not there yet. Raises only if the store itself is away, not just its artifacts."""
        if self._files_blocked:
            return
        try:
            self._send_files()
        except Exception as error:
            with short_waits():
                run = self.store.client.get_run(self.run_id)  # raises what is wrong with the store as a whole
                if run.info.lifecycle_stage != "active":
                    raise
            self._files_blocked = True
            if not self._files_named:
                self._files_named = True
                self._name_blocked_files(error, run.info.artifact_uri)

    def _name_blocked_files(self, error: Exception, place: str) -> None:
        reason = getattr(error, "strerror", None) or telling_line(error)
        log.warning(
            "Files (plots, weights, texts) cannot be written to %s, the artifact folder of the store %s (%s). "
            "Parameters, metrics and the status go there as usual; the files are kept in %s, and the next snnexp run "
            "that uses this store tries again. Let the server take them (without --no-serve-artifacts), or let this "
            "machine write to that folder.",
            place,
            self.store.uri,
            reason,
            self.folder.path,
        )

    def _send_files(self) -> None:
        for name in sorted(self.local.unsent_files):
            folder, _, _ = name.rpartition("/")
            self.store.client.log_artifact(self.run_id, str(self.local.file(name)), folder or None)
            self.local.unsent_files.discard(name)
            self.local.save()

    def _note(self) -> str:
        return run_note(self.local, self.folder.path, self.run_id)

    def start_system_metrics(self) -> None:
        """Sample CPU, memory, disk, network and GPU every 10 s until `finish`."""
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        self._monitor = SystemMetricsMonitor(self.run_id, resume_logging=True, tracking_uri=engine_uri(self.store.uri))
        self._monitor.start()


def _batches(items: list[Any], size: int) -> Iterable[list[Any]]:
    return (items[i : i + size] for i in range(0, len(items), size))
