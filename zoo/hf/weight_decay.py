"""Which parameters weight decay shrinks: matrices, but no norms, biases or embeddings.

The rule of Levanter's default mask, which the authors of WSD-S trained with (arXiv 2410.05192 and their
configs): the weights of linear layers and convolutions decay. Embeddings, of tokens and of positions, do not,
nor does an output head that is tied to one; an untied head is a linear layer like any other.
"""

from torch import nn


def decay_groups(module: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The trainable parameters of a module, each once: those that decay and those that do not.

    Args:
        module: Any module; a parameter of fewer than two dimensions, or of an `nn.Embedding` anywhere in it,
            does not decay.

    >>> net = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 2))
    >>> [[tuple(p.shape) for p in group] for group in decay_groups(net)]
    [[(2, 3)], [(5, 3), (2,)]]
    """
    embeddings = {
        id(parameter)
        for part in module.modules()
        if isinstance(part, nn.Embedding)
        for parameter in part.parameters(recurse=False)
    }
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    decayed = [p for p in trainable if p.ndim >= 2 and id(p) not in embeddings]
    rest = [p for p in trainable if p.ndim < 2 or id(p) in embeddings]
    return decayed, rest
