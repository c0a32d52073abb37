"""What people see in MLflow: addresses, the arranged chart page, descriptions; and, slowly, a real browser."""

from __future__ import annotations

import base64
import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from snnexp.tracking.chart_view import MAX_TAG, TAG, importance, view, view_tag
from snnexp.tracking.links import metric_link, view_link
from snnexp.tracking.local import LocalRecord
from snnexp.tracking.note import SUMMARY, run_note
from snnexp.tracking.sweep import _how_it_ended, shown

METRICS = [
    *("train/accuracy", "train/loss", "val/accuracy", "val/loss", "val/dead_neurons", "test/accuracy", "time/epoch_s"),
    *(f"val/dead_fraction/sn{n}" for n in (10, 2, 1)),
    *(f"threshold/{word}/sn1" for word in ("max", "mean", "min")),
]


def test_the_link_to_one_chart_is_encoded() -> None:
    link = metric_link("sqlite:///mlflow.db", "1", ["a", "b"], ["val/dead_neurons"])
    assert link is not None and not set('"[] ') & set(link)
    page, _, query = urlsplit(link).fragment.partition("?")
    asked = {key: values[0] for key, values in parse_qs(query).items()}
    assert page == "/metric" and asked["x_axis"] == "step"
    assert json.loads(asked["runs"]) == ["a", "b"]
    assert json.loads(asked["metric"]) == "val/dead_neurons"
    assert json.loads(asked["plot_metric_keys"]) == ["val/dead_neurons"]
    shared = view_link("http://host", "1", "sweep-1a")
    assert shared is not None and unquote(shared).endswith("&viewStateShareKey=sweep-1a")


def test_the_chart_page_begins_with_accuracy_and_dead_neurons() -> None:
    page = view(METRICS, "tags.x = 'y'")
    sections = [section["name"] for section in page["compareRunSections"]]
    assert sections[:2] == ["Accuracy and dead neurons", "Dead neurons, layer by layer"]
    shown = [chart for chart in page["compareRunCharts"] if not chart["deleted"]]
    assert [chart["metricKey"] for chart in shown][:3] == ["val/accuracy", "val/dead_neurons", "test/accuracy"]
    assert [c["metricKey"][-4:] for c in shown if c["metricSectionId"] == sections[1]] == ["/sn1", "/sn2", "sn10"]
    [learned] = [chart for chart in shown if chart["metricKey"].startswith("threshold/")]
    assert learned["selectedMetricKeys"] == [f"threshold/{word}/sn1" for word in ("min", "mean", "max")]
    # each metric is known to the page, which would else add a chart of its own
    assert {chart["metricKey"] for chart in page["compareRunCharts"]} == set(METRICS)
    assert (page["searchFilter"], page["isAccordionReordered"]) == ("tags.x = 'y'", True)
    assert importance("val/accuracy") < importance("val/dead_neurons") < importance("time/epoch_s")


def test_the_view_is_a_tag_that_the_page_can_read() -> None:
    found = view_tag("sweep-1", METRICS)
    assert found is not None and found[0] == TAG + "sweep-1"
    head, _, body = found[1].partition(";")
    assert head == "deflate"
    assert json.loads(zlib.decompress(base64.b64decode(body))) == view(METRICS)
    many = [f"{split}/{name}/sn{n}" for split in ("train", "val") for name in "abcdefg" for n in range(20)]
    found = view_tag("k", many)
    assert found is None or len(found[1]) <= MAX_TAG


def test_the_description_has_the_table_and_names_the_plots(
    config: dict[str, Any], open_run: Callable[..., Any]
) -> None:
    tracker, folder = open_run({**config, "tracking": {**config["tracking"], "name": "off"}})
    tracker.log_text("layer  neurons  dead\n", SUMMARY)
    for name in ("dead_neurons", "raster"):
        for suffix in (".png", ".pdf"):
            tracker.log_text("x", f"plots/{name}{suffix}")
    note = run_note(LocalRecord(folder), folder.path, "0123")
    assert note.startswith("**digits, fixed, seed 0**")
    assert "```\nlayer  neurons  dead\n```" in note
    assert "(get-artifact?path=plots%2Fdead_neurons.png&run_uuid=0123)" in note
    assert "* `raster`: every spike of one test sample" in note
    tracker.finish("FINISHED")


