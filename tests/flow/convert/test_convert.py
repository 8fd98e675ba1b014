"""Converters: what goes in comes out, key by key, and what does not fit is said."""

import argparse
import json
import pickle
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import SMALL, UNETS, dit, persistent, preconditioned, wake, write_pickle
from torch import Tensor, nn

from zoo.cli import main
from zoo.flow import DiT, PreconditionedNetwork, SongUNet, hand_over
from zoo.flow.convert import convert_checkpoint, load_converted, official_state, reverse_time
from zoo.io import load_tensors, save_tensors

every_unet = pytest.mark.parametrize("kind", UNETS)


def inputs(network: Any, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(4, *network.shape, generator=generator, dtype=dtype)
    return z, torch.rand(4, generator=generator, dtype=dtype), torch.tensor([0, 1, 2, 3])


@every_unet
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_edm_pickles(kind: str, protocol: int, tmp_path: Path) -> None:
    network = wake(UNETS[kind]())
    contents = {"ema": preconditioned(network), "loss_fn": None, "dataset_kwargs": {"path": "x.zip"}}
    info = convert_checkpoint(
        write_pickle(tmp_path / "x.pkl", contents, protocol), tmp_path / "x.safetensors"
    )
    got = load_converted(tmp_path / "x.safetensors")
    assert type(got.network) is type(network) and not got.network.training
    assert got.info == info == json.loads(json.dumps(info))
    assert repr(got.preconditioning).startswith("EDMPreconditioning(sigma_data=0.5")
    z, t, label = inputs(network)
    assert got.network(z, t, None, label).equal(network(z, t, None, label))
    # And back: the same tensors under the names they had.
    original = {name for name, _ in network.state_dict().items()}
    prefix = "unet." if kind == "edm2" else "model."
    back = official_state(got.network)
    assert back.keys() == {prefix + name for name in original}
    for name in original:
        assert back[prefix + name].equal(network.state_dict()[name])
    assert info["left_out"] == (["logvar_linear.weight"] if kind == "edm2" else [])


@every_unet
def test_a_teacher_from_a_pickle(kind: str, tmp_path: Path) -> None:
    """D(x, s) = c_skip x + c_out F(c_in x, ln(s) / 4) with the official numbers; a student with h."""
    network = wake(UNETS[kind]())
    path = write_pickle(tmp_path / "x.pkl", {"ema": preconditioned(network)})
    convert_checkpoint(path, tmp_path / "x.safetensors")
    got = load_converted(tmp_path / "x.safetensors")
    x, _, label = inputs(network)
    s = torch.tensor([0.002, 0.5, 3.0, 80.0])
    column = s[:, None, None, None]
    total = column**2 + 0.25
    raw = network(x / total.sqrt(), s.log() / 4, None, label)
    expected = 0.25 / total * x + column * 0.5 / total.sqrt() * raw
    assert torch.allclose(
        PreconditionedNetwork(got.network, got.preconditioning).denoise(x, s, label), expected, atol=1e-5
    )
    student = UNETS[kind](two_times=True).eval()
    assert "zero-initialized" in hand_over(student, got.network.state_dict())
    assert torch.allclose(student(x, s, s, label), got.network(x, s, None, label), atol=1e-5)


@pytest.mark.parametrize("old", [False, True])
def test_training_states_and_both_weights(old: bool, tmp_path: Path) -> None:
    """What ECT and CMT save: whole modules in files of torch.save."""
    average, current = wake(UNETS["ddpm++"]()), wake(UNETS["ddpm++"](), seed=1)
    contents = {
        "net": preconditioned(current, "ECMPrecond"),
        "ema": preconditioned(average, "ECMPrecond"),
        "optimizer_state": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 1e-4}]},
    }
    import checkpoints

    with checkpoints.official_modules():
        torch.save(contents, tmp_path / "x.pt", _use_new_zipfile_serialization=not old)
    for weights, network in (("ema", average), ("net", current)):
        info = convert_checkpoint(tmp_path / "x.pt", tmp_path / "x.safetensors", weights)  # type: ignore[arg-type]
        got = load_converted(tmp_path / "x.safetensors").network
        for name, value in network.state_dict().items():
            assert got.state_dict()[name].equal(value)
        assert info["weights"] == weights and len(info["source_sha256"]) == 64


