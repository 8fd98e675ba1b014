"""`zoo plan`: a config's schedule in words and as a picture, and what it refuses."""

from pathlib import Path

import pytest

from zoo.schedules import read_ledger

CONFIG = """
trainer:
  accelerator: cpu
  max_steps: 80
  callbacks:
  - class_path: zoo.callbacks.WSDS
    init_args:
      schedule:
        class_path: zoo.schedules.wsd
        init_args: {budgets: [20, 40, 80], warmup: 4}
model:
  class_path: zoo.flow.MeanFlow
  init_args:
    network: {class_path: zoo.flow.DiT, init_args: {width: 16, depth: 1, heads: 2, num_classes: 10}}
data: Digits
"""


@pytest.fixture
def config(workspace: Path) -> str:
    Path("tree.yaml").write_text(CONFIG)
    return "tree.yaml"


def test_plan(zoo, config):
    run = zoo("plan", config, "--png", "out/plan.png", "--tokens", "128", "--law", "100M")
    assert run.code == 0, run.err
    lines = run.out.splitlines()
    assert lines[0] == "tree.yaml: 86 updates in all (6 of them on branches), 11k tokens of 128 an update"
    assert lines[1] == "peak learning rate 0.001"
    assert any(line.startswith("this plan") for line in lines)
    assert lines[-1] == "drawn in out/plan.png" and Path("out/plan.png").stat().st_size > 10_000
    assert not Path("runs").exists()


def test_keys_of_the_config(zoo, config):
    run = zoo("plan", config, "--trainer.max_steps", "50", "--model.optimizer.lr", "0.5")
    assert run.code == 0, run.err
    assert "peak learning rate 0.5" in run.out
    assert (
        run.out.splitlines()[-1] == "max_steps is 50, and the schedule has 80 updates: no model for budget 80"
    )


def test_an_overlay(zoo, workspace):
    run = zoo("plan", "lm/bigram", "--config", "callbacks/wsds")
    assert run.code == 0, run.err
    assert run.out.startswith("lm/bigram, callbacks/wsds: 4,000 updates in all\n")
    assert "max_steps" not in run.out  # the overlay leaves the length to the schedule


def test_a_schedule_as_long_as_the_run(zoo, workspace):
    assert zoo("cp", "quickstart", "mine.yaml").code == 0
    run = zoo("plan", "mine.yaml", "--trainer.max_steps", "4000")
    assert run.code == 0, run.err
    assert run.out.startswith("mine.yaml: 4,000 updates in all\npeak learning rate 0.002\n")
    assert [line.split() for line in run.out.splitlines()[4:5]] == [
        ["0", "-", "280", "warmup", "0.04", "->", "1", "cosine"]
    ]
    run = zoo("plan", "--config", "mine.yaml", "--trainer.max_steps", "-1", "--trainer.max_epochs", "2")
    assert run.code == 2 and "say --trainer.max_steps N to see it for N updates" in run.err


NO_SCHEDULE = CONFIG[: CONFIG.index("  callbacks")] + CONFIG[CONFIG.index("model:") :]
OWN = """
    lr_scheduler:
      class_path: torch.optim.lr_scheduler.OneCycleLR
      init_args: {max_lr: 0.001, total_steps: 80}
data"""


def test_no_schedule(zoo, workspace):
    Path("plain.yaml").write_text(NO_SCHEDULE)
    run = zoo("plan", "plain.yaml")
    assert (run.code, run.out) == (0, "plain.yaml: no schedule, the learning rate is 0.001 throughout\n")


def test_a_scheduler_of_the_module(zoo, workspace):
    Path("own.yaml").write_text(NO_SCHEDULE.replace("\ndata", OWN))
    run = zoo("plan", "own.yaml")
    assert run.code == 0, run.err
    assert run.out.startswith(
        "own.yaml: OneCycleLR of MeanFlow, stepped every step: learning rate 4e-05 at first, 0.001 at most "
        "(from 23 on), 4e-09 at last\n"
    )
    assert len(run.out.splitlines()) == 11 and "####" in run.out
    run = zoo("plan", "own.yaml", "--trainer.max_steps", "90")
    message = "(OneCycleLR): total_steps is 80 and trainer.max_steps 90, so update 81 would fail"
    assert run.code == 2 and message in run.err
    assert message in zoo("check", "--config", "own.yaml", "--trainer.max_steps", "90").err
    assert zoo("check", "--config", "own.yaml", "--trainer.max_steps", "80").code == 0
    run = zoo("plan", "own.yaml", "callbacks/wsds")
    assert run.code == 2 and "two owners, WSDS and OneCycleLR of MeanFlow: leave out" in run.err


