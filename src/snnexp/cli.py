"""The command: finds conf/, lets Hydra compose, validates, runs the task, turns every error into one clear message.

Exit codes (DESIGN section 6): 0 done; 2 wrong configuration or data; 130 interrupted; 1 anything else. Heavy imports
(torch, mlflow, ...) happen inside the task, so that help, completion and a misspelt key answer at once.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import sys
import traceback
from typing import TYPE_CHECKING, NoReturn

from snnexp import interrupts, ranks, without_compiler
from snnexp.folders import conf_dir
from snnexp.version import __version__

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from snnexp.search.trial import Outcome

log = logging.getLogger(__name__)

_failures: list[Exception] = []


def main() -> NoReturn:
    """Entry point of the console script; always ends the process with one of the exit codes above."""
    from snnexp.terminal import prepare_terminal

    prepare_terminal()
    arguments = sys.argv[1:]
    if "--help" in arguments or "-h" in arguments:
        from snnexp.helptext import fitted, help_text
        from snnexp.terminal import width

        text = help_text(conf_dir())
        _print(fitted(text, width()) if sys.stdout.isatty() else text)  # a pipe's reader wants an option in one line
        sys.exit(0)
    if "--version" in arguments:
        _print(f"snnexp {__version__}")
        sys.exit(0)
    interrupts.install()  # a cluster's stop and a closed terminal go down the same path as Ctrl-C
    code = _run(arguments)
    interrupts.ending()  # what still runs at exit closes a sweep's record
    ranks.last_words(code)
    _flush()
    sys.exit(code)


def _flush() -> None:
    """Write out what is left, here: at exit Python would print a traceback if the disk is full or the reader gone."""
    for stream, number in ((sys.stdout, 1), (sys.stderr, 2)):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), number)


def _print(text: str) -> None:
    try:
        print(text, flush=True)
    except BrokenPipeError:  # `snnexp --help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run(arguments: list[str]) -> int:
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # let exceptions reach us instead of Hydra's own exit
    os.environ.setdefault("SNNEXP_START_DIR", os.getcwd())
    from snnexp.allocator import prepare_allocator

    prepare_allocator()  # before anything imports torch
    from snnexp.any_run import for_any_run
    from snnexp.claims.arms import single_unless_trained
    from snnexp.errors import ConfigError, SnnexpError
    from snnexp.overrides import arranged
    from snnexp.secrets import guard_logging, mask_arguments
    from snnexp.variables import check_variables

    logging.raiseExceptions = False  # a full disk must not bring a traceback for each line of the log
    guard_logging()
    try:
        ranks.begin()
        check_variables()
        words = single_unless_trained(for_any_run(arranged(mask_arguments(arguments))))
        ranks.refuse("train", sweeps="--multirun" in words)
        sys.argv[1:] = [*words, *ranks.quiet_words()]
        _hydra_main()
    except KeyboardInterrupt:
        interrupts.ending()
        return _fail(130, f"interrupted. The same command continues from {interrupts.kept()}.")
    except SnnexpError as error:
        return _fail(error.exit_code, str(error))
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 1
    except Exception as error:
        from snnexp.composition import explain

        if (message := _disk_full(error)) is not None:
            return _fail(1, message)
        message = explain(error) or _not_writable(error)
        if message is not None:
            return _fail(ConfigError.exit_code, message)
        return _fail(1, _unexpected(error))
    return 0


def _fail(code: int, message: str) -> int:
    from snnexp.secrets import hide

    if (agreed := ranks.note_failure(code)) is not None:
        return agreed  # another process of this run ended first, and said why
    with contextlib.suppress(OSError):  # the disk that stderr goes to may be the full one
        print(f"snnexp: {'' if code == 130 else 'error: '}{hide(message)}", file=sys.stderr, flush=True)
    return code


def _disk_full(error: BaseException) -> str | None:
    """Anywhere in the chain: an error of the disk comes wrapped, or while another error is being handled."""
    seen: BaseException | None = error
    while seen is not None:
        full = isinstance(seen, OSError) and seen.errno in (errno.ENOSPC, errno.EDQUOT)
        if full or "database or disk is full" in str(seen):
            break
        seen = seen.__cause__ or seen.__context__
    if seen is None:
        return None
    what = seen.strerror if isinstance(seen, OSError) else "No space left on device"
    name = getattr(seen, "filename", None)
    return (
        f"{what}{f': {name}' if name else ''}. What was finished is kept. Free some disk space (or set state_dir, "
        "tracking.uri or hydra.run.dir to another disk), then give the command again."
    )


def _not_writable(error: BaseException) -> str | None:
    """Hydra makes its dated folder before any code of ours runs, so nobody else can explain it."""
    if not isinstance(error, OSError):
        return None
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return (
            f"{error.filename}: {error.strerror}. Start from a folder that you may write to, or set hydra.run.dir, "
            "state_dir and tracking.uri to one."
        )
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    in_hydra = any(str(frame.f_globals.get("__name__")).startswith("hydra.") for frame in frames)
    if error.filename is None or not in_hydra or any(frame.f_code is _job.__code__ for frame in frames):
        return None  # not while the folder was made
    return (
        f"{error.filename}: {error.strerror}. This folder cannot be made: choose another hydra.run.dir (of a sweep: "
        "hydra.sweep.dir)."
    )


def _unexpected(error: BaseException) -> str:
    """One line for an error that nobody foresaw, with the place of the traceback."""
    files = [h.baseFilename for h in logging.getLogger().handlers if isinstance(h, logging.FileHandler)]
    if files:
        where = f"The traceback is in {files[0]}"
    else:
        from snnexp.secrets import hide

        with contextlib.suppress(OSError):
            print(hide("".join(traceback.format_exception(error))), file=sys.stderr)
        where = "The traceback is above"
    return f"{type(error).__name__}: {error}\n{where}. Please report it if you think that snnexp is wrong."


def _hydra_main() -> None:
    import hydra

    from snnexp import launchers
    from snnexp.config import register_schemas

    register_schemas()
    launchers.register()
    hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")(_job)()
    if _failures:
        raise _failures.pop()


def _job(cfg: DictConfig) -> float | Outcome | None:
    """One run (one job of a sweep): validate, then hand over to the task."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    from snnexp.errors import SnnexpError
    from snnexp.launchers.worker import prepare_process
    from snnexp.settled import settle_store
    from snnexp.tasks import run_task
    from snnexp.validation import validate

    prepare_process()  # in the worker of a sweep's launcher main() did not run
    if not ranks.several():  # joining other processes asks whether it is there, and then for all of it
        without_compiler.put_off()
    try:
        settle_store(cfg)
        conf = validate(cfg)
        ranks.refuse(conf.task, sweeps=False)
        return run_task(conf, cfg)
    except KeyboardInterrupt:
        log.warning("interrupted")
        interrupts.hand_back()  # in a cluster's job whose time is up: it comes again, and goes on
        raise
    except Exception as error:
        log.exception("%s", error)  # the whole story goes to the job's log, the message to the terminal
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            if isinstance(error, SnnexpError):
                _fail(error.exit_code, str(error))  # the sweep goes on; Hydra raises only the first error at its end
            raise
        _failures.append(error)  # raised by `_hydra_main`: Hydra would print a line of its own before the message
        return None
