"""What a run says at its end: where things are, and the one command to type next."""

import shlex
import shutil
import sys
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.model_helpers import is_overridden

from zoo.events import EVENTS_FILE, display_path, run_folder
from zoo.run_files import METRICS_FILE
from zoo.runs import CONFIG_FILE, NamesFiles

_HOOKS = {"test": "test_step", "validate": "validation_step"}


def command(*words: str) -> str:
    """A command to be typed in the user's shell, which may not know the environment that runs now."""
    if Path(sys.argv[0]).parts[-2:] == ("zoo", "__main__.py"):
        return f"{display_path(sys.executable)} -m zoo {shlex.join(words)}"
    script = Path(sys.executable).with_name("zoo")
    known = shutil.which("zoo")
    bare = known is not None and Path(known).resolve() == script.resolve()
    return (
        f"{'zoo' if bare or not script.is_file() else shlex.quote(display_path(script))} {shlex.join(words)}"
    )


def summary(verb: str, trainer: Trainer, model: LightningModule, trust: list[str]) -> list[str]:
    """The last lines of a run.

    Args:
        verb: What was done.
        trainer: Its Trainer.
        model: The module.
        trust: The words ``--trust PKG`` that its config needs, if any.
    """
    run = run_folder(trainer)
    found = [
        *(("picture", path) for path in sorted(run.glob("*.png"))),
        ("metrics", run / METRICS_FILE),
        ("events", run / EVENTS_FILE),
    ]
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    for part in (model, *callbacks):
        if isinstance(part, NamesFiles):
            found += part.written_files().items()
    checkpoint = _checkpoint(trainer) if verb == "fit" else None
    if checkpoint is not None:
        found.append(("checkpoint", checkpoint))
    lines = [f"{verb}: done, in {display_path(run)}"]
    lines += [f"  {name:<11}{display_path(path)}" for name, path in found if path.is_file()]
    if verb == "fit" and checkpoint is None:
        lines.append("  checkpoint none was saved: the period of its ModelCheckpoint was not reached")
    step = next((verb for verb, hook in _HOOKS.items() if is_overridden(hook, model)), None)
    if checkpoint is not None and step is not None and (run / CONFIG_FILE).is_file():
        files = ("--config", display_path(run / CONFIG_FILE), "--ckpt_path", display_path(checkpoint))
        lines.append(f"evaluate it: {command(step, *files, *trust)}")
    return lines


def _checkpoint(trainer: Trainer) -> Path | None:
    """The best checkpoint of the run, which is the last one where no metric is watched."""
    callback = trainer.checkpoint_callback
    best = Path(callback.best_model_path) if isinstance(callback, ModelCheckpoint) else Path()
    return best if best.is_file() else None
