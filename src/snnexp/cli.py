"""The command: finds conf/, lets Hydra compose, validates, runs the task, turns every error into one clear message.

Exit codes (DESIGN section 6): 0 done; 2 wrong configuration or data; 130 interrupted; 1 anything else. Heavy imports
(torch, mlflow, ...) happen inside the task, so that help, completion and a misspelt key answer at once.
"""

from __future__ import annotations

import errno
import logging
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from snnexp import __version__

if TYPE_CHECKING:
    from omegaconf import DictConfig

log = logging.getLogger(__name__)

_failures: list[Exception] = []


def conf_dir() -> Path:
    """The folder of configuration files: inside an installed package, or at the top of a checkout."""
    here = Path(__file__).resolve().parent
    # the checkout first: an editable install leaves a stale copy of conf/ beside the package (PITFALLS 3.1)
    for folder in (here.parents[1] / "conf", here / "conf"):
        if (folder / "config.yaml").is_file():
            return folder
    raise SystemExit("snnexp: the configuration folder conf/ was not found beside the package. Reinstall snnexp.")


def main() -> NoReturn:
    """Entry point of the console script; always ends the process with one of the exit codes above."""
    from snnexp.terminal import prepare_terminal

    prepare_terminal()
    arguments = sys.argv[1:]
    if "--help" in arguments or "-h" in arguments:
        from snnexp.helptext import help_text

        _print(help_text(conf_dir()))
        sys.exit(0)
    if "--version" in arguments:
        _print(f"snnexp {__version__}")
        sys.exit(0)
    signal.signal(signal.SIGTERM, _terminate)  # a cluster's stop goes down the same path as Ctrl-C
    sys.exit(_run(arguments))


def _print(text: str) -> None:
    try:
        print(text, flush=True)
    except BrokenPipeError:  # `snnexp --help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _terminate(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _run(arguments: list[str]) -> int:
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # let exceptions reach us instead of Hydra's own exit
    os.environ.setdefault("SNNEXP_START_DIR", os.getcwd())
    from snnexp.allocator import prepare_allocator

    prepare_allocator()  # before anything imports torch
    from snnexp.errors import ConfigError, SnnexpError
    from snnexp.overrides import arranged
    from snnexp.variables import check_variables

    try:
        check_variables()
        sys.argv[1:] = arranged(arguments)
        _hydra_main()
    except KeyboardInterrupt:
        return _fail(130, "interrupted. The same command continues from the last finished epoch.")
    except SnnexpError as error:
        return _fail(error.exit_code, str(error))
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 1
    except Exception as error:
        from snnexp.composition import explain

        message = explain(error) or _not_writable(error)
        if message is not None:
            return _fail(ConfigError.exit_code, message)
        if (message := _disk_full(error)) is not None:
            return _fail(1, message)
        return _fail(1, _unexpected(error))
    return 0


def _fail(code: int, message: str) -> int:
    print(f"snnexp: {'' if code == 130 else 'error: '}{message}", file=sys.stderr, flush=True)
    return code


def _disk_full(error: BaseException) -> str | None:
    if not isinstance(error, OSError) or error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return None
    where = f": {error.filename}" if error.filename else ""
    return (
        f"{error.strerror}{where}. What was finished is kept. Free some disk space (or set state_dir, tracking.uri or "
        "hydra.run.dir to another disk), then give the command again."
    )


def _not_writable(error: BaseException) -> str | None:
    """Hydra makes its dated folder before any code of ours runs, so nobody else can explain it."""
    if not isinstance(error, OSError) or error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
        return None
    return (
        f"{error.filename}: {error.strerror}. Start from a folder that you may write to, or set hydra.run.dir, "
        "state_dir and tracking.uri to one."
    )


def _unexpected(error: BaseException) -> str:
    """One line for an error that nobody foresaw, with the place of the traceback."""
    files = [h.baseFilename for h in logging.getLogger().handlers if isinstance(h, logging.FileHandler)]
    if files:
        where = f"The traceback is in {files[0]}"
    else:
        import traceback

        traceback.print_exception(error)
        where = "The traceback is above"
    return f"{type(error).__name__}: {error}\n{where}. Please report it if you think that snnexp is wrong."


def _hydra_main() -> None:
    import hydra

    from snnexp.config import register_schemas

    register_schemas()
    hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")(_job)()
    if _failures:
        raise _failures.pop()


def _job(cfg: DictConfig) -> float | None:
    """One run (one job of a sweep): validate, then hand over to the task."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    from snnexp.errors import SnnexpError
    from snnexp.tasks import run_task
    from snnexp.validation import validate

    try:
        conf = validate(cfg)
        return run_task(conf, cfg)
    except KeyboardInterrupt:
        log.warning("interrupted")
        raise
    except Exception as error:
        log.exception("%s", error)  # the whole story goes to the job's log, the message to the terminal
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            if isinstance(error, SnnexpError):
                _fail(error.exit_code, str(error))  # the sweep goes on; Hydra raises only the first error at its end
            raise
        _failures.append(error)  # raised by `_hydra_main`: Hydra would print a line of its own before the message
        return None
