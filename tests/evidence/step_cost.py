"""What a mean-flow step costs beside a flow-matching step, ratio by ratio within one run."""

import sys

from entry import ROOT, interval, write

sys.path.append(str(ROOT / "tests" / "benchmarks"))

from test_mean_flow_step import measure


def main() -> None:
    """Measures, and takes the ratios repeat by repeat, so that a drift of the machine cancels."""
    seconds = measure()
    plain = seconds["flow matching"]
    ratios = {
        name: [value / base for value, base in zip(values, plain, strict=True)]
        for name, values in seconds.items()
        if name != "flow matching"
    }
    write(
        "step_cost",
        [
            {
                "claim": f"time of a mean-flow step over a flow-matching step: {words}",
                "scale": "DiT, width 128, depth 4, 16 tokens, batch 128, 25 % r != t, float32, 2 cores",
                "paper": "not at this scale; arithmetic alone asks for 1.17 unguided",
                "ours": interval(ratios[name]),
            }
            for name, words in (
                ("mean flow", "tangent on the r != t items without gradient"),
                ("full batch", "full batch, differentiated through, as the official code"),
                ("guided, kappa = 0", "guided by the unconditional velocity"),
                ("guided, kappa > 0", "guided by both velocities"),
            )
        ],
        {"ratios": ratios, "seconds": seconds},
    )


if __name__ == "__main__":
    main()
