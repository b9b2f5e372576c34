import dataclasses
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sacred.arg_parser import get_config_updates
from sacred.experiment import gather_command_line_options

from scaling_fl.config import flags, key_names
from scaling_fl.config.command_line import NAMED_CONFIGS, check_config_file, check_words, keep_text
from scaling_fl.config.key_names import meant
from scaling_fl.config.schema import Config
from scaling_fl.errors import UserError

KEYS = {field.name for field in dataclasses.fields(Config)}


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


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            "train task_name=agnews",
            "task_name=agnews: expected `with` before the keys; write train with task_name=agnews",
        ),
        ("num_rounds=3 seed=1", "num_rounds=3: expected `with` before the keys; write with num_rounds=3 …"),
        ("num_rounds 3", "num_rounds: expected `with` before the keys; write with num_rounds …"),
        ("demo", "demo: expected `with` before the keys; write with demo"),
        ("train demo num_rounds=3", "demo: expected `with` before the keys; write train with demo …"),
        (
            "show_task show_shards",
            "show_shards: expected one command, found show_task before it; keys and files follow",
        ),
        ("--num_rounds=3", "--num_rounds: there is no such flag; write the key after `with`: with num_rounds=…"),
        ("with demo --lr 3", "--lr: there is no such flag; write the key after `with`: with learning_rate=…"),
        ("--verbatim", "--verbatim: there is no such flag; `--help` shows the flags"),
        ("-x with demo", "-x: there is no such flag; `--help` shows the flags"),
        ("--comment", "--comment: option --comment requires argument"),
        ("with", "with: expected keys after it, such as num_rounds=3"),
        ("with demo with seed=1", "with: it is there twice; write it once, before the keys"),
        ("with num_rounds = 3", "num_rounds: expected num_rounds=value; leave no spaces around the ="),
        ("with demo =3", "=3: expected key=value; leave no spaces around the ="),
        ("with num_rounds=3 demo num_rounds=4", "num_rounds=4: num_rounds=3 is there as well; leave one of them out"),
        ("with seed=1 seed=1", "seed=1: seed=1 is there as well; leave one of them out"),
        ("with site_ids=[0, -1, 2] demo", "site_ids=[0,: expected a list without spaces; write site_ids=[0,-1,2]"),
        ("with site_ids=[0, demo", "site_ids=[0,: expected a list without spaces; write site_ids=[0,0,1,1]"),
        ("with lora_ranks=[4, 8] demo", "lora_ranks=[4,: expected a list without spaces; write lora_ranks=[4,8]"),
        (
            "with local_epochs_range=(2, demo",
            "local_epochs_range=(2,: expected a list without spaces; write local_epochs_range=[1,5]",
        ),
        ("-q with demo", "-q: nothing starts queued runs; leave it out"),
        ("with demo -s sqlite://x", "-s sqlite://x: there is no record in SQL; records go to runs/"),
        ("--tiny_db=x with demo", "--tiny_db x: there is no record in TinyDB; records go to runs/"),
        ("-S bucket with demo", "-S bucket: there is no record in S3; records go to runs/"),
        ("-i 77 with demo", "-i 77: a run is numbered by its record, runs/N; name it with job_name=… instead"),
        ("-l LOUD with demo", "-l LOUD: expected a number or one of CRITICAL"),
        ("-b 0 with demo", "-b 0: expected seconds, a number above 0"),
        ("-P high with demo", "-P high: expected a number"),
        ("-P -inf with demo", "-P -inf: expected a number"),
        ("-C fd with demo", "-C fd: expected no or sys"),
        ("--loglevel=LOUD with demo", "--loglevel LOUD: expected a number or one of CRITICAL"),
        ("--beat-interval=0 with demo", "--beat-interval 0: expected seconds, a number above 0"),
        ("--priority=high with demo", "--priority high: expected a number"),
        ("--capture=fd with demo", "--capture fd: expected no or sys"),
    ],
)
def test_a_mistake_in_the_words_is_refused_with_its_remedy(words: str, says: str) -> None:
    with pytest.raises(UserError) as error:
        check_words(words.split())
    assert str(error.value).startswith(says)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "words",
    [
        "", "train", "help sync", "--help", "with demo", "-u with demo num_rounds=3 site_ids=[-1,-1]",
        "show_task with my.yaml runs/1/config.json demo seed=1 -c lr=3 --comment=lr=4 -D", "-l 10 -b 5 -P 2 -C no",
    ],
)  # fmt: skip
def test_sound_words_are_accepted(words: str) -> None:
    check_words(words.split())


