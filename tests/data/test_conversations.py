"""What a language model sees of conversations, and which of their tokens it is asked for."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tokenizers
import transformers
from tokenizers import AddedToken, Tokenizer

from scaling_fl.data import conversations
from scaling_fl.data.token_store import TokenStore
from scaling_fl.errors import UserError
from tests import builders

CHATML = (
    "{% for m in messages %}<|{{ m['role'] }}|> {{ m['content'] }} [SEP]\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|> {% endif %}"
)
CHAT = [
    {"role": "user", "content": "river stone"},
    {"role": "assistant", "content": "forest"},
    {"role": "user", "content": "engine"},
    {"role": "assistant", "content": "wheel brake"},
]


def tokenizer(template: str | None = CHATML) -> Any:
    made = builders.tokenizer()
    made.chat_template = template
    return made


def asked_for(store: TokenStore, row: int, words: Any) -> list[str]:
    """The tokens that are predicted."""
    batch = store.batch(np.array([row]))
    return list(words.convert_ids_to_tokens(batch.labels.tolist()))


def test_the_responses_and_their_end_tokens_are_predicted_and_nothing_else(tmp_path: Path) -> None:
    words = tokenizer()
    conversations.write(tmp_path / "store", words, [json.dumps(CHAT), json.dumps(CHAT[:2])], 64, None)
    store = TokenStore(tmp_path / "store", words.pad_token_id)
    assert asked_for(store, 0, words) == ["forest", "[SEP]", "wheel", "brake", "[SEP]"]
    assert asked_for(store, 1, words) == ["forest", "[SEP]"]
    whole = words.apply_chat_template(CHAT, tokenize=False)
    ids = words(whole, add_special_tokens=False, split_special_tokens=False)["input_ids"]
    assert store.tokens[: store.offsets[1]].tolist() == ids, "as the library itself tokenises the chat"
    assert ids.count(words.eos_token_id) == 4


def test_a_template_has_the_end_token_after_the_response(tmp_path: Path) -> None:
    words = tokenizer(None)
    conversations.write(tmp_path / "store", words, [json.dumps(CHAT[:2])], 64, "engine {prompt} brake {response}")
    store = TokenStore(tmp_path / "store", words.pad_token_id)
    assert words.convert_ids_to_tokens(store.tokens.tolist()) == [
        "engine", "river", "stone", "brake", "forest", "[SEP]",
    ]  # fmt: skip
    assert asked_for(store, 0, words) == ["forest", "[SEP]"]


@pytest.mark.parametrize(
    ("length", "kept", "predicted"),
    [
        (6, ["engine", "river", "stone", "brake", "wheel", "[SEP]"], ["wheel", "[SEP]"]),
        (4, ["stone", "brake", "wheel", "[SEP]"], ["wheel", "[SEP]"]),
        (2, ["brake", "wheel"], ["wheel"]),
    ],
)
def test_a_long_conversation_loses_its_beginning_before_its_response(
    tmp_path: Path, length: int, kept: list[str], predicted: list[str]
) -> None:
    words = tokenizer(None)
    chat = [CHAT[0], {"role": "assistant", "content": "wheel"}]
    conversations.write(tmp_path / "store", words, [json.dumps(chat)], length, "engine {prompt} brake {response}")
    store = TokenStore(tmp_path / "store", words.pad_token_id)
    assert words.convert_ids_to_tokens(store.tokens.tolist()) == kept
    assert asked_for(store, 0, words) == predicted


def test_a_chat_template_without_end_tokens_gets_one_at_the_end() -> None:
    words = tokenizer(CHATML.replace(" [SEP]", ""))
    text, spans = conversations.render(words, CHAT[:2], None)
    assert [text[first:last] for first, last in spans] == ["forest\n[SEP]"]
    with pytest.raises(
        UserError, match="chat template doesn't end each response; use another model, or a prompt and a"
    ):
        conversations.render(words, CHAT, None)


def test_some_templates_end_turns_with_a_token_of_their_own() -> None:
    words = tokenizer(CHATML.replace("[SEP]", "[MASK]"))
    text, spans = conversations.render(words, CHAT, None)
    assert [text[first:last] for first, last in spans] == ["forest [MASK]", "wheel brake [MASK]\n[SEP]"]


def test_a_chat_may_begin_with_the_assistant(tmp_path: Path) -> None:
    words = tokenizer("{{ messages[0]['role'] }}" + CHATML)  # which needs a message
    conversations.write(tmp_path / "store", words, [json.dumps(CHAT[1:])], 64, None)
    store = TokenStore(tmp_path / "store", words.pad_token_id)
    assert asked_for(store, 0, words) == ["forest", "[SEP]", "wheel", "brake", "[SEP]"]


def test_the_first_token_of_all_is_never_predicted(tmp_path: Path) -> None:
    words = tokenizer("{% for m in messages %}{{ m['content'] }} [SEP] {% endfor %}")
    conversations.write(tmp_path / "store", words, [json.dumps(CHAT[1:])], 64, None)
    store = TokenStore(tmp_path / "store", words.pad_token_id)
    assert asked_for(store, 0, words) == ["[SEP]", "wheel", "brake", "[SEP]"]
    positions = store.batch(np.array([0])).positions
    assert positions is not None
    assert positions.tolist() == [0, 3, 4, 5], "of the tokens before: forest, the second [SEP], wheel, brake"


def test_an_opening_response_is_not_taken_for_what_the_template_says_before_it(tmp_path: Path) -> None:
    words = tokenizer("<|system|> river drum stone [SEP]\n" + CHATML)
    for content in ("drum", "xylophone"):
        text, spans = conversations.render(words, [{"role": "assistant", "content": content}], None)
        assert [text[first:last] for first, last in spans] == [f"{content} [SEP]"]
        assert text[: spans[0][0]] == "<|system|> river drum stone [SEP]\n<|assistant|> "


def test_a_response_that_nothing_precedes_is_refused() -> None:
    chat, words = [{"role": "user", "content": ""}, CHAT[1]], tokenizer(None)
    with pytest.raises(
        UserError, match=r"nothing stands before the response.*fill in the prompt, or write text before it"
    ):
        conversations.render(words, chat, "{prompt}{response}")
    assert conversations.render(words, chat, ":{prompt}{response}")[0] == ":forest[SEP]"


def test_an_error_says_which_conversation_has_it(tmp_path: Path) -> None:
    rows = [json.dumps(CHAT)] * 1203
    rows[1201] = json.dumps([CHAT[0], {"role": "assistant", "content": "stop [SEP]"}])
    with pytest.raises(UserError, match=r"^conversation 1,202: the text 'stop \[SEP\]': \[SEP\] is a special token"):
        conversations.write(tmp_path / "store", tokenizer(), rows, 64, None)


def test_more_conversations_than_are_tokenised_at_once_keep_their_order(tmp_path: Path) -> None:
    words, told = tokenizer(), list[tuple[float, float, str]]()
    chats = [CHAT[:2]] * 1001 + [CHAT]
    texts = [json.dumps(chat) for chat in chats]
    conversations.write(tmp_path / "store", words, texts, 64, None, lambda *progress: told.append(progress))
    store = TokenStore(tmp_path / "store", words.pad_token_id)
    assert store.num_predictions.tolist() == [2] * 1001 + [5]
    assert [asked_for(store, row, words) for row in (0, 999, 1000)] == [["forest", "[SEP]"]] * 3
    assert told == [(1000, 1002, "texts"), (1002, 1002, "texts")]


def test_vocabularies_with_gaps_keep_their_ids(tmp_path: Path) -> None:
    state = json.loads(builders.tokenizer().backend_tokenizer.to_str())
    state["model"]["vocab"]["forest"] = 70_000
    words = transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)), eos_token="[SEP]", pad_token="[PAD]"
    )
    conversations.write(tmp_path / "store", words, [json.dumps(CHAT[:2])], 64, "{prompt} : {response}")
    store = TokenStore(tmp_path / "store", words.pad_token_id)
    assert store.batch(np.array([0])).labels.tolist() == [70_000, words.eos_token_id]


def test_what_a_template_refuses_is_named() -> None:
    words = tokenizer("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(
        UserError, match=r"begins with 'river stone': the model's chat template refuses it \(roles must al"
    ):
        conversations.render(words, CHAT, None)


@pytest.mark.parametrize("asked", ["date_string | default(strftime_now('%d %b %Y'))", "strftime_now('%d %b %Y')"])
def test_tokens_do_not_depend_on_the_day(asked: str) -> None:
    words = tokenizer("{{ " + asked + " }} " + CHATML)
    assert conversations.render(words, CHAT, None)[0].startswith("26 Jul 2024 <|user|>")


def test_a_template_begins_as_the_tokenizer_begins_texts() -> None:
    words, template = tokenizer(None), "{prompt} : {response}"
    assert conversations.render(words, CHAT[:2], template)[0] == "river stone : forest[SEP]"
    words = tokenizer(None)
    words.bos_token = "[CLS]"  # which this tokenizer puts before every text
    text, spans = conversations.render(words, CHAT[:2], template)
    assert text == "[CLS]river stone : forest[SEP]"
    assert [text[first:last] for first, last in spans] == ["forest[SEP]"]
    words = tokenizer(None)
    words.bos_token = "[MASK]"  # which it has, but puts before no text
    assert conversations.render(words, CHAT[:2], template)[0] == "river stone : forest[SEP]"


def test_a_chat_template_that_rewrites_earlier_messages_is_refused() -> None:
    words = tokenizer("{% for m in messages %}{{ loop.length }} {{ m['content'] }} [SEP]{% endfor %}")
    with pytest.raises(
        UserError,
        match=r"doesn't write what precedes a response as it does without.*can't be told apart; use another model",
    ):
        conversations.render(words, CHAT, None)


def test_a_chat_template_that_begins_a_response_otherwise_than_it_records_it_is_refused() -> None:
    words = tokenizer(CHATML.replace("<|assistant|> {% endif", "<|assistant|> think {% endif"))
    with pytest.raises(UserError, match="doesn't write what precedes a response as it does without"):
        conversations.render(words, CHAT[:2], None)


def byte_level() -> Any:
    """A tokenizer for which a word's token begins with the space before it, as those of most decoders."""
    words = ["[UNK]", "[END]", "river", "Ġriver", "Ġbrake", ":", "Ġforest", "forest"]
    made = Tokenizer(tokenizers.models.WordLevel({word: number for number, word in enumerate(words)}, "[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False)
    made.post_processor = tokenizers.processors.ByteLevel(trim_offsets=False)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, eos_token="[END]", pad_token="[END]", unk_token="[UNK]"
    )


@pytest.mark.parametrize("template", ["{prompt} brake: {response}", "{prompt} brake:{response}"])
def test_a_word_is_predicted_with_the_space_before_it(tmp_path: Path, template: str) -> None:
    words = byte_level()
    chat = [{"role": "user", "content": "river"}, {"role": "assistant", "content": "forest river"}]
    conversations.write(tmp_path / "store", words, [json.dumps(chat)], 64, template)
    store = TokenStore(tmp_path / "store", words.pad_token_id)
    first = "Ġforest" if ": " in template else "forest"
    assert words.convert_ids_to_tokens(store.tokens.tolist()) == ["river", "Ġbrake", ":", first, "Ġriver", "[END]"]
    assert asked_for(store, 0, words) == [first, "Ġriver", "[END]"]


@pytest.mark.parametrize(("length", "kept"), [(64, 13), (6, 6)])
def test_of_a_chat_the_last_response_alone_can_be_predicted(tmp_path: Path, length: int, kept: int) -> None:
    words = tokenizer()
    conversations.write(tmp_path / "store", words, [json.dumps(CHAT)], length, None, last_alone=True)
    store = TokenStore(tmp_path / "store", words.pad_token_id)
    assert asked_for(store, 0, words) == ["wheel", "brake", "[SEP]"]
    assert len(store.tokens) <= length
    assert (len(store.tokens) == length) == (length == kept)


def test_tokens_that_are_never_split_are_refused_in_a_message() -> None:
    words = tokenizer()
    words.add_tokens([AddedToken("<file>", special=True), AddedToken("<plain>", special=False)])
    assert "<file>" not in words.all_special_tokens
    conversations.render(words, [CHAT[0], {"role": "assistant", "content": "a <plain> word"}], None)
    with pytest.raises(UserError, match=r"the text 'a <file> b': <file> is a special token of the model"):
        conversations.render(words, [CHAT[0], {"role": "assistant", "content": "a <file> b"}], None)


def test_special_tokens_in_a_message_are_refused() -> None:
    chat = [CHAT[0], {"role": "assistant", "content": "stop [SEP] here"}]
    with pytest.raises(UserError, match=r"the text 'stop \[SEP\] here': \[SEP\] is a special token of the model"):
        conversations.render(tokenizer(), chat, None)


def test_a_tokenizer_without_chat_template_needs_a_template() -> None:
    conversations.check_tokenizer("m", tokenizer(), None)
    conversations.check_tokenizer("m", tokenizer(None), "{prompt} {response}")
    with pytest.raises(
        UserError, match="model=m: its tokenizer has no chat template; use another model, or a prompt and a"
    ):
        conversations.check_tokenizer("m", tokenizer(None), None)
    with pytest.raises(UserError, match="model=m: its tokenizer doesn't say where in a text tokens are; use another"):
        conversations.check_tokenizer("m", SimpleNamespace(is_fast=False, chat_template=CHATML), None)
