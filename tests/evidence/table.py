"""The page of all results, made of the files in ``results/``."""

import json
from typing import Any

from entry import RESULTS, ROOT

TABLE = "tests/evidence/README.md"
ROOMS = {
    "flow": (
        "digits", "mid_training_digits", "mid_training_1d", "gradient_bias", "stability", "adaptive_weight",
        "stage_cost", "step_cost",
    ),
    "schedules": ("schedules_lm", "bigram", "power_law"),
    "sinks": ("attention_cost",),
    "runs": ("resume_matrix", "resume", "kills", "fuzz_configs"),
}  # fmt: skip
HEADER = ["| claim | scale | the paper's number | ours |", "|---|---|---|---|"]


def result(name: str) -> dict[str, Any]:
    """What a script has measured."""
    content: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return content


def line(row: dict[str, str]) -> str:
    """A row of a table."""
    cells = (row["claim"], row["scale"], row["paper"], row["ours"])
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def table() -> str:
    """The page of all results, a section for each room."""
    lines = [
        "# Evidence",
        "",
        "Measured by `make evidence`, from the files in `results/`; what contradicts a paper, or was not",
        "reproduced, is here like the rest. Intervals are of 95 % over seeds unless a row says otherwise.",
    ]
    for room, names in ROOMS.items():
        lines += ["", f"## {room}"]
        for name in names:
            if (RESULTS / f"{name}.json").is_file():
                found = result(name)
                lines += ["", f"`{found['command']}`", "", *HEADER, *map(line, found["rows"])]
    return "\n".join(lines) + "\n"


def update_page() -> None:
    """Writes the page."""
    (ROOT / TABLE).write_text(table())
