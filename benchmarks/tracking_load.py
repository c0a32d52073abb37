"""Many tracked runs from several clients at once: is everything in the store, exactly once, and what does it cost?

    python -m benchmarks.tracking_load --runs 1000 --clients 8 --uri postgresql://mlflow:secret@127.0.0.1/mlflow

Each run is claimed, opened, logged and closed by the program's own code, with as many parameters, tags and metrics as a
real one; only the training in between is left out. Afterwards the store's tables are compared with what was logged.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

EPOCHS, METRICS, PARAMETERS = 5, 60, 130


def config_of(seed: int, uri: str, experiment: str) -> dict[str, Any]:
    """A configuration of the usual size."""
    keys = {f"key{number:03d}": number for number in range(PARAMETERS - 10)}
    tracking = {"name": "mlflow", "uri": uri, "experiment": experiment, "run_name": None, "system_metrics": False}
    return {
        "seed": seed,
        "state_dir": "./runs",
        "dataset": {"name": "digits"},
        "neuron": {"name": "fixed", **keys},
        "trainer": {"resume": "auto"},
        "tracking": tracking,
    }


def one_run(seed: int, uri: str, experiment: str, folder: Path) -> float:
    """The record of one run; returns the seconds it took."""
    from snnexp import interrupts
    from snnexp.config import TrackingConf
    from snnexp.tracking.runs import claim
    from snnexp.tracking.store import open_tracker

    config = config_of(seed, uri, experiment)
    start = time.perf_counter()
    claimed = claim(config, folder / "runs")
    tracker = open_tracker(TrackingConf(**config["tracking"]), claimed, config, start_dir=folder)
    interrupts.release()
    for epoch in range(EPOCHS + 1):
        tracker.log_epoch(epoch, {f"val/quantity{number:02d}": seed + epoch / 100 for number in range(METRICS)})
    tracker.log_text(json.dumps({"seed": seed}), "results.json")
    tracker.finish("FINISHED")
    claimed.finish("FINISHED")
    return time.perf_counter() - start


def client(seeds: list[int], uri: str, experiment: str, folder: str) -> tuple[list[float], float]:
    """One process with its runs, one after the other; returns the seconds of each, and its processor time for all.

    What it imports does not count.
    """
    from snnexp.tracking.mlflow_store import connect

    connect(uri, experiment)
    start = time.process_time()
    seconds = [one_run(seed, uri, experiment, Path(folder)) for seed in seeds]
    return seconds, time.process_time() - start


def verify(uri: str, experiment: str, runs: int) -> dict[str, int]:
    """Count what is in the tables. Raises: AssertionError where something is missing or there twice."""
    from sqlalchemy import create_engine, text

    from snnexp.tracking.address import engine_uri

    ours = f"(SELECT run_uuid FROM runs r JOIN experiments e USING (experiment_id) WHERE e.name = '{experiment}')"
    points = f"SELECT DISTINCT run_uuid, key, step FROM metrics WHERE run_uuid IN {ours}"
    questions = {
        "runs": f"SELECT count(*) FROM {ours} x",
        "finished": f"SELECT count(*) FROM runs WHERE status = 'FINISHED' AND run_uuid IN {ours}",
        "seeds": f"SELECT count(DISTINCT value) FROM params WHERE key = 'seed' AND run_uuid IN {ours}",
        "parameters": f"SELECT count(*) FROM params WHERE run_uuid IN {ours}",
        "metrics": f"SELECT count(*) FROM metrics WHERE run_uuid IN {ours}",
        "different": f"SELECT count(*) FROM ({points}) x",
    }
    engine = create_engine(engine_uri(uri))
    with engine.connect() as connection:
        found = {name: int(connection.execute(text(query)).scalar_one()) for name, query in questions.items()}
    engine.dispose()
    assert found["runs"] == found["finished"] == found["seeds"] == runs, found
    assert found["metrics"] == found["different"] == runs * (EPOCHS + 1) * METRICS, found
    assert found["parameters"] % runs == 0 and found["parameters"] >= runs * (PARAMETERS - 10), found
    return found


def main() -> None:
    """Command line; see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--uri", required=True, help="of the database, which is looked into afterwards")
    parser.add_argument("--through", help="address of an MLflow server on that database, to send the records to")
    options = parser.parse_args()

    from snnexp.tracking.mlflow_store import connect

    experiment = f"load-{time.time():.0f}"
    connect(options.uri, experiment)  # the tables of a new database are made once, as by the parent of a sweep
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        shares = [list(range(options.runs))[number :: options.clients] for number in range(options.clients)]
        shares = [share for share in shares if share]
        where = options.through or options.uri
        start = time.perf_counter()
        # a client that dies ends the measurement with its error
        with ProcessPoolExecutor(len(shares), mp_context=context) as clients:
            asked = [clients.submit(client, share, where, experiment, folder) for share in shares]
            answered = [future.result() for future in asked]
        wall = time.perf_counter() - start
    found = verify(options.uri, experiment, options.runs)
    seconds = [value for values, _ in answered for value in values]
    busy = sum(cpu for _, cpu in answered) / options.runs
    print(json.dumps(found))
    print(
        f"{options.runs} runs from {options.clients} clients in {wall:.0f} s: everything there exactly once. Per run: "
        f"median {statistics.median(seconds):.2f} s, slowest {max(seconds):.2f} s, {busy:.2f} s of processor time; "
        f"{options.runs / wall:.1f} runs/s."
    )


if __name__ == "__main__":
    main()
