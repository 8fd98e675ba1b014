"""The LightningModule: forms of batches, what it logs, samples, and what it refuses."""

from typing import Any, NamedTuple

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from torch import Tensor, nn
from torch.utils.data import DataLoader

from zoo.flow import (
    MLP,
    AdaptiveWeighting,
    DiT,
    Guidance,
    MeanFlow,
    MeanFlowSampler,
    MeanFlowTimes,
    sample_mean_flow,
)

QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


def network(num_classes: int | None = 3, dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(0)
    made = MLP(2, width=16, depth=1, num_classes=num_classes, dropout=dropout)
    nn.init.normal_(made.final_layer.weight, std=0.3)
    return made


def items(size: int = 32) -> list[dict[str, Tensor]]:
    x = torch.randn(size, 2, generator=torch.Generator().manual_seed(0))
    return [{"x": x[i], "label": torch.tensor(i % 3), "index": torch.tensor(i)} for i in range(size)]


def plain_sgd(model: MeanFlow) -> MeanFlow:
    model.optimizer = lambda parameters: torch.optim.SGD(parameters, lr=0.1)
    return model


def fit(model: MeanFlow, data: Any, **options: Any) -> Trainer:
    trainer = Trainer(max_steps=2, **(QUIET | options))
    trainer.fit(plain_sgd(model), data)
    return trainer


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*")
class TestBatches:
    def test_dicts_with_an_index_do_not_depend_on_batches(self) -> None:
        """Two batches of 16, accumulated, make the update of one batch of 32."""
        whole, halves = (
            MeanFlow(network(), seed=0, weighting=AdaptiveWeighting(power=0.0)) for _ in range(2)
        )
        fit(whole, DataLoader(items(), batch_size=32), max_epochs=1)
        fit(halves, DataLoader(items(), batch_size=16), max_epochs=1, accumulate_grad_batches=2)
        for a, b in zip(whole.parameters(), halves.parameters(), strict=True):
            assert torch.allclose(a, b, atol=1e-6)

    def test_tuples_with_and_without_labels(self) -> None:
        pairs = [(item["x"], item["label"]) for item in items()]
        fit(MeanFlow(network(), seed=0), DataLoader(pairs, batch_size=16))
        fit(MeanFlow(network(None), seed=0), DataLoader([(x,) for x, _ in pairs], batch_size=16))
        fit(MeanFlow(network(None), seed=0), DataLoader([x for x, _ in pairs], batch_size=16))

    def test_items_without_an_index_get_draws_of_their_own(self) -> None:
        model = MeanFlow(network(None), seed=0)
        trainer = Trainer(**QUIET)
        same = [torch.ones(2)] * 6
        [first, second] = trainer.predict(model, DataLoader(same, batch_size=3))  # type: ignore[misc]
        samples = torch.cat([first["samples"], second["samples"]])
        assert torch.cdist(samples, samples).fill_diagonal_(1).min() > 1e-3

    def test_a_label_is_not_asked_of_a_network_without_classes(self) -> None:
        fit(MeanFlow(network(None), seed=0), DataLoader(items(), batch_size=16))

    def test_a_network_with_classes_wants_labels(self) -> None:
        unlabeled = [{"x": item["x"]} for item in items()]
        with pytest.raises(ValueError, match="the network has 3 classes, but the batch has no 'label'"):
            fit(MeanFlow(network(), seed=0), DataLoader(unlabeled, batch_size=16))


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*")
class TestLogs:
    def test_the_logged_numbers(self) -> None:
        """With p = 0 and the sum, the loss is the mean squared error times an item's number of values."""
        model = MeanFlow(
            network(), seed=0, weighting=AdaptiveWeighting(power=0.0), times=MeanFlowTimes(prob_r_neq_t=0.5)
        )
        logged = fit(model, DataLoader(items(), batch_size=32)).callback_metrics
        assert set(logged) == {"train/loss", "train/mse", "train/velocity_mse"}
        assert torch.isclose(logged["train/loss"], 2 * logged["train/mse"])
        # The mean over all items lies between those of its two parts, and here they differ.
        assert logged["train/velocity_mse"] != logged["train/mse"]
        model = MeanFlow(
            network(),
            seed=0,
            weighting=AdaptiveWeighting(power=0.0, reduction="mean"),
            times=MeanFlowTimes(prob_r_neq_t=0.0),
        )
        logged = fit(model, DataLoader(items(), batch_size=32)).callback_metrics
        assert torch.isclose(logged["train/loss"], logged["train/mse"])
        assert torch.isclose(logged["train/velocity_mse"], logged["train/mse"])

    def test_batches_without_resting_items(self) -> None:
        model = MeanFlow(network(), seed=0, times=MeanFlowTimes(prob_r_neq_t=1.0))
        assert "train/velocity_mse" not in fit(model, DataLoader(items(), batch_size=32)).callback_metrics

    def test_evaluation_is_repeatable_and_weighs_batches_by_their_items(self) -> None:
        model = MeanFlow(network(dropout=0.5), seed=0, guidance=Guidance(omega=2.0))
        trainer = Trainer(**QUIET)
        results = [
            trainer.validate(model, DataLoader(items(), batch_size=size), verbose=False)[0]
            for size in (32, 32, 5)
        ]
        assert results[0] == results[1]
        for name, value in results[0].items():
            assert results[2][name] == pytest.approx(value, rel=1e-5), name
        tested = trainer.test(model, DataLoader(items(), batch_size=32), verbose=False)[0]
        assert set(tested) == {"test/loss", "test/mse", "test/velocity_mse"}


class TestSamples:
    def test_they_depend_on_seed_index_and_label_alone(self) -> None:
        model = MeanFlow(network(dropout=0.5), seed=0).train()
        labels = torch.tensor([0, 1, 2, 3])
        whole = model.sample(labels, steps=2, seed=4)
        assert whole.shape == (4, 2) and not whole.requires_grad
        part = model.sample(labels[2:], steps=2, seed=4, index=torch.tensor([2, 3]))
        assert torch.allclose(part, whole[2:], atol=1e-6)  # matrix products of other sizes round otherwise
        assert not model.sample(labels, steps=2, seed=5).equal(whole)
        assert not model.sample(labels.flip(0), steps=2, seed=4).equal(whole)
        assert model.network.training  # dropout was off, and is on again

    def test_predict_samples_for_the_labels_of_the_batch(self) -> None:
        model = MeanFlow(network(), seed=4, sampler=MeanFlowSampler(steps=2))
        [got] = Trainer(**QUIET).predict(model, DataLoader(items(8), batch_size=8))  # type: ignore[misc]
        labels = torch.arange(8) % 3
        assert got["label"].equal(labels)
        assert torch.allclose(got["samples"], model.sample(labels, steps=2, seed=4))

    def test_a_network_without_classes_counts_the_labels(self) -> None:
        assert MeanFlow(network(None), seed=0).sample(torch.zeros(5, dtype=torch.long)).shape == (5, 2)

    def test_no_steps_are_refused(self) -> None:
        with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
            sample_mean_flow(lambda z, t, h, label: z, torch.zeros(1, 2), steps=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"label_dropout": 1.2}, "label_dropout must be a probability"),
        ({"weighting": {"power": -0.5}}, "weighting: power must be at least 0"),
        ({"weighting": {"eps": 0.0}}, "weighting: eps must be positive"),
        ({"weighting": {"reduction": "max"}}, "reduction must be 'sum' or 'mean', got 'max'"),
        ({"sampler": {"steps": 0}}, "sampler: steps must be at least 1"),
        (
            {"guidance": {"start": 0.8, "end": 0.2}},
            "guidance: start and end must satisfy 0 <= start <= end <= 1, got 0.8 and 0.2",
        ),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MeanFlow(network(), **arguments)