PRETRAINED = """
trainer: {accelerator: cpu, max_epochs: -1, callbacks: [{class_path: WSDS, init_args: {schedule: {class_path:
  zoo.schedules.wsds, init_args: {budgets: [20, 40]}}}}]}
model: {class_path: CausalLM, init_args: {pretrained: saved}}
data: {class_path: Text, init_args: {context: 16}}
"""


def test_a_pretrained_model_is_checked_and_planned_without_its_weights(zoo, workspace):
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"vocab_size": 300, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2)).save_pretrained("saved")
    Path("saved/model.safetensors").write_bytes(b"never read")
    Path("tuned.yaml").write_text(PRETRAINED)
    run = zoo("check", "tuned.yaml")
    assert (run.code, run.err) == (0, "")
    assert run.out.startswith("tuned.yaml: ok, CausalLM on Text, 12,208 parameters")
    run = zoo("plan", "tuned.yaml")
    assert run.code == 0 and run.out.startswith("tuned.yaml: 40 updates in all")
    Path("tuned.yaml").write_text(PRETRAINED.replace("saved", "some/repo"))
    for verb in ("check", "plan"):
        run = zoo(verb, "tuned.yaml")
        assert run.code == 2 and run.err.count("\n") == 1
        assert "pretrained='some/repo' is not a local folder" in run.err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), "zoo plan: give a CONFIG, a file or a bundled config's name"),
        (("nothing_here",), "neither a file here nor a bundled config"),
        (("tree.yaml", "--law", "3"), "give one of 25M, 100M, 400M, or the seven numbers L0,A,alpha"),
        (("tree.yaml", "--law", "1,1,1,1,1,1,2"), "gamma must be below 1"),
        (("quickstart", "--trainer.max_steps", "0"), "updates must be at least 1, got 0 (trainer.max_steps"),
        (("tree.yaml", "--model.nothing", "1"), "nothing"),
    ],
)
def test_refusals(zoo, config, words, says):
    run = zoo("plan", *words)
    assert run.code == 2 and says in run.err
    assert run.err.count("\n") == 1  # one line


def test_budgets_that_lie_close_together(zoo, config):
    Path(config).write_text(CONFIG.replace("[20, 40, 80]", "[20, 21]"))
    run = zoo("plan", config)
    assert run.code == 0
    assert "WSD-S: the budgets lie too close together for it." in run.out
    Path(config).write_text(CONFIG.replace("[20, 40, 80]", "[20, 20]"))
    run = zoo("plan", config)
    assert run.code == 2 and run.err.count("\n") == 1
    assert "budgets must increase, got 20 and then 20: sort them, and name each once" in run.err


def test_the_tree_by_one_command_and_a_merge(zoo, config):
    """`zoo fit` runs all sub-runs; a merged model is tested, and not resumed."""
    small = CONFIG.replace("[20, 40, 80], warmup: 4", "[4, 8], warmup: 2, decay: 0.5").replace("80", "8")
    Path(config).write_text(small)
    run = zoo("fit", "--config", config)
    assert run.code == 0, run.err
    folder = Path("runs/tree/version_0/checkpoints")
    assert [entry.step for entry in read_ledger(folder)] == [2, 4, 4, 8]
    assert "  ledger     runs/tree/version_0/checkpoints/ledger.json" in run.out.splitlines()
    Path(config).write_text(
        small.replace("schedules.wsd", "schedules.wsm").replace("decay", "snapshots: 2, decay")
    )
    assert zoo("fit", "--config", config).code == 0
    merged = "runs/tree/version_1/checkpoints/wsds-budget8-merged-step8.ckpt"
    assert zoo("test", "--config", config, "--ckpt_path", merged).code == 0
    again = zoo("fit", "--config", config, "--ckpt_path", merged)
    assert again.code == 2 and again.err.count("\n") == 1
    assert "is a mean of checkpoints and no state to go on from" in again.err
