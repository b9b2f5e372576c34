import dataclasses
import typing
from typing import Any

import pytest

from scaling_fl.config import compatibility, parsing
from scaling_fl.config.schema import Config
from scaling_fl.errors import UserError


def test_every_key_has_a_default_and_the_defaults_are_valid() -> None:
    defaults = Config().to_mapping()
    assert Config.from_mapping(defaults) == Config()
    documented = {
        "learning_rate": 5e-5, "optimiser": "adamw", "max_seq_len": 128, "batch_size": 32, "val_batch_size": 512,
        "eval_every": 1, "checkpoint_every": 1, "data_seed": 58923, "job_name": None,
        "checkpoints_dir": "checkpoints/{job_name}",
    }  # fmt: skip
    assert {key: defaults[key] for key in documented} == documented


@pytest.mark.parametrize(
    ("key", "value", "remedy"),
    [
        ("site_ids", 3, "write site_ids=[3]"),
        ("site_ids", "[a,b]", "write site_ids=[0,0,1,1]"),
        ("site_ids", [], "a list of GPU indices"),
        ("site_ids", [0, -1], "or of -1 for the CPU, without mixing the two"),
        ("site_ids", [0, True], "write site_ids=[0,0,1,1]"),
        ("site_ids", [0, 1.5], "write site_ids=[0,0,1,1]"),
        ("local_epochs_range", 2, "the second not below the first; write local_epochs_range=[1,5], without spaces"),
        ("lora_ranks", 4, "write lora_ranks=[4]"),
        ("lora_ranks", "4 8", "1 or more; write lora_ranks=[4,8,16], without spaces"),
        ("num_rounds", 0, "a whole number, 1 or more"),
        ("num_rounds", 2.5, "a whole number, 1 or more"),
        ("num_rounds", "ten", "a whole number, 1 or more"),
        ("num_rounds", True, "a whole number, 1 or more"),
        ("iid_split", "false", "True or False, with a capital letter"),
        ("iid_split", 1, "True or False, with a capital letter"),
        ("learning_rate", 0, "a number above 0"),
        ("learning_rate", float("nan"), "a number above 0"),
        ("learning_rate", True, "a number above 0"),
        ("num_rounds", "2.5", "a whole number, 1 or more"),
        ("learning_rate", "nan", "a number above 0"),
        ("learning_rate", "5e-5x", "such as learning_rate="),
        ("weight_decay", -0.1, "a number, 0 or more"),
        ("optimiser", "adamv", "one of adamw, adam, sgd"),
        ("task_name", "ag_news", "one of agnews, csv, demo"),
        ("max_seq_len", 3, "a whole number, 4 or more"),
        ("threads_per_site", 0, "a whole number from 1 to 1024"),
        ("model", 1e5, "expected text"),
        ("model", None, "expected text"),
        ("lr_schedule", "step", "one of constant, linear, cosine"),
        ("precision", "fp8", "one of auto, fp32, bf16, fp16"),
        ("max_grad_norm", 0, "a number above 0"),
        ("warmup", -1, "a number, 0 or more"),
        ("warmup", 10.0, "expected less than num_rounds=10; lower warmup"),
        ("job_name", "", "an unset shell variable?"),
        ("job_name", "a/b", "letters, digits"),
        ("job_name", "../x", "letters, digits"),
        ("checkpoints_dir", " ", "an unset shell variable?"),
        ("keep_checkpoints", -1, "a whole number, 0 or more"),
        (
            "keep_best",
            "accuracy",
            "one of validation.loss, validation.accuracy, validation.macro_f1, validation.perplexity",
        ),
        ("keep_best", "held_back.loss", "no training rows are held back; set validation_fraction=0.1 as well"),
        ("validation_fraction", 1, "a number from 0 to less than 1"),
        ("validation_fraction", -0.1, "a number from 0 to less than 1"),
        ("seed", -1, "a whole number from 0 to 4294967295"),
        ("data_seed", 2**32, "a whole number from 0 to 4294967295"),
    ],
)
def test_an_invalid_value_is_refused_with_key_value_and_remedy(key: str, value: Any, remedy: str) -> None:
    with pytest.raises(UserError) as error:
        Config.from_mapping({key: value})
    assert str(error.value).startswith((f"{key}={value!r}: ", "warmup=10: "))
    assert remedy in str(error.value)


