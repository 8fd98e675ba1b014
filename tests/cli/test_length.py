"""A run's length is said once: a bundled config with another max_steps, and a run that is made longer."""

import re
from pathlib import Path

SMALL = (
    "--model.network.init_args.width", "16", "--model.network.init_args.depth", "1",
    "--model.network.init_args.heads", "2", "--trainer.limit_val_batches", "0",
)  # fmt: skip


def test_another_length_by_max_steps_alone(zoo, workspace):
    run = zoo("fit", "--config", "quickstart", "--trainer.max_steps", "12", *SMALL)
    assert run.code == 0, run.err
    folder = Path("runs/quickstart/version_0")
    longer = ("--trainer.max_steps", "24")
    run = zoo("fit", "--resume", str(folder), *longer)
    assert run.code == 2 and run.err.splitlines()[-1].startswith("error: "), run.err
    assert "it is as long as the run: 12 updates then, 24 now; leave the length as it was, or)" in run.err
    config = folder / "config.yaml"
    allowed = re.sub(r"allow_new_past: false", "allow_new_past: true", config.read_text())
    config.write_text(allowed)
    run = zoo("fit", "--resume", str(folder), *longer)
    assert run.code == 0, run.err
    assert '"past_changed"' in (folder / "events.jsonl").read_text()
