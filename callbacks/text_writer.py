"""What `zoo predict` of a language model leaves: its texts, one JSON line each."""

import json
from typing import Any

from lightning.pytorch import Trainer
from typing_extensions import override

from zoo import events
from zoo.callbacks._prediction_writer import JoiningWriter
from zoo.io import append_json, atomic_write, read_json_lines

_SHOWN = 200  # characters of the first text that the terminal gets


class TextWriter(JoiningWriter):
    """Writes the texts of ``zoo predict`` to ``texts.jsonl``, in the order of their global index.

    ``predict_step`` must return a dict with ``index`` (B,), ``tokens`` (B, T) and, where they can be decoded,
    ``text``, a string for each, as `zoo.lm.CausalLM` does. A line holds ``index`` and ``text``, or ``tokens``
    where there is no text.

    Over several processes each writes its share into the run folder, which they must all see; items that a
    sampler repeated are written once. A run that is interrupted leaves no file, and neither does a
    `fast_dev_run`.
    """

    required, optional = ("tokens", "index"), ("text",)
    shares = ".texts"

    @override
    def prepare(self, outputs: dict[str, Any]) -> list[dict[str, Any]]:
        name = "tokens" if outputs.get("text") is None else "text"
        rows = outputs["tokens"].tolist() if name == "tokens" else outputs["text"]
        indices = outputs["index"].tolist()
        return [{"index": index, name: row} for index, row in zip(indices, rows, strict=True)]

    @override
    def write(self, trainer: Trainer, prepared: list[dict[str, Any]]) -> None:
        for line in prepared:
            append_json(self._folder / f"{trainer.global_rank}.jsonl", line)

    @override
    def close(self, trainer: Trainer) -> None:
        pass  # every line is written at once

    @override
    def join(self, trainer: Trainer) -> None:
        lines = [line for share in sorted(self._folder.glob("*.jsonl")) for line in read_json_lines(share)]
        if not lines:
            return
        once = {line["index"]: line for line in lines}
        path = events.run_folder(trainer) / "texts.jsonl"
        atomic_write(
            path, "".join(json.dumps(once[index], ensure_ascii=False) + "\n" for index in sorted(once))
        )
        first = once[min(once)].get("text", "")
        start = f", the first begins {first[:_SHOWN]!r}" if first else ""
        message = f"{len(once)} texts: {events.display_path(path)}{start}"
        events.record(trainer, "texts_written", message, path=path.name, count=len(once))
