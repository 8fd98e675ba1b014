"""A real language model without a sink, where its weights are at hand: nothing is reported of it."""

import os
from pathlib import Path

import pytest

from zoo.hf import load_network
from zoo.sinks import analyze

FOLDER = Path(os.environ.get("ZOO_REAL_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data")


def test_stories260k_has_no_sink() -> None:
    folder = FOLDER / "stories260k"
    if not folder.is_dir():
        pytest.skip(
            f"stories260k is not in {FOLDER}; name its folder in the environment variable ZOO_REAL_DATA"
        )
    from transformers import AutoTokenizer

    text = "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. " * 8
    tokens = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt")["input_ids"]
    report = analyze(load_network(str(folder)), tokens)
    assert report.layers == 5 and report.sinks == []
    assert report.scalars["first_token_heads"] == 0
    assert report.scalars["first_token"] < 0.06  # .01 to .06 in every head, as was measured elsewhere
