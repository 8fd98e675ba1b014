"""The table of a model's parts that is printed when a fit begins."""

from typing import Any

from lightning.pytorch.callbacks import ModelSummary


class CountedSummary(ModelSummary):
    """Lightning's model summary, without the FLOPs where nobody has counted them.

    Lightning counts them in a pass over the module's ``example_input_array``, and prints 0 for a module that
    has none.
    """

    @staticmethod
    def summarize(summary_data: list[tuple[str, list[str]]], *args: Any, **kwargs: Any) -> None:
        """Prints the table; arguments as Lightning gives them."""
        from rich import get_console
        from rich.table import Table

        parameters, trainable, size, modes = args[:4]
        flops = kwargs.pop("total_flops", 0)
        columns = [(name, cells) for name, cells in summary_data if name != "FLOPs" or flops]
        table = Table()
        for name, _ in columns:
            table.add_column(name, justify="right" if name in ("Params", "FLOPs") else "left")
        for row in zip(*(cells for _, cells in columns), strict=True):
            table.add_row(*map(str, row))
        facts = {
            "Trainable params": f"{trainable:,}",
            "Non-trainable params": f"{parameters - trainable:,}",
            "Size of the params (MB)": f"{size:.3f}",
            "Modules in train / eval mode": f"{modes['train']} / {modes['eval']}",
        }
        if flops:
            facts["FLOPs of one pass over example_input_array"] = f"{flops:,}"
        console = get_console()
        console.print(table)
        for name, value in facts.items():
            console.print(f"{name}: {value}", highlight=False)
