"""How far the multi-power law is from the loss curves that its authors published.

The curves are not ours and not shipped: get github.com/thu-yao-01-luo/MultiPowerLaw (MIT) and run

    python tests/evidence/power_law.py PATH/loss_curve_repo

or set MULTI_POWER_LAW_CURVES to that folder. Rates are rebuilt by the zoo's builders and compared with
the files' own; losses of an update are forecast with that update's rate in the sum, as the authors count.
"""

import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from entry import write

from zoo.schedules import (
    Decay,
    PowerLaw,
    Schedule,
    Segment,
    TrainingCurve,
    constant,
    cosine,
    fit_power_law,
    wsd,
)
from zoo.schedules.power_law import MULTI_POWER_LAW

PEAK, WARMUP = 3e-4, 2160
FITTED = ("cosine_24000", "constant_24000", "wsdcon_9")


def two_stages(ratio: float) -> Schedule:
    """Constant, and from update 8,000 on constant at another level."""
    return Schedule(
        (
            Segment("warmup", 0, WARMUP, 0.0, 1.0, inclusive="start"),
            Segment("stable", WARMUP, 8000),
            Segment("stable", 8000, 16_000, ratio, ratio),
        )
    )


def decayed(shape: Any) -> Schedule:
    """Constant until update 20,000, down to a tenth at 24,000."""
    return wsd([24_000], WARMUP, inclusive="start", decay=Decay([4000], of="explicit", shape=shape))


PLANS = {
    "cosine_24000": cosine(24_000, WARMUP, inclusive="start"),
    "constant_24000": constant(24_000, WARMUP, inclusive="start"),
    "wsdcon_9": two_stages(0.3),
    "wsd_20000_24000": decayed("exp"),
    "wsdld_20000_24000": decayed("linear"),
    "cosine_72000": cosine(72_000, WARMUP, inclusive="start"),
    "constant_72000": constant(72_000, WARMUP, inclusive="start"),
    "wsdcon_3": two_stages(0.1),
    "wsdcon_18": two_stages(0.6),
}
# Mean and worst error in percent, as measured before the zoo had this law.
NOTED = {
    "wsd_20000_24000": "0.12, 0.52",
    "wsdld_20000_24000": "0.11, 0.57",
    "cosine_24000": "0.11, 0.37",
    "cosine_72000": "0.25, 0.46",
}


def read(folder: Path, size: str, name: str) -> tuple[TrainingCurve, float]:
    """A published curve on rates of the zoo's making, and how far those are from the file's, as a share."""
    table = np.genfromtxt(
        folder / f"csv_{size.removesuffix('M')}" / f"{name}.csv", delimiter=",", skip_header=1
    )
    plan = PLANS[name]
    table = table[table[:, 0] < plan.end]
    steps, theirs, losses = table[:, 0].astype(int), table[:, 1], table[:, 2]
    rates = PEAK * np.array(plan.factors())
    return TrainingCurve(rates, steps + 1, losses), float(np.max(np.abs(rates[steps] / theirs - 1)))


def measure(law: PowerLaw, curve: TrainingCurve) -> dict[str, float]:
    """Errors of one curve, as shares of the measured loss, and what it ends at."""
    losses = np.asarray(curve.losses)
    forecast = law.loss(curve.rates, curve.at)
    error = np.abs(forecast / losses - 1)
    return {
        "points": len(losses),
        "mean": float(error.mean()),
        "worst": float(error.max()),
        "end_measured": float(losses[-1]),
        "end_forecast": float(forecast[-1]),
    }


def fitted(curves: dict[str, TrainingCurve]) -> PowerLaw:
    """The zoo's own fit, to every fourth point of the three curves that the authors fitted theirs to."""
    thin = [
        TrainingCurve(rates, np.asarray(at)[::4], np.asarray(losses)[::4])
        for rates, at, losses in (curves[name] for name in FITTED)
    ]
    return fit_power_law(thin)


def percent(value: float) -> str:
    """A share as percent, two digits after the point."""
    return f"{100 * value:.2f}"


def held_out(found: dict[str, dict[str, Any]]) -> str:
    """Errors over the curves that no constants were fitted to, for each model."""
    parts = []
    for size, curves in found.items():
        mean, worst = (
            np.mean([curves[n][key] for n in PLANS if n not in FITTED]) for key in ("mean", "worst")
        )
        parts.append(f"{size} {percent(float(mean))}, {percent(float(worst))}")
    return "; ".join(parts)


def main(folder: Path) -> None:
    """All curves of the three models."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    own: dict[str, dict[str, Any]] = {}
    apart = 0.0
    for size, law in MULTI_POWER_LAW.items():
        read_in = {name: read(folder, size, name) for name in PLANS}
        apart = max(apart, *(gap for _, gap in read_in.values()))
        curves = {name: curve for name, (curve, _) in read_in.items()}
        found[size] = {name: measure(law, curve) for name, curve in curves.items()}
        ours = fitted(curves)
        own[size] = {"constants": asdict(ours)} | {name: measure(ours, curves[name]) for name in PLANS}
    rows = []
    for name in PLANS:
        errors = "; ".join(
            f"{size} {percent(found[size][name]['mean'])}, {percent(found[size][name]['worst'])}"
            for size in found
        )
        rows.append(
            {
                "claim": f"multi-power law, {name} ({'fitted' if name in FITTED else 'held out'}): mean and "
                "worst error of the loss curve, %",
                "scale": "the authors' 25M, 100M and 400M models, published curves and constants",
                "paper": f"100M {NOTED[name]} (an earlier measurement)"
                if name in NOTED
                else "none for this curve alone",
                "ours": errors,
            }
        )
    rows.append(
        {
            "claim": "multi-power law, the six curves held out: mean error, mean of their worst errors, %",
            "scale": "the same",
            "paper": "authors' README: 25M 0.11, 0.41; 100M 0.14, 0.58; 400M 0.17, 1.00",
            "ours": f"authors' constants: {held_out(found)}. `fit_power_law` to the same three curves, every "
            f"fourth point: {held_out(own)}",
        }
    )
    ends = ("wsd_20000_24000", "wsdld_20000_24000", "cosine_24000", "constant_24000")
    rows.append(
        {
            "claim": f"multi-power law: end loss of {', '.join(ends)}",
            "scale": "100M, last point of each published curve",
            "paper": "measured " + ", ".join(f"{found['100M'][name]['end_measured']:.4f}" for name in ends),
            "ours": "forecast " + ", ".join(f"{found['100M'][name]['end_forecast']:.4f}" for name in ends),
        }
    )
    write("power_law", rows, {"published": found, "fitted_here": own, "rates_differ_by": apart})


if __name__ == "__main__":
    given = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("MULTI_POWER_LAW_CURVES")
    if given is None:
        raise SystemExit(__doc__)
    main(Path(given))
