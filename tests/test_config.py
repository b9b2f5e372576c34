import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sacred.arg_parser import get_config_updates

from scaling_fl.config import NAMED_CONFIGS, OPTIMISERS, Config, keep_text
from scaling_fl.errors import UserError


def test_every_key_has_a_default_and_the_defaults_are_valid() -> None:
    defaults = Config().to_mapping()
    assert Config.from_mapping(defaults) == Config()
    asked_for = {
        "learning_rate": 5e-5, "optimiser": "adamw", "max_seq_len": 128, "batch_size": 32, "val_batch_size": 512,
        "eval_every": 1, "checkpoint_every": 1, "data_seed": 58923, "job_name": None, "checkpoints_dir": None,
    }  # fmt: skip
    assert {key: defaults[key] for key in asked_for} == asked_for


@pytest.mark.parametrize("name", sorted(NAMED_CONFIGS))
def test_named_configurations_are_valid(name: str) -> None:
    config = Config.from_mapping(Config().to_mapping() | NAMED_CONFIGS[name])
    if name == "paper":  # Hilmkil et al. 2021
        assert (config.optimiser, config.learning_rate, config.weight_decay) == ("sgd", 2e-5, 0.0)
        assert (config.batch_size, config.max_seq_len, config.num_local_epochs) == (32, 128, 2)
        assert config.group_by_length is False


@pytest.mark.parametrize(
    ("key", "value", "remedy"),
    [
        ("site_ids", 3, "write site_ids=[3]"),
        ("site_ids", "[a,b]", "write site_ids=[0,0]"),
        ("site_ids", [], "a list of GPU indices"),
        ("site_ids", [0, -1], "GPUs and CPU don't mix"),
        ("site_ids", [0, True], "write site_ids=[0,0]"),
        ("site_ids", [0, 1.5], "write site_ids=[0,0]"),
        ("num_rounds", 0, "a whole number, 1 or more"),
        ("num_rounds", 2.5, "a whole number, 1 or more"),
        ("num_rounds", "ten", "a whole number, 1 or more"),
        ("num_rounds", True, "a whole number, 1 or more"),
        ("iid_split", "false", "True or False, with a capital letter"),
        ("iid_split", 1, "True or False, with a capital letter"),
        ("learning_rate", 0, "a number above 0"),
        ("learning_rate", float("nan"), "a number above 0"),
        ("learning_rate", "5e-5x", "such as learning_rate="),
        ("weight_decay", -0.1, "a number, 0 or more"),
        ("optimiser", "adamv", "one of adamw, adam, sgd"),
        ("task_name", "ag_news", "one of agnews, csv, demo"),
        ("max_seq_len", 3, "a whole number, 4 or more"),
        ("threads_per_site", 0, "a whole number, 1 or more"),
        ("model", 1e5, "expected text"),
        ("model", None, "expected text"),
        ("job_name", "", "an unset shell variable?"),
        ("job_name", "a/b", "letters, digits"),
        ("job_name", "../x", "letters, digits"),
        ("checkpoints_dir", " ", "an unset shell variable?"),
        ("seed", -1, "a whole number from 0 to 4294967295"),
        ("data_seed", 2**32, "a whole number from 0 to 4294967295"),
    ],
)
def test_a_bad_value_is_refused_by_key_value_and_remedy(key: str, value: Any, remedy: str) -> None:
    with pytest.raises(UserError) as error:
        Config.from_mapping({key: value})
    assert str(error.value).startswith(f"{key}={value!r}: ")
    assert remedy in str(error.value)


def test_an_unknown_key_is_refused_with_the_closest_one() -> None:
    with pytest.raises(UserError, match=r"num_round=3: there is no such key; did you mean num_rounds\?"):
        Config.from_mapping({"num_round": 3})


def test_numbers_and_lists_take_the_type_of_their_key() -> None:
    config = Config.from_mapping({"learning_rate": 1, "site_ids": [1, 0]})
    assert (config.learning_rate, type(config.learning_rate)) == (1.0, float)
    assert config.site_ids == (1, 0)


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


def test_other_words_of_the_command_line_stay() -> None:
    words = ["demo", "site_ids=[0,0]", "num_rounds=3", "iid_split=False", "unknown=1_0"]
    argv = ["train_federated.py", "-c", "author=1", "with", *words]
    assert keep_text(argv) == argv
    assert keep_text(["train_federated.py", "print_config"]) == ["train_federated.py", "print_config"]


@given(st.text(alphabet=st.characters(codec="utf-8", exclude_characters="\0"), min_size=1))
def test_any_text_survives_the_command_line(text: str) -> None:
    value = as_sacred_reads(f"author={text}")["author"]
    # Sacred strips what surrounds a value; None and Python strings are taken as what they are.
    assert value == text or text.strip() in ("None", "") or text.strip()[-1] in "'\""


def test_a_resume_may_change_places_and_length_but_not_the_meaning() -> None:
    before = Config(job_name="j", site_ids=(0, 1)).to_mapping()
    free = {
        "site_ids": (2, 2), "num_rounds": 99, "train_path": "x", "test_path": "y", "author": "me", "eval_every": 2,
        "checkpoint_every": 3, "checkpoints_dir": "z", "val_batch_size": 9, "threads_per_site": 1,
    }  # fmt: skip
    dataclasses.replace(Config(job_name="j"), **free).check_resumable(before)

    for key, value in [("learning_rate", 0.5), ("seed", 1), ("iid_split", False), ("model", "bert"), ("batch_size", 1)]:
        changed = dataclasses.replace(Config(job_name="j", site_ids=(0, 1)), **{key: value})
        with pytest.raises(UserError, match=f"{key} was {before[key]!r}, is {value!r}"):
            changed.check_resumable(before)
    with pytest.raises(UserError, match="the number of sites was 2, is 3"):
        Config(job_name="j", site_ids=(0, 1, 1)).check_resumable(before)


def test_every_optimiser_of_the_configuration_is_built() -> None:
    from scaling_fl.site import _OPTIMISERS

    assert set(OPTIMISERS) == set(_OPTIMISERS)
