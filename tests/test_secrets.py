"""A password in an address is nowhere but in the process that needs it."""

from __future__ import annotations

import io
import logging
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from snnexp import secrets

SECRET = "pl4nted-S3cret"


@pytest.fixture(autouse=True)
def forgetful(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(secrets.VARIABLE, "")


@pytest.mark.parametrize(
    ("address", "masked"),
    [
        (f"http://u:{SECRET}@host:5000", "http://u:***@host:5000"),
        (f"https://{SECRET}@host/x", "https://***@host/x"),
        (f"http://host:5000/?token={SECRET}&a=1", "http://host:5000/?token=***&a=1"),
        (f"https://h/?access_token={SECRET}", "https://h/?access_token=***"),
        (f"postgresql://u:{SECRET}@h/db?sslmode=x&password={SECRET}", "postgresql://u:***@h/db?sslmode=x&password=***"),
        (f"postgresql://u:{SECRET}/?@x@h/db", "postgresql://u:***@h/db"),
        ("postgresql://user@host/db", "postgresql://user@host/db"),
        ("http://127.0.0.1:5000/a@b", "http://127.0.0.1:5000/a@b"),
        ("sqlite:////data/a:b@c/mlflow.db", "sqlite:////data/a:b@c/mlflow.db"),
    ],
)
def test_an_address_is_masked_and_revealed(address: str, masked: str) -> None:
    assert secrets.mask(address) == masked
    assert secrets.mask(masked) == masked
    assert secrets.reveal(masked) == address


def test_two_passwords_of_one_user_are_kept_apart() -> None:
    first, second = secrets.mask("http://u:one@h"), secrets.mask("http://u:two@h")
    assert (secrets.reveal(first), secrets.reveal(second)) == ("http://u:one@h", "http://u:two@h")


def test_the_command_line_is_masked_where_it_is_read() -> None:
    typed = [
        f"tracking.uri=http://u:{SECRET}@h",
        f"'+tracking={{uri: http://u:{SECRET}@h}}'",
        f'tracking.uri="http://u:{SECRET}@h?token={SECRET}&x=1"',
        f"tracking.uri=http://u:{SECRET}@h,http://u:{SECRET}@g",
        f"traking.uri=http://u:{SECRET}@h",
        "seed=1",
        "-m",
        f"hydra.sweeper.storage=postgresql://u:{SECRET}@h/db",
    ]
    masked = secrets.mask_arguments(typed)
    assert not any(SECRET in argument for argument in masked)
    assert masked[0] == "tracking.uri=http://u:***@h"
    assert masked[2] == 'tracking.uri="http://u:***@h?token=***&x=1"'
    assert masked[5:] == ["seed=1", "-m", "hydra.sweeper.storage=postgresql://u:***@h/db"]
    config = OmegaConf.create({"hydra": {"sweeper": {"storage": f"postgresql://u:{SECRET}@h/db"}}})
    assert secrets.mask_composed(config).hydra.sweeper.storage == "postgresql://u:***@h/db"


def test_texts_and_logs_of_others_are_cleaned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "env-password")
    secrets.mask(f"http://u:{SECRET}@h:1/")
    secrets.guard_logging()
    assert SECRET not in secrets.hide(f"HTTPConnectionPool: http://u:{SECRET}@h:1/api failed")
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    logger = logging.getLogger("somebody.else")
    logger.addHandler(handler)
    try:
        raise ValueError(f"no answer from http://u:{SECRET}@h:1/api, env-password")
    except ValueError:
        logger.exception("request to %s", f"http://u:{SECRET}@h:1/api")
    logger.removeHandler(handler)
    assert "no answer from http://u:***@h:1/api" in stream.getvalue()
    assert SECRET not in stream.getvalue() and "env-password" not in stream.getvalue()


@pytest.mark.parametrize("way", ["argument", "file", "environment", "sweep"])
def test_nothing_that_a_command_leaves_has_the_password(tmp_path: Path, way: str, snnexp) -> None:
    address = f"http://u:{SECRET}@127.0.0.1:9/?token={SECRET}2"  # nobody answers there
    small = ["trainer=smoke", "model.spec=FC-SN", "dataset.limit_train=32", "dataset.limit_val=16"]
    env = {}
    if way == "file":
        (tmp_path / "mine" / "tracking").mkdir(parents=True)
        (tmp_path / "mine" / "tracking" / "mine.yaml").write_text(f"name: mlflow\nuri: {address}\n")
        small += ["--config-dir", "mine", "tracking=mine"]
    elif way == "environment":
        env["MLFLOW_TRACKING_URI"] = address
    else:
        small.append(f"tracking.uri='{address}'")
    if way == "sweep":
        small = ["-m", "seed=0,1", *small]
    done = snnexp(*small, env=env)
    assert done.returncode == 2, done.stderr
    assert "http://u:***@127.0.0.1:9" in done.stderr
    assert SECRET not in done.stdout + done.stderr
    where = [path for path in tmp_path.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]
    assert where == ([tmp_path / "mine" / "tracking" / "mine.yaml"] if way == "file" else [])


def test_child_processes_know_the_whole_address() -> None:
    masked = secrets.mask(f"http://u:{SECRET}@h")
    script = "import sys\nfrom snnexp.secrets import reveal\nprint(reveal(sys.argv[1]))"
    done = subprocess.run([sys.executable, "-c", script, masked], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"http://u:{SECRET}@h"


def test_the_query_of_a_file_is_masked_and_its_folders_are_not() -> None:
    assert secrets._split("sqlite:///a?token=b/p.db") == ("sqlite:///a?token=b/p.db", [])
    assert secrets._split("sqlite:///p.db?password=pw12") == ("sqlite:///p.db?password=***", ["pw12"])
