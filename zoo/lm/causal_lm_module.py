"""The LightningModule `CausalLM`: any causal language model of transformers, of a config or of weights."""

import math
from typing import Any, Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable, ReduceLROnPlateau
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from torch import Tensor, nn

from zoo.base import ZooModule
from zoo.lm.forward import Prediction, forward_with_hooks
from zoo.lm.generation import generate
from zoo.lm.hook_points import HookPoints
from zoo.lm.hooks import IGNORED, call_hook, has_hook
from zoo.lm.losses import log_partition, mean_over, next_token_losses
from zoo.lm.network import Attention, build_network, load_network, plain_config
from zoo.lm.throughput import TokenRate
from zoo.lm.weight_decay import decay_groups


class CausalLM(ZooModule):
    """A language model that predicts each token from those before it.

    Batches are dicts with ``tokens`` (B, T + 1) int64, of which the first T are inputs and the last T
    targets, and ``index`` (B,), the global numbers of the items; ``mask`` (B, T), if there is one, says which
    targets count. `zoo.datamodules.Text` gives them.

    Logs ``train/loss``, the mean cross-entropy in nats, in float32, without the z-loss, which is logged
    beside it as ``train/z_loss`` (before its coefficient); ``train/tokens_per_second``, over all processes
    and the wall-clock time of ``log_every_n_steps`` updates, with data and callbacks but without validation;
    and ``val/loss`` and ``test/loss``, means over all tokens, with ``perplexity`` and, where the datamodule
    has ``bytes_per_token``, ``bits_per_byte``.

    The optimizer gets two groups: matrices, which decay, and norms, biases and embeddings (a tied head
    included), with ``weight_decay=0`` (`zoo.lm.decay_groups`).

    `zoo predict` continues the ``tokens`` (B, P) of each batch. A draw depends on (seed, index, position), so
    a continuation is that of the item wherever it stands, up to the rounding of matrix products, which may
    differ between batch sizes. It does not stop at any token.

    Under "ddp" with masks, each process's mean counts the same. Strategies that shard the network are
    refused.

    Args:
        config: A transformers config as a dict, ``model_type`` included; the weights are drawn from ``seed``.
            This or ``pretrained``.
        pretrained: Folder, or name on the Hugging Face hub, of a model in safetensors. Checkpoints hold the
            config that was read and need the folder no more.
        revision: Branch, tag or commit of a hub name.
        attention: The backend of attention; what it supports is up to transformers, "eager" always works.
        z_loss: Coefficient of the mean of logsumexp(logits)^2, which keeps logits from drifting; 1e-4 in PaLM
            (Chowdhery et al. 2022, arXiv 2204.02311, section 5).
        hooks: Modules that listen to the model and may change what it computes (`zoo.lm.hooks`).
        max_new_tokens: Tokens that `predict` adds to each prompt.
        temperature: Of the draws of `predict`; 0 is greedy.
        top_k: `predict` draws among the k most probable tokens; None for all.
        compile: Compile the network for the training pass.
        optimizer: Builds the optimizer from the two groups.
        lr_scheduler: Builds a schedule from the optimizer; it is stepped after every update.
        init_from: Checkpoint whose weights this run starts from, or a folder of runs, whose newest is taken.
        init_weights: Which weights of ``init_from``: the average ("ema") or what the optimizer updated
            ("raw").
        seed: Seed of the weights and of the draws. None takes the run's, or 0 without one.

    Raises:
        ValueError: not exactly one of ``config`` and ``pretrained``; a config, backend or hook that does
            not fit; a number out of range; while running: data with more tokens, or longer, than the model's.
    """

    def __init__(
        self,
        config: dict[str, Any] | None = None,
        pretrained: str | None = None,
        revision: str | None = None,
        attention: Attention = "sdpa",
        z_loss: float = 0.0,
        hooks: list[nn.Module] | None = None,
        max_new_tokens: int = 64,
        temperature: float = 1.0,
        top_k: int | None = None,
        compile: bool = False,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        lr_scheduler: LRSchedulerCallable | None = None,
        init_from: str | None = None,
        init_weights: Literal["ema", "raw"] = "ema",
        seed: int | None = None,
    ) -> None:
        super().__init__(optimizer, lr_scheduler, init_from, init_weights, seed)
        self.save_hyperparameters()
        if (config is None) == (pretrained is None):
            given = "neither" if config is None else f"both (pretrained={pretrained!r})"
            raise ValueError(
                f"give exactly one of config, for random weights, and pretrained, for saved ones; got {given}"
            )
        if revision is not None and pretrained is None:
            raise ValueError(
                f"revision={revision!r} is of a pretrained model: give pretrained, or no revision"
            )
        if not (math.isfinite(z_loss) and z_loss >= 0):
            raise ValueError(f"z_loss must be 0 or more, got {z_loss}")
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
        if not (math.isfinite(temperature) and temperature >= 0):
            raise ValueError(f"temperature must be 0 (greedy) or more, got {temperature}")
        if top_k is not None and top_k < 1:
            raise ValueError(f"top_k must be at least 1, or null for all tokens, got {top_k}")
        self._loaded = pretrained is not None
        if config is not None:
            self.network = build_network(config, attention, self.seed)
        else:
            assert pretrained is not None
            self.network = load_network(pretrained, revision, attention, self.seed)
            # Checkpoints are of what was read; the logger keeps where from (`hparams_initial`).
            self.hparams.update(config=plain_config(self.network), pretrained=None, revision=None)
        self.hooks = nn.ModuleList([] if hooks is None else hooks)
        self.z_loss = z_loss
        self.max_new_tokens, self.temperature, self.top_k = max_new_tokens, temperature, top_k
        self._compile = compile  # `compile` is a method of every module
        self._hook_points = HookPoints(self.network, self.hooks, attention)
        self._rate = TokenRate()

    @property
    def needs_checkpoint(self) -> bool:
        """Not where it was built with saved weights."""
        return not self._loaded

    @property
    def vocab_size(self) -> int:
        """Tokens that the model knows."""
        return int(self._text_config().vocab_size)

    @property
    def max_context(self) -> int | None:
        """The longest input in tokens; None where the model sets no limit."""
        return getattr(self._text_config(), "max_position_embeddings", None)

    def forward(self, tokens: Tensor) -> Tensor:
        """`logits`."""
        return self.logits(tokens)

    def logits(self, tokens: Tensor) -> Tensor:
        """Logits (B, T, V) of the token after each of ``tokens`` (B, T).

        With hooks that have ``on_log_probs``, the log-probabilities that they return, which are logits too.
        """
        made = self._predict(tokens, None)
        call_hook(self.hooks, "on_forward_end", tokens, None, None)
        return made.log_probs if has_hook(self.hooks, "on_log_probs") else made.network_logits

    def token_losses(self, batch: dict[str, Any]) -> Tensor:
        """Cross-entropy (B, T) in nats of each target, masked ones included."""
        return self._losses(batch)[0]

    def loss(self, batch: dict[str, Any]) -> Tensor:
        """Mean cross-entropy in nats of the targets that count, without the z-loss: a scalar."""
        return mean_over(self._losses(batch)[0], batch.get("mask"))

    @torch.no_grad()
    def generate(self, prompts: Tensor, index: Tensor, max_new_tokens: int | None = None) -> Tensor:
        """Continues ``prompts`` (B, P), numbered by ``index`` (B,), in evaluation mode.

        Args:
            prompts: Tokens (B, P), at least one each.
            index: Numbers of the items (B,), on which the draws depend.
            max_new_tokens: How many to add; the module's own if not given.

        Returns:
            Prompts and continuations (B, P + max_new_tokens).

        Raises:
            ValueError: there is no prompt, or the whole is longer than the model's context.
        """
        from transformers import DynamicCache

        count = self.max_new_tokens if max_new_tokens is None else max_new_tokens
        if prompts.ndim != 2 or prompts.shape[1] < 1:
            raise ValueError(f"prompts must be tokens (B, P) with P at least 1, got {tuple(prompts.shape)}")
        self._check_context(
            prompts.shape[1] + count - 1, f"{prompts.shape[1]} tokens of a prompt and {count} new"
        )
        cache = DynamicCache(config=self._text_config())

        def step(tokens: Tensor) -> Tensor:
            log_probs = self._predict(tokens, index, cache).log_probs  # (B, 1, V)
            call_hook(self.hooks, "on_forward_end", tokens, None, index)
            return log_probs[:, -1]

        training = self.training
        self.eval()
        call_hook(self.hooks, "on_generation_start", index)
        try:
            # Lengths change with every token: compiled code would be rebuilt for them.
            with torch.compiler.set_stance("force_eager"):
                tokens = generate(step, prompts, index, count, self.seed, self.temperature, self.top_k)
        finally:
            call_hook(self.hooks, "on_generation_end")
            self.train(training)
        return tokens

    def setup(self, stage: str) -> None:
        """Holds the data against the model before the first batch, and compiles the network if asked to.

        Raises:
            ValueError: The strategy shards the network; or the data have tokens that the model does not know
                (or that are not those of a pretrained model), or are longer than its context.
        """
        strategy = self.trainer.strategy
        sharded = isinstance(strategy, FSDPStrategy | ModelParallelStrategy)
        if sharded or (isinstance(strategy, DeepSpeedStrategy) and strategy.zero_stage_3):
            raise ValueError(f"CausalLM does not run under {type(strategy).__name__}: use strategy 'ddp'")
        super().setup(stage)
        vocab_size = getattr(self._data(), "vocab_size", None)
        if vocab_size is not None and vocab_size > self.vocab_size:
            raise ValueError(
                f"the data have vocab_size={vocab_size} tokens, but the model knows {self.vocab_size}: give "
                f"config.vocab_size at least {vocab_size}, or the data the tokenizer of the model"
            )
        if self._loaded and getattr(self._data(), "own_vocabulary", False) and vocab_size != self.vocab_size:
            raise ValueError(
                f"the data make tokens of their own, of {vocab_size} ids, and the pretrained model has a "
                f"vocabulary of {self.vocab_size}: they mean something else to it. Give the data the model's "
                "tokenizer (the folder with its tokenizer.json)"
            )
        context = getattr(self._data(), "context", None)
        if context is not None:
            self._check_context(context, f"the data's context={context}")
        if stage == "fit" and self._compile:
            self.network.compile()  # in place: parameters keep their names

    def configure_optimizers(self) -> Any:
        """The injected optimizer over the two groups of `decay_groups`; the schedule steps per update."""
        decayed, rest = decay_groups(self)
        optimizer = self.optimizer([{"params": decayed}, {"params": rest, "weight_decay": 0.0}])
        if self.lr_scheduler is None:
            return optimizer
        scheduler = self.lr_scheduler(optimizer)
        made: dict[str, Any] = {"scheduler": scheduler, "interval": "step"}
        if isinstance(scheduler, ReduceLROnPlateau):
            made["monitor"] = scheduler.monitor
        return {"optimizer": optimizer, "lr_scheduler": made}

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """The mean cross-entropy of a batch, and the z-loss."""
        losses, partition = self._losses(batch)
        loss = mean_over(losses, batch.get("mask"))
        self.log("train/loss", loss.detach(), prog_bar=True)
        self._rate.count(losses.numel())
        if partition is None:
            return loss
        penalty = mean_over(partition.square(), batch.get("mask"))
        self.log("train/z_loss", penalty.detach())
        return loss + self.z_loss * penalty

    def validation_step(self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Logs the loss of a batch."""
        self._evaluate(batch, "val")

    def test_step(self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Logs the loss of a batch."""
        self._evaluate(batch, "test")

    def predict_step(self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        """Continues a batch of prompts.

        Returns:
            ``tokens`` (B, P + max_new_tokens), prompts included, ``index`` (B,), and ``text``, a string for
            each, where the datamodule has `decode` and does not say ``decodes = False``.
        """
        tokens = self.generate(batch["tokens"], batch["index"])
        made = {"tokens": tokens, "index": batch["index"]}
        data = self._data()
        decode = getattr(data, "decode", None) if getattr(data, "decodes", True) else None
        return made if decode is None else made | {"text": [decode(row) for row in tokens.cpu()]}

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Opens a window of tokens/s."""
        if not self._rate.running:
            self._rate.start()

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Logs tokens/s where other values are logged."""
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]  # set by a connector
        if every and self.trainer.global_step % every == 0 and self._rate.counted:
            self.log("train/tokens_per_second", self._rate.read() * self.trainer.world_size)

    def on_validation_start(self) -> None:
        """Validation is not training: its time does not count."""
        self._rate.stop()

    def on_validation_epoch_end(self) -> None:
        """Logs what follows from the mean loss."""
        self._summarize("val")

    def on_test_epoch_end(self) -> None:
        """Logs what follows from the mean loss."""
        self._summarize("test")

    def _predict(self, tokens: Tensor, index: Tensor | None, cache: Any = None) -> Prediction:
        self._check_context(tokens.shape[1], f"tokens {tuple(tokens.shape)}")
        return forward_with_hooks(self.network, self.hooks, self._hook_points, tokens, index, cache)

    def _losses(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor | None]:
        """Cross-entropies (B, T), and logsumexp of the logits (B, T) where the z-loss asks for it."""
        if "tokens" not in batch:
            raise ValueError(
                "CausalLM needs batches with 'tokens' (B, T + 1), as the datamodule Text gives; this one has "
                f"{sorted(batch)}"
            )
        tokens, index, mask = batch["tokens"], batch.get("index"), batch.get("mask")
        inputs, targets = tokens[:, :-1], tokens[:, 1:]
        made = self._predict(inputs, index)
        losses = next_token_losses(made.log_probs, targets)
        if has_hook(self.hooks, "on_forward_end"):
            unmasked = targets if mask is None else targets.masked_fill(~mask.bool(), IGNORED)
            call_hook(self.hooks, "on_forward_end", inputs, unmasked, index)
        if self.z_loss == 0:
            return losses, None
        return losses, log_partition(made.network_logits, made.network_log_probs, targets)

    def _evaluate(self, batch: dict[str, Any], stage: str) -> None:
        losses, mask = self._losses(batch)[0], batch.get("mask")
        count = losses.numel() if mask is None else int(mask.sum())
        # Weighed by tokens, so that the epoch's mean is one over all of them.
        self.log(f"{stage}/loss", mean_over(losses, mask), batch_size=count, sync_dist=True, prog_bar=True)

    def _summarize(self, stage: str) -> None:
        bytes_per_token = getattr(self._data(), "bytes_per_token", None)
        for name, loss in list(self.trainer.callback_metrics.items()):
            if name.startswith(f"{stage}/loss"):  # one for each dataloader
                self._log_as(name.replace("/loss", "/perplexity"), loss.exp())
                if bytes_per_token is not None:
                    bits = loss / (math.log(2) * bytes_per_token)
                    self._log_as(name.replace("/loss", "/bits_per_byte"), bits)

    def _log_as(self, name: str, value: Tensor) -> None:
        self.log(name, value, add_dataloader_idx=False, sync_dist=True)

    def _check_context(self, length: int, what: str) -> None:
        if self.max_context is not None and length > self.max_context:
            raise ValueError(
                f"{what}: that is longer than the model's max_position_embeddings={self.max_context}. Raise "
                "that in config, or shorten the data's context, the prompts or max_new_tokens"
            )

    def _text_config(self) -> Any:
        config: Any = self.network.config
        return config.get_text_config()

    def _data(self) -> Any:
        return getattr(self.trainer, "datamodule", None)
