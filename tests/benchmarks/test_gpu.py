"""What `gpu.sh` runs where there is no GPU: its parts in order, its page, its kernels interpreted."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import gpu

SCRIPT = Path(gpu.__file__).with_name("gpu.sh")


def test_what_is_asked_for_most_comes_first_and_all_fits_the_budget() -> None:
    names = [name for name, *_ in gpu.parts(tiny=False)]
    assert names[:2] == ["kernel, SpikingJelly's triton", "kernel, SpikingJelly's cuda"]
    assert [name for name in gpu.WHOLE_STEPS if f"{name}, triton" not in names or f"{name}, cuda" not in names] == []
    assert names[-1].startswith("W10") and gpu.BUDGET_S < 540
    assert len(gpu.parts(tiny=True)) == 4


def test_a_part_that_fails_or_takes_too_long_is_a_line_and_the_others_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cases = [
        ("bad", ["-c", "raise SystemExit('no such backend')"], {}, 60.0),
        ("late", ["-c", "import time; time.sleep(60)"], {}, 0.3),
        ("good", ["-c", """print('{"shape": [1, 2, 3], "copy, x": {"min_ms": 1, "bytes_per_s": 4e9}}')"""], {}, 60.0),
    ]
    monkeypatch.setattr(gpu, "parts", lambda tiny: cases)
    gpu.main(["--out", str(tmp_path)])
    text = (tmp_path / "gpu.md").read_text()
    assert "**bad**: no such backend" in text and "**late**: it took more than 0 s" in text
    assert "| copy, x | 1.000 | 4.0 | 100 % |" in text and text in capsys.readouterr().out


@pytest.mark.slow
def test_our_kernel_and_theirs_run_alone_in_tritons_interpreter() -> None:
    code = "from benchmarks.gpu import kernel; import json; print(json.dumps(kernel(True)))"
    environment = {"TRITON_INTERPRET": "1", "PYTHONPATH": "src:.", "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, env=environment,
        cwd=SCRIPT.parents[1],
    )  # fmt: skip
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert found["snnexp, torch.float16"]["min_ms"] > 0, done.stderr


def test_script_is_one_that_bash_reads() -> None:
    subprocess.run(["bash", "-n", str(SCRIPT)], check=True)
