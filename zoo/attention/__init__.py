"""Attention one can afford to watch: hooks on that of any model, and its statistics without T x T weights."""

from typing import TYPE_CHECKING

from zoo._lazy import attach

if TYPE_CHECKING:
    from zoo.attention.call import AttentionCall as AttentionCall
    from zoo.attention.layers import Layer as Layer
    from zoo.attention.layers import attention_modules as attention_modules
    from zoo.attention.layers import find_stack as find_stack
    from zoo.attention.layers import stacks as stacks
    from zoo.attention.sampling import stratified_rows as stratified_rows
    from zoo.attention.statistics import AttentionStatistics as AttentionStatistics
    from zoo.attention.statistics import attention_statistics as attention_statistics
    from zoo.attention.statistics import columns as columns
    from zoo.attention.statistics import rows as rows
    from zoo.attention.watch import watch_attention as watch_attention

__getattr__, __dir__, __all__ = attach(__name__, __file__)