@pytest.mark.parametrize("weights", ["ema", "net"])
def test_mean_flow_of_cifar(weights: Any, tmp_path: Path) -> None:
    """One state dict holds the network, its averages and a counter; the network has two time inputs."""
    sizes = {"input_size": 8, "width": 8, "width_multipliers": [1, 2], "blocks": 1, "attention_sizes": [4]}
    networks = {
        name: wake(
            SongUNet(**sizes, time_multiplier=2, resample_filter=[1, 3, 3, 1], augment_dim=6), seed=seed
        )
        for seed, name in enumerate(("net", "net_ema", "net_ema1"))
    }
    state = {
        f"{kind}.{name.removeprefix('net_ema.')}": value
        for kind, network in networks.items()
        for name, value in official_state(network).items()
    }
    name = "enc.4x4_block0.qkv.weight"  # all queries come first, where ours alternate with keys and values
    assert state[f"net.{name}"][:16].equal(networks["net"].state_dict()[name][::3])
    contents = {
        "model": {"num_updates": torch.tensor(3), **state},
        "epoch": 2,
        "args": argparse.Namespace(a=1),
    }
    torch.save(contents, tmp_path / "x.pth")
    info = convert_checkpoint(tmp_path / "x.pth", tmp_path / "x.safetensors", weights)
    assert info["preconditioning"] == {"class": "VelocityPrediction"} and not info["left_out"]
    got = load_converted(tmp_path / "x.safetensors").network
    network = networks["net_ema" if weights == "ema" else "net"]
    generator = torch.Generator().manual_seed(2)
    z, t = torch.randn(3, 3, 8, 8, generator=generator), torch.rand(3, generator=generator)
    assert got(z, t, t / 2).equal(network(z, t, t / 2))
    back = official_state(got)
    assert back.keys() == {name for name in state if name.startswith("net_ema.")}
    assert all(value.equal(state[name]) for name, value in back.items()) == (weights == "ema")


def test_one_network_alone_is_both_weights(tmp_path: Path) -> None:
    network = wake(UNETS["adm"]())
    with_state = {f"model.{name}": value for name, value in network.state_dict().items()}
    for number, value in enumerate((with_state, dict(network.state_dict()))):
        torch.save(value, tmp_path / f"{number}.pt")
        for weights in ("ema", "net"):
            # Nothing in a bare state dict tells the heads: 2 of 8 features at the largest width, 16.
            convert_checkpoint(tmp_path / f"{number}.pt", tmp_path / "x.safetensors", weights, heads=2)  # type: ignore
            z, t, label = inputs(network)
            got = load_converted(tmp_path / "x.safetensors").network
            assert got(z, t, None, label).equal(network(z, t, None, label))


def test_half_precision_weights_are_read_in_single(tmp_path: Path) -> None:
    network = wake(UNETS["edm2"]()).half()
    path = write_pickle(tmp_path / "x.pkl", {"ema": preconditioned(network)})
    convert_checkpoint(path, tmp_path / "x.safetensors")
    tensors, _ = load_tensors(tmp_path / "x.safetensors")
    assert {value.dtype for value in tensors.values()} == {torch.float16}
    got = load_converted(tmp_path / "x.safetensors").network
    assert all(value.dtype == torch.float32 for value in got.state_dict().values())
    z, t, label = inputs(network)
    assert got(z, t, None, label).equal(network.float()(z, t, None, label))


def test_other_protocols_and_subclasses_of_dict(tmp_path: Path) -> None:
    """The record of a persistent object may be an EasyDict, and the file's dict ordered."""
    from collections import OrderedDict, UserDict

    class Record(dict):
        pass

    Record.__module__, Record.__qualname__ = "checkpoints", "Record"
    import checkpoints

    checkpoints.Record = Record  # type: ignore[attr-defined]
    network = wake(UNETS["ddpm++"]())
    whole = preconditioned(network)
    whole.meta = Record(whole.meta)
    contents = OrderedDict(other=UserDict(a=1), ema=whole)
    convert_checkpoint(write_pickle(tmp_path / "x.pkl", contents), tmp_path / "x.safetensors")
    del checkpoints.Record  # type: ignore[attr-defined]
    assert (
        load_converted(tmp_path / "x.safetensors").network.state_dict().keys() == network.state_dict().keys()
    )


