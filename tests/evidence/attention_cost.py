"""What exact statistics of a layer's attention cost beside its SDPA call and beside T x T scores."""

import statistics
import sys

from entry import ROOT, interval, write

sys.path.append(str(ROOT / "tests" / "benchmarks"))

from test_attention import SCORES, measure, peak_bytes


def main() -> None:
    """Measures, and takes the ratios turn by turn, so that a drift of the machine cancels."""
    seconds = measure()
    scale = "one layer, causal, 8 heads of 64, T = 4,096, float32, 1 core"
    rows = []
    for name, words in (("statistics", "all statistics"), ("columns", "column sums alone")):
        ratios = [ours / sdpa for ours, sdpa in zip(seconds[name], seconds["sdpa"], strict=True)]
        rows.append(
            {
                "claim": f"time of {words} over the layer's SDPA call",
                "scale": scale,
                "paper": "none",
                "ours": interval(ratios),
            }
        )
    eager = statistics.median(seconds["eager"]) / statistics.median(seconds["sdpa"])
    rows.append(
        {
            "claim": "the same from the weights of eager attention, over the SDPA call",
            "scale": scale,
            "paper": "none",
            "ours": f"{eager:.3g}",
        }
    )
    peak = peak_bytes()
    rows.append(
        {
            "claim": "peak memory of all statistics over that of T x T scores",
            "scale": scale,
            "paper": "none",
            "ours": f"1/{SCORES / peak:.0f}",
        }
    )
    write("attention_cost", rows, {"seconds": seconds, "peak_bytes": peak})


if __name__ == "__main__":
    main()
