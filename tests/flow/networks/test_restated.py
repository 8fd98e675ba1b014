"""Each network against its equations, restated: sums and matrices over a flat state dict, in float64."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from zoo.flow import MLP, DhariwalUNet, DiT, EDM2UNet, SongUNet

F64 = torch.float64
Weights = dict[str, Tensor]
SMALL: dict[str, Any] = {"input_size": 8, "in_channels": 2, "width": 8, "width_multipliers": [1, 2],
                         "blocks": 1, "attention_sizes": [4], "num_classes": 3}  # fmt: skip


def silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def linear(p: Weights, name: str, x: Tensor) -> Tensor:
    return torch.einsum("bi,oi->bo", x, p[f"{name}.weight"]) + p.get(
        f"{name}.bias", torch.zeros((), dtype=F64)
    )


def correlate(x: Tensor, weight: Tensor, border: int) -> Tensor:
    """A convolution as a sum over shifts."""
    size = weight.shape[-1]
    wide = x.new_zeros(*x.shape[:2], x.shape[2] + 2 * border, x.shape[3] + 2 * border)
    wide[:, :, border : border + x.shape[2], border : border + x.shape[3]] = x
    rows, columns = wide.shape[2] - size + 1, wide.shape[3] - size + 1
    total = torch.zeros((), dtype=F64)
    for i in range(size):
        for j in range(size):
            part = wide[:, :, i : i + rows, j : j + columns]
            total = total + torch.einsum("oc,bcyx->boyx", weight[:, :, i, j], part)
    return total


def resample(x: Tensor, how: str, taps: list[int], pad: int | None = None) -> Tensor:
    """Filters and halves or doubles by one matrix for rows and columns."""
    size, count = x.shape[-1], len(taps)
    f = [tap / sum(taps) for tap in taps]
    pad = (count - 1) // 2 if pad is None else pad
    if how == "keep":
        return x
    if how == "down":
        matrix = torch.zeros((size + 2 * pad - count) // 2 + 1, size, dtype=F64)
        for i in range(len(matrix)):
            for k in range(count):
                if 0 <= 2 * i + k - pad < size:
                    matrix[i, 2 * i + k - pad] = f[k]
    else:
        matrix = torch.zeros(2 * size, size, dtype=F64)
        for i in range(2 * size):
            for n in range(size):
                if 0 <= i - 2 * n + pad < count:
                    matrix[i, n] = 2 * f[i - 2 * n + pad]
    return torch.einsum("iy,jx,bcyx->bcij", matrix, matrix, x)


def conv(p: Weights, name: str, x: Tensor, border: int | None = None) -> Tensor:
    weight = p[f"{name}.weight"]
    border = weight.shape[-1] // 2 if border is None else border
    return correlate(x, weight, border) + p[f"{name}.bias"][None, :, None, None]


def group_norm(p: Weights, name: str, x: Tensor, eps: float) -> Tensor:
    channels = x.shape[1]
    groups = min(32, channels // 4)
    out = torch.empty_like(x)
    for items in torch.arange(channels).reshape(groups, -1):
        part = x[:, items]
        mean = part.mean((1, 2, 3), keepdim=True)
        variance = ((part - mean) ** 2).mean((1, 2, 3), keepdim=True)
        out[:, items] = (part - mean) / (variance + eps) ** 0.5
    return out * p[f"{name}.weight"][:, None, None] + p[f"{name}.bias"][:, None, None]


def attend(qkv: Tensor, heads: int, treat: Callable[[Tensor], Tensor] = lambda x: x) -> Tensor:
    """Channel (head, feature, query/key/value), as the checkpoints order them; one head after another."""
    batch, channels, height, width = qkv.shape
    features = channels // 3 // heads
    flat = qkv.reshape(batch, channels, height * width)
    outs = []
    for head in range(heads):
        start = head * features * 3
        q, k, v = (treat(flat[:, start + part : start + 3 * features : 3]) for part in range(3))
        scores = torch.einsum("bfi,bfj->bij", q, k) / math.sqrt(features)
        weights = torch.exp(scores - scores.amax(-1, keepdim=True))
        weights = weights / weights.sum(-1, keepdim=True)
        outs.append(torch.einsum("bij,bfj->bfi", weights, v))
    return torch.cat(outs, 1).reshape(batch, channels // 3, height, width)


def block(
    p: Weights,
    name: str,
    x: Tensor,
    e: Tensor,
    how: str = "keep",
    *,
    adm: bool,
    taps: list[int],
    heads: int = 1,
) -> Tensor:
    eps, s = (1e-5, 1.0) if adm else (1e-6, math.sqrt(0.5))
    y = conv(p, f"{name}.conv0", resample(silu(group_norm(p, f"{name}.norm0", x, eps)), how, taps))
    a = linear(p, f"{name}.affine", e)[:, :, None, None]
    if adm:
        half = a.shape[1] // 2
        y = group_norm(p, f"{name}.norm1", y, eps) * (1 + a[:, :half]) + a[:, half:]
    else:
        y = group_norm(p, f"{name}.norm1", y + a, eps)
    y = conv(p, f"{name}.conv1", silu(y))
    x = resample(x, how, taps)
    if f"{name}.skip.weight" in p:
        x = conv(p, f"{name}.skip", x)
    x = s * (x + y)
    if f"{name}.qkv.weight" in p:
        qkv = conv(p, f"{name}.qkv", group_norm(p, f"{name}.norm2", x, eps))
        x = s * (x + conv(p, f"{name}.proj", attend(qkv, heads)))
    return x


def one_hot(label: Tensor) -> Tensor:
    return (label[:, None] == torch.arange(3)).to(F64)


def song(p: Weights, z: Tensor, t: Tensor, h: Tensor, label: Tensor, augment: Tensor, ncsn: bool) -> Tensor:
    taps, features = ([1, 3, 3, 1], 16) if ncsn else ([1, 1], 8)
    if ncsn:
        f = 2 * math.pi * p["map_noise.freqs"]
    else:
        f = torch.tensor([10_000 ** (-i / (features / 2 - 1)) for i in range(features // 2)], dtype=F64)
    pieces = [fn(time[:, None] * f) for time in (t, h) for fn in (torch.sin, torch.cos)]
    e = torch.cat(pieces, 1) + linear(p, "map_label", one_hot(label) * math.sqrt(3))
    e = e + linear(p, "map_augment", augment)
    e = silu(linear(p, "map_layer1", silu(linear(p, "map_layer0", e))))

    def b(name: str, x: Tensor, how: str = "keep") -> Tensor:
        return block(p, name, x, e, how, adm=False, taps=taps)

    s0 = conv(p, "enc.8x8_conv", z)
    s1 = b("enc.8x8_block0", s0)
    s2 = b("enc.4x4_down", s1, "down")
    if ncsn:  # the convolution sees a border of 2, the filter none
        image = resample(conv(p, "enc.4x4_aux_residual", z, border=2), "down", taps, pad=0)
        s2 = (s2 + image) / math.sqrt(2)
    s3 = b("enc.4x4_block0", s2)
    x = b("dec.4x4_in1", b("dec.4x4_in0", s3))
    x = b("dec.4x4_block0", torch.cat([x, s3], 1))
    x = b("dec.4x4_block1", torch.cat([x, s2], 1))
    x = b("dec.8x8_up", x, "up")
    x = b("dec.8x8_block0", torch.cat([x, s1], 1))
    x = b("dec.8x8_block1", torch.cat([x, s0], 1))
    return conv(p, "dec.8x8_aux_conv", silu(group_norm(p, "dec.8x8_aux_norm", x, 1e-6)))


def adm(p: Weights, z: Tensor, t: Tensor, h: Tensor, label: Tensor, augment: Tensor) -> Tensor:
    f = torch.tensor([10_000 ** (-i / 4) for i in range(4)], dtype=F64)
    pieces = [fn(time[:, None] * f) for time in (t, h) for fn in (torch.cos, torch.sin)]
    e = torch.cat(pieces, 1) + linear(p, "map_augment", augment)
    e = linear(p, "map_layer1", silu(linear(p, "map_layer0", e)))
    e = silu(e + linear(p, "map_label", one_hot(label)))

    def b(name: str, x: Tensor, how: str = "keep") -> Tensor:
        return block(p, name, x, e, how, adm=True, taps=[1, 1], heads=2)

    s0 = conv(p, "enc.8x8_conv", z)
    s1 = b("enc.8x8_block0", s0)
    s2 = b("enc.4x4_down", s1, "down")
    s3 = b("enc.4x4_block0", s2)
    x = b("dec.4x4_in1", b("dec.4x4_in0", s3))
    x = b("dec.4x4_block0", torch.cat([x, s3], 1))
    x = b("dec.4x4_block1", torch.cat([x, s2], 1))
    x = b("dec.8x8_up", x, "up")
    x = b("dec.8x8_block0", torch.cat([x, s1], 1))
    x = b("dec.8x8_block1", torch.cat([x, s0], 1))
    return conv(p, "out_conv", silu(group_norm(p, "out_norm", x, 1e-5)))


def edm2(p: Weights, z: Tensor, t: Tensor, h: Tensor, label: Tensor) -> Tensor:
    def unit(x: Tensor, dims: Any) -> Tensor:
        return x / (1e-4 + (x**2).mean(dims, keepdim=True) ** 0.5)

    def act(x: Tensor) -> Tensor:
        return silu(x) / 0.596

    def weight(name: str) -> Tensor:
        w = p[f"{name}.weight"]
        w = unit(w, list(range(1, w.ndim)))
        return w / math.sqrt(math.prod(w.shape[1:]))

    def c(name: str, x: Tensor) -> Tensor:
        return correlate(x, weight(name), p[f"{name}.weight"].shape[-1] // 2)

    def mix(a: Tensor, b: Tensor, w: float) -> Tensor:
        return ((1 - w) * a + w * b) / math.sqrt((1 - w) ** 2 + w**2)

    def wave(name: str, time: Tensor) -> Tensor:
        return math.sqrt(2) * torch.cos(time[:, None] * p[f"{name}.freqs"] + p[f"{name}.phases"])

    def b(name: str, x: Tensor, how: str = "keep") -> Tensor:
        x, up = resample(x, how, [1, 1]), name.startswith("dec")
        skip = f"{name}.conv_skip.weight" in p
        if not up:
            x = unit(c(f"{name}.conv_skip", x) if skip else x, 1)
        y = c(f"{name}.conv_res0", act(x))
        scale = p[f"{name}.emb_gain"] * (e @ weight(f"{name}.emb_linear").T) + 1
        y = c(f"{name}.conv_res1", act(y * scale[:, :, None, None]))
        if up and skip:
            x = c(f"{name}.conv_skip", x)
        x = mix(x, y, 0.3)
        if f"{name}.attn_qkv.weight" in p:
            y = attend(c(f"{name}.attn_qkv", x), 2, lambda part: unit(part, 1))
            x = mix(x, c(f"{name}.attn_proj", y), 0.3)
        return x.clip(-256, 256)

    def join(a: Tensor, b: Tensor) -> Tensor:
        n, m = a.shape[1], b.shape[1]
        scale = math.sqrt((n + m) / 0.5)
        return torch.cat([a * scale * 0.5 / math.sqrt(n), b * scale * 0.5 / math.sqrt(m)], 1)

    g = p["h_gain"]
    e = wave("emb_fourier", t) @ weight("emb_noise").T + g * (wave("h_fourier", h) @ weight("h_noise").T)
    e = e / (1 + g * g) ** 0.5
    e = act(mix(e, (one_hot(label) * math.sqrt(3)) @ weight("emb_label").T, 0.5))
    s0 = c("enc.8x8_conv", torch.cat([z, torch.ones_like(z[:, :1])], 1))
    s1 = b("enc.8x8_block0", s0)
    s2 = b("enc.4x4_down", s1, "down")
    s3 = b("enc.4x4_block0", s2)
    x = b("dec.4x4_in1", b("dec.4x4_in0", s3))
    x = b("dec.4x4_block0", join(x, s3))
    x = b("dec.4x4_block1", join(x, s2))
    x = b("dec.8x8_up", x, "up")
    x = b("dec.8x8_block0", join(x, s1))
    x = b("dec.8x8_block1", join(x, s0))
    return p["out_gain"] * c("out_conv", x)


def embed(p: Weights, name: str, time: Tensor, size: int) -> Tensor:
    f = torch.tensor([10_000 ** (-2 * i / size) for i in range(size // 2)], dtype=F64)
    features = torch.cat([torch.cos(time[:, None] * f), torch.sin(time[:, None] * f)], 1)
    return linear(p, f"{name}.mlp.2", silu(linear(p, f"{name}.mlp.0", features)))


def dit(p: Weights, z: Tensor, t: Tensor, h: Tensor, label: Tensor) -> Tensor:
    width, side, heads = 16, 2, 2
    condition = embed(p, "t_embedder", t, 256) + embed(p, "h_embedder", h, 256)
    condition = silu(condition + p["y_embedder.embedding_table.weight"][label])

    def norm(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        x = x - x.mean(-1, keepdim=True)
        x = x / ((x**2).mean(-1, keepdim=True) + 1e-6) ** 0.5
        return x * (1 + scale[:, None]) + shift[:, None]

    def tokens(name: str, x: Tensor) -> Tensor:
        return torch.einsum("bti,oi->bto", x, p[f"{name}.weight"]) + p[f"{name}.bias"]

    rows = []
    for i in range(side):
        for j in range(side):
            patch = z[:, :, 4 * i : 4 * i + 4, 4 * j : 4 * j + 4]
            rows.append(torch.einsum("bcyx,ocyx->bo", patch, p["x_embedder.proj.weight"]))
    x = torch.stack(rows, 1) + p["x_embedder.proj.bias"] + p["pos_embed"]
    for number in range(2):
        name = f"blocks.{number}"
        m = linear(p, f"{name}.adaLN_modulation.1", condition).split(width, 1)
        qkv = tokens(f"{name}.attn.qkv", norm(x, m[0], m[1]))
        outs = []
        for head in range(heads):
            span = [slice(part * width + head * 8, part * width + head * 8 + 8) for part in range(3)]
            q, k, v = (qkv[:, :, cut] for cut in span)
            scores = torch.exp(torch.einsum("bif,bjf->bij", q, k) / math.sqrt(8))
            outs.append(torch.einsum("bij,bjf->bif", scores / scores.sum(-1, keepdim=True), v))
        x = x + m[2][:, None] * tokens(f"{name}.attn.proj", torch.cat(outs, 2))
        y = tokens(f"{name}.mlp.fc1", norm(x, m[3], m[4]))
        y = y * (1 + torch.tanh(math.sqrt(2 / math.pi) * (y + 0.044715 * y**3))) / 2
        x = x + m[5][:, None] * tokens(f"{name}.mlp.fc2", y)
    shift, scale = linear(p, "final_layer.adaLN_modulation.1", condition).split(width, 1)
    y = tokens("final_layer.linear", norm(x, shift, scale))
    out = torch.empty_like(z)
    for i in range(side):
        for j in range(side):
            patch = y[:, side * i + j].reshape(-1, 4, 4, 2)  # row, column, channel
            out[:, :, 4 * i : 4 * i + 4, 4 * j : 4 * j + 4] = patch.permute(0, 3, 1, 2)
    return out


def mlp(p: Weights, z: Tensor, t: Tensor, h: Tensor, label: Tensor) -> Tensor:
    condition = embed(p, "t_embedder", t, 64) + embed(p, "h_embedder", h, 64)
    condition = condition + p["y_embedder.embedding_table.weight"][label]
    x = linear(p, "z_embedder", z) + condition
    for number in range(2):
        x = x + linear(p, f"layers.{number}.fc2", silu(linear(p, f"layers.{number}.fc1", x) + condition))
    return linear(p, "final_layer", silu(x))


UNET = {"head_width": 8, **SMALL}
NCSN = {"embedding": "fourier", "encoder": "residual", "resample_filter": [1, 3, 3, 1], "time_multiplier": 2}
CASES: dict[str, tuple[Callable[[], nn.Module], Callable[..., Tensor], bool]] = {
    "ddpm++": (lambda: SongUNet(**SMALL, augment_dim=5), lambda *a: song(*a, ncsn=False), True),
    "ncsn++": (lambda: SongUNet(**SMALL, augment_dim=5, **NCSN), lambda *a: song(*a, ncsn=True), True),
    "adm": (lambda: DhariwalUNet(**UNET, augment_dim=5), adm, True),
    "edm2": (lambda: EDM2UNet(**UNET), edm2, False),
    "dit": (lambda: DiT(8, 2, 4, width=16, depth=2, heads=2, num_classes=3), dit, False),
    "mlp": (lambda: MLP(3, width=16, depth=2, num_classes=3), mlp, False),
}


@pytest.mark.parametrize("name", CASES)
def test_a_network_is_its_equations(name: str) -> None:
    make, restated, augmented = CASES[name]
    network = make().double().eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3, generator=generator)
    z = torch.randn(4, *network.shape, dtype=F64, generator=generator)  # type: ignore[misc]
    t, h = torch.rand(2, 4, dtype=F64, generator=generator)
    label = torch.tensor([0, 2, 3, 1])  # 3 is unconditional
    given = (z, t, h, label)
    if augmented:
        given = (*given, torch.rand(4, 5, dtype=F64, generator=generator))  # type: ignore[assignment]
    with torch.no_grad():
        got, expected = network(*given), restated(dict(network.state_dict()), *given)
    assert expected.std() > 0.1
    assert (got - expected).abs().max() < 1e-10
