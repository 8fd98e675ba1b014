"""The verbs that answer without torch: list, show, cp, --help, --version; and check."""

import re
import resource
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import yaml
from bundled import SMALL

import zoo as package
from zoo._cli import configs
from zoo._cli.components import components, public_names
from zoo._cli.verbs import snippet


@pytest.mark.parametrize("words", [["list"], ["--help"], ["show", "MeanFlow"], ["--version"]])
def test_light_verbs_import_neither_torch_nor_lightning_and_are_quick(words):
    code = (
        "import sys; from zoo.cli import main; code = main(sys.argv[1:]); "
        "heavy = {'torch', 'lightning', 'numpy'} & set(sys.modules); sys.exit(code or len(heavy))"
    )
    start = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout
    end = resource.getrusage(resource.RUSAGE_CHILDREN)  # seconds of the processor: others may be at work, too
    assert (end.ru_utime + end.ru_stime) - (start.ru_utime + start.ru_stime) < 1.5


def test_list_names_everything(zoo):
    out = zoo("list").out
    for name in ("MeanFlow", "Digits", "ExactResume", "DiT", "quickstart", "flow/eight_gaussians"):
        assert f"  {name} " in out
    assert "Few-step" not in out  # one line each, from the component's own docstring
    for component in components():
        assert component.summary, f"{component.path} has no docstring for `zoo list`"


def test_list_of_one_kind(zoo):
    lines = zoo("list", "data").out.splitlines()
    listed = [line.split()[0] for line in lines]
    assert listed == sorted(public_names()["zoo.datamodules"]) and {"Digits", "EightGaussians"} <= set(listed)
    assert zoo("list", "date").code == 2


def test_short_names_are_unique_over_all_packages():
    places = Counter(
        (name, module)
        for names in public_names().values()
        for name, module in names.items()
        if name[0].isupper()
    )
    names = Counter(name for name, _ in places)
    assert [name for name, count in names.items() if count > 1] == []


def test_show_tells_what_ast_reads(zoo):
    out = zoo("show", "Digits").out
    assert out.startswith("zoo.datamodules.Digits\n")
    assert "    batch_size: Items per batch and process." in out
    block = yaml.safe_load(out.split("YAML to paste:")[1])
    assert block == {
        "data": {
            "class_path": "zoo.datamodules.Digits",
            "init_args": {"batch_size": 128, "num_workers": 0, "seed": None},
        }
    }
    assert zoo("show", "zoo.flow.MeanFlow").out == zoo("show", "MeanFlow").out
    assert zoo("show", "quickstart").out.strip() == (configs.folder() / "quickstart.yaml").read_text().strip()


def test_a_required_argument_comes_first_and_says_so():
    shown = {component.name: snippet(component) for component in components() if component.kind == "models"}
    lines = shown["MeanFlow"].splitlines()
    assert lines[3] == "    network:  # required: nn.Module"
    assert "    optimizer: torch.optim.AdamW  # OptimizerCallable" in lines


def test_pasted_snippets_build(zoo, workspace):
    """Every component whose arguments all have defaults builds from what `zoo show` prints."""
    base = yaml.safe_load(Path("small.yaml").read_text())
    for component in components():
        if component.kind not in ("data", "callbacks") or any(a.default is None for a in component.arguments):
            continue
        block = yaml.safe_load(snippet(component))
        if component.kind == "callbacks":
            config = base | {"trainer": base["trainer"] | block["trainer"] | {"enable_progress_bar": True}}
        else:
            config = base | block
        Path(f"{component.name}.yaml").write_text(yaml.safe_dump(config))
    made = [path.name for path in Path().glob("[A-Z]*.yaml")]
    assert {"Digits.yaml", "SampleGrid.yaml", "ExactResume.yaml"} <= set(made)
    result = zoo("check", *made, "--trust", "my_model")
    assert result.code == 0, result.err


