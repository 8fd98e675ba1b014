"""Every callback of the zoo that acts in training through `CallbackTester`."""

import pytest
from callback_tester import CallbackCase, CallbackTester

from zoo.callbacks import (
    WSDS,
    EMAGap,
    ExactResume,
    GracefulStop,
    LossCurve,
    LRSchedule,
    SampleGrid,
    SinkLogger,
    UpdateBar,
)
from zoo.schedules import constant, cosine, wsds

CASES = {
    "ExactResume": CallbackCase(
        active=ExactResume, inactive=ExactResume, single="more than one stateful callback"
    ),
    "ExactResume, attention": CallbackCase(
        active=ExactResume,
        inactive=ExactResume,
        single="more than one stateful callback",
        host="attention",
    ),
    "GracefulStop": CallbackCase(
        active=GracefulStop, inactive=GracefulStop, single="two GracefulStop callbacks, and a signal has one"
    ),
    "EMAGap": CallbackCase(
        active=lambda: EMAGap(every_n_steps=3, batches=2), inactive=lambda: EMAGap(every_n_steps=10**9)
    ),
    "SampleGrid": CallbackCase(
        active=lambda: SampleGrid(every_n_steps=5, per_label=2),
        inactive=lambda: SampleGrid(every_n_steps=10**9),
    ),
    "LossCurve": CallbackCase(active=LossCurve, inactive=LossCurve),
    "WSDS": CallbackCase(
        active=lambda: WSDS(wsds([8, 17], warmup=2)),
        inactive=lambda: WSDS(constant(10**9)),
        observer=False,
        single="more than one stateful callback",
        paths="files",
    ),
    "LRSchedule": CallbackCase(
        active=lambda: LRSchedule(cosine(17, warmup=2)),
        inactive=lambda: LRSchedule(constant(10**9)),
        observer=False,
        single="more than one stateful callback",
    ),
    "SinkLogger": CallbackCase(
        active=lambda: SinkLogger(every_n_steps=3, sequences=2, queries=4),
        inactive=lambda: SinkLogger(every_n_steps=10**9),
        single="more than one stateful callback",
        host="attention",
    ),
    "UpdateBar": CallbackCase(
        active=lambda: UpdateBar(1e-6), inactive=lambda: UpdateBar(1e9), single="multiple progress bar"
    ),
}


@pytest.fixture(scope="class", params=CASES)
def case(request: pytest.FixtureRequest) -> CallbackCase:
    return CASES[request.param]


class TestCallbacks(CallbackTester):
    pass
