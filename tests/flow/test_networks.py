"""Networks: the published sizes and names, the start at zero, labels, and bad arguments."""

import math

import pytest
import torch
from torch import Tensor, nn

from zoo.flow import MLP, DiT
from zoo.flow.networks.embeddings import grid_sinusoids, sinusoids

SIZES = {  # (width, depth, heads, patch), and trainable parameters for 32 x 32 x 4 latents
    "B/4": ((768, 12, 12, 4), 131_165_248),
    "B/2": ((768, 12, 12, 2), 131_091_472),
    "L/2": ((1024, 24, 16, 2), 459_137_040),
    "XL/2": ((1152, 28, 16, 2), 676_440_592),
}


def latent_dit(width: int, depth: int, heads: int, patch: int) -> DiT:
    with torch.device("meta"):
        return DiT(32, 4, patch, width, depth, heads, num_classes=1000)


@pytest.mark.parametrize("size", SIZES)
def test_published_sizes(size: str) -> None:
    arguments, count = SIZES[size]
    network = latent_dit(*arguments)
    assert sum(p.numel() for p in network.parameters() if p.requires_grad) == count
    z, t = torch.empty(2, 4, 32, 32, device="meta"), torch.empty(2, device="meta")
    assert network(z, t, t, torch.empty(2, dtype=torch.long, device="meta")).shape == z.shape


def test_names_and_shapes_of_published_checkpoints() -> None:
    """Those of SiT-XL/2 (but for the further channels of its last layer), and the second time embedder."""
    shapes = {name: tuple(value.shape) for name, value in latent_dit(*SIZES["XL/2"][0]).state_dict().items()}
    expected = {
        "x_embedder.proj.weight": (1152, 4, 2, 2),
        "pos_embed": (1, 256, 1152),
        "t_embedder.mlp.0.weight": (1152, 256),
        "t_embedder.mlp.2.weight": (1152, 1152),
        "h_embedder.mlp.0.weight": (1152, 256),
        "y_embedder.embedding_table.weight": (1001, 1152),
        "blocks.27.attn.qkv.weight": (3456, 1152),
        "blocks.27.attn.proj.bias": (1152,),
        "blocks.27.mlp.fc1.weight": (4608, 1152),
        "blocks.27.mlp.fc2.weight": (1152, 4608),
        "blocks.27.adaLN_modulation.1.weight": (6912, 1152),
        "final_layer.linear.weight": (16, 1152),
        "final_layer.adaLN_modulation.1.weight": (2304, 1152),
    }
    assert expected.items() <= shapes.items()
    prefixes = {name.split(".")[0] for name in shapes}
    assert prefixes == {
        "x_embedder",
        "pos_embed",
        "t_embedder",
        "h_embedder",
        "y_embedder",
        "blocks",
        "final_layer",
    }


def small(kind: str, num_classes: int | None = 3, dropout: float = 0.0) -> tuple[nn.Module, Tensor]:
    if kind == "dit":
        network: nn.Module = DiT(
            8, 2, 4, width=16, depth=2, heads=2, num_classes=num_classes, dropout=dropout
        )
    else:
        network = MLP(3, width=16, depth=2, num_classes=num_classes, dropout=dropout)
    return network, torch.randn(4, *network.shape, generator=torch.Generator().manual_seed(0))


def wake(network: nn.Module) -> nn.Module:
    for number, parameter in enumerate(network.parameters()):
        nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(number))
    return network


@pytest.mark.parametrize("kind", ["dit", "mlp"])
def test_networks_start_at_zero_and_learn_from_there(kind: str) -> None:
    network, z = small(kind)
    t, label = torch.rand(4), torch.tensor([0, 1, 2, 3])
    assert not network(z, t, t, label).any()
    (network(z, t, t, label) - 1).square().mean().backward()
    assert any(p.grad is not None and bool(p.grad.any()) for p in network.parameters())


@pytest.mark.parametrize("kind", ["dit", "mlp"])
def test_every_argument_matters_and_items_are_independent(kind: str) -> None:
    network, z = small(kind)
    wake(network)
    t, h, label = (
        torch.tensor([0.9, 0.7, 0.5, 0.3]),
        torch.tensor([0.9, 0.2, 0.5, 0.0]),
        torch.tensor([0, 1, 2, 3]),
    )
    whole = network(z, t, h, label)
    for i in range(4):
        alone = network(z[i : i + 1], t[i : i + 1], h[i : i + 1], label[i : i + 1])
        assert torch.allclose(alone[0], whole[i], atol=1e-5)
    for other in (
        network(z + 0.1, t, h, label),
        network(z, t - 0.1, h, label),
        network(z, t, h + 0.1, label),
        network(z, t, h, (label + 1) % 3),
    ):
        assert ((other - whole).flatten(1).abs().amax(1) > 1e-4).all()