@pytest.mark.parametrize(
    ("statuses", "complete", "failed", "text"),
    [
        ([], False, 0, "Sweep: it was interrupted before its first run began. The same command starts it."),
        (["FINISHED", "KILLED"], False, 0, "Sweep: 1 finished, 0 failed, 1 killed. It was interrupted;"),
        (["FINISHED"], True, 0, "Sweep: 1 finished, 0 failed, 0 killed."),
        ([], False, 2, "Sweep: 0 finished, 0 failed, 0 killed. 2 more runs ended with errors before they began"),
    ],
)
def test_how_a_sweep_ended_is_said_truly(statuses: list[str], complete: bool, failed: int, text: str) -> None:
    said = " ".join(_how_it_ended(Counter(statuses), complete, Counter(failed=failed), 0, 0))
    assert said.startswith(text)


@pytest.mark.parametrize(
    ("statuses", "text"),
    [
        ([], "Sweep: it ended with an error before its first run began: see above."),
        (["FINISHED"], "Sweep: 1 finished, 0 failed, 0 killed. It ended with an error (see above); the same command"),
    ],
)
def test_what_an_error_ended_was_not_interrupted(statuses: list[str], text: str) -> None:
    """A launcher that refuses, or that fails, without any signal."""
    said = " ".join(_how_it_ended(Counter(statuses), False, Counter(), 0, 0, interrupted=False))
    assert said.startswith(text)


def test_what_is_to_be_copied_stays_in_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    command = "  mlflow ui --backend-store-uri sqlite:////some/where/mlflow.db --workers 1"
    assert shown(f"Serve these pages with:\n{command}") == f"Serve these pages with:\n{command}"
    assert shown("Sweep: 1 finished, 0 failed, 0 killed, 1 still running.").count("\n") == 1


BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="needs Chromium")
def test_a_browser_shows_the_runs_of_a_sweep_at_once(open_run: Callable[..., Any], start_dir: Path) -> None:
    """The address that a sweep prints, opened in a fresh browser: all children, and their charts in our order."""
    from snnexp.tracking.mlflow_store import connect
    from snnexp.tracking.sweep_pages import sweep_pages

    store = connect(f"sqlite:///{start_dir}/mlflow.db", "snnexp")
    assert store is not None
    parent = store.client.create_run(store.experiment_id, run_name="sweep").info.run_id
    for seed in (0, 1):
        made = store.client.create_run(
            store.experiment_id, run_name=f"digits-fixed-s{seed}", tags={"mlflow.parentRunId": parent}
        )
        for epoch in (0, 1, 2):
            for key in ("val/accuracy", "val/dead_neurons", "val/dead_fraction/sn1"):
                store.client.log_metric(made.info.run_id, key, 0.5 + epoch, step=epoch)
    children = store.client.search_runs([store.experiment_id], f"tags.mlflow.parentRunId = '{parent}'")
    pages = sweep_pages(store, {"run_id": parent, "sweep_id": "abc"}, children)
    fragment = pages.lines[0].partition("#")[2]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", "sqlite:///mlflow.db"]
    server = subprocess.Popen(
        [*command, "--workers", "1", "--port", str(port)], cwd=start_dir, stderr=subprocess.DEVNULL
    )
    try:
        while server.poll() is None:
            try:
                urllib.request.urlopen(address).close()
                break
            except OSError:
                time.sleep(0.5)
        options = ["--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={start_dir}/browser"]
        options += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
        options += ["--window-size=1900,1500", "--virtual-time-budget=60000", "--dump-dom", f"{address}/#{fragment}"]
        seen = subprocess.run([str(BROWSER), *options], capture_output=True, text=True).stdout
    finally:
        server.terminate()
        server.wait()
    for text in ("digits-fixed-s0", "digits-fixed-s1", "val/accuracy", "val/dead_neurons"):
        assert text in seen
    assert seen.index("Accuracy and dead neurons") < seen.index("Dead neurons, layer by layer")
    assert "No charts in this section" not in seen.partition("Dead neurons, layer by layer")[0]
