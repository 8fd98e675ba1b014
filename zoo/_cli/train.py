"""``zoo fit|validate|test|predict``: from the words of the line to the exit status."""

import signal
from collections.abc import Sequence

from lightning.pytorch.loggers import CSVLogger

from zoo import events
from zoo._cli.errors import complain, say
from zoo._cli.interrupt import Interrupted, checkpoint_path
from zoo._cli.noise import quiet
from zoo._cli.parser import OneLineParser
from zoo._cli.policy import import_policy
from zoo._cli.report import command, summary
from zoo._cli.runs import CONFIG_FILE, Lock, Resume, open_run, split_resume, truncate
from zoo._cli.trainer_cli import ZooCLI, build
from zoo.io import load_checkpoint


def run(verb: str, args: list[str], words: Sequence[str], trusted: Sequence[str]) -> int:
    """Runs a verb of the Trainer.

    Args:
        verb: fit, validate, test or predict.
        args: The words after the verb, without ``--trust``.
        words: The whole line, for advice.
        trusted: Packages that configs may name.

    Returns:
        The exit status: 0, or 128 and the signal's number after an interruption.
    """
    resume: Resume | None = None
    args, untrained = split_untrained(verb, args)
    if verb == "fit":
        args, folder = split_resume(args)
        if folder is not None:
            named = any(word.split("=")[0] == "--ckpt_path" for word in args)
            resume = open_run(folder, newest=not named)
            args = ["--config", str(resume.run / CONFIG_FILE), *args]
    lock = resume.lock if resume else None
    try:
        with import_policy(trusted), quiet():
            cli = build(lambda: ZooCLI([verb, *args], trusted, resume, untrained), words)
            lock = lock or take_folder(cli)
            return launch(cli)
    finally:
        if lock is not None:
            lock.release()


def split_untrained(verb: str, args: Sequence[str]) -> tuple[list[str], bool]:
    """Takes ``--untrained`` out of the words after a verb that evaluates."""
    rest = [word for word in args if verb == "fit" or word != "--untrained"]
    return rest, len(rest) < len(args)


def take_folder(cli: ZooCLI) -> Lock | None:
    """Locks the folder of a new fit, on global rank zero; there is none to lock without a file logger."""
    trainer = cli.trainer
    if cli.subcommand != "fit" or not trainer.is_global_zero or not isinstance(trainer.logger, CSVLogger):
        return None
    folder = events.run_folder(trainer)
    folder.mkdir(parents=True, exist_ok=True)
    return Lock(folder)


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
            checkpoint_path(trainer).unlink(missing_ok=True)  # of an interruption that was made up for
            if isinstance(trainer.logger, CSVLogger):  # only then the run has a folder of its own
                folder = events.run_folder(trainer)
                done = {"step": trainer.global_step, "epoch": trainer.current_epoch}
                events.write_event(folder, "completed", "training is complete", **done)
    except Interrupted as stop:
        if not trainer.is_global_zero:
            return 0  # Lightning kills a run one of whose processes failed, and this one did not
        tell_resume(cli, f"{stop}" if dry else f"{stop}; saved {events.shown(checkpoint_path(trainer))}")
        return 128 + stop.signum
    except SystemExit as stop:
        if not isinstance(stop.__context__, KeyboardInterrupt):
            raise
        if trainer.is_global_zero and cli.interrupt.received:
            tell_resume(cli, "stopped at once, without saving")
        return 128 + (cli.interrupt.received or signal.SIGINT)
    finally:
        cli.interrupt.release()
    if trainer.is_global_zero and not dry:
        for line in summary(str(cli.subcommand), trainer, cli.model, cli.trust):
            say(line)
    return 0


def tell_resume(cli: ZooCLI, text: str) -> None:
    """Says how a fit ended early and, where it has a folder of its own, how to go on."""
    complain(text)
    if isinstance(cli.trainer.logger, CSVLogger):
        run = events.shown(events.run_folder(cli.trainer))
        complain(f"go on with: {command('fit', '--resume', run, *cli.trust)}")
    elif checkpoint_path(cli.trainer).is_file():
        complain(
            f"go on with: {OneLineParser.retry} --ckpt_path {events.shown(checkpoint_path(cli.trainer))}"
        )
