import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from scaling_fl.models import flat_parameters
from scaling_fl.models.flat_parameters import FlatModel, Layout
from tests import builders


def flatten(module: Any) -> FlatModel:
    return FlatModel(module, torch.zeros(Layout(module).size))


def albert() -> Any:
    torch.manual_seed(0)
    config = transformers.AlbertConfig(
        vocab_size=50, embedding_size=8, num_labels=3, **builders.TINY_SIZES | {"num_hidden_layers": 3}
    )
    return transformers.AutoModelForSequenceClassification.from_config(config)


class Tied(torch.nn.Module):
    """Tied embeddings, a frozen matrix, float and integer buffers, and a non-persistent buffer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = torch.nn.Embedding(11, 5)
        self.frozen = torch.nn.Linear(5, 5, bias=False).requires_grad_(False)
        self.norm = torch.nn.BatchNorm1d(5)
        self.out = torch.nn.Linear(5, 11)
        self.out.weight = self.embedding.weight
        self.register_buffer("table", torch.full((3,), 2.0), persistent=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = self.norm(self.frozen(self.embedding(ids)))
        return self.out(hidden)


def test_buffer_order_is_matrices_vectors_then_untrained_tensors() -> None:
    layout = Layout(Tied())
    assert [entry.name for entry in layout.entries] == [
        "embedding.weight", "norm.weight", "norm.bias", "out.bias",
        "frozen.weight", "norm.running_mean", "norm.running_var",
    ]  # fmt: skip
    assert layout.integer_names == ["norm.num_batches_tracked"]
    assert layout.decayed == 64  # 11 × 5 = 55 values, up to the next 16
    assert layout.trained == 64 + 3 * 16  # 5, 5 and 11 values
    assert layout.size == 112 + 32 + 16 + 16
    assert all(entry.start % 16 == 0 for entry in layout.entries)


@pytest.mark.parametrize("build", [Tied, albert, builders.bert])
def test_flattening_keeps_values_and_tied_parameters(build: Any) -> None:
    module = build()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    model = flatten(module)
    assert module.state_dict().keys() == before.keys()
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    storage = model.flat.untyped_storage().data_ptr()
    assert all(p.untyped_storage().data_ptr() == storage for p in module.parameters())
    if build is Tied:
        assert module.out.weight is module.embedding.weight
    if build is albert:  # one layer's parameters, used three times
        assert sum(".albert_layers." in entry.name for entry in model.layout.entries) == 16


def test_values_are_read_where_they_are_and_the_models_own_come_back() -> None:
    """The values may be the server's, which other processes read: a forward pass writes to copies of buffers alone."""
    module = Tied()
    model, plain = flatten(module), copy.deepcopy(module)
    own, given = model.flat.clone(), model.flat + 1
    before = given.clone()
    for tensor in (*plain.parameters(), plain.norm.running_mean, plain.norm.running_var):
        tensor.data += 1
    ids = torch.tensor([1, 2, 3])
    with model.reading(given):
        assert module.embedding.weight.data_ptr() == given.data_ptr(), "no copy"
        torch.testing.assert_close(module.eval()(ids), plain.eval()(ids))
        module.train()(ids)  # writes to the statistics of the normalisation
        assert not torch.equal(module.norm.running_mean, plain.norm.running_mean)
        assert module.norm.num_batches_tracked == 1
    assert torch.equal(given, before)
    end = model.layout.trained + 32  # with the frozen matrix
    assert torch.equal(model.flat[:end], own[:end])
    assert all(p.untyped_storage().data_ptr() == model.flat.untyped_storage().data_ptr() for p in module.parameters())
    with pytest.raises(KeyError), model.reading(given):
        raise KeyError
    assert module.embedding.weight.data_ptr() == model.flat.data_ptr()
    with model.reading(given):
        assert module.norm.num_batches_tracked == 0, "of the server"
    with (
        pytest.raises(NotImplementedError, match="copy"),
        model.reading(given.to("meta")),
    ):  # copied from another device
        pass


