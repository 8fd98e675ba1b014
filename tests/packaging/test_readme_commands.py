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
# Overlays that shorten configs. The lengths of schedules stay, since commands name their checkpoints.
SMALL: dict[str, dict[str, Any]] = {
    "quickstart": {
        "trainer": {"max_steps": 33, "val_check_interval": 11},
        "model": {"init_args": {"network": {"init_args": {"depth": 1}}}},
    },
    "stdlib_wsds": {
        "trainer": {"limit_val_batches": 1, "val_check_interval": 400},
        "model": {"init_args": {"config": LLAMA}},
        "data": {"init_args": {"vocab_size": 300, "context": 8, "batch_size": 2}},
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
    flags = [f"--{key}={json.dumps(value)}" for key, value in leaves(SMALL[family])]
    return [*words, "--trainer.enable_progress_bar=false", *flags]


def leaves(overlay: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The settings of an overlay as the line takes them; a model's config is one."""
    if not isinstance(overlay, dict) or path.endswith(".config"):
        yield path, overlay
        return
    for key, value in overlay.items():
        yield from leaves(value, f"{path}.{key}" if path else key)


def run(line: str, folder: Path) -> str:
    words = shortened(shlex.split(line, comments=True)[1:])
    done = subprocess.run([sys.executable, "-m", "zoo", *words], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_there_are_commands() -> None:
    assert sum(map(len, BLOCKS)) >= 7


@pytest.mark.slow
@pytest.mark.parametrize("lines", [block for block in BLOCKS if block], ids=lambda lines: lines[0][:40])
def test_commands_run_to_their_end(lines: list[str], tmp_path: Path) -> None:
    [config] = re.findall(r"```yaml\n(.*?)```", README, flags=re.S)
    (tmp_path / "my_config.yaml").write_text(config)
    (tmp_path / "my_package.py").write_text(MY_PACKAGE)
    run("zoo cp lm/stdlib_wsds longer.yaml", tmp_path)
    text = (tmp_path / "longer.yaml").read_text()
    longer = text.replace("[400, 800, 1600]", "[400, 800, 1700]")  # the README's 3,200 take twice the time
    assert longer != text
    (tmp_path / "longer.yaml").write_text(longer)
    for line in lines:
        run(line, tmp_path)
    runs = [path.parent for path in tmp_path.glob("runs/**/config.yaml") if path.parent.name == "version_0"]
    assert runs
    assert all(yaml.safe_load((folder / "config.yaml").read_text())["model"] for folder in runs)