_INF, _HUGE = float("inf"), 10**400  # an int that is no float
# By the keys that have them: values just within the limits that the help says, and values just beyond.
_LIMITS: dict[str, tuple[list[Any], list[Any]]] = {
    "num_rounds checkpoint_every num_sites sites_per_round labels_per_site min_examples_per_site num_local_epochs "
    "num_local_steps batch_size gradient_accumulation_steps eval_every val_batch_size lora_rank lora_delta_rank faulty_sites krum_sites "
    "attackers secure_threshold max_train_examples max_test_examples": ([1, 10**9], [0, -1, 1.5, True]),
    "keep_checkpoints max_restarts fine_tune_steps site generate_examples": ([0, 10**9], [-1, 0.5]),
    "max_seq_len": ([4, 10**6], [3]),
    "threads_per_site": ([1, 1024], [0, 1025]),
    "seed data_seed dp_seed": ([0, 2**32 - 1], [-1, 2**32]),
    "stall_timeout": ([1, 1e6], [0.999, 1e6 + 1, _INF]),
    "participation topk_share": ([1e-9, 1], [0, 1.001]),
    "alpha": ([1e-9, 1e9], [0.9e-9, 1.1e9]),
    "test_fraction validation_fraction lora_dropout secure_dropout server_momentum server_beta2": (
        [0, 0.999],
        [-1e-9, 1],
    ),
    "site_test_fraction dp_delta": ([1e-9, 0.999], [0, 1]),
    "dp_clip_quantile": ([0, 1], [-1e-9, 1.001]),
    "dp_epsilon": ([1e-9, 50], [0, 50.01]),
    "size_skew learning_rate max_grad_norm lora_alpha server_learning_rate server_tau dp_clip dp_noise_multiplier "
    "dp_clip_rate dp_count_noise attack_strength": ([1e-300, 1, 1e300], [0, -1, _INF, _HUGE]),
    "final_learning_rate warmup weight_decay fairness_q proximal_mu feddyn_alpha ditto_lambda": (
        [0, 1e300],
        [-1e-300, _INF, _HUGE],
    ),
}


def test_every_number_is_taken_up_to_its_limits_and_not_beyond() -> None:
    fields, hints = {field.name: field for field in dataclasses.fields(Config)}, typing.get_type_hints(Config)
    limits = {name: values for names, values in _LIMITS.items() for name in names.split()}
    numbers = {name for name, hint in hints.items() if hint in (int, float, int | None, float | None)}
    assert limits.keys() == numbers
    for name, (within, beyond) in limits.items():
        for value in within:
            assert parsing.parse(fields[name], hints[name], value) == value, name
        for value in beyond:
            with pytest.raises(UserError, match=f"^{name}="):
                parsing.parse(fields[name], hints[name], value)


def test_an_unknown_key_is_refused_with_the_closest_known_key() -> None:
    with pytest.raises(UserError, match=r"num_round=3: unknown key; did you mean num_rounds\?"):
        Config.from_mapping({"num_round": 3})


def test_numbers_and_lists_are_converted_to_the_type_of_their_key() -> None:
    config = Config.from_mapping({"learning_rate": 1, "site_ids": [1, 0]})
    assert (config.learning_rate, type(config.learning_rate)) == (1.0, float)
    assert config.site_ids == (1, 0)


def test_numbers_written_as_text_are_numbers_for_number_keys() -> None:
    """YAML takes 1e-3 for text."""
    values = {"learning_rate": "1e-3", "num_rounds": " 3 ", "max_grad_norm": "1", "num_sites": "4", "job_name": "7"}
    config = Config.from_mapping(values)
    assert (config.learning_rate, config.num_rounds, config.job_name) == (1e-3, 3, "7")
    assert (config.max_grad_norm, type(config.max_grad_norm), config.num_sites) == (1.0, float, 4)