@pytest.mark.parametrize("kind", ["dit", "mlp"])
def test_labels(kind: str) -> None:
    network, z = small(kind)
    wake(network)
    t = torch.rand(4)
    assert network(z, t, t, None).equal(network(z, t, t, torch.full((4,), 3)))  # None is unconditional
    free, _ = small(kind, num_classes=None)
    assert free(z, t, t).shape == z.shape
    with pytest.raises(ValueError, match="num_classes=null and takes no labels"):
        free(z, t, t, torch.zeros(4, dtype=torch.long))
    with pytest.raises(ValueError, match="num_classes must be at least 1"):
        small(kind, num_classes=0)


@pytest.mark.parametrize("kind", ["dit", "mlp"])
def test_dropout_acts_in_training_only(kind: str) -> None:
    network, z = small(kind, dropout=0.5)
    wake(network)
    t = torch.rand(4)
    assert not network(z, t, t).equal(network(z, t, t))
    network.eval()
    assert network(z, t, t).equal(network(z, t, t))


@pytest.mark.parametrize("kind", ["dit", "mlp"])
def test_networks_run_in_bfloat16_with_single_precision_times(kind: str) -> None:
    network, z = small(kind)
    t = torch.rand(4)
    single = wake(network)(z, t, t)
    low = network.bfloat16()(z, t, t)
    assert low.dtype == torch.bfloat16
    assert torch.nn.functional.cosine_similarity(low.float().flatten(), single.flatten(), dim=0) > 0.99


def test_patches_go_back_where_they_came_from() -> None:
    """A patch embedding that copies the pixels, in the order of the last layer, is undone by `unpatchify`."""
    network = DiT(6, 2, 3, width=20, depth=0, heads=1)
    x = torch.randn(2, 2, 6, 6)
    patches = x.unfold(2, 3, 3).unfold(3, 3, 3)  # (B, C, rows, columns, patch, patch)
    tokens = patches.permute(0, 2, 3, 4, 5, 1).reshape(2, 4, 18)
    assert network.unpatchify(tokens).equal(x)
    # The embedding cuts the same patches in the same order.
    nn.init.zeros_(network.x_embedder.proj.weight)
    network.x_embedder.proj.weight.data[0, 1, 2, 0] = 1.0  # feature 0: channel 1 at (2, 0) of each patch
    assert network.x_embedder(x)[:, :, 0].equal(patches[:, 1, :, :, 2, 0].flatten(1))


def test_positions_tell_rows_from_columns() -> None:
    positions = grid_sinusoids(16, 4).reshape(4, 4, 16)
    assert positions[:, 2, :8].equal(positions[:1, 2, :8].expand(4, 8))  # the first half: the column alone
    assert positions[3, :, 8:].equal(positions[3, :1, 8:].expand(4, 8))  # the second half: the row alone
    assert torch.cdist(positions.flatten(0, 1), positions.flatten(0, 1)).fill_diagonal_(9).min() > 0.1


def test_sinusoids_against_their_formula() -> None:
    t = torch.tensor([0.3, 0.9], dtype=torch.float64)
    features = sinusoids(t, 6)
    for i, time in enumerate(t.tolist()):
        for k in range(3):
            angle = time * 10_000 ** (-k / 3)
            assert math.isclose(features[i, k], math.cos(angle)) and math.isclose(
                features[i, 3 + k], math.sin(angle)
            )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input_size": 9}, r"input_size \(9\) must be a multiple of patch_size \(2\)"),
        ({"width": 30}, r"width \(30\) must be a multiple of heads \(4\) and of 4"),
        ({"width": 18, "heads": 2}, "and of 4"),
    ],
)
def test_bad_sizes_are_refused(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DiT(**arguments)
    with pytest.raises(ValueError, match="size must be even"):
        sinusoids(torch.zeros(1), 3)
    with pytest.raises(ValueError, match="multiple of 4"):
        grid_sinusoids(6, 2)
