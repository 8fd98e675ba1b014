"""The LightningModule `CausalLM`: any causal language model of transformers, of a config or of weights."""

from typing import Any, Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from typing_extensions import override

from zoo._modes import evaluating
from zoo.base import as_dataclass, refuse_sharding
from zoo.hf.config import plain_config
from zoo.hf.generation import Generation, generate
from zoo.hf.network import Attention, build_network, load_network
from zoo.hf.weight_decay import decay_groups
from zoo.lm.checks import check_context, check_data, check_prompts, check_source, check_z_loss
from zoo.lm.forward import Prediction, forward_with_hooks, generation_hooks, losses_with_hooks
from zoo.lm.hook_points import HookPoints
from zoo.lm.hooks import call_hook, has_hook
from zoo.lm.language_module import LanguageModule
from zoo.lm.throughput import TokenRate


class CausalLM(LanguageModule):
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
    included), with ``weight_decay=0`` (`zoo.hf.decay_groups`).

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
        hooks: Modules that read or modify attention and log-probabilities (`zoo.lm.hooks`).
        generation: How `predict` and `generate` continue prompts.
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
        *,
        pretrained: str | None = None,
        revision: str | None = None,
        attention: Attention = "sdpa",
        z_loss: float = 0.0,
        hooks: list[nn.Module] | None = None,
        generation: Generation = Generation(),
        compile: bool = False,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        lr_scheduler: LRSchedulerCallable | None = None,
        init_from: str | None = None,
        init_weights: Literal["ema", "raw"] = "ema",
        seed: int | None = None,
    ) -> None:
        super().__init__(
            optimizer=optimizer,
            lr_scheduler=lr_scheduler,
            init_from=init_from,
            init_weights=init_weights,
            seed=seed,
        )
        self.save_hyperparameters()
        check_source(config, pretrained, revision)
        check_z_loss(z_loss)
        self.generation = as_dataclass(Generation, generation, "generation")
        self._loaded = pretrained is not None
        if pretrained is None:
            self.network = build_network(config or {}, attention, self.seed)
        else:
            self.network = load_network(pretrained, revision, attention)
            # Checkpoints are of what was read; the logger keeps where from (`hparams_initial`).
            self.hparams.update(config=plain_config(self.network), pretrained=None, revision=None)
        self.hooks = nn.ModuleList([] if hooks is None else hooks)
        self.z_loss = z_loss
        self._compile = compile  # `compile` is a method of every module
        self._hook_points = HookPoints(self.network, self.hooks)
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

        drawn = self.generation
        count = drawn.max_new_tokens if max_new_tokens is None else max_new_tokens
        check_prompts(prompts, count, self.max_context)
        cache = DynamicCache(config=self._text_config())

        def step(tokens: Tensor) -> Tensor:
            log_probs = self._predict(tokens, index, cache).log_probs  # (B, 1, V)
            call_hook(self.hooks, "on_forward_end", tokens, None, index)
            return log_probs[:, -1]

        with evaluating(self), generation_hooks(self.hooks, index):
            return generate(step, prompts, index, count, self.seed, drawn.temperature, drawn.top_k)

    @override
    def setup(self, stage: str) -> None:
        """Holds the data against the model before the first batch, and compiles the network if asked to.

        Raises:
            ValueError: The strategy shards the network; or the data have tokens that the model does not know
                (or that are not those of a pretrained model), or are longer than its context.
        """
        refuse_sharding(self, self.trainer.strategy)
        super().setup(stage)
        check_data(self._data(), self.vocab_size, self.max_context, self._loaded)
        if stage == "fit" and self._compile:
            self.network.compile()  # in place: parameters keep their names

    @override
    def parameter_groups(self) -> list[Any]:
        decayed, rest = decay_groups(self)
        return [{"params": decayed}, {"params": rest, "weight_decay": 0.0}]

    def _predict(self, tokens: Tensor, index: Tensor | None, cache: Any = None) -> Prediction:
        check_context(tokens.shape[1], self.max_context, f"tokens {tuple(tokens.shape)}")
        return forward_with_hooks(self.network, self.hooks, self._hook_points, tokens, index, cache)

    def _losses(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor | None]:
        return losses_with_hooks(batch, self._predict, self.hooks, with_partition=self.z_loss != 0)

    def _text_config(self) -> Any:
        config: Any = self.network.config
        return config.get_text_config()