def test_an_empty_author_is_not_set() -> None:
    """As from author=$USER in a shell without USER."""
    assert Config.from_mapping({"author": ""}).author is None


def test_a_resume_may_change_paths_and_number_of_rounds_but_not_what_determines_the_results() -> None:
    before = Config(job_name="j", site_ids=(0, 1)).to_mapping()
    free = {
        "site_ids": (2, 2), "num_rounds": 99, "train_path": "x", "test_path": "y", "author": "me", "eval_every": 2,
        "checkpoint_every": 3, "checkpoints_dir": "z", "val_batch_size": 9, "threads_per_site": 1,
        "keep_checkpoints": 0, "keep_best": "validation.loss",
    }  # fmt: skip
    compatibility.check_config(dataclasses.replace(Config(job_name="j"), **free), before)

    for key, value in [
        ("learning_rate", 0.5), ("seed", 1), ("alpha", 0.1), ("model", "bert"), ("batch_size", 1),
        ("validation_fraction", 0.1),
    ]:  # fmt: skip
        changed = dataclasses.replace(Config(job_name="j", site_ids=(0, 1)), **{key: value})
        with pytest.raises(UserError, match=f"{key} was {before[key]!r}, is now {value!r}"):
            compatibility.check_config(changed, before)
    other = Config(job_name="j", site_ids=(0, 1), partition="by_label")
    with pytest.raises(UserError, match="partition was 'iid', is now 'by_label'"):
        compatibility.check_config(other, before)
    for keys in ({"lr_schedule": "linear"}, {"warmup": 0.5}):
        scheduled = Config(job_name="j", site_ids=(0, 1), num_rounds=3, **keys)  # type: ignore[arg-type]
        compatibility.check_config(scheduled, scheduled.to_mapping())
        with pytest.raises(UserError, match=r"num_rounds was 4, is now 3 \(the learning rate depends on it\)"):
            compatibility.check_config(scheduled, scheduled.to_mapping() | {"num_rounds": 4})
    for warmup in (0.0, 1.0, 2.0):  # none, or whole rounds, which further rounds leave as they are
        longer = Config(job_name="j", site_ids=(0, 1), num_rounds=9, warmup=warmup)
        compatibility.check_config(longer, longer.to_mapping() | {"num_rounds": 4})
    with pytest.raises(UserError, match="the number of sites was 2, is now 3"):
        compatibility.check_config(Config(job_name="j", site_ids=(0, 1, 1)), before)
    private = Config(job_name="j", dp_clip=1.0, dp_noise_multiplier=1.0, dp_delta=1e-3, weighting="uniform")
    compatibility.check_config(private, private.to_mapping() | {"num_rounds": 4})  # its noise is given
    solved = dataclasses.replace(private, dp_noise_multiplier=None, dp_epsilon=3.0)
    with pytest.raises(UserError, match=r"num_rounds was 4, is now 10 \(the noise for dp_epsilon depends on it\)"):
        compatibility.check_config(solved, solved.to_mapping() | {"num_rounds": 4})
    column = Config(job_name="j", partition="column", partition_column="author")
    wider = dataclasses.replace(column, site_ids=(0, 1, 1))
    compatibility.check_config(wider, column.to_mapping())  # the data say how many sites there are


def test_only_keys_that_leave_the_results_as_they_are_may_change_on_a_resume() -> None:
    """A key is in this list because of what it does: a new one belongs here only if no result depends on it."""
    paths = {"train_path", "test_path", "dataset", "checkpoints_dir", "tensorboard_dir", "checkpoint", "csv_path"}
    resources = {"site_ids", "threads_per_site", "val_batch_size", "max_restarts", "stall_timeout"}
    what_is_kept_or_shown = {
        "checkpoint_every", "keep_checkpoints", "keep_best", "export", "eval_every", "report", "verbosity", "author",
        "log_gradient_norms", "all", "site", "case", "secure_threshold", "generate_examples", "merge",
    }  # fmt: skip
    compared_by_their_meaning = {"num_rounds", "num_sites", "partition", "iid_split"}
    free = paths | resources | what_is_kept_or_shown | compared_by_their_meaning
    assert {field.name for field in dataclasses.fields(Config) if field.metadata["may_change"]} == free


