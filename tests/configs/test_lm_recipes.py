"""The language models' recipes of full scale on the meta device, against their source, restated here."""

import pytest
import torch
from bundled import RECIPES

from zoo._cli.check import CheckCLI
from zoo._cli.policy import import_policy
from zoo._cli.trainer_cli import build
from zoo.callbacks import WSDS

# Hidden, feed-forward, layers, heads, peak rate (section 2 of the notes on the paper).
SIZES = {
    "lm/levanter/100m": (768, 3072, 12, 12, 1e-3),
    "lm/levanter/300m": (1024, 2048, 24, 16, 5e-4),
    "lm/levanter/600m": (1536, 6144, 24, 32, 5e-4),
}
VOCABULARY = 50_304


def made(name: str) -> CheckCLI:
    with import_policy([]):
        return build(lambda: CheckCLI(["fit", "--config", name]), ["check", name])


def test_every_recipe_is_here() -> None:
    assert sorted(SIZES) == [name for name in RECIPES if name.startswith("lm/")]


@pytest.mark.slow
@pytest.mark.parametrize("name", SIZES)
def test_recipe(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cli = made(name)
    hidden, inner, layers, heads, peak = SIZES[name]
    config = cli.model.network.config
    assert (config.hidden_size, config.intermediate_size) == (hidden, inner)
    assert (config.num_hidden_layers, config.num_attention_heads) == (layers, heads)
    assert config.num_key_value_heads == heads and config.max_position_embeddings == 4096
    # Two embeddings; four matrices of attention, three of the gated layer and two norms a layer; a norm.
    count = 2 * VOCABULARY * hidden + layers * (4 * hidden**2 + 3 * hidden * inner + 2 * hidden) + hidden
    assert sum(parameter.numel() for parameter in cli.model.parameters()) == count
    optimizer = cli.model.configure_optimizers()
    matrices, others = optimizer.param_groups
    assert (matrices["weight_decay"], others["weight_decay"]) == (0.1, 0.0)
    body = layers * (4 * hidden**2 + 3 * hidden * inner)
    assert sum(p.numel() for p in matrices["params"]) == body + VOCABULARY * hidden  # the head, not tied
    assert (matrices["lr"], matrices["betas"], matrices["eps"]) == (peak, (0.9, 0.95), 1e-8)
    # One step without values: shapes fit, and the loss reaches every parameter. transformers looks for packed
    # sequences by reading one of the values that there are none of.
    monkeypatch.setattr("transformers.masking_utils.find_packed_sequence_indices", lambda position_ids: None)
    tokens = torch.zeros(1, 65, dtype=torch.int64, device="meta")
    loss = cli.model.loss({"tokens": tokens, "index": torch.zeros(1, dtype=torch.int64)})
    loss.backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in cli.model.parameters())
    # 1,024 sequences an update, and the authors' six breakpoints.
    trainer = cli.config["fit"]["trainer"]
    assert trainer["devices"] * cli.datamodule.batch_size * trainer["accumulate_grad_batches"] == 1024
    [owner] = [c for c in cli.trainer.callbacks if isinstance(c, WSDS)]
    steps = [step for budget in owner.schedule.budgets for step in (budget.pre, budget.post)]
    assert steps == [11_250, 12_500, 23_750, 26_250, 48_750, 53_750]
    assert owner.schedule.end == 53_750 and cli.trainer.max_steps == -1  # its length is the run's
    assert owner.schedule.factor(1000) == 0.5 and owner.schedule.factor(12_499) == pytest.approx(0.10072)
    assert cli.trainer.gradient_clip_val == 1.0
    assert all(
        step * trainer["accumulate_grad_batches"] % trainer["val_check_interval"] == 0 for step in steps
    )
