"""The table of a model's token embeddings, where PyTorch can give the gradient of a batch's tokens alone."""

from collections.abc import Callable
from typing import Any

import torch


def find(module: Any, ids: torch.Tensor, forward: Callable[[], torch.Tensor]) -> tuple[str, torch.nn.Embedding] | None:
    """The embeddings of the tokens and the name of their parameter, or None where a step may need more of the table.

    `forward` makes an output from the tokens `ids`, once, in evaluation mode. The table must be used at these tokens alone,
    once: not by a layer that shares it, nor as a matrix.
    """
    try:
        table = module.get_input_embeddings()
    except (AttributeError, NotImplementedError):  # a model of one's own, or without tokens
        return None
    if type(table) is not torch.nn.Embedding or table.max_norm is not None or table.scale_grad_by_freq or table.sparse:
        return None
    names = [name for name, p in module.named_parameters(remove_duplicate=False) if p is table.weight]
    if len(names) != 1 or not table.weight.requires_grad:
        return None
    given = list[tuple[torch.Tensor, ...]]()
    hook = table.register_forward_pre_hook(lambda _, inputs: given.append(inputs))
    trained, table.sparse = module.training, True
    module.eval()
    try:
        with torch.random.fork_rng([]):  # some architectures draw in evaluation, too
            (gradient,) = torch.autograd.grad(forward().sum(), table.weight, allow_unused=True)
    except (RuntimeError, NotImplementedError):  # an operation that takes no sparse gradient
        return None
    finally:
        hook.remove()
        table.sparse = False
        module.train(trained)
    once = len(given) == 1 and len(given[0]) == 1 and torch.equal(given[0][0], ids)
    return (names[0], table) if once and gradient is not None and gradient.is_sparse else None
