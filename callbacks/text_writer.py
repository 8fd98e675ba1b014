"""What `zoo predict` of a language model leaves: its texts, one JSON line each."""

import json
import shutil
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

from zoo import events
from zoo.callbacks._only_one import only_one
from zoo.io import append_json, atomic_write, read_json_lines

_SHOWN = 200  # characters of the first text that the terminal gets


class TextWriter(Callback):
    """Writes the texts of ``zoo predict`` to ``texts.jsonl``, in the order of their global index.

    ``predict_step`` must return a dict with ``index`` (B,), ``tokens`` (B, T) and, where they can be decoded,
    ``text``, a string for each, as `zoo.lm.CausalLM` does. A line holds ``index`` and ``text``, or ``tokens``
    where there is no text.

    Over several processes each writes its share into the run folder, which they must all see; items that a
    sampler repeated are written once. A run that is interrupted leaves no file;
    neither does a `fast_dev_run`.
    """

    def __init__(self) -> None:
        self._writing = False
        self._folder = Path()

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "predict":
            only_one(self, trainer, "they would write the same file")

    @override
    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._writing = not trainer.fast_dev_run  # type: ignore[attr-defined]
        if not self._writing:
            return
        # Only rank zero's answer counts: elsewhere a logger may not know its version.
        self._folder = Path(trainer.strategy.broadcast(str(events.run_folder(trainer) / ".texts")))
        if trainer.is_global_zero:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder.mkdir(parents=True)
        trainer.strategy.barrier("texts")

    @override
    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Appends a batch to this process's share."""
        if not isinstance(outputs, dict) or not {"tokens", "index"} <= outputs.keys():
            raise TypeError(
                "TextWriter needs a predict_step that returns a dict with 'tokens' and 'index' (and 'text'); "
                f"{type(pl_module).__name__} returned {type(outputs).__name__}"
            )
        if not self._writing:
            return
        share = self._folder / f"{trainer.global_rank}.jsonl"
        texts = outputs.get("text")
        kept, rows = ("tokens", outputs["tokens"].tolist()) if texts is None else ("text", texts)
        for index, row in zip(outputs["index"].tolist(), rows, strict=True):
            append_json(share, {"index": index, kept: row})

    @override
    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._writing:
            return
        trainer.strategy.barrier("texts")
        self._writing = False
        if trainer.is_global_zero:
            shares = sorted(self._folder.glob("*.jsonl"))
            lines = [line for share in shares for line in read_json_lines(share)]
            shutil.rmtree(self._folder)
            if lines:
                self._join(trainer, lines)

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if self._writing:
            self._writing = False
            shutil.rmtree(self._folder, ignore_errors=True)

    def _join(self, trainer: Trainer, lines: list[dict[str, Any]]) -> None:
        once = {line["index"]: line for line in lines}
        path = events.run_folder(trainer) / "texts.jsonl"
        atomic_write(
            path, "".join(json.dumps(once[index], ensure_ascii=False) + "\n" for index in sorted(once))
        )
        first = once[min(once)].get("text", "")
        start = f", the first begins {first[:_SHOWN]!r}" if first else ""
        message = f"{len(once)} texts: {events.display_path(path)}{start}"
        events.record(trainer, "texts_written", message, path=path.name, count=len(once))
