"""Language models as hosts: small, so that schedules, callbacks and hooks have honest ones."""

from typing import TYPE_CHECKING

from zoo._lazy import attach

if TYPE_CHECKING:
    from zoo.lm.bigram_module import BigramTable as BigramTable
    from zoo.lm.causal_lm_module import CausalLM as CausalLM

__getattr__, __dir__, __all__ = attach(__name__, __file__)
