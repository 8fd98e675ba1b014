"""`BigramBackcopy`: sequences that follow their rules, an exact entropy, draws by (seed, pass, index)."""

import pytest
import torch

from zoo.datamodules import BigramBackcopy


def ready(**options: object) -> BigramBackcopy:
    data = BigramBackcopy(**({"seed": 0} | options))  # type: ignore[arg-type]
    data.setup("fit")
    return data


def test_sequences_follow_their_rules() -> None:
    data = ready(size=4096, batch_size=4096)
    tokens = next(iter(data.train_dataloader()))["tokens"]
    assert tokens.shape == (4096, 33) and tokens[:, 0].eq(0).all() and tokens[:, 1:].min() >= 1
    now, after = tokens[:, 1:-1], tokens[:, 2:]
    copies = (now >= 1) & (now <= 3)
    assert torch.equal(after[copies], tokens[:, :-2][copies])
    assert copies[:, 0].sum() == 0 and copies.any()  # no trigger follows the first token
    counts = torch.zeros(24, 24, dtype=torch.float64)
    counts.index_put_((now[~copies], after[~copies]), torch.ones(()).double(), accumulate=True)
    total = counts.sum(1, keepdim=True)
    error = (counts / total.clamp(min=1) - data.table)[4:]
    bound = 5 * (data.table * (1 - data.table) / total.clamp(min=1)).sqrt()[4:] + 1e-3
    assert (error.abs() <= bound)[total[4:, 0] > 100].all()  # five standard errors


def test_the_entropy_is_that_of_the_draws() -> None:
    """-log p of what was drawn, over 200,000 places: within five standard errors of the exact chain."""
    data = ready(size=8192, batch_size=8192)
    tokens = next(iter(data.train_dataloader()))["tokens"]
    now, after = tokens[:, :-1], tokens[:, 1:]
    surprise = -data.table[now, after].log()
    surprise[(now >= 1) & (now <= 3)] = 0
    means = surprise.mean(1)
    assert abs(means.mean() - data.entropy) < 5 * means.std() / len(means) ** 0.5


def test_draws_depend_on_seed_pass_and_index() -> None:
    one, same, other = ready(), ready(), ready(seed=1)
    batches = [next(iter(data.train_dataloader())) for data in (one, same, other)]
    assert torch.equal(batches[0]["tokens"], batches[1]["tokens"])
    assert not torch.equal(batches[0]["tokens"], batches[2]["tokens"])
    loader = ready(size=64).train_dataloader()
    passes = [batch["tokens"][batch["index"].argsort()] for _ in range(2) for batch in loader]
    assert len(passes) == 2 and not torch.equal(*passes)
    held_out = [next(iter(loader))["tokens"] for loader in (one.val_dataloader(), one.test_dataloader())]
    assert not torch.equal(*held_out)
    assert torch.equal(held_out[0], next(iter(same.val_dataloader()))["tokens"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"triggers": 22}, "triggers must be from 1 to vocab_size - 3.*triggers=22 of vocab_size=24"),
        ({"context": 1}, "context must be at least 2, got 1"),
        ({"concentration": 0.0}, "concentration must be above 0, got 0.0"),
        ({"size": 3}, "size must be at least batch_size=64 and held_out at least 1, got 3 and 512"),
    ],
)
def test_bad_arguments(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ready(**options)


def test_there_is_no_reference() -> None:
    with pytest.raises(ValueError, match="its entropy is the reference"):
        ready().reference_dataloader()
