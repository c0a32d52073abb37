"""The wheel: conf/ travels inside, and the installed command runs its default job from any folder."""

from __future__ import annotations

import json
import os
import re
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


def borrower(folder: Path) -> tuple[Path, Path, list[str | Path]]:
    """An environment with nothing of its own, lent this one's packages: site-packages, bin and pip's command for it."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    (site,) = (folder / "lib").glob("python*/site-packages")
    (site / "lent.pth").write_text(sysconfig.get_paths()["purelib"] + "\n", encoding="utf-8")
    return site, folder / "bin", [sys.executable, "-m", "pip", "--python", folder / "bin" / "python"]


def test_installed_wheel_runs_the_default_job(wheel: Path, tmp_path: Path) -> None:
    """The wheel alone is installed; its dependencies are lent by this environment."""
    site, bin_dir, pip = borrower(tmp_path / "env")
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


@pytest.mark.parametrize(
    ("version", "stays"),
    [
        ("2.11.0+cu128", True),
        pytest.param("2.9.0", True, marks=pytest.mark.slow),
        pytest.param("2.8.0", False, marks=pytest.mark.slow),
    ],
)
def test_a_torch_that_is_there_stays(wheel: Path, tmp_path: Path, version: str, stays: bool) -> None:
    """docs/installing.md, as pip resolves it: only snnexp is new. This torch is one in name, before the lent one."""
    site, _, pip = borrower(tmp_path / "env")
    about = site / f"torch-{version}.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\n", encoding="utf-8")
    there, report = tmp_path / "there.txt", tmp_path / "report.json"
    there.write_text(f"torch=={version}\n", encoding="utf-8")
    words = ("install", "--no-index", "--dry-run", "--report", report, "-c", there, wheel)
    done = subprocess.run([*pip, *words], capture_output=True, text=True)
    assert (done.returncode == 0) == stays, done.stderr
    if stays:
        new = [item["metadata"]["name"] for item in json.loads(report.read_text(encoding="utf-8"))["install"]]
        assert new == ["snnexp"]
    else:
        assert "depends on torch<3 and >=2.9" in done.stdout + done.stderr


def test_links_of_the_package_page_are_absolute(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (name,) = [name for name in archive.namelist() if name.endswith("dist-info/METADATA")]
    text = archive.read(name).decode()
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert len(links) > 15 and all(link.startswith(("https://", "#")) for link in links)
    assert re.search(r"!\[[^\]]*\]\(https://[^)]+/raw/main/docs/images/compare\.png\)", text)
    assert "](https://snntorch" not in text and "](https://github.com/jeshraghian/snntorch)" in text


@pytest.mark.slow
def test_wheel_with_its_own_dependencies(wheel: Path, tmp_path: Path) -> None:
    bin_dir = fresh_environment(tmp_path / "env")
    subprocess.run([bin_dir / "pip", "install", "-q", "-c", ROOT / "constraints.txt", wheel], check=True)
    run_default_job(bin_dir / "snnexp", tmp_path / "work")
