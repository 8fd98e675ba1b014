"""Networks of transformers, of plain arguments or local files: losses, weight decay, caches, sampling."""

from typing import TYPE_CHECKING

from zoo._lazy import attach

if TYPE_CHECKING:
    from zoo.hf.cache import cache_argument as cache_argument
    from zoo.hf.config import plain_config as plain_config
    from zoo.hf.config import read_config as read_config
    from zoo.hf.generation import Generation as Generation
    from zoo.hf.generation import generate as generate
    from zoo.hf.generation import next_token as next_token
    from zoo.hf.losses import next_log_probs as next_log_probs
    from zoo.hf.losses import next_token_losses as next_token_losses
    from zoo.hf.network import build_network as build_network
    from zoo.hf.network import load_network as load_network
    from zoo.hf.weight_decay import decay_groups as decay_groups

__getattr__, __dir__, __all__ = attach(__name__, __file__)