def test_guidance_wants_classes() -> None:
    with pytest.raises(ValueError, match="asks for guidance, but the network has no classes"):
        MeanFlow(network(None), guidance=Guidance(omega=2.0))


def test_a_network_must_say_its_shape_and_classes() -> None:
    with pytest.raises(ValueError, match=r"network must have the attributes 'shape'.*Linear has no 'shape'"):
        MeanFlow(nn.Linear(2, 2))


@pytest.mark.parametrize("strategy", [FSDPStrategy, ModelParallelStrategy])
def test_sharded_strategies_are_refused(strategy: type) -> None:
    class Claims:
        """As much of a Trainer as `setup` looks at: no GPUs are needed to be told no."""

        ckpt_path = None

        def __init__(self) -> None:
            self.strategy = object.__new__(strategy)

    model = MeanFlow(network())
    model._trainer = Claims()  # type: ignore[assignment]
    with pytest.raises(ValueError, match=f"does not run under {strategy.__name__}.*Use strategy 'ddp'"):
        model.setup("fit")


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*")
@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_precisions(precision: Any) -> None:
    torch.manual_seed(0)
    model = MeanFlow(
        DiT(4, 1, 2, width=16, depth=1, heads=2, num_classes=3), seed=0, guidance=Guidance(omega=1.5)
    )
    data = [{"x": torch.randn(1, 4, 4), "label": torch.tensor(0), "index": torch.tensor(i)} for i in range(8)]
    before = [p.clone() for p in model.network.parameters()]
    kinds = set()
    model.network.register_forward_pre_hook(lambda module, args: kinds.add((args[0].dtype, args[1].dtype)))
    trainer = fit(model, DataLoader(data, batch_size=8), precision=precision)
    assert trainer.callback_metrics["train/loss"].isfinite()
    single, double = torch.float32, torch.float64
    expected = {
        "bf16-mixed": (single, single),
        "bf16-true": (torch.bfloat16, single),
        "64-true": (double, double),
    }
    assert kinds == {expected[precision]}
    assert any(not p.to(q.dtype).equal(q) for p, q in zip(model.network.parameters(), before, strict=True))


