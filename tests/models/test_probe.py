"""The trial of models: how they must be padded, and what they can't take."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers

from scaling_fl.errors import UserError
from scaling_fl.models import loading, probe
from tests import builders
from tests.models import architectures

LENGTH = 32


def extremes(paired: bool = False, types: bool = False, length: int = LENGTH) -> probe.Texts:
    return probe.tokenised_extremes(builders.tokenizer(), ["", "river stone"], paired, types, length)


def try_model(module: Any, notes: list[str], length: int = LENGTH) -> probe.Padding:
    return probe.find_padding("m", module, extremes(length=length), notes)


def test_the_extremes_are_the_empty_text_and_a_full_one_with_the_highest_id() -> None:
    tokenizer = builders.tokenizer()
    cls, sep, highest = tokenizer.cls_token_id, tokenizer.sep_token_id, max(tokenizer.get_vocab().values())
    texts = extremes()
    assert texts.shortest.ids == [cls, sep]
    assert len(texts.longest.ids) == LENGTH
    assert (texts.longest.ids[0], texts.longest.ids[-1], highest in texts.longest.ids) == (cls, sep, True)
    pairs = extremes(paired=True, types=True)
    assert pairs.shortest == ([cls, sep, sep], [0, 0, 1])
    assert pairs.longest.types == sorted(pairs.longest.types or []), "the second text comes last"
    assert set(pairs.longest.types or []) == {0, 1}


@pytest.mark.parametrize(
    ("kind", "padding", "says"),
    [
        ("bert", (False, 1), None),
        ("bart", (False, 1), None),
        ("t5", (False, 1), None),
        ("gpt2", (False, 1), None),
        ("xlnet", (True, 1), None),
        ("fnet", (False, LENGTH), "its logits depend on padding"),
        ("convbert", (False, 8), "its logits depend on padding"),
        ("funnel", (False, LENGTH), "its logits depend on padding"),
        ("canine", (False, LENGTH), "its logits depend on padding"),
        ("nystromformer", (False, LENGTH), "its logits depend on padding"),
    ],
)
def test_padding_is_chosen_so_that_logits_do_not_depend_on_the_batch(
    kind: str, padding: tuple[bool, int], says: str | None
) -> None:
    notes: list[str] = []
    module, texts = architectures.build(kind), extremes()
    found = probe.find_padding("m", module, texts, notes)
    assert (found == padding, len(notes)) == (True, 0 if says is None else 1), (found, notes)
    assert says is None or says in notes[0]
    assert says is None or f"texts are padded to {padding[1]} tokens at least; " in notes[0]
    assert says is None or f'padding="max_length", max_length={LENGTH}, truncation=True' in notes[0]
    alone = probe.forward(module, probe.inputs([texts.short], found, texts.pad_token_id))
    together = probe.forward(module, probe.inputs([texts.longest, texts.short], found, texts.pad_token_id))[1:]
    torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-6)


USUAL = ("bert", "convbert", "funnel", "xlnet")


@pytest.mark.parametrize("kind", architectures.cases(*USUAL))
def test_texts_of_every_length_have_the_same_logits_in_every_batch(kind: str) -> None:
    module = architectures.build(kind)
    texts = probe.tokenised_extremes(builders.tokenizer(), ["river stone engine violin " * 3], False, False, LENGTH)
    padding = probe.find_padding("m", module, texts, [])
    for length in range(2, LENGTH - 1):
        text = probe.Text([*texts.longest.ids[: length - 1], texts.longest.ids[-1]], None)
        alone = probe.forward(module, probe.inputs([text], padding, texts.pad_token_id))
        for width in {length + 1, length + 2, length + 3, length + 5, LENGTH}:
            wide = probe.Padding(padding.left, max(padding.min_length, min(width, LENGTH)))
            padded = probe.forward(module, probe.inputs([text], wide, texts.pad_token_id))
            assert (alone - padded).abs().max() <= 1e-4 * alone.abs().max(), (length, width)


def test_too_few_positions_or_embeddings_are_refused() -> None:
    sizes = {"max_position_embeddings": 20, "pad_token_id": 1}  # two positions are used up
    module = architectures.build("roberta", **sizes)
    with pytest.raises(UserError, match=r"model=m: it can't take 20 tokens of its tokenizer's vocabulary"):
        try_model(module, [], 20)
    assert try_model(module, [], 18) == probe.Padding()
    with pytest.raises(UserError, match="check that model and tokenizer belong together"):
        try_model(architectures.build("bert", vocab_size=10), [])


def test_a_model_that_takes_no_text_of_odd_length_gets_texts_of_full_length() -> None:
    class Even(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = architectures.build("bert")

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            if input_ids.shape[1] % 2:
                raise ValueError("odd")
            return self.inner(input_ids=input_ids, attention_mask=attention_mask)

    notes: list[str] = []
    assert try_model(Even(), notes) == (False, LENGTH)
    assert "it can't take shorter texts" in notes[0]


def test_a_step_finds_what_reduced_precision_breaks_and_changes_nothing() -> None:
    module = architectures.build("deberta")
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    cpu = torch.device("cpu")
    probe.check_step(module, extremes(), probe.Padding(), cpu, None)
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert all(parameter.grad is None for parameter in module.parameters())
    with pytest.raises(RuntimeError, match="overflow"):
        probe.check_step(module, extremes(), probe.Padding(), cpu, torch.bfloat16)
    with torch.no_grad():
        module.classifier.bias[0] = float("inf")
    with pytest.raises(FloatingPointError):
        probe.check_step(module, extremes(), probe.Padding(), cpu, None)


def test_beside_a_frozen_base_a_step_needs_neither_its_gradient_nor_all_its_bits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A base that is quantised fits into a GPU that can't hold its float32 values, let alone their gradient."""
    module, cpu = builders.bert(), torch.device("cpu")
    seen: list[tuple[int, torch.dtype, bool]] = []
    call = probe.functional_call

    def look(module: Any, tensors: Any, *rest: Any) -> Any:
        parameters = dict(module.named_parameters())
        seen.extend((t.ndim, t.dtype, t.requires_grad) for name, t in tensors.items() if name in parameters)
        return call(module, tensors, *rest)

    monkeypatch.setattr(probe, "functional_call", look)
    probe.check_step(module, extremes(), probe.Padding(), cpu, torch.bfloat16, frozen=True, reduced=True)
    assert set(seen) == {(2, torch.bfloat16, False), (1, torch.float32, True)}
    seen.clear()
    probe.check_step(module, extremes(), probe.Padding(), cpu, None)
    assert set(seen) == {(2, torch.float32, True), (1, torch.float32, True)}