class TestTransformers:
    def sit(self, width: int = 16) -> tuple[DiT, dict[str, Tensor]]:
        """A velocity network in SiT's direction of time; the second half of its outputs are a variance."""
        network = wake(dit(width, in_channels=2, heads=6 if width == 384 else 2))
        state = dict(network.state_dict())
        generator = torch.Generator().manual_seed(3)
        for name in ("final_layer.linear.weight", "final_layer.linear.bias"):
            rows = state[name].unflatten(0, (16, 2))
            other = torch.randn(rows.shape, generator=generator)
            state[name] = torch.cat([rows, other], dim=1).flatten(0, 1)
        return network, state

    @pytest.mark.parametrize("layout", ["flat", "ema"])
    def test_sit(self, layout: str, tmp_path: Path) -> None:
        network, state = self.sit()
        contents = {"model": {}, "ema": state, "args": argparse.Namespace(a=1)}
        torch.save(state if layout == "flat" else contents, tmp_path / "x.pt")
        info = convert_checkpoint(tmp_path / "x.pt", tmp_path / "x.safetensors", heads=2)
        got = load_converted(tmp_path / "x.safetensors")
        assert info["time_reversed"] and repr(got.preconditioning) == "VelocityPrediction()"
        z, t, label = inputs(network)
        assert torch.allclose(got.network(z, t, None, label), -network(z, 1 - t, None, label), atol=2e-5)
        back = official_state(got.network, time_direction="data_at_1")
        for name, value in network.state_dict().items():  # the time was rounded to single precision twice
            assert torch.allclose(back[name], value, atol=1e-6)

    def test_the_time_is_reversed_exactly(self) -> None:
        network = wake(dit()).double()
        turned = dit().double().eval()
        turned.load_state_dict(reverse_time(network.state_dict()))
        z, t, label = inputs(network, torch.float64)
        expected = -network(z, 1 - t, None, label)
        assert (turned(z, t, None, label) - expected).abs().max() < 1e-13 * expected.abs().max()
        again = reverse_time(turned.state_dict())
        for name, value in network.state_dict().items():
            assert torch.allclose(again[name], value, rtol=0, atol=1e-14)

    def test_published_widths_have_known_heads(self, tmp_path: Path) -> None:
        _, state = self.sit(width=384)
        torch.save(state, tmp_path / "x.pt")
        info = convert_checkpoint(tmp_path / "x.pt", tmp_path / "x.safetensors")
        assert info["network"]["arguments"]["heads"] == 6

    def test_repa_leaves_its_projectors_out(self, tmp_path: Path) -> None:
        network = wake(dit())
        state = {**network.state_dict(), "projectors.0.0.weight": torch.zeros(3, 3)}
        torch.save({"ema": state, "model": state, "opt": {}, "steps": 5}, tmp_path / "x.pt")
        info = convert_checkpoint(tmp_path / "x.pt", tmp_path / "x.safetensors", heads=2)
        assert info["left_out"] == ["projectors.0.0.weight"] and not info["time_reversed"]
        z, t, label = inputs(network)
        got = load_converted(tmp_path / "x.safetensors").network
        assert got(z, t, None, label).equal(network(z, t, None, label))

    def test_mean_flow_has_a_second_time_input(self, tmp_path: Path) -> None:
        network = wake(dit(two_times=True))
        state = official_state(network)
        assert (
            any(name.startswith("r_embedder.") for name in state) and "h_embedder.mlp.0.weight" not in state
        )
        torch.save({"ema": state, "args": argparse.Namespace(model="x")}, tmp_path / "x.pt")
        convert_checkpoint(tmp_path / "x.pt", tmp_path / "x.safetensors", heads=2)
        z, t, label = inputs(network)
        got = load_converted(tmp_path / "x.safetensors").network
        assert got(z, t, 0.5 * t, label).equal(network(z, t, 0.5 * t, label))
        with pytest.raises(ValueError, match="two time inputs cannot be reversed"):
            convert_checkpoint(
                tmp_path / "x.pt", tmp_path / "y.safetensors", heads=2, time_direction="data_at_1"
            )
        assert not (tmp_path / "y.safetensors").exists()

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"heads": 2}, "give time_direction=data_at_1 for SiT"),
            ({"time_direction": "data_at_0"}, "width of 16 has: give heads"),
        ],
    )
    def test_what_the_file_does_not_say_is_asked_for(
        self, arguments: dict[str, Any], message: str, tmp_path: Path
    ) -> None:
        torch.save(dit().state_dict(), tmp_path / "x.pt")
        with pytest.raises(ValueError, match=message):
            convert_checkpoint(tmp_path / "x.pt", tmp_path / "x.safetensors", **arguments)


