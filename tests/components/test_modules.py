"""Every LightningModule of the zoo through `ModuleTester`."""

import pytest
from module_tester import ModuleCase, ModuleTester

DIGITS = {"class_path": "zoo.datamodules.Digits", "init_args": {"batch_size": 32, "seed": 0}}

CASES = {
    "MeanFlow": ModuleCase(
        model={
            "class_path": "zoo.flow.MeanFlow",
            "init_args": {
                "network": {
                    "class_path": "zoo.flow.networks.DiT",
                    "init_args": {
                        "input_size": 8, "in_channels": 1, "patch_size": 4, "width": 16,
                        "depth": 1, "heads": 2, "num_classes": 10, "dropout": 0.1,
                    },
                },
                "times": {"class_path": "zoo.flow.MeanFlowTimes", "init_args": {"share": 0.5}},
                "omega": 1.5,
                "seed": 0,
            },
        },
        data=DIGITS,
        without_dropout={"init_args.network.init_args.dropout": 0.0},
    ),
}  # fmt: skip


@pytest.fixture(scope="class", params=CASES)
def case(request: pytest.FixtureRequest) -> ModuleCase:
    return CASES[request.param]


class TestModules(ModuleTester):
    pass
