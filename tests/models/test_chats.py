"""Chats: what a whole job trains on, and the exported model, which chats."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from scaling_fl.config.schema import Config
from scaling_fl.data.task_loader import load_task
from scaling_fl.errors import UserError
from scaling_fl.models.text_tokenizer import load_text_tokenizer
from scaling_fl.runtime import launcher
from tests import builders
from tests.checkpoint.test_resume import train
from tests.data.test_conversations import CHATML

CHATS = [
    [("user", "river stone"), ("assistant", "forest")],
    [("system", "drum"), ("user", "engine"), ("assistant", "wheel brake"), ("user", "piston"), ("assistant", "flute")],
    [("user", "cello"), ("assistant", "meadow mountain stone river")],
]


def chats_file(path: Path, chats: list[list[tuple[str, str]]]) -> str:
    rows = [{"messages": [{"role": role, "content": content} for role, content in chat]} for chat in chats]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def labelled(tokenizer: Any, chat: list[tuple[str, str]]) -> tuple[list[int], list[int]]:
    """The tokens of a chat, and transformers' labels: -100 but for responses and the end tokens that follow."""
    ids, labels = list[int](), list[int]()
    for role, content in chat:
        before = tokenizer(f"<|{role}|>", add_special_tokens=False)["input_ids"]
        said = [*tokenizer(content, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        ids += before + said
        labels += [-100] * len(before) + (said if role == "assistant" else [-100] * len(said))
    return ids, labels


def test_a_job_on_chats_has_the_loss_of_the_library_and_its_export_chats(small_config: Config, tmp_path: Path) -> None:
    folder = builders.pretrained(tmp_path / "llama", "llama")
    base = transformers.AutoTokenizer.from_pretrained(folder, split_special_tokens=False)
    base.chat_template = CHATML
    base.save_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    config = dataclasses.replace(
        small_config, task_name="instructions", messages_column="messages", text_column=None, label_column=None,
        train_path=chats_file(tmp_path / "train.jsonl", CHATS), test_path=chats_file(tmp_path / "test.jsonl", CHATS[1:]),
        model=str(folder), max_seq_len=32, num_rounds=1,
    )  # fmt: skip
    seen = train(config, tmp_path / "work")  # each of the two sites makes one step

    sums, count = 0.0, 0
    for chat in CHATS:
        ids, labels = labelled(base, chat)
        predicted = sum(label != -100 for label in labels)
        with torch.no_grad():
            sums += predicted * model(input_ids=torch.tensor([ids]), labels=torch.tensor([labels])).loss.item()
        count += predicted
    assert seen[1]["train.loss"] == pytest.approx(sums / count, rel=1e-5)
    assert seen[1]["train.tokens"] == count

    out = Path(str(config.checkpoints_dir)) / "model"
    asked = [{"role": "user", "content": "river stone"}]
    how = {"add_generation_prompt": True, "return_dict": False}
    ids = base.apply_chat_template(asked, **how)
    assert ids.count(base.eos_token_id) == 1
    assert transformers.AutoTokenizer.from_pretrained(out).apply_chat_template(asked, **how) == ids
    trained = transformers.AutoModelForCausalLM.from_pretrained(out)
    settings = transformers.GenerationConfig(max_new_tokens=4, do_sample=False, pad_token_id=base.pad_token_id)
    said = trained.generate(torch.tensor([ids]), generation_config=settings)[0, len(ids) :]
    pipeline = transformers.pipeline("text-generation", str(out), device="cpu")
    (found,) = pipeline(asked, max_new_tokens=4, do_sample=False)
    assert found["generated_text"][-1]["content"] == base.decode(said, skip_special_tokens=True)


def test_an_error_says_in_which_file_s_conversation_it_is(small_config: Config, tmp_path: Path) -> None:
    wrong = [*CHATS, [("user", "river [SEP]"), ("assistant", "stone")]]
    config = dataclasses.replace(
        small_config, task_name="instructions", messages_column="messages", text_column=None, label_column=None,
        train_path=chats_file(tmp_path / "train.jsonl", CHATS), test_path=chats_file(tmp_path / "test.jsonl", wrong),
        model=str(builders.pretrained(tmp_path / "llama", "llama")),
    )  # fmt: skip
    words = builders.tokenizer()
    words.chat_template = CHATML
    words.save_pretrained(config.model)
    with pytest.raises(UserError, match=r"^test data, conversation 4: the text 'river \[SEP\]': \[SEP\] is a special"):
        train(config, tmp_path / "work")


@pytest.mark.parametrize("key", ["label_column", "partition_column", "choices_column"])
def test_a_column_has_one_meaning(small_config: Config, key: str) -> None:
    keys = {"task_name": "instructions", "text_column": None, "label_column": None} | {key: "prompt"}
    config = dataclasses.replace(small_config, **keys)
    with pytest.raises(
        UserError, match=f"{key}=prompt: prompt_column names the same column; choose another, or leave out"
    ):
        load_task(config)


def test_a_model_of_few_positions_writes_no_further_than_they_reach(small_config: Config, tmp_path: Path) -> None:
    """GPT-2 learns its positions, and has a table of them."""
    words = builders.tokenizer()
    shape = transformers.GPT2Config(
        vocab_size=len(words), n_positions=16, n_embd=16, n_layer=1, n_head=2, bos_token_id=words.cls_token_id,
        eos_token_id=words.eos_token_id, pad_token_id=words.pad_token_id,
    )  # fmt: skip
    torch.manual_seed(2)
    transformers.GPT2LMHeadModel(shape).save_pretrained(tmp_path / "gpt2")
    words.save_pretrained(tmp_path / "gpt2")
    config = dataclasses.replace(
        small_config, task_name="lm", label_column=None, iid_split=True, model=str(tmp_path / "gpt2"), generate_examples=2,
    )  # fmt: skip
    events: list[dict[str, Any]] = []
    (tmp_path / "work").mkdir()
    launcher.train(launcher.prepare(config, str(tmp_path / "work"), lambda event: None), events.append)
    (generated,) = (event["rows"] for event in events if event["event"] == "generations")
    assert [row["row"] for row in generated] == [1, 2]
    for row in generated:
        assert len(row["prompt"].split()) + len(row["generated"].split()) <= 16


def test_a_classifier_reads_special_tokens_as_text_even_if_its_tokenizer_has_a_chat_template(
    small_config: Config, tmp_path: Path
) -> None:
    words = builders.tokenizer()
    words.chat_template = CHATML
    words.save_pretrained(small_config.model)
    train(small_config, tmp_path / "work")
    exported = transformers.AutoTokenizer.from_pretrained(Path(str(small_config.checkpoints_dir)) / "model")
    assert exported("river [SEP] stone")["input_ids"].count(exported.sep_token_id) == 1


def test_a_language_model_without_a_chat_template_reads_special_tokens_as_text(
    small_config: Config, tmp_path: Path
) -> None:
    """A template writes special tokens into the text that it makes; without one, all that they can be is text."""
    folder = builders.pretrained(tmp_path / "llama", "llama")
    config = dataclasses.replace(small_config, task_name="lm", label_column=None, iid_split=True, model=str(folder))
    train(config, tmp_path / "work")
    exported = transformers.AutoTokenizer.from_pretrained(Path(str(config.checkpoints_dir)) / "model")
    text = "river [SEP] stone [SEP] drum"
    ids = exported(text)["input_ids"]
    assert ids.count(exported.sep_token_id) == exported("river")["input_ids"].count(exported.sep_token_id)
    assert ids == load_text_tokenizer(str(folder))(text)["input_ids"]
