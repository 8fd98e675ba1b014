"""How far the multi-power law is from the loss curves that its authors published.

The curves are not ours and not shipped: get github.com/thu-yao-01-luo/MultiPowerLaw (MIT) and run

    python tests/evidence/power_law.py PATH/loss_curve_repo

or set MULTI_POWER_LAW_CURVES to that folder. Rates are made anew by the zoo's builders and compared with
the files' own; losses of an update are forecast with that update's rate in the sum, as the authors count.
"""

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
from entry import write

from zoo.schedules import MULTI_POWER_LAW, Schedule, Segment, constant, cosine, wsd

PEAK, WARMUP = 3e-4, 2160
FITTED = ("cosine_24000", "constant_24000", "wsdcon_9")


def two_stages(ratio: float) -> Schedule:
    """Constant, and from update 8,000 on constant at another level."""
    return Schedule(
        (
            Segment("warmup", 0, WARMUP, 0.0, 1.0, touches="start"),
            Segment("stable", WARMUP, 8000),
            Segment("stable", 8000, 16_000, ratio, ratio),
        )
    )


def decayed(shape: Any) -> Schedule:
    """Constant until update 20,000, down to a tenth at 24,000."""
    return wsd([24_000], WARMUP, [4000], "explicit", shape, touches="start")


PLANS = {
    "cosine_24000": cosine(24_000, WARMUP, touches="start"),
    "constant_24000": constant(24_000, WARMUP, touches="start"),
    "wsdcon_9": two_stages(0.3),
    "wsd_20000_24000": decayed("exp"),
    "wsdld_20000_24000": decayed("linear"),
    "cosine_72000": cosine(72_000, WARMUP, touches="start"),
    "constant_72000": constant(72_000, WARMUP, touches="start"),
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


def measure(folder: Path, size: str, name: str) -> dict[str, float]:
    """Errors of one curve, as shares of the measured loss, and what it ends at."""
    table = np.genfromtxt(
        folder / f"csv_{size.removesuffix('M')}" / f"{name}.csv", delimiter=",", skip_header=1
    )
    plan = PLANS[name]
    table = table[table[:, 0] < plan.end]
    steps, theirs, losses = table[:, 0].astype(int), table[:, 1], table[:, 2]
    rates = PEAK * np.array(plan.factors())
    gap = float(np.max(np.abs(rates[steps] / theirs - 1)))
    forecast = MULTI_POWER_LAW[size].loss(rates, steps + 1)
    error = np.abs(forecast / losses - 1)
    return {
        "points": len(steps),
        "rates_differ_by": gap,
        "mean": float(error.mean()),
        "worst": float(error.max()),
        "end_measured": float(losses[-1]),
        "end_forecast": float(forecast[-1]),
    }


def percent(value: float) -> str:
    """A share as percent, two digits after the point."""
    return f"{100 * value:.2f}"


def main(folder: Path) -> None:
    """All curves of the three models."""
    found = {size: {name: measure(folder, size, name) for name in PLANS} for size in MULTI_POWER_LAW}
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
    held_out = {
        size: [curve for name, curve in curves.items() if name not in FITTED]
        for size, curves in found.items()
    }
    rows.append(
        {
            "claim": "multi-power law, the six curves held out: mean error, mean of their worst errors, %",
            "scale": "the same",
            "paper": "authors' README: 25M 0.11, 0.41; 100M 0.14, 0.58; 400M 0.17, 1.00",
            "ours": "; ".join(
                f"{size} {percent(float(np.mean([c['mean'] for c in curves])))}, "
                f"{percent(float(np.mean([c['worst'] for c in curves])))}"
                for size, curves in held_out.items()
            ),
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
    write("power_law", rows, found)


if __name__ == "__main__":
    given = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("MULTI_POWER_LAW_CURVES")
    if given is None:
        raise SystemExit(__doc__)
    main(Path(given))
