"""A real language model through `CausalLM`, where its weights are at hand."""

import os
from pathlib import Path

import pytest
import torch

from zoo.hf import Generation
from zoo.lm import CausalLM

FOLDER = Path(os.environ.get("ZOO_REAL_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data")
STORY = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day, "
    "she saw a big, red ball."
)


@pytest.fixture(scope="module")
def model() -> CausalLM:
    folder = FOLDER / "stories260k"
    if not folder.is_dir():
        pytest.skip(
            f"stories260k is not in {FOLDER}; name its folder in the environment variable ZOO_REAL_DATA"
        )
    return CausalLM(pretrained=str(folder), generation=Generation(temperature=0), seed=0)


def test_stories260k(model: CausalLM) -> None:
    from transformers import AutoTokenizer

    assert sum(parameter.numel() for parameter in model.parameters()) == 260_032  # tied, so counted once
    tokenizer = AutoTokenizer.from_pretrained(FOLDER / "stories260k")
    tokens = model.generate(torch.tensor([[1]]), torch.arange(1), 200)
    text = tokenizer.decode(tokens[0], skip_special_tokens=True)
    assert text.startswith(STORY), text
    with torch.no_grad():
        loss = model.eval().loss({"tokens": tokens, "index": torch.arange(1)})
    assert loss.item() == pytest.approx(0.47, abs=0.03)  # as measured elsewhere, on texts of other lengths


def test_sampling_stories(model: CausalLM) -> None:
    """A drawn story is that of its number, whatever it is drawn with."""
    drawn = CausalLM(
        pretrained=str(FOLDER / "stories260k"), generation=Generation(temperature=1.0, top_k=50), seed=1
    )
    prompts, index = torch.full((4, 1), 1), torch.arange(4)
    together = drawn.generate(prompts, index, 40)
    assert len({tuple(row) for row in together.tolist()}) == 4
    assert drawn.generate(prompts[2:3], index[2:3], 40).equal(together[2:3])