def test_cp_copies_and_never_overwrites(zoo, workspace):
    assert zoo("cp", "quickstart").code == 0
    assert Path("quickstart.yaml").read_text() == (configs.folder() / "quickstart.yaml").read_text()
    Path("quickstart.yaml").write_text("mine")
    refused = zoo("cp", "quickstart")
    assert (refused.code, Path("quickstart.yaml").read_text()) == (2, "mine")
    assert "exists and is left as it is" in refused.err
    Path("folder").mkdir()
    assert zoo("cp", "flow/eight_gaussians", "folder").out.startswith("folder/eight_gaussians.yaml written")
    assert zoo("cp", "quickstart", "nowhere/x.yaml").code == 2
    assert zoo("cp", "quickstart", "x.txt").code == 2
    assert "did you mean quickstart?" in zoo("cp", "quickstrat").err


def test_version_and_help(zoo):
    assert zoo("--version").out.strip() == package.__version__
    assert zoo().code == 0
    assert zoo("--help").out == zoo().out
    for verb in ("fit", "check", "list", "cp"):
        assert f"  {verb} " in zoo().out


def test_check_builds_bundled_configs_without_data(zoo, workspace):
    """All that need no files; those of full scale are in tests/configs."""
    result = zoo("check", *SMALL)
    assert result.code == 0, result.err
    assert len(result.out.splitlines()) == len(SMALL)
    assert all(": ok, " in line and "parameters" in line for line in result.out.splitlines())
    assert not Path("runs").exists()


def test_check_says_what_is_wrong_with_each(zoo, workspace):
    Path("bad.yaml").write_text(Path("small.yaml").read_text().replace("lr: 0.01", "lr: -1"))
    result = zoo("check", "small.yaml", "bad.yaml", "nowhere", "--trust", "my_model")
    assert result.code == 2
    assert result.out == "small.yaml: ok, Net on Digits, 265 parameters\n"
    first, second = result.err.splitlines()
    assert first == "bad.yaml: model.init_args.optimizer (AdamW): Invalid learning rate: -1.0"
    assert second.startswith("nowhere: --config nowhere: neither a file here nor a bundled config")


def test_check_of_a_config_for_a_cluster_builds_here(zoo, workspace):
    text = (
        Path("small.yaml")
        .read_text()
        .replace("accelerator: cpu\n  devices: 1", "accelerator: tpu\n  devices: 8")
    )
    Path("big.yaml").write_text(text.replace("batch_size: 256", "batch_size: 256\n    num_workers: 2"))
    result = zoo("check", "big.yaml", "--trust", "my_model")
    assert result.code == 0, result.err
    assert "this machine has no tpu" in result.out


def test_show_knows_every_name_of_the_readme_and_the_pages(zoo, root):
    """What stands there as `zoo.x.Y`, and what a verb is shown with."""
    pages = [root / "README.md", *root.glob("zoo/*/README.md"), *root.glob("*/README.md")]
    text = "".join(page.read_text() for page in pages)
    names = set(re.findall(r"`(zoo(?:\.\w+)+)`", text)) | set(re.findall(r"zoo show (\w+)", text))
    assert {"zoo.rng", "zoo.runs", "zoo.callbacks", "zoo.flow.DiT", "MeanFlow"} <= names and len(names) > 60
    for name in sorted(names):
        result = zoo("show", name)
        assert result.code == 0 and result.out.startswith(name if "." in name else "zoo."), (name, result)


def test_check_takes_a_stack_of_configs_as_one_run(zoo, workspace):
    """As `zoo fit` does: later ones win, and settings on the line win over all."""
    Path("wide.yaml").write_text("model: {init_args: {width: 8}}\n")
    assert zoo("check", "wide.yaml", "--trust", "my_model").code == 2  # a part alone is not a run
    words = ("--trust", "my_model", "--config", "small.yaml", "--config=wide.yaml")
    result = zoo("check", *words)
    assert (result.code, result.out) == (0, "small.yaml + wide.yaml: ok, Net on Digits, 529 parameters\n")
    result = zoo("check", *words, "--model.width", "4")
    assert (result.code, result.out) == (0, "small.yaml + wide.yaml: ok, Net on Digits, 265 parameters\n")
    assert zoo("check", *words, "--model.width", "x").code == 2
    assert "either bare configs or --config" in zoo("check", "small.yaml", "--config", "wide.yaml").err
