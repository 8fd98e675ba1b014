"""Attention sinks, primary and secondary: which tokens, in which layers, made by what (arXiv 2512.22213)."""

from typing import TYPE_CHECKING

from zoo._lazy import attach

if TYPE_CHECKING:
    from zoo.sinks.analysis import analyze as analyze
    from zoo.sinks.analysis import record as record
    from zoo.sinks.attention import AttentionRecord as AttentionRecord
    from zoo.sinks.detector import detect as detect
    from zoo.sinks.levels import sink_levels as sink_levels
    from zoo.sinks.paper import PaperSink as PaperSink
    from zoo.sinks.paper import paper_detect as paper_detect
    from zoo.sinks.planted import Planted as Planted
    from zoo.sinks.planted import planted_llama as planted_llama
    from zoo.sinks.planted import planted_tokens as planted_tokens
    from zoo.sinks.report import SinkReport as SinkReport
    from zoo.sinks.sink import Sink as Sink
    from zoo.sinks.sink import Thresholds as Thresholds
    from zoo.sinks.states import StateRecorder as StateRecorder
    from zoo.sinks.states import States as States
    from zoo.sinks.states import states_of as states_of
    from zoo.sinks.steer import steered as steered

__getattr__, __dir__, __all__ = attach(__name__, __file__)
