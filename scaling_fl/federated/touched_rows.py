"""Token embeddings on CPUs: a step takes the rows of the tokens that a site's texts have, and no others.

Without weight decay, an optimiser that starts afresh leaves a row as it is until a gradient reaches it: gradient and
moments are 0. So PyTorch makes the gradient of a batch's tokens alone (`sparse`), and the optimiser holds the rows that
the texts can reach, side by side. The values are those of a step over the whole table.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch

from scaling_fl.data.token_store import TokenStore

_VECTOR = 16  # float32 values of the widest vector
SHARE = 0.5  # of the table's rows: beyond, copying them takes longer than leaving the others out saves


class TouchedRows:
    """The rows `ids` of `table`, and the optimiser that `make` makes for them."""

    def __init__(
        self,
        table: torch.nn.Embedding,
        ids: torch.Tensor,
        make: Callable[[torch.nn.Parameter], torch.optim.Optimizer],
    ):
        self._table, self._ids = table, ids
        self._places = torch.full((table.num_embeddings,), -1)
        self._places[ids] = torch.arange(len(ids))
        self._rows = torch.nn.Parameter(table.weight.detach()[ids].reshape(-1))
        self.optimiser = make(self._rows)

    def __call__(self, gradient: torch.Tensor) -> None:
        """Make a step with the table's gradient: that of the batch's tokens, or 0 where no pass has reached the table."""
        shape = len(self._ids), self._table.embedding_dim
        if gradient.is_sparse:
            # The kernel for the whole table's gradient, so that it adds what tokens share in the same order.
            places = self._places[gradient._indices()[0]]
            assert places.numel() == 0 or places.min() >= 0, "the model has looked up a token that no text has"
            of_rows = torch.ops.aten.embedding_dense_backward(gradient._values(), places, shape[0], -1, False)
        else:
            assert not gradient.any(), "the table has another gradient than that of tokens"
            of_rows = torch.zeros(shape)
        self._rows.grad = of_rows.reshape(-1)
        self.optimiser.step()
        self._rows.grad = None
        self._table.weight.data[self._ids] = self._rows.data.view(shape)

    @contextlib.contextmanager
    def sparse(self) -> Iterator[None]:
        """Inside this context, the gradient of the table is that of a batch's tokens."""
        self._table.sparse = True
        try:
            yield
        finally:
            self._table.sparse = False


def ids(table: torch.nn.Embedding, store: TokenStore, batches: Sequence[npt.NDArray[np.int64]]) -> torch.Tensor | None:
    """The rows that batches of examples can reach, or None where leaving the others out doesn't pay off."""
    if table.embedding_dim % _VECTOR:  # a kernel rounds the values that don't fill a vector otherwise
        return None
    touched = np.zeros(table.num_embeddings, bool)
    touched[store.pad_token_id] = True
    for example in np.unique(np.concatenate([np.empty(0, np.int64), *batches])):  # a site may make no step
        touched[store.tokens[store.offsets[example] : store.offsets[example + 1]]] = True
    return torch.from_numpy(touched.nonzero()[0]) if touched.sum() <= SHARE * len(touched) else None
