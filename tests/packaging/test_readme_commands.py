"""The shell commands of the README, run to their end as a hook types them, on smaller models."""

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from forked import run_zoo

README = (Path(__file__).resolve().parents[2] / "README.md").read_text()
BLOCKS = [
    [line for line in block.splitlines() if line.startswith("zoo ")]
    for block in re.findall(r"```bash\n(.*?)```", README, flags=re.S)
]
LLAMA = {
    "model_type": "llama", "vocab_size": 300, "hidden_size": 8, "intermediate_size": 8,
    "num_hidden_layers": 1, "num_attention_heads": 1, "max_position_embeddings": 16,
    "tie_word_embeddings": True,
}  # fmt: skip
# Overlays that shorten configs. Schedules take a tenth of their updates, see `tenth`.
SMALL: dict[str, dict[str, Any]] = {
    "quickstart": {
        "trainer": {"max_steps": 33, "val_check_interval": 11},
        "model": {"init_args": {"network": {"init_args": {"depth": 1}}}},
    },
    "stdlib_wsds": {
        "trainer": {"limit_val_batches": 1, "val_check_interval": 4},
        "model": {"init_args": {"config": LLAMA}},
        # A tokenizer in a second, not in ten; tests/configs has the text of the config.
        "data": {"init_args": {"source": "pydoc_topics", "vocab_size": 300, "context": 8, "batch_size": 2}},
    },
    "my_config": {},
}
MY_PACKAGE = """
from torch import nn
import torch
from lightning.pytorch import LightningModule


class Classifier(LightningModule):
    def __init__(self, width: int):
        super().__init__()
        self.network = nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.network(batch["x"]), batch["label"])

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-3)
"""


def shortened(words: list[str]) -> list[str]:
    """A command with its config made small; only a fit takes long."""
    named = words[words.index("--config") + 1] if "--config" in words else ""
    if words[0] != "fit" or not named:
        return words
    family = "stdlib_wsds" if "longer" in named or "wsds" in named else Path(named).stem
    settings = leaves(SMALL[family])
    flags = [f"--{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in settings]
    overlay = ["--config", "short.yaml"] if named == "lm/stdlib_wsds" else []
    return [*words, *overlay, "--trainer.enable_progress_bar=false", *flags]


def leaves(overlay: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The settings of an overlay as the line takes them; a model's config is one."""
    if not isinstance(overlay, dict) or path.endswith(".config"):
        yield path, overlay
        return
    for key, value in overlay.items():
        yield from leaves(value, f"{path}.{key}" if path else key)


def tenth(text: str) -> str:
    """A config of budgets, or the name of a checkpoint, with a tenth of the updates."""
    text = re.sub(r"(budgets: \[.*\])", lambda found: re.sub(r"0\b", "", found[1]), text)
    text = text.replace("warmup: 40 ", "warmup: 4 ").replace("warmup: 40\n", "warmup: 4\n")
    return re.sub(r"(wsds-budget\d+)0(-\w+-step\d+)0\.ckpt", r"\1\2.ckpt", text)


def run(line: str, folder: Path, fresh: bool = False) -> str:
    """What a command printed.

    Args:
        line: As a hook types it.
        folder: Where it is typed.
        fresh: In an interpreter of its own; else in a fork of one that has the imports done.
    """
    words = shortened(shlex.split(line, comments=True)[1:])
    if fresh:
        command = [sys.executable, "-m", "zoo", *words]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        code, said = done.returncode, done.stdout + done.stderr
    else:
        log = folder / "log.txt"
        code, said = run_zoo(words, folder, log), log.read_text()
    assert code == 0, f"{line}\n{said}"
    return said


def test_there_are_commands() -> None:
    assert sum(map(len, BLOCKS)) >= 7


@pytest.mark.slow
@pytest.mark.parametrize("lines", [block for block in BLOCKS if block], ids=lambda lines: lines[0][:40])
def test_commands_run_to_their_end(lines: list[str], tmp_path: Path) -> None:
    [config] = re.findall(r"```yaml\n(.*?)```", README, flags=re.S)
    (tmp_path / "my_config.yaml").write_text(config)
    (tmp_path / "my_package.py").write_text(MY_PACKAGE)
    run("zoo cp lm/stdlib_wsds whole.yaml", tmp_path)
    text = (tmp_path / "whole.yaml").read_text()
    longer = text.replace("[400, 800, 1600]", "[400, 800, 3200]")
    assert longer != text
    (tmp_path / "longer.yaml").write_text(tenth(longer))
    callbacks = yaml.safe_load(tenth(text))["trainer"]["callbacks"]
    (tmp_path / "short.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": callbacks}}))
    said = [run(tenth(line), tmp_path, fresh=number == 0) for number, line in enumerate(lines)]
    for budget, step in re.findall(r"wsds-budget(\d+)-pre-step(\d+)\.ckpt", "\n".join(lines)):
        # A tenth of the schedule was run; the names of the whole one are those of its plan.
        assert lines[0].startswith("zoo plan lm/stdlib_wsds ")
        assert re.search(rf"^{int(budget):,} +{int(step):,} ", said[0], flags=re.M)
    runs = [path.parent for path in tmp_path.glob("runs/**/config.yaml") if path.parent.name == "version_0"]
    assert runs
    assert all(yaml.safe_load((folder / "config.yaml").read_text())["model"] for folder in runs)
