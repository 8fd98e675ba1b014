"""Networks in files: checkpoints of this room's modules, and published ones after `zoo convert`.

A file says what it holds, and is not believed everything: a checkpoint has only networks of the zoo built.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from zoo.flow import preconditioning as preconditionings
from zoo.flow.preconditioning import Preconditioning, VelocityPrediction
from zoo.io import load_checkpoint
from zoo.state_dicts import checkpoint_weights


class StoredNetwork(NamedTuple):
    """What a file holds of a network.

    Attributes:
        file: The file.
        state: State dict under the network's own names.
        preconditioning: `Preconditioning.describe` of what the output means, if the file says.
        network: The network itself, or what the file says of it: a class path with arguments, or nothing.
    """

    file: Path
    state: dict[str, Tensor]
    preconditioning: dict[str, Any] | None
    network: Any

    def build(self) -> nn.Module:
        """The network, with weights that are not yet the stored ones.

        Raises:
            ValueError: the file does not say what network it holds, or names one that is not of the zoo.
        """
        import zoo.flow.networks as networks

        if isinstance(self.network, nn.Module):
            return self.network
        if not isinstance(self.network, dict) or "class_path" not in self.network:
            raise ValueError(
                f"{self.file} does not say what network it holds (it was not trained by the command line): "
                "give network to the teacher"
            )
        module, _, name = str(self.network["class_path"]).rpartition(".")
        if not (module + ".").startswith("zoo.flow.") or name not in networks.__all__:
            raise ValueError(
                f"{self.file} holds a {self.network['class_path']}, which is not a network of the zoo: give "
                "network to the teacher"
            )
        return getattr(networks, name)(**self.network.get("init_args", {}))

    def build_preconditioning(self) -> Preconditioning:
        """What the output means; a velocity where the file says nothing.

        Raises:
            ValueError: the file names a preconditioning that is not of the zoo.
        """
        if self.preconditioning is None:
            return VelocityPrediction()
        classes = Preconditioning.__subclasses__()
        known = {cls.__name__: cls for cls in classes if cls.__module__ == preconditionings.__name__}
        name = self.preconditioning["class"]
        if name not in known:
            raise ValueError(
                f"{self.file} was trained with the preconditioning {name}: give it to the teacher"
            )
        return known[name](**{key: value for key, value in self.preconditioning.items() if key != "class"})


def read_stored_network(file: str | Path, weights: str = "ema") -> StoredNetwork:
    """Reads a checkpoint of a module of zoo.flow, or a file that `zoo convert` made.

    Args:
        file: The file; a name that ends in .safetensors is of a converted checkpoint.
        weights: "ema" for the average where a run kept one, "raw" for what the optimizer updated.

    Raises:
        ValueError: the file is damaged, or is neither; ``weights`` is neither name.
    """
    file = Path(file)
    if file.suffix == ".safetensors":
        from zoo.flow.convert.convert import load_converted

        converted = load_converted(file)
        state = converted.network.state_dict()
        return StoredNetwork(file, state, converted.preconditioning.describe(), converted.network)
    contents = load_checkpoint(file)
    return StoredNetwork(
        file,
        network_state(contents, weights),
        contents.get("flow", {}).get("preconditioning"),
        contents.get("hyper_parameters", {}).get("network"),
    )


def network_state(checkpoint: Mapping[str, Any], weights: str) -> dict[str, Tensor]:
    """The tensors of the ``network`` of a Lightning checkpoint, under the network's own names.

    Args:
        checkpoint: Its contents.
        weights: "ema" for the average where the run kept one, "raw" for what the optimizer updated.

    Raises:
        ValueError: there are none, or ``weights`` is neither name.
    """
    source = checkpoint_weights(checkpoint, weights)
    prefix = "network."
    state = {name.removeprefix(prefix): value for name, value in source.items() if name.startswith(prefix)}
    if not state:
        raise ValueError(
            "the checkpoint holds no tensor named 'network...': it is not of a module of zoo.flow "
            f"(its tensors begin with {next(iter(source), 'nothing')!r})"
        )
    return state