def changed(change: Callable[[dict[str, Tensor]], Any]) -> dict[str, Tensor]:
    state = {f"model.{name}": value for name, value in UNETS["ddpm++"]().state_dict().items()}
    change(state)
    return state


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("model.map_layer1.bias"), "1 missing: map_layer1.bias"),
        (lambda s: s.update(extra=torch.zeros(1)), "1 unknown: extra"),
        (lambda s: s.update({"model.extra.weight": torch.zeros(1)}), "1 unknown: extra.weight"),
        (
            lambda s: s.update({"model.map_layer1.bias": torch.zeros(3)}),
            r"1 of another shape: map_layer1.bias \(3,\) for \(32,\)",
        ),
        (
            lambda s: s.update({"model.enc.4x4_down.conv0.resample_filter": torch.ones(1, 1, 2, 2)}),
            r"resample_filter is not the filter \[1, 1\]",
        ),
        (lambda s: s.pop("model.map_layer0.weight"), "are of no known network"),
        (lambda s: s.update({"model.map_layer0.weight": torch.zeros(30, 8)}), "features of the condition"),
        (lambda s: s.clear(), "neither a network nor|holds no network"),
    ],
)
def test_tensors_that_do_not_fit_are_named(change: Callable, message: str, tmp_path: Path) -> None:
    torch.save(changed(change), tmp_path / "x.pt")
    with pytest.raises(ValueError, match=message):
        convert_checkpoint(tmp_path / "x.pt", tmp_path / "x.safetensors")
    assert not (tmp_path / "x.safetensors").exists()


def test_other_contents_are_refused(tmp_path: Path) -> None:
    network = UNETS["ddpm++"]()
    cases = {
        "take weights=net": {"net": preconditioned(network)},
        "no network as 'ema', but none": {"ema": 3},
        "neither a network nor": [1, 2],
        "read by VPPrecond": {"ema": preconditioned(network, "VPPrecond")},
        "DDPM\\+\\+ has one": {"ema": preconditioned(network, num_heads=4)},
        "of no known network": {"ema": persistent(nn.Linear(2, 2), "Other")},
    }
    for message, value in cases.items():
        path = write_pickle(tmp_path / "x.pkl", value)
        with pytest.raises(ValueError, match=message):
            convert_checkpoint(path, tmp_path / "x.safetensors")
    path = write_pickle(tmp_path / "x.pkl", {"ema": preconditioned(network)})
    with pytest.raises(ValueError, match=r"ends in \.safetensors"):
        convert_checkpoint(path, tmp_path / "x.pt")
    with pytest.raises(ValueError, match="weights must be"):
        convert_checkpoint(path, tmp_path / "x.safetensors", weights="raw")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="which have official layouts"):
        official_state(nn.Linear(1, 1))


def block(whole: Any, name: str) -> dict[str, Any]:
    """The attributes of a module in the record of a network."""
    (network,) = (
        m
        for m in whole.meta["state"]["_modules"].values()
        if hasattr(m, "meta") and "enc" in m.meta["state"]["_modules"]
    )
    module = network
    for part in name.split("."):
        modules = module.meta["state"]["_modules"] if hasattr(module, "meta") else module._modules
        module = modules[part]
    return module.meta["state"]


@pytest.mark.parametrize(
    ("kind", "name", "settings", "same"),
    [
        ("edm2", "enc.4x4_down", {"res_balance": 0.5}, {"res_balance": 0.3}),
        ("edm2", "dec.4x4_in0", {"attn_balance": np.float64(0.2)}, {"attn_balance": np.float64(0.3)}),
        ("edm2", "dec.8x8_up", {"clip_act": None}, {"clip_act": 256}),
        ("edm2", "enc.4x4_down", {"resample_filter": [1, 3, 3, 1]}, {"resample_filter": [1, 1]}),
        ("ddpm++", "enc.4x4_down", {"skip_scale": 1.0}, {"skip_scale": np.sqrt(0.5)}),
        ("ddpm++", "enc.4x4_down.norm0", {"eps": 1e-5}, {"eps": 1e-6}),
        ("ddpm++", "enc.4x4_down.conv0", {"fused_resample": True}, {"fused_resample": False}),
        ("ncsn++", "enc.4x4_aux_residual", {"fused_resample": False}, {"fused_resample": True}),
        ("ddpm++", "map_noise", {"endpoint": False}, {"endpoint": True}),
        ("adm", "enc.4x4_down", {"adaptive_scale": False}, {"adaptive_scale": True}),
        ("adm", "enc.4x4_down", {"skip_scale": 0.5}, {"skip_scale": 1}),
    ],
)
def test_settings_that_change_the_computation_are_refused(
    kind: str, name: str, settings: dict[str, Any], same: dict[str, Any], tmp_path: Path
) -> None:
    """They are not in the tensors, and the networks here have the published ones."""
    network = UNETS[kind]()
    whole = preconditioned(network)
    if kind == "ncsn++":  # where the published setting is not the class's default
        block(whole, "enc.4x4_aux_residual")["fused_resample"] = True
    block(whole, name).update(same)
    convert_checkpoint(write_pickle(tmp_path / "x.pkl", {"ema": whole}), tmp_path / "x.safetensors")
    block(whole, name).update(settings)
    path = write_pickle(tmp_path / "y.pkl", {"ema": whole})
    with pytest.raises(ValueError, match=rf"{name}.* has {next(iter(settings))}=.*no other is supported"):
        convert_checkpoint(path, tmp_path / "y.safetensors")
    assert not (tmp_path / "y.safetensors").exists()