class Output(NamedTuple):
    """What a network of diffusers returns, as far as we care."""

    sample: Tensor


class Foreign(nn.Module):
    """A network with the signature and the output of diffusers' UNet2DModel."""

    shape, num_classes = (2,), None

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(
        self, sample: Tensor, timestep: Tensor, class_labels: Tensor | None = None, return_dict: bool = True
    ) -> Any:
        output = self.layer(sample + timestep[:, None])
        return Output(output) if return_dict else (output,)


class TestForeignNetworks:
    """A network that cannot be called as ours are is named when a fit begins, and not by a derivative."""

    def refused(self, forward: Any, message: str) -> None:
        made = Foreign()
        if forward is not None:
            made.forward = forward  # type: ignore[method-assign]
        expected = (
            r"MeanFlow calls network\(z, t, h, label\), with z \(B, 2\), t \(B,\), h \(B,\) and label None, "
            r"and takes a Tensor of the shape of z; Foreign "
        )
        with pytest.raises(ValueError, match=expected + message):
            fit(MeanFlow(made, seed=0), DataLoader(items(), batch_size=16))

    def test_output_objects(self) -> None:
        self.refused(lambda z, t, h, label: Output(z), "returned Output: wrap it in a module whose forward")
        self.refused(None, "returned tuple: wrap it")

    def test_other_arguments(self) -> None:
        self.refused(
            lambda sample, timestep: sample, r"cannot be called so \(.*4 were given\): wrap it in a module"
        )

    def test_other_shapes(self) -> None:
        self.refused(lambda z, t, h, label: z[:, :1], r"made \(2, 1\) of \(2, 2\): give it as many output")
