"""The multi-power law against a double loop and the printed forecasts."""

import numpy as np
import pytest

from zoo.schedules import MULTI_POWER_LAW, PowerLaw, Schedule, constant, cosine, wsd, wsds

WARMUP = 2160
LAW = MULTI_POWER_LAW["100M"]


def rates(plan: Schedule) -> list[float]:
    return [3e-4 * factor for factor in plan.factors()]


def reference(law: PowerLaw, eta: list[float], updates: int, first_change: int = 0) -> float:
    """The law in plain floats; ``first_change`` leaves out what the rates did before."""
    loss = law.L0 + law.A * sum(eta[:updates]) ** -law.alpha
    for k in range(first_change, updates):
        before = eta[k - 1] if k else 0.0
        if before != eta[k]:
            x = law.C * eta[k] ** -law.gamma * sum(eta[k:updates])
            loss -= law.B * (before - eta[k]) * (1 - (1 + x) ** -law.beta)
    return loss


@pytest.mark.parametrize("size", MULTI_POWER_LAW)
def test_against_the_double_loop(size: str) -> None:
    law = MULTI_POWER_LAW[size]
    for plan in (cosine(400, 50), wsds([100, 200, 400], 30, shape="1-sqrt", min_ratio=0.01)):
        eta, stops = rates(plan), [1, 30, 77, 200, 201, 400]
        found = law.loss(eta, stops)
        expected = [reference(law, eta, stop) for stop in stops]
        assert found == pytest.approx(expected, rel=1e-10)


def test_printed_forecasts() -> None:
    """Any convention at the ends of ramps prints the same digits, and so do branches and roads."""
    for touches in ("end", "start"):
        assert LAW.loss(rates(cosine(24_000, WARMUP, touches=touches))).round(3) == 2.990  # type: ignore[arg-type]
        assert LAW.loss(rates(wsd([24_000], WARMUP, touches=touches))).round(3) == 2.933  # type: ignore[arg-type]
        road = rates(wsds([6000, 12_000, 24_000], WARMUP, touches=touches))  # type: ignore[arg-type]
        assert LAW.loss(road, [6000, 12_000, 24_000]).round(3).tolist() == [3.206, 3.045, 2.937]


def test_the_increases_of_the_warmup_are_in_the_sum() -> None:
    eta = rates(cosine(24_000, WARMUP))
    whole = LAW.loss(eta).item()
    without = reference(LAW, eta, 24_000, first_change=WARMUP)
    assert round(without, 3) == 2.860
    # Long after the warm-up its increases have grown to nearly B times the peak.
    assert whole - without == pytest.approx(LAW.B * 3e-4, rel=0.03)


def test_end_losses_of_the_published_runs() -> None:
    """Forecasts of runs of the authors' 100M model, beside the losses they ended at."""
    decays = {"exp": 2.9514, "linear": 2.9535}
    for shape, measured in decays.items():
        eta = rates(wsd([24_000], WARMUP, [4000], "explicit", shape=shape))  # type: ignore[arg-type]
        assert LAW.loss(eta).item() == pytest.approx(measured, rel=0.01)
    assert LAW.loss(rates(cosine(24_000, WARMUP))).item() == pytest.approx(2.9791, rel=0.01)
    assert LAW.loss(rates(constant(24_000, WARMUP))).item() == pytest.approx(3.0354, rel=0.01)


def test_a_decay_to_zero_is_finite_and_idle_updates_change_nothing() -> None:
    eta = rates(wsd([24_000], WARMUP, min_ratio=0.0, touches="start"))
    ended = LAW.loss([*eta, 0.0]).item()
    assert np.isfinite(ended) and ended < LAW.loss(rates(wsd([24_000], WARMUP))).item()
    assert LAW.loss([*eta, 0.0, 0.0, 0.0]).item() == ended
    assert LAW.loss([0.0, *eta, 0.0]).item() == pytest.approx(ended, rel=1e-12)


def test_many_points_are_the_same_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    eta, stops = rates(cosine(500, 50)), list(range(1, 501))
    whole = LAW.loss(eta, stops)
    monkeypatch.setattr("zoo.schedules.power_law._BLOCK", 1000)
    assert LAW.loss(eta, stops) == pytest.approx(whole, rel=1e-14)  # sums of other lengths round otherwise


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="gamma must be below 1"):
        PowerLaw(3.0, 0.5, 0.5, 400.0, 2.0, 0.6, 1.0)
    with pytest.raises(ValueError, match="B must be a positive number, got -1"):
        PowerLaw(3.0, 0.5, 0.5, -1, 2.0, 0.6, 0.6)
    with pytest.raises(ValueError, match="at least 0, one for each update"):
        LAW.loss([1e-4, -1e-4])
    with pytest.raises(ValueError, match=r"from 2 \(the first with a rate above 0\) to 3 \(all rates\)"):
        LAW.loss([0.0, 1e-4, 1e-4], [1])
    with pytest.raises(ValueError, match=r"got \[0.5\]"):
        LAW.loss([1e-4], [0.5])
