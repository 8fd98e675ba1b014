"""Every callback of the zoo that acts only in test or predict through `EvaluationCallbackTester`."""

import pytest
from evaluation_tester import EvaluationCallbackTester, EvaluationCase

from zoo.callbacks import SampleReport, SampleWriter, TextWriter, TrajectoryWriter

CASES = {
    "SampleReport": EvaluationCase(
        SampleReport, "test", ["sample_report.json"], {"steps": [1], "replicates": 2}, metrics="test/1-step/"
    ),
    "SampleWriter": EvaluationCase(
        SampleWriter, "predict", ["samples.npz", "samples.png"], single="there are two SampleWriter"
    ),
    "TextWriter": EvaluationCase(
        TextWriter, "predict", ["texts.jsonl"], single="there are two TextWriter"
    ),
    "TrajectoryWriter": EvaluationCase(
        TrajectoryWriter, "predict", ["trajectories-0-00000.safetensors"], single="there are two Trajectory"
    ),
}  # fmt: skip


@pytest.fixture(scope="class", params=CASES)
def case(request: pytest.FixtureRequest) -> EvaluationCase:
    return CASES[request.param]


class TestEvaluationCallbacks(EvaluationCallbackTester):
    pass
