"""Trial of a model in the preparation: what fails in training fails here, in one line, before a worker starts."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from scaling_fl.errors import UserError
from scaling_fl.models import loading

_SHORT = 8  # tokens
_MIN_LENGTHS = (1, 4, 8, 16, 32, 64)  # to which texts are padded, before full length is tried
_LENGTHS = (2, 3, 5, 7, 9)  # tokens of texts, odd and even: some models pool, or cut texts into pieces
_TOLERANCE = 1e-4  # of the largest logit: far above rounding, far below what a padding token that is read changes


class Padding(NamedTuple):
    """How batches are padded: on the left or the right, and to `min_length` tokens at least."""

    left: bool = False
    min_length: int = 1


class Text(NamedTuple):
    """One tokenised text or pair: lists of T values. `types` is None if the model gets no token types."""

    ids: list[int]
    types: list[int] | None


class Texts(NamedTuple):
    """The extremes of what a tokenizer yields. `shortest` has no words; `longest` has the vocabulary's highest id."""

    shortest: Text
    short: Text
    longest: Text
    pad_token_id: int


def tokenised_extremes(tokenizer: Any, texts: Sequence[str], paired: bool, types: bool, max_seq_len: int) -> Texts:
    """Tokenise an empty text, the beginning of the first of `texts` that has words, and its repetition to full length."""

    def encode(text: str, length: int) -> Text:
        encoded = tokenizer(
            [text], [text] if paired else None, truncation=True, max_length=length,
            return_attention_mask=False, return_token_type_ids=types,
        )  # fmt: skip
        ids = list(encoded["input_ids"][0]) or [tokenizer.pad_token_id]
        return Text(ids, (list(encoded["token_type_ids"][0]) or [0]) if types else None)

    source = next((text for text in texts if text.strip()), "a")[:1000] + " "
    ids, types_ = encode(source * (1 + 20 * max_seq_len // len(source)), max_seq_len)
    special = set(tokenizer.all_special_ids)
    words = [place for place, number in enumerate(ids) if number not in special] or [len(ids) // 2]
    middle = words[len(words) // 2]
    missing = max_seq_len - len(ids)
    highest = max((number for number in tokenizer.get_vocab().values() if number not in special), default=0)
    ids[middle : middle + 1] = [highest] + [ids[middle]] * missing
    if types_ is not None:
        types_[middle : middle + 1] = [types_[middle]] * (1 + missing)
    short = encode(source, min(_SHORT, max_seq_len))
    return Texts(encode("", max_seq_len), short, Text(ids, types_), tokenizer.pad_token_id)


def prepare_padding(
    model: str, loaded: loading.LoadedModel, texts: Sequence[str], paired: bool, max_seq_len: int, notes: list[str]
) -> tuple[Padding, Texts]:
    """Return how to pad, see `find_padding`, and the texts tried. Sets the tokenizer's `padding_side` accordingly.

    `texts` need not be those of the training: a few words are enough.
    """
    types = "token_type_ids" in loading.input_names(loaded.module, paired)
    tried = tokenised_extremes(loaded.tokenizer, texts, paired, types, max_seq_len)
    modules = list(loaded.module.modules())
    find = check_causal if loading.predicts_tokens(loaded.module) else find_padding
    padding = find(model, loaded.module, tried, notes)
    if modules != list(loaded.module.modules()):
        raise UserError(
            f"model={model}: it replaces parts of itself when it is used, so that results would depend on earlier "
            "batches; use another model"
        )
    loaded.tokenizer.padding_side = "left" if padding.left else "right"
    return padding, tried


def find_padding(model: str, module: Any, texts: Texts, notes: list[str]) -> Padding:
    """Return the padding under which logits don't depend on a batch's other texts; note what is unusual.

    Padding on the right is tried first, then on the left, then both to longer and longer texts. Padding every text to
    full length is the last resort. Raises `UserError` if the model can't take texts that its tokenizer yields.
    """
    longest = len(texts.longest.ids)
    try:
        forward(module, inputs([texts.longest], Padding(), texts.pad_token_id))
    except Exception as error:  # architectures raise anything
        raise UserError(
            f"model={model}: it can't take {longest} tokens of its tokenizer's vocabulary ({reason(error)}); "
            "lower max_seq_len, or check that model and tokenizer belong together"
        ) from error
    failure = None
    for length in (length for length in _MIN_LENGTHS if length < longest):
        for left in (False, True):
            padding = Padding(left, length)
            try:
                if _is_independent(module, texts, padding):
                    notes += _padding_notes(model, padding, longest, failure)
                    return padding
                failure = None
            except Exception as error:
                failure = error
    padding = Padding(min_length=longest)
    try:
        whole = inputs([texts.shortest, texts.short], padding, texts.pad_token_id)
        first, second = forward(module, whole), forward(module, whole)
    except Exception as error:
        raise UserError(
            f"model={model}: it can't take a text of {len(texts.shortest.ids)} tokens ({reason(error)}); use another model"
        ) from error
    if not torch.equal(first, second):
        notes.append(f"model={model}: its logits vary from call to call, so metrics can't be repeated exactly")
        return Padding()
    notes += _padding_notes(model, padding, longest, failure)
    return padding


def check_causal(model: str, module: Any, texts: Texts, notes: list[str]) -> Padding:
    """Return the padding of a language model: on the right, where nothing before it changes.

    Raises `UserError` if the prediction of a token depends on later tokens, as in encoders.
    """
    ids = texts.longest.ids
    half = Text(ids[: -(-len(ids) // 2)], None)
    try:
        first = forward(module, inputs([half], Padding(), texts.pad_token_id))
        both = forward(module, inputs([Text(ids, None), half], Padding(), texts.pad_token_id))
    except Exception as error:  # architectures raise anything
        raise UserError(
            f"model={model}: it can't take {len(ids)} tokens of its tokenizer's vocabulary ({reason(error)}); lower "
            "max_seq_len, or check that model and tokenizer belong together"
        ) from error
    limit = _TOLERANCE * both.abs().max()
    if not (both[:1, : first.shape[1]] - first).abs().max() <= limit:
        raise UserError(
            f"model={model}: its prediction of a token depends on later tokens, as in encoders such as BERT; use a decoder, "
            "such as HuggingFaceTB/SmolLM2-135M"
        )
    if not (both[1:, : first.shape[1]] - first).abs().max() <= limit:
        raise UserError(f"model={model}: its logits depend on padding; use another model")
    return Padding()


def _is_independent(module: Any, texts: Texts, padding: Padding) -> bool:
    """Whether texts of several lengths have the same logits alone and in batches of several widths."""
    longest, least = len(texts.longest.ids), padding.min_length
    lengths = {length for length in (*_LENGTHS, least + 1, least + 2, least + 3, least + 7) if length < longest}
    tried = [texts.shortest, texts.short, *(_shortened(texts.longest, length) for length in sorted(lengths))]
    alone = [forward(module, inputs([text], padding, texts.pad_token_id)) for text in tried]
    narrow = max(least, _SHORT)
    for width in sorted({min(width, longest) for width in (narrow, narrow + 5, narrow + 10, longest)}):
        fitting = [number for number, text in enumerate(tried) if len(text.ids) < width][
            : 2 if width == longest else None
        ]
        if not fitting:
            continue
        wide = Padding(padding.left, width)
        batch = forward(module, inputs([tried[number] for number in fitting], wide, texts.pad_token_id))
        expected = torch.cat([alone[number] for number in fitting])
        if not (batch - expected).abs().max() <= _TOLERANCE * expected.abs().max():
            return False
    return True


def _shortened(text: Text, length: int) -> Text:
    """The text without tokens before its last one, which may be special."""
    ids, types = text
    return Text([*ids[: length - 1], ids[-1]], None if types is None else [*types[: length - 1], types[-1]])


def _padding_notes(model: str, padding: Padding, longest: int, failure: Exception | None) -> list[str]:
    if padding.min_length == 1:
        return []
    why = "its logits depend on padding" if failure is None else "it can't take shorter texts"
    return [
        f"model={model}: {why}, so texts are padded to {padding.min_length} tokens at least; do so in a pipeline as well: "
        f'padding="max_length", max_length={longest}, truncation=True'
    ]


def check_step(
    module: Any, texts: Texts, padding: Padding, device: torch.device, dtype: torch.dtype | None,
    frozen: bool = False, reduced: bool = False,
) -> None:  # fmt: skip
    """Evaluate the longest text, and take the gradient on two short ones, under autocast to `dtype`.

    `frozen`: matrices, which may be too large for it, have no gradient. `reduced`: they are in `dtype`. Raises what the model
    raises, and `FloatingPointError` if a logit is NaN or infinite. `module` is unchanged.
    """
    for batch, train in (([texts.longest], False), ([texts.short, texts.shortest], True)):
        tensors = dict[str, torch.Tensor]()
        for name, parameter in module.named_parameters():
            matrix = parameter.ndim >= 2
            tensor = parameter.detach().to(device, dtype if reduced and matrix else None)
            tensors[name] = tensor.requires_grad_(parameter.requires_grad and not (frozen and matrix))
        trained = [tensor for tensor in tensors.values() if tensor.requires_grad]
        tensors |= {name: buffer.to(device, copy=True) for name, buffer in module.named_buffers()}
        module.train(train)
        arguments = {name: tensor.to(device) for name, tensor in inputs(batch, padding, texts.pad_token_id).items()}
        with torch.set_grad_enabled(train), torch.autocast(device.type, dtype, enabled=dtype is not None):
            logits = functional_call(module, tensors, (), arguments).logits.float()
        if not logits.isfinite().all():
            raise FloatingPointError("its logits are not finite")
        if train and trained:  # of a frozen base, some architectures train nothing here
            logits = logits.flatten(0, -2)
            labels = torch.zeros(len(logits), dtype=torch.int64, device=device)
            torch.autograd.grad(cross_entropy(logits, labels), trained, allow_unused=True)


@torch.inference_mode()
def forward(module: Any, arguments: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return the logits (B, C) or, of a language model, (B, T, C), in evaluation mode."""
    logits: torch.Tensor = module.eval()(**arguments).logits
    return logits


def inputs(batch: Sequence[Text], padding: Padding, pad_token_id: int) -> dict[str, torch.Tensor]:
    """Return the model's arguments (B, T), padded."""
    width = max(padding.min_length, *(len(text.ids) for text in batch))

    def padded(rows: Sequence[Sequence[int]], value: int) -> torch.Tensor:
        gaps = [[value] * (width - len(row)) for row in rows]
        pairs = zip(gaps, rows, strict=True)
        return torch.tensor([[*gap, *row] if padding.left else [*row, *gap] for gap, row in pairs])

    arguments = {
        "input_ids": padded([text.ids for text in batch], pad_token_id),
        "attention_mask": padded([[1] * len(text.ids) for text in batch], 0),
    }
    types = [text.types for text in batch if text.types is not None]
    return arguments | ({"token_type_ids": padded(types, 0)} if types else {})


def reason(error: Exception) -> str:
    return textwrap.shorten(f"{type(error).__name__}: {error}", 200, placeholder=" …")