def test_a_key_that_an_earlier_version_lacked_had_its_default() -> None:
    before = {key: value for key, value in Config().to_mapping().items() if key not in ("dp_clip", "site_test")}
    compatibility.check_config(Config(), before)
    with pytest.raises(UserError, match=r"site_test was None, is now 'held_back'"):
        compatibility.check_config(Config(site_test="held_back"), before)


def test_a_resume_may_set_the_same_partition_by_another_key_but_not_another_partition() -> None:
    spellings: list[tuple[str, dict[str, Any]]] = [
        ("iid", {}), ("iid", {"iid_split": True}), ("iid", {"partition": "iid"}), ("by_label", {"iid_split": False}),
        ("by_label", {"partition": "by_label"}), ("sizes", {"partition": "sizes"}),
    ]  # fmt: skip
    for was, earlier in spellings:
        # Checkpoints written when there were only these two partitions lack the later keys.
        before = Config(**earlier).to_mapping()
        old = {key: value for key, value in before.items() if key in ("iid_split", "site_ids", "num_rounds")}
        for now, later in spellings:
            for header in [before] if was == "sizes" else [before, old | {"iid_split": was == "iid"}]:
                if now == was:
                    compatibility.check_config(Config(**later), header)
                else:
                    with pytest.raises(UserError, match=f"partition was '{was}', is now '{now}'"):
                        compatibility.check_config(Config(**later), header)
    parts = Config(partition="labels_per_site", labels_per_site=2)
    with pytest.raises(UserError, match="labels_per_site was 2, is now 3"):
        compatibility.check_config(dataclasses.replace(parts, labels_per_site=3), parts.to_mapping())


@pytest.mark.parametrize(
    ("keys", "partition"),
    [
        ({"alpha": 0.5}, "dirichlet"), ({"balanced": True}, "dirichlet"), ({"labels_per_site": 2}, "labels_per_site"),
        ({"size_law": "power"}, "sizes"), ({"size_skew": 0.5}, "sizes"), ({"partition_column": "town"}, "column"),
    ],
)  # fmt: skip
def test_a_key_that_the_chosen_partition_would_ignore_is_refused(keys: dict[str, Any], partition: str) -> None:
    ((key, value),) = keys.items()
    for other in {"iid", "by_label", "sizes"} - {partition}:
        with pytest.raises(
            UserError, match=f"{key}={value!r}: belongs to partition={partition}, but this is .*{other}"
        ):
            Config.from_mapping({"partition": other, **keys})
    Config.from_mapping({"partition": partition, **({"alpha": 1} if partition == "dirichlet" else {}), **keys})


def test_every_optimiser_in_the_configuration_is_implemented() -> None:
    from scaling_fl.config.sections.training import OPTIMISERS
    from scaling_fl.federated import local_optimiser

    assert set(local_optimiser.TORCH_OPTIMISERS) == set(OPTIMISERS)


@pytest.mark.parametrize(("num_test", "size"), [(9, 32), (2048, 32), (2049, 33), (7600, 119), (50_000, 512)])
def test_small_test_sets_are_split_into_smaller_batches(num_test: int, size: int) -> None:
    assert Config().evaluation_batch_size(num_test) == size
    assert Config(val_batch_size=8).evaluation_batch_size(num_test) == 8


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"export": "best"}, r"export=best: no metric chooses the best round; set keep_best=validation\.accuracy"),
        (
            {"export": "both", "keep_best": "validation.loss", "baseline": "local_only"},
            r"export=both: baseline=local_only has no global model; leave out export",
        ),
        (
            {"max_restarts": 1, "checkpoints_dir": None},
            r"restarts need a checkpoint .*; leave out checkpoints_dir=None",
        ),
    ],
)
def test_what_can_not_be_exported_or_resumed_is_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Config.from_mapping(keys)
    Config.from_mapping({"export": "best", "keep_best": "validation.loss", "max_restarts": 1})
