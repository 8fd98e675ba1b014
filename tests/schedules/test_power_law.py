"""The multi-power law against a double loop and the printed forecasts."""

import numpy as np
import pytest

from zoo.schedules import (
    Decay,
    PowerLaw,
    Schedule,
    TrainingCurve,
    constant,
    cosine,
    fit_power_law,
    wsd,
    wsds,
)
from zoo.schedules.power_law import MULTI_POWER_LAW

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
    for plan in (cosine(400, 50), wsds([100, 200, 400], 30, decay=Decay(shape="1-sqrt", min_ratio=0.01))):
        eta, stops = rates(plan), [1, 30, 77, 200, 201, 400]
        found = law.loss(eta, stops)
        expected = [reference(law, eta, stop) for stop in stops]
        assert found == pytest.approx(expected, rel=1e-10)


def test_printed_forecasts() -> None:
    """Any convention at the ends of ramps prints the same digits, and so do branches and the trunk."""
    for inclusive in ("end", "start"):
        assert LAW.loss(rates(cosine(24_000, WARMUP, inclusive=inclusive))).round(3) == 2.990  # type: ignore[arg-type]
        assert LAW.loss(rates(wsd([24_000], WARMUP, inclusive=inclusive))).round(3) == 2.933  # type: ignore[arg-type]
        factors = rates(wsds([6000, 12_000, 24_000], WARMUP, inclusive=inclusive))  # type: ignore[arg-type]
        assert LAW.loss(factors, [6000, 12_000, 24_000]).round(3).tolist() == [3.206, 3.045, 2.937]


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
        eta = rates(wsd([24_000], WARMUP, decay=Decay([4000], of="explicit", shape=shape)))  # type: ignore[arg-type]
        assert LAW.loss(eta).item() == pytest.approx(measured, rel=0.01)
    assert LAW.loss(rates(cosine(24_000, WARMUP))).item() == pytest.approx(2.9791, rel=0.01)
    assert LAW.loss(rates(constant(24_000, WARMUP))).item() == pytest.approx(3.0354, rel=0.01)


def test_a_decay_to_zero_is_finite_and_idle_updates_change_nothing() -> None:
    eta = rates(wsd([24_000], WARMUP, inclusive="start", decay=Decay(min_ratio=0.0)))
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


FITTED = (cosine(1200, 110), constant(1200, 110), wsd([800], 110, decay=0.5))


def curves(peak: float, noise: float) -> list[TrainingCurve]:
    """Runs of the 100M law, at another scale of the rates, and losses that are off by a share ``noise``."""
    generator, made = np.random.default_rng(0), []
    for plan in FITTED:
        at = np.arange(130, plan.end + 1, 30)
        exact = LAW.loss(rates(plan), at)
        off = np.exp(noise * generator.standard_normal(len(at)))
        made.append(TrainingCurve([peak * factor for factor in plan.factors()], at, exact * off))
    return made


def test_a_fit_finds_the_law_that_made_the_curves() -> None:
    law = fit_power_law(curves(3e-4, noise=0.0))
    for name in ("L0", "A", "alpha", "B", "C", "beta", "gamma"):
        assert getattr(law, name) == pytest.approx(getattr(LAW, name), rel=1e-6), name


def test_a_fit_to_noisy_losses_forecasts_other_runs() -> None:
    """Losses off by .2 % and rates of another optimizer; forecasts of longer and other decays within .3 %."""
    law = fit_power_law(curves(0.5, noise=0.002))
    for plan in (
        wsd([1200], 110, decay=Decay(min_ratio=0.05)),
        wsd([2400], 110, decay=Decay(shape="1-sqrt")),
        cosine(3600, 110),
    ):
        found = law.loss([0.5 * factor for factor in plan.factors()]).item()
        assert found == pytest.approx(LAW.loss(rates(plan)).item(), rel=3e-3)


def test_curves_that_cannot_be_fitted_are_refused() -> None:
    [curve, *others] = curves(3e-4, 0.0)
    with pytest.raises(ValueError, match="at least 2 curves and 10 losses, got 1 curves"):
        fit_power_law([curve])
    with pytest.raises(ValueError, match=r"curve 0: losses must be positive .* the 36 .* got \(35,\)"):
        fit_power_law([curve._replace(losses=np.asarray(curve.losses)[1:]), *others])
    with pytest.raises(ValueError, match=r"curve 1: losses must be positive .* from -1"):
        fit_power_law([curve, others[0]._replace(losses=-np.ones(36))])