def shared(depth: int = 100) -> list[Any]:
    """Lists of which each holds the one before twice: in words they take 2^depth characters."""
    value: list[Any] = []
    for _ in range(depth):
        value = [value, value]
    return value


@pytest.mark.parametrize("place", ["sigma_data", "skip_scale", "class_name", "path_type", "version"])
def test_what_is_long_in_words_is_refused_at_once(place: str, tmp_path: Path) -> None:
    path = tmp_path / "x.pkl"
    whole: Any = preconditioned(UNETS["ddpm++"]())
    if place == "sigma_data":
        whole = preconditioned(UNETS["ddpm++"](), sigma_data=shared())
    elif place == "skip_scale":
        block(whole, "enc.4x4_block0")["skip_scale"] = shared()
    elif place == "class_name":
        whole.meta["class_name"] = shared()
    write_pickle(path, {"ema": whole})
    if place == "path_type":
        torch.save({"ema": dit().state_dict(), "args": argparse.Namespace(path_type=shared())}, path)
    elif place == "version":
        path.write_bytes(b"".join(pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, shared(), {})))
    options: Any = {"heads": 2, "time_direction": "data_at_1"} if place == "path_type" else {}
    started = time.monotonic()
    with suppress(ValueError) if place == "class_name" else pytest.raises(ValueError, match=r"\.\.\."):
        convert_checkpoint(path, tmp_path / "x.safetensors", **options)
    assert time.monotonic() - started < 30


@pytest.mark.parametrize("whole", [False, True])
def test_compiled_networks(whole: bool, tmp_path: Path) -> None:
    """torch.compile puts "_orig_mod." before the names, of the network or of parts of it."""
    network = wake(UNETS["edm2"]())
    if whole:
        record = preconditioned(network)
        compiled = nn.Module()
        compiled._modules["_orig_mod"] = record  # type: ignore[assignment]
        path = write_pickle(tmp_path / "x.pkl", {"ema": compiled})
    else:
        state = {f"_orig_mod.unet._orig_mod.{name}": value for name, value in network.state_dict().items()}
        torch.save({"ema": state}, tmp_path / "x.pt")
        path = tmp_path / "x.pt"
    convert_checkpoint(path, tmp_path / "x.safetensors", heads=2)
    z, t, label = inputs(network)
    assert (
        load_converted(tmp_path / "x.safetensors")
        .network(z, t, None, label)
        .equal(network(z, t, None, label))
    )


@pytest.mark.parametrize(
    ("keys", "weights"),
    [
        (["model_state_dict"], "net"),
        (["state_dict"], "net"),
        (["ema", "state_dict"], "ema"),
        (["ema_state_dict"], "ema"),
        (["model", "state_dict"], "net"),
    ],
)
def test_wrapped_state_dicts(keys: list[str], weights: Any, tmp_path: Path) -> None:
    network = wake(UNETS["ddpm++"]())
    value: dict[str, Any] = official_state(network)
    for key in reversed(keys):
        value = {key: value, "epoch": 3}
    torch.save(value, tmp_path / "x.pt")
    convert_checkpoint(tmp_path / "x.pt", tmp_path / "x.safetensors", weights)
    got = load_converted(tmp_path / "x.safetensors").network.state_dict()
    assert all(got[name].equal(tensor) for name, tensor in network.state_dict().items())
    other = "net" if weights == "ema" else "ema"
    with pytest.raises(ValueError, match=f"it holds no network as .*'{keys[0]}': take weights={weights}"):
        convert_checkpoint(tmp_path / "x.pt", tmp_path / "y.safetensors", other)