def test_a_step_leaves_running_statistics_alone() -> None:
    class Normalised(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.norm = architectures.build("bert"), torch.nn.BatchNorm1d(3)

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            logits = self.inner(input_ids=input_ids, attention_mask=attention_mask).logits
            return SimpleNamespace(logits=self.norm(logits))

    module = Normalised()
    before = {name: tensor.clone() for name, tensor in module.norm.state_dict().items()}
    probe.check_step(module, extremes(), probe.Padding(), torch.device("cpu"), None)
    for name, tensor in module.norm.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_what_fails_only_in_training_is_found() -> None:
    """Reformer pads texts by itself, except in training."""
    module = architectures.build("reformer")
    with pytest.raises(ValueError, match="training"):
        probe.check_step(module, extremes(), probe.Padding(), torch.device("cpu"), None)
    assert isinstance(module, transformers.ReformerForSequenceClassification)


def test_a_model_that_replaces_its_own_parts_is_refused() -> None:
    class Changing(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = architectures.build("bert")
            self.config, self.part = self.inner.config, torch.nn.Dropout()

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            if input_ids.shape[1] < 4:
                self.part = torch.nn.Dropout()
            return self.inner(input_ids=input_ids, attention_mask=attention_mask)

    loaded = loading.LoadedModel(Changing(), builders.tokenizer(), [])
    with pytest.raises(UserError, match="model=m: it replaces parts of itself when it is used"):
        probe.prepare_padding("m", loaded, ["river"], False, 16, [])


class Changed(torch.nn.Module):
    """A model whose logits something is added to."""

    def __init__(self, inner: Any, added: Callable[[torch.Tensor], torch.Tensor]):
        super().__init__()
        self.inner, self.added = inner, added

    def forward(self, input_ids: Any, attention_mask: Any) -> Any:
        logits = self.inner(input_ids=input_ids, attention_mask=attention_mask).logits
        return SimpleNamespace(logits=logits + self.added(attention_mask))


def test_a_model_that_varies_from_call_to_call_is_noted() -> None:
    notes: list[str] = []
    module = Changed(architectures.build("bert"), lambda mask: torch.rand(len(mask), 1))
    assert try_model(module, notes) == (False, 1), "no padding would help"
    assert notes == ["model=m: its logits vary from call to call, so metrics can't be repeated exactly"]


def test_a_decoder_whose_logits_depend_on_padding_is_refused() -> None:
    assert probe.check_causal("m", builders.decoder(), extremes(), []) == probe.Padding()
    module = Changed(builders.decoder(), lambda mask: (mask == 0).sum(1)[:, None, None])
    with pytest.raises(UserError, match="model=m: its logits depend on padding; use another model"):
        probe.check_causal("m", module, extremes(), [])
