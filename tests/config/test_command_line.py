from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sacred.arg_parser import get_config_updates

from scaling_fl.config.command_line import NAMED_CONFIGS, keep_text
from scaling_fl.config.schema import Config


@pytest.mark.parametrize("name", sorted(NAMED_CONFIGS))
def test_named_configurations_are_valid(name: str) -> None:
    config = Config.from_mapping(Config().to_mapping() | NAMED_CONFIGS[name])
    if name == "paper":  # Hilmkil et al. 2021
        assert (config.optimiser, config.learning_rate, config.weight_decay) == ("sgd", 2e-5, 0.0)
        assert (config.batch_size, config.max_seq_len, config.num_local_epochs) == (32, 128, 2)
        assert config.group_by_length is False


def as_sacred_reads(*words: str) -> dict[str, Any]:
    argv = keep_text(["train_federated.py", "train", "with", *words])
    return get_config_updates(argv[3:])[0]


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("job_name=20261122_230300", "20261122_230300"),
        ("job_name=1e5", "1e5"),
        ("model=1e5", "1e5"),
        ("author=True", "True"),
        ("author='quoted'", "quoted"),
        ('author="O\'Neil"', "O'Neil"),
        ("train_path=/a b/c=d.csv", "/a b/c=d.csv"),
        ("checkpoints_dir=None", None),
        ("job_name=", ""),
    ],
)
def test_text_keys_take_the_raw_text_of_the_command_line(word: str, value: Any) -> None:
    assert as_sacred_reads(word) == {word.partition("=")[0]: value}


def test_other_words_of_the_command_line_are_unchanged() -> None:
    words = ["demo", "site_ids=[0,0]", "num_rounds=3", "iid_split=False", "unknown=1_0"]
    argv = ["train_federated.py", "-c", "author=1", "with", *words]
    assert keep_text(argv) == argv
    assert keep_text(["train_federated.py", "print_config"]) == ["train_federated.py", "print_config"]


@given(st.text(alphabet=st.characters(codec="utf-8", exclude_characters="\0"), min_size=1))
def test_any_text_survives_the_command_line(text: str) -> None:
    value = as_sacred_reads(f"author={text}")["author"]
    # Sacred strips surrounding white space; None and Python strings are taken as literals.
    assert value == text or text.strip() in ("None", "") or text.strip()[-1] in "'\""