def test_what_needs_no_conversion(tmp_path: Path) -> None:
    save_tensors(tmp_path / "x.safetensors", official_state(UNETS["ddpm++"]()))
    with pytest.raises(ValueError, match=r"x\.safetensors is already in safetensors: if zoo convert made it"):
        convert_checkpoint(tmp_path / "x.safetensors", tmp_path / "y.safetensors")
    state = {f"network.{name}": value for name, value in UNETS["ddpm++"]().state_dict().items()}
    contents = {"state_dict": state, "flow": {}, "pytorch-lightning_version": "2.6.0"}
    torch.save(contents, tmp_path / "x.ckpt")
    with pytest.raises(ValueError, match=r"is a checkpoint of zoo\.flow.* take it as it is"):
        convert_checkpoint(tmp_path / "x.ckpt", tmp_path / "y.safetensors")
    torch.save({"generator": state, "discriminator": state}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=r"but 'generator', 'discriminator': save one of them"):
        convert_checkpoint(tmp_path / "x.pt", tmp_path / "y.safetensors")


def test_numbers_of_numpy_are_read(tmp_path: Path) -> None:
    whole = preconditioned(UNETS["ddpm++"](), sigma_data=np.float64(1.0))
    info = convert_checkpoint(write_pickle(tmp_path / "x.pkl", {"ema": whole}), tmp_path / "x.safetensors")
    assert info["preconditioning"]["sigma_data"] == 1.0
    whole = preconditioned(UNETS["ddpm++"](), sigma_data="1")
    with pytest.raises(ValueError, match="its sigma_data is '1', and must be a finite number"):
        convert_checkpoint(write_pickle(tmp_path / "x.pkl", {"ema": whole}), tmp_path / "y.safetensors")


@pytest.mark.parametrize(
    ("setting", "good", "bad"), [("path_type", "Linear", "GVP"), ("prediction", "v", "score")]
)
def test_other_trainings_of_sit_are_refused(setting: str, good: str, bad: str, tmp_path: Path) -> None:
    """SiT's file says on which path it was trained and what its output is."""
    for value in (good, bad):
        contents = {"ema": dit().state_dict(), "args": argparse.Namespace(**{setting: value})}
        torch.save(contents, tmp_path / "x.pt")
        if value == good:
            convert_checkpoint(
                tmp_path / "x.pt", tmp_path / "x.safetensors", heads=2, time_direction="data_at_1"
            )
            continue
        with pytest.raises(ValueError, match=f"it was trained with {setting}='{bad}', and only networks of"):
            convert_checkpoint(
                tmp_path / "x.pt", tmp_path / "y.safetensors", heads=2, time_direction="data_at_1"
            )


def test_files_that_were_not_converted_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    with pytest.raises(ValueError, match="there is no file"):
        load_converted(path)
    tensors = SongUNet(**SMALL).state_dict()
    save_tensors(path, tensors)
    with pytest.raises(ValueError, match="does not say what network"):
        load_converted(path)
    header = {
        "network": {"class": "SongUNet", "arguments": SMALL},
        "preconditioning": {"class": "VelocityPrediction"},
    }
    for name, arguments, message in (
        ("os.system", SMALL, "does not know"),
        ("SongUNet", SMALL | {"width": 12}, "other tensors than its header"),
        ("SongUNet", SMALL | {"strange": 1}, "other tensors than its header"),
    ):
        header["network"] = {"class": name, "arguments": arguments}
        save_tensors(path, tensors, {"zoo.flow": json.dumps(header)})
        with pytest.raises(ValueError, match=message):
            load_converted(path)


def test_the_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_pickle(tmp_path / "x.pkl", {"ema": preconditioned(UNETS["edm2"]())})
    assert main(["convert", str(path), "x.safetensors"]) == 0
    out = capsys.readouterr().out
    assert (
        out.startswith("x.safetensors written: EDM2UNet(")
        and "1 tensors left out (logvar_linear.weight" in out
    )
    load_converted(tmp_path / "x.safetensors")
    assert main(["convert", str(path), "x.safetensors", "--weights", "net"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "take weights=ema" in error
    assert main(["convert", "absent.pkl", "x.safetensors"]) == 2
    assert "there is no file absent.pkl" in capsys.readouterr().err
