"""``zoo fit|validate|test|predict``: from the words of the line to the exit status."""

import signal
from collections.abc import Sequence

from lightning.pytorch.loggers import CSVLogger

from zoo import events
from zoo._cli.errors import CommandError, print_error, print_out
from zoo._cli.flags import take_flag, take_option
from zoo._cli.noise import quiet
from zoo._cli.parser import OneLineParser
from zoo._cli.policy import import_policy
from zoo._cli.report import command, summary
from zoo._cli.trainer_cli import ZooCLI, build
from zoo.callbacks.graceful_stop import Interrupted, interrupted_checkpoint
from zoo.io import load_checkpoint
from zoo.run_files import truncate
from zoo.runs import CONFIG_FILE, Resume, RunError, RunLock, open_run


def run(verb: str, args: list[str], argv: Sequence[str], trusted: Sequence[str]) -> int:
    """Runs a verb of the Trainer.

    Args:
        verb: fit, validate, test or predict.
        args: The words after the verb, without ``--trust``.
        argv: The whole line, for advice.
        trusted: Packages that configs may name.

    Returns:
        The exit status: 0, or 128 and the signal's number after an interruption.
    """
    resume: Resume | None = None
    lock: RunLock | None = None
    untrained = False
    if verb == "fit":
        args, folders = take_option(
            args, "--resume", "the folder of a run: --resume runs/quickstart/version_0"
        )
        named = any(word.split("=")[0] == "--ckpt_path" for word in args)
    else:
        args, untrained = take_flag(args, "--untrained")
        folders = []
    try:
        if folders:
            resume = open_run(folders[-1], newest=not named, warn=print_error)
            lock = resume.lock
            args = ["--config", str(resume.run / CONFIG_FILE), *args]
        with import_policy(trusted), quiet():
            cli = build(lambda: ZooCLI([verb, *args], trusted, resume, untrained), argv)
            lock = lock or lock_new_run(cli)
            return launch(cli)
    except RunError as error:
        raise CommandError(str(error)) from error
    finally:
        if lock is not None:
            lock.release()


def lock_new_run(cli: ZooCLI) -> RunLock | None:
    """Locks the folder of a new fit, on global rank zero; there is none to lock without a file logger."""
    trainer = cli.trainer
    if cli.subcommand != "fit" or not trainer.is_global_zero or not isinstance(trainer.logger, CSVLogger):
        return None
    folder = events.run_folder(trainer)
    folder.mkdir(parents=True, exist_ok=True)
    return RunLock(folder)


def launch(cli: ZooCLI) -> int:
    """Runs what was built, and says where things are.

    A resumed run's files are first cut back to its checkpoint. This happens before other processes start, or
    beside them under torchrun: they write none of these files.
    """
    trainer = cli.trainer
    dry = bool(trainer.fast_dev_run)  # type: ignore[attr-defined]
    if cli.resume is not None and cli.resume_from is not None and trainer.is_global_zero and not dry:
        checkpoint = load_checkpoint(cli.resume_from, lazy=True)
        truncate(cli.resume.run, checkpoint)
        message = f"resumed from {cli.resume_from.name}"
        done = {"step": checkpoint["global_step"], "epoch": checkpoint["epoch"]}
        events.write_event(cli.resume.run, "resumed", message, **done)
    try:
        cli.start()
        if trainer.is_global_zero and cli.subcommand == "fit" and not dry:
            interrupted_checkpoint(trainer).unlink(missing_ok=True)  # of an interruption that was made up for
            if isinstance(trainer.logger, CSVLogger):  # only then the run has a folder of its own
                folder = events.run_folder(trainer)
                done = {"step": trainer.global_step, "epoch": trainer.current_epoch}
                events.write_event(folder, "completed", "training is complete", **done)
    except Interrupted as stop:
        if not trainer.is_global_zero:
            return 0  # Lightning kills a run one of whose processes failed, and this one did not
        print_resume_command(cli)
        return 128 + stop.signum
    except SystemExit as stop:  # Lightning's, after a KeyboardInterrupt
        if not isinstance(stop.__context__, KeyboardInterrupt):
            raise
        if trainer.is_global_zero and cli.signal_received:
            print_error("stopped at once, without saving")
            print_resume_command(cli)
        return 128 + (cli.signal_received or signal.SIGINT)
    if trainer.is_global_zero and not dry:
        for line in summary(str(cli.subcommand), trainer, cli.model, cli.trust):
            print_out(line)
    return 0


def print_resume_command(cli: ZooCLI) -> None:
    """Says how to go on with a fit that ended early, where it has a folder of its own or was saved."""
    checkpoint = interrupted_checkpoint(cli.trainer)
    if isinstance(cli.trainer.logger, CSVLogger):
        run = events.display_path(events.run_folder(cli.trainer))
        print_error(f"go on with: {command('fit', '--resume', run, *cli.trust)}")
    elif checkpoint.is_file():
        print_error(f"go on with: {OneLineParser.retry} --ckpt_path {events.display_path(checkpoint)}")
