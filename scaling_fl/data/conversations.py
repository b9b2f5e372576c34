"""Token stores of conversations: the model predicts the assistant's messages, each with its end token, and nothing else."""

import datetime
import functools
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers.utils import chat_template_utils

from scaling_fl.errors import UserError
from scaling_fl.progress import Progress
from scaling_fl.text import one_line

Messages = Sequence[dict[str, str]]
_CHUNK = 1000  # conversations per tokenizer call
_REMEDY = "use another model, or a prompt and a response in each row with prompt_template"
_TODAY = datetime.datetime(2024, 7, 26)  # for templates, so that tokens don't depend on the day; Llama's have this one


class _Clock(datetime.datetime):
    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> Any:
        return _TODAY


chat_template_utils.datetime = _Clock  # type: ignore[attr-defined]  # what a template's strftime_now asks


def check_tokenizer(model: str, tokenizer: Any, template: str | None) -> None:
    """Raises `UserError` if conversations can't be written for the model."""
    if not tokenizer.is_fast:
        raise UserError(f"model={model}: its tokenizer doesn't say where in a text tokens are; use another model")
    if template is None and not tokenizer.chat_template:
        raise UserError(
            f"model={model}: its tokenizer has no chat template; {_REMEDY}, such as 'Question: {{prompt}}\\nAnswer: {{response}}'"
        )


@functools.cache  # asked for each message; some models have hundreds
def special_tokens(tokenizer: Any) -> list[str]:
    """Those with a role, such as the end token, and all others that the tokenizer never splits and calls special."""
    others = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
    return list(dict.fromkeys([*tokenizer.all_special_tokens, *others]))


def render(tokenizer: Any, messages: Messages, template: str | None) -> tuple[str, list[tuple[int, int]]]:
    """Return the whole text, and where the assistant's messages are in it, end tokens included.

    By the tokenizer's chat template, or by `template` with the places {prompt} and {response}. Raises `UserError`.
    """
    end: str = tokenizer.eos_token
    for message in messages:
        found = [token for token in special_tokens(tokenizer) if token in message["content"]]
        if found:
            raise UserError(
                f"the text {one_line(message['content'], 80)!r}: {found[0]} is a special token of the model; remove it from "
                "the text, or use another model"
            )
    if template is not None:
        before, _, _ = template.partition("{response}")
        asked = _beginning(tokenizer) + before.replace("{prompt}", messages[0]["content"])
        if not asked:
            raise UserError(
                "nothing stands before the response, so nothing predicts its first token; fill in the prompt, or write text "
                "before it in prompt_template"
            )
        return asked + messages[-1]["content"] + end, [
            (len(asked), len(asked) + len(messages[-1]["content"]) + len(end))
        ]

    def rendered(begun: Messages, prompt: bool = False) -> str:
        try:
            text: str = tokenizer.apply_chat_template(
                list(begun), tokenize=False, add_generation_prompt=prompt, date_string=f"{_TODAY:%d %b %Y}"
            )
        except Exception as error:  # templates raise anything
            raise UserError(
                f"the conversation that begins with {one_line(messages[0]['content'], 80)!r}: the model's chat template "
                f"refuses it ({one_line(str(error), 200)}); correct the conversation, or {_REMEDY}"
            ) from error
        return text

    whole, spans = rendered(messages), list[tuple[int, int]]()
    for number, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        after = rendered(messages[: number + 1])
        if number:
            before = rendered(messages[:number], prompt=True)
        else:  # templates don't write a conversation without messages: it is what another content has in common
            other = "y" if message["content"].strip().startswith("x") else "x"
            both = zip(after, rendered([message | {"content": other}]), strict=False)
            before = after[: sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], both))]
        if not (after.startswith(before) and whole.startswith(after)):
            raise UserError(
                "the model's chat template doesn't write what precedes a response as it does without the response, or a "
                f"conversation as it does without its end, so the responses can't be told apart; {_REMEDY}"
            )
        ends = [after.find(end, len(before)) + len(end)] if end in after[len(before) :] else []
        if not ends and number + 1 < len(messages):  # some templates end turns with a token of their own
            content = max(after.find(message["content"].strip(), len(before)), len(before))
            others = [(after.find(token, content), token) for token in special_tokens(tokenizer)]
            ends = [place + len(token) for place, token in sorted(others) if place >= 0]
            if not ends:
                raise UserError(f"the model's chat template doesn't end each response; {_REMEDY}")
        if not ends:
            whole, ends = after + end, [len(after) + len(end)]
        spans.append((len(before), ends[0]))
    return whole, spans


@functools.cache
def _beginning(tokenizer: Any) -> str:
    """What the tokenizer puts before each text: its token for the beginning, or nothing. A chat template writes it itself."""
    begins = tokenizer.bos_token_id is not None and tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id]
    return str(tokenizer.bos_token) if begins else ""


def rendered(tokenizer: Any, template: str | None, texts: Sequence[str]) -> list[str]:
    """The whole texts of conversations, each a JSON list of messages; see `render`."""
    return [render(tokenizer, json.loads(text), template)[0] for text in texts]


def write(
    folder: Path,
    tokenizer: Any,
    texts: Sequence[str],
    max_seq_len: int,
    template: str | None,
    report: Progress = lambda done, total, unit: None,
    last_alone: bool = False,
) -> None:
    """Tokenise conversations, each a JSON list of messages, into a new store at `folder`.

    `last_alone`: the model predicts the last response, rather than all. A conversation that is longer than `max_seq_len`
    loses its beginning, and then whatever is too long after the beginning of the first response that is predicted.
    """
    dtype = np.min_scalar_type(max(*tokenizer.get_vocab().values(), len(tokenizer) - 1))
    lengths = list[int]()
    folder.mkdir(parents=True)
    with open(folder / "tokens.bin", "wb") as tokens, open(folder / "predicted.bin", "wb") as predicted:
        for begin in range(0, len(texts), _CHUNK):
            found = list[tuple[str, list[tuple[int, int]]]]()
            for text in texts[begin : begin + _CHUNK]:
                try:
                    found.append(render(tokenizer, json.loads(text), template))
                except UserError as error:
                    place = (
                        "" if last_alone else f"conversation {begin + len(found) + 1:,}: "
                    )  # choices have no numbers
                    raise UserError(f"{place}{error}") from error
            if last_alone:
                found = [(text, spans[-1:]) for text, spans in found]
            encoded = tokenizer(
                [text for text, _ in found], add_special_tokens=False, split_special_tokens=False,
                return_offsets_mapping=True, return_attention_mask=False,
            )  # fmt: skip
            for (_, spans), ids, places in zip(found, encoded["input_ids"], encoded["offset_mapping"], strict=True):
                # By overlap: many tokenizers count the space before a word as a part of it.
                of_response = np.array(
                    [any(start < last and first < stop for first, last in spans) for start, stop in places]
                )
                of_response[0] = False
                first = max(0, min(len(ids) - max_seq_len, int(of_response.argmax()) - 1))
                kept = slice(first, first + max_seq_len)
                tokens.write(np.array(ids[kept], dtype).data)
                predicted.write(of_response[kept].astype(np.uint8).data)
                lengths.append(len(ids[kept]))
            report(min(begin + _CHUNK, len(texts)), len(texts), "texts")
    np.save(folder / "dtype.npy", np.empty(0, dtype))
    np.save(folder / "offsets.npy", np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))
    np.save(folder / "labels.npy", np.zeros(len(lengths), np.int64))
