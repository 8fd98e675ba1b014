"""Networks of transformers from dicts and from files: parts of composite models, both names of the cache."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import LLAMA, LLAVA, images_and_tokens
from torch import Tensor, nn

from zoo.hf import build_network, cache_argument, load_network, plain_config, read_config


def test_a_vision_language_model_from_a_dict() -> None:
    import copy

    given = copy.deepcopy(LLAVA)
    before = torch.random.get_rng_state()
    network = build_network(given, seed=3, task="image-text-to-text")
    assert given == LLAVA, "the dict is the user's"
    assert torch.equal(torch.random.get_rng_state(), before)
    assert network.training and type(network).__name__ == "LlavaForConditionalGeneration"
    again = build_network(plain_config(network), seed=3, task="image-text-to-text")
    batch = images_and_tokens()
    assert torch.equal(network(**batch).logits, again(**batch).logits)
    other = build_network(LLAVA, seed=4, task="image-text-to-text")
    assert not torch.equal(network(**batch).logits, other(**batch).logits)


def test_a_vision_language_model_from_a_folder(tmp_path: Path) -> None:
    network = build_network(LLAVA, seed=3, task="image-text-to-text").eval()
    network.save_pretrained(tmp_path)  # type: ignore[operator]
    before = torch.random.get_rng_state()
    loaded = load_network(str(tmp_path), task="image-text-to-text")
    assert torch.equal(torch.random.get_rng_state(), before)
    assert loaded.training
    batch = images_and_tokens()
    assert torch.equal(loaded.eval()(**batch).logits, network(**batch).logits)
    with torch.device("meta"):
        shapes = load_network(str(tmp_path), task="image-text-to-text").state_dict()
    assert {name: value.shape for name, value in shapes.items()} == {
        name: value.shape for name, value in network.state_dict().items()
    }
    assert all(value.is_meta for value in shapes.values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "llama"}, "'llama' is not a vision-language model"),
        ({"text_confg": {}}, "llava knows no key 'text_confg'.*text_config"),
        ({"text_config": {**LLAMA, "hiden_size": 4}}, r"config.text_config: llama knows no key 'hiden_size'"),
        (
            {"text_config": {"model_type": "lama"}},
            r"config.text_config: transformers has no model_type 'lama'",
        ),
        (
            {"vision_config": {**LLAVA["vision_config"], "dtype": "float16"}},
            "must not hold 'dtype'.*precision",
        ),
    ],
)
def test_unknown_keys_of_a_part_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_config({**LLAVA, **change}, "image-text-to-text")


def test_an_unknown_task_is_refused() -> None:
    for build in (lambda: build_network(LLAMA, task="text"), lambda: load_network("x", task="text")):  # type: ignore[arg-type]
        with pytest.raises(
            ValueError, match="task must be text-generation or image-text-to-text, got 'text'"
        ):
            build()


@pytest.mark.parametrize("name", ["cache", "past_key_values"])
def test_both_names_of_the_cache_are_known(name: str) -> None:
    class New(nn.Module):
        def forward(self, input_ids: Tensor, cache: Any = None) -> Tensor:
            return input_ids

    class Old(nn.Module):
        def forward(self, input_ids: Tensor, past_key_values: Any = None) -> Tensor:
            return input_ids

    assert cache_argument(New() if name == "cache" else Old()) == name
    with pytest.raises(ValueError, match="Linear cannot continue a text token by token"):
        cache_argument(nn.Linear(1, 1))


def test_the_cache_goes_in_by_the_name_of_the_installed_transformers(
    recwarn: pytest.WarningsRecorder,
) -> None:
    """The same logits with a cache as without, and no warning of a deprecated name."""
    from transformers import DynamicCache

    network = build_network(LLAMA).eval()
    tokens = torch.arange(6)[None]
    cache = DynamicCache(config=network.config)  # type: ignore[arg-type]
    with torch.no_grad():
        network(input_ids=tokens[:, :4], use_cache=True, **{cache_argument(network): cache})
        assert cache.get_seq_length() == 4
        rest = network(input_ids=tokens[:, 4:], use_cache=True, **{cache_argument(network): cache}).logits
        whole = network(input_ids=tokens).logits[:, 4:]
    torch.testing.assert_close(rest, whole)
    assert not [warning for warning in recwarn if "past_key_values" in str(warning.message)]