@pytest.mark.parametrize("build", [albert, builders.bert])
def test_a_step_on_the_flat_buffer_equals_a_step_on_each_parameter(build: Any) -> None:
    module = build()
    plain = copy.deepcopy(module)
    model = flatten(module)
    ids = torch.arange(12).view(2, 6)
    for which in (module, plain):
        which.eval()
        which(input_ids=ids).logits.square().sum().backward()
    flat = torch.nn.Parameter(model.flat[: model.layout.trained])
    flat.grad = model.gradient
    torch.optim.Adagrad([flat], lr=0.1).step()
    torch.optim.Adagrad(plain.parameters(), lr=0.1).step()
    for (name, mine), theirs in zip(module.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("collects", [True, False])
@pytest.mark.parametrize("passes", [1, 2, 3])
def test_a_new_gradient_is_the_sum_over_its_backward_passes(
    monkeypatch: pytest.MonkeyPatch, passes: int, collects: bool
) -> None:
    """As on CPUs, and as on GPUs, where autograd adds to it in place."""
    monkeypatch.setattr(flat_parameters, "_collects", lambda device: collects)
    module = Tied()
    module.unused = torch.nn.Linear(3, 3)
    plain = copy.deepcopy(module).eval()
    model = flatten(module)
    module.eval()
    gradients = model.layout.views(model.gradient)
    for view in gradients.values():
        view.fill_(7.0)  # of the step before
    batches = [torch.tensor([1, 2]), torch.tensor([5]), torch.tensor([2, 2, 3])][:passes]
    with model.new_gradient():
        for ids in batches:
            module(ids).square().sum().backward()
    for ids in batches:
        plain(ids).square().sum().backward()
    for name, parameter in plain.named_parameters():
        if parameter.requires_grad:
            expected = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            assert torch.equal(gradients[name], expected), name
    assert gradients["embedding.weight"].any()
    assert plain.unused.weight.grad is None
    held = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
    place = model.gradient.untyped_storage().data_ptr()
    assert {grad.untyped_storage().data_ptr() for grad in held} == (set() if collects else {place}), (
        "nothing is held twice"
    )
    assert not any(model.gradient[gap].any() for gap in model.layout.gaps())


def test_load_restores_the_servers_float_state_and_integer_buffers() -> None:
    module = Tied()
    model = flatten(module)
    server = model.flat.clone()
    module.train()
    module(torch.tensor([1, 2, 3]))
    assert module.norm.num_batches_tracked == 1
    assert not torch.equal(module.norm.running_mean, torch.zeros(5))
    model.load(server)
    assert module.norm.num_batches_tracked == 0
    assert torch.equal(module.norm.running_mean, torch.zeros(5))
    assert torch.equal(model.flat, server)


def test_state_round_trips_by_tensor_name() -> None:
    model, other = flatten(Tied()), flatten(Tied())
    values = torch.randn(model.layout.size)
    arrays = model.arrays(values) | {"norm.num_batches_tracked": np.array(9)}
    received = torch.zeros(model.layout.size)
    other.fill(received, arrays)
    for name, view in other.layout.views(received).items():
        assert np.array_equal(view.numpy(), arrays[name])
    assert other.module.norm.num_batches_tracked == 9
    assert other.arrays(received)["norm.num_batches_tracked"] == 9
    flat = other.flat.clone()
    other.fill_integers({"norm.num_batches_tracked": np.array(11)})
    other.load(received)
    assert other.module.norm.num_batches_tracked == 11
    other.load(flat)

    del arrays["out.bias"]
    with pytest.raises(ValueError, match=r"belongs to another model; it differs in out\.bias"):
        other.fill(received, arrays)


def test_only_float32_parameters_are_accepted() -> None:
    with pytest.raises(ValueError, match=r"embedding\.weight is torch\.float16, expected torch\.float32"):
        Layout(Tied().half())


def test_transformers_saves_and_loads_a_flat_model(tmp_path: Path) -> None:
    model = flatten(builders.bert())
    model.module.save_pretrained(tmp_path)
    again = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path)
    for (name, mine), theirs in zip(model.module.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(mine, theirs), name
