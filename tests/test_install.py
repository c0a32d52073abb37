"""The wheel: conf/ travels inside, and the installed command runs its default job from any folder."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    return path


def fresh_environment(folder: Path) -> Path:
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    return folder / "bin"


def clean() -> dict[str, str]:
    """The environment without what would lead Python to this checkout, or the command to somebody's store and data."""
    return {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "MLFLOW", "SNNEXP"))}


def run_default_job(command: Path, folder: Path, *words: str, least: float = 0.95) -> None:
    folder.mkdir()
    done = subprocess.run([command, *words], cwd=folder, capture_output=True, text=True, env=clean())
    assert done.returncode == 0, done.stderr
    accuracy = float(done.stdout.split("test: accuracy ")[1].split(",")[0])
    assert accuracy >= least
    assert (folder / "mlflow.db").is_file()


def test_every_configuration_file_is_in_the_wheel(wheel: Path) -> None:
    ours = {str(path.relative_to(ROOT)) for path in (ROOT / "conf").rglob("*.yaml")}
    theirs = {name.removeprefix("snnexp/") for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".yaml")}
    assert ours == theirs
    assert "snnexp/py.typed" in zipfile.ZipFile(wheel).namelist()  # type checkers read our annotations
    assert len(ours) > 80


def test_installed_wheel_runs_the_default_job(wheel: Path, tmp_path: Path) -> None:
    """The wheel alone is installed; its dependencies are lent by this environment."""
    env = tmp_path / "env"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", env], check=True)
    bin_dir = env / "bin"
    (site,) = (tmp_path / "env" / "lib").glob("python*/site-packages")
    (site / "lent.pth").write_text(sysconfig.get_paths()["purelib"] + "\n", encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "--python", bin_dir / "python"]
    subprocess.run([*pip, "install", "-q", "--no-deps", "--no-index", wheel], check=True)
    where = subprocess.run(
        [bin_dir / "python", "-c", "import snnexp; print(snnexp.__file__)"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=clean(),
    )
    assert where.stdout.startswith(str(site)), where
    run_default_job(bin_dir / "snnexp", tmp_path / "work", "trainer.max_epochs=2", least=0.8)  # chance is 0.1


@pytest.mark.slow
def test_wheel_with_its_own_dependencies(wheel: Path, tmp_path: Path) -> None:
    bin_dir = fresh_environment(tmp_path / "env")
    subprocess.run([bin_dir / "pip", "install", "-q", "-c", ROOT / "constraints.txt", wheel], check=True)
    run_default_job(bin_dir / "snnexp", tmp_path / "work")