def test_the_values_of_flags_are_not_taken_for_keys() -> None:
    argv = ["train_federated.py", "with", "author=1", "-c", "author=1", "--name=author=2"]
    assert keep_text(argv) == [*argv[:2], "author='1'", *argv[3:]]


def test_the_flags_are_sacreds() -> None:
    short, long = "", []
    for option in gather_command_line_options():
        names = option.get_flags()
        short += names[0][1:] + ":" * (option.arg is not None)
        long.append(names[1][2:] + "=" * (option.arg is not None))
    assert sorted(flags._SHORT) == sorted(short)
    assert sorted(flags._LONG) == sorted(long)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("lr", "learning_rate"), ("epochs", "num_local_epochs"), ("lr_scheduler", "lr_schedule"), ("bs", "batch_size"),
        ("clients", "num_sites"), ("rounds", "num_rounds"), ("output_dir", "checkpoints_dir"), ("wd", "weight_decay"),
        ("model_name_or_path", "model"), ("Learning-Rate", "learning_rate"), ("learnin_rate", "learning_rate"),
        ("LR", "learning_rate"), ("--BS", "batch_size"), ("WD ", "weight_decay"), ("keep_optimizer", "keep_optimiser"), ("num_train_epoch", "num_local_epochs"), ("zzz", None),
    ],
)  # fmt: skip
def test_names_of_other_tools_and_misspellings_lead_to_the_key(name: str, key: str | None) -> None:
    assert meant(name, KEYS) == key


def test_the_table_of_other_names_leads_to_keys_each_name_once() -> None:
    names = " ".join(key_names._ELSEWHERE.values()).split()
    assert len(names) == len(set(names))
    assert key_names._ELSEWHERE.keys() <= KEYS
    assert not KEYS & set(names), "a key stands for itself"


@pytest.mark.parametrize(
    ("name", "content", "repeated"),
    [
        ("a.yaml", "num_rounds: 3\nseed: 1\n'num_rounds': 4\n", "num_rounds"),
        ("a.json", '{"num_rounds": 3, "num_rounds": 4}', "num_rounds"),
        ("b.yaml", "num_rounds: 3\nsite_ids: [0, 0]\n", None),
        ("b.json", '{\n\t"num_rounds": 3,\n\t"site_ids": [0, 0]\n}', None),
    ],
)
def test_a_configuration_file_that_sets_a_key_twice_is_refused(
    tmp_path: Path, name: str, content: str, repeated: str | None
) -> None:
    path = tmp_path / name
    path.write_text(content)
    if repeated is None:
        check_config_file(str(path))
    else:
        with pytest.raises(UserError, match=f"{name}: it sets {repeated} twice; leave one of them out"):
            check_config_file(str(path))


def test_a_pickled_configuration_is_refused_unread(tmp_path: Path) -> None:
    """Sacred would load it, and run what it says."""

    class Hostile:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "made"),)

    (tmp_path / "keys.pickle").write_bytes(pickle.dumps(Hostile()))
    with pytest.raises(
        UserError, match=r"keys\.pickle: loading a pickle can run arbitrary code; write .* JSON or YAML"
    ):
        check_config_file(str(tmp_path / "keys.pickle"))
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(("content", "found"), [("- 3\n", "a list"), ("3\n", "a int"), ("\n", "nothing")])
def test_a_configuration_file_holds_keys(tmp_path: Path, content: str, found: str) -> None:
    (tmp_path / "c.yaml").write_text(content)
    with pytest.raises(UserError, match=rf"c\.yaml: expected keys and values, found {found}; write a line such as"):
        check_config_file(str(tmp_path / "c.yaml"))
