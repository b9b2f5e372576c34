import dataclasses
import math
import re
from typing import Any

import pytest

from scaling_fl.config.schema import Config
from scaling_fl.federated.best_round import BestRound
from scaling_fl.federated.run_plan import Plan
from scaling_fl.tracking.round_table import RoundTable, divergence_note, number
from tests.tracking.builders import plan

# Each metric has a value of its own, so that a value in the wrong column shows.
RESULTS: dict[str, Any] = {
    "train.loss": 1.25, "train.accuracy": 0.541, "train.worst_site.accuracy": 0.524, "train.best_site.accuracy": 0.554,
    "validation.loss": 0.9105, "validation.accuracy": 0.854, "validation.macro_f1": 0.855, "held_back.loss": 0.75,
    "held_back.accuracy": 0.812, "examples_per_second": 53.4, "seconds.train": 37.4, "seconds.aggregate": 0.09,
    "seconds.evaluate": 5.1,
}  # fmt: skip


def of(config: dict[str, Any] | None = None, **fields: Any) -> Plan:
    made = plan()
    return dataclasses.replace(made, config=dataclasses.replace(made.config, **(config or {})), **fields)


def test_a_plain_job_has_all_columns_in_85_characters_and_all_but_one_in_80() -> None:
    table = RoundTable(of(), 85)
    table.row(0, {"validation.accuracy": 0.75})
    head, row = table.head(), table.row(1, RESULTS)
    assert [line.split() for line in [head[1], row]] == [
        ["round", "loss", "acc", "worst", "best", "loss", "acc", "±best", "F1", "per", "s", "train", "aggr", "eval"],
        ["1", "1.2500", "0.541", "0.524", "0.554", "0.9105", "0.854", "+0.104", "0.855", "53.4", "37.4", "0.09", "5.1"],
    ]
    assert {len(line) for line in (*head, row)} == {85}
    assert re.split("  +", head[0].strip()) == ["train: sites", "test: global", "examples", "seconds"]
    assert table.fit(80), "the terminal has become narrower"
    assert not table.fit(80)
    narrow = ["1", "1.2500", "0.541", "0.524", "0.554", "0.9105", "0.854", "+0.104", "0.855", "53.4", "37.4", "5.1"]
    assert table.row(1, RESULTS).split() == narrow
    assert {len(line) for line in (*table.head(), table.row(1, RESULTS))} == {80}


def test_a_language_model_has_perplexity_and_tokens_in_the_place_of_f1_and_examples() -> None:
    results = {name: value for name, value in RESULTS.items() if name != "validation.macro_f1"} | {
        "validation.perplexity": 37.8412, "validation.choice_accuracy": 0.625, "tokens_per_second": 233.1,
    }  # fmt: skip
    table = RoundTable(of({"choices_column": "options"}, label_names=()), 120)
    table.row(0, {"validation.accuracy": 0.75})
    head, row = table.head(), table.row(1, results)
    columns = dict(zip(head[1].replace("per s", "speed").split(), row.split(), strict=True))
    assert columns["perpl"] == "37.84"
    assert columns["choice"] == "0.625"
    assert columns["speed"] == "233.1"
    assert "F1" not in columns
    assert "tokens" in head[0]
    assert "choice" not in RoundTable(of(label_names=()), 120).head()[1]


@pytest.mark.parametrize(
    ("results", "shown"),
    [({"dp.epsilon_pld": 3.25, "dp.epsilon_rdp": 4.5}, "3.250"), ({"dp.epsilon_rdp": 412.5}, "412.500")],
)
def test_a_private_job_has_a_column_for_epsilon_by_the_tighter_bound(results: dict[str, float], shown: str) -> None:
    table = RoundTable(of({"dp_clip": 1.0, "weighting": "uniform"}), 120)
    row = table.row(1, RESULTS | results)
    at = table.head()[1].index("ε")
    assert row[: at + 1].split()[-1] == shown
    assert "privacy" in table.head()[0]
    assert table.row(0, {}).split() == ["0"]
    narrow = RoundTable(of({"dp_clip": 1.0, "weighting": "uniform"}), 60)
    assert shown in narrow.row(1, RESULTS | results).split()
    assert "ε" not in RoundTable(of(), 120).head()[1]


def changes(table: RoundTable, accuracies: dict[int, Any]) -> dict[int, list[str]]:
    """The cells after the accuracy of each round, in which nothing else is measured."""
    return {
        round_: table.row(round_, {} if accuracy is None else {"validation.accuracy": accuracy}).split()[2:]
        for round_, accuracy in accuracies.items()
    }


def test_each_accuracy_is_compared_with_the_best_before_it() -> None:
    table = RoundTable(of(history={}), 120)
    accuracies = {0: 0.25, 1: 0.5, 2: None, 3: 0.375, 4: 0.5, 5: "nan", 6: 0.625}
    expected = {0: [], 1: ["+0.250"], 2: [], 3: ["-0.125"], 4: ["0.000"], 5: [], 6: ["+0.125"]}
    assert changes(table, accuracies) == expected
    again = {4: 0.4375, 5: 0.5625}
    assert changes(table, again) == {4: ["-0.062"], 5: ["+0.062"]}, "a round that is run again, not yet having seen 6"


def test_a_resumed_job_compares_with_the_rounds_before_it() -> None:
    history = {"1": {"validation.accuracy": 0.5}, "2": {"validation.accuracy": 0.375}}
    assert changes(RoundTable(of(history=history), 120), {3: 0.4375}) == {3: ["-0.062"]}
    best = BestRound("validation.accuracy", 1, 0.75)  # older than the history
    assert changes(RoundTable(of(history={}, best=best), 120), {3: 0.5}) == {3: ["-0.250"]}
    loss = BestRound("validation.loss", 1, 0.75)
    assert changes(RoundTable(of(history={}, best=loss), 120), {3: 0.5}) == {3: []}


@pytest.mark.parametrize("width", [33, 60, 80, 120])
@pytest.mark.parametrize("num_held_back", [0, 7])
def test_columns_never_run_together_and_rows_fit_the_terminal(width: int, num_held_back: int) -> None:
    table = RoundTable(
        of({"num_rounds": 123_456}, num_held_back=num_held_back), max(width, 47 if num_held_back else 33)
    )
    table.row(1, {"validation.accuracy": 0.5})
    for scale in (1e-9, 1.0, 17.4719, 161157.5791, 1e9, 1e38, 1e300, "nan", "-inf"):
        results = {name: scale if isinstance(scale, str) else scale * value for name, value in RESULTS.items()}
        row = table.row(123_456, results)
        headings = table.head()[1].replace("per s", "per_s").split()
        if isinstance(scale, str) and "±best" in headings:  # no accuracy to compare
            headings.remove("±best")
        assert len(row.split()) == len(headings), row
        assert len(row) == len(table.head()[0]) == len(table.head()[1]) <= max(width, 48), row
    assert {"loss", "acc"} <= set(headings)


def test_a_row_is_blank_where_nothing_was_measured() -> None:
    table = RoundTable(of(), 80)
    row = table.row(7, {"train.loss": 0.123456, "validation.loss": "nan", "seconds.train": 2.0})
    assert row.split() == ["7", "0.1235", "nan", "2.0"]
    assert len(row) == 80
    assert number(math.inf, 6, 4) == "inf"


@pytest.mark.parametrize(
    ("value", "width", "decimals", "text"),
    [
        (1.60944, 6, 4, "1.6094"), (17.4719, 6, 4, "17.472"), (99999.4, 6, 4, "99999"), (161157.5791, 6, 4, "1.61e5"),
        (161157.5791, 9, 4, "1.612e5"), (2.6e38, 6, 4, "2.6e38"), (1e300, 6, 4, "1e300"), (12.345, 4, 2, "12.3"),
        (99999.9, 4, 2, "1e5"), (0.0, 5, 3, "0.000"), ("nan", 6, 4, "nan"), (math.pi, 5, 3, "3.142"),
    ],
)  # fmt: skip
def test_a_number_keeps_as_many_digits_as_fit(value: float | str, width: int, decimals: int, text: str) -> None:
    assert number(value, width, decimals) == text


def test_the_groups_say_which_models_and_examples_they_measure() -> None:
    def groups(**fields: Any) -> list[str]:
        return re.split("  +", RoundTable(of(**fields), 120).head()[0].strip())

    assert groups(config={"baseline": "local_only"})[:2] == ["train: sites", "test: sites"]
    assert groups(config={"baseline": "centralised"})[:2] == ["train", "test: global"]
    assert groups(num_held_back=3)[1:3] == ["test: global", "held back"]
    own = {"site_test_sizes": (3, 2)}
    assert groups(**own)[1:4] == ["test: global", "own: global", "examples"]
    assert groups(config={"ditto_lambda": 1.0}, **own)[1:5] == ["test: global", "own: global", "own: sites", "examples"]
    assert groups(config={"personal": "head"}, **own)[1:4] == ["test: sites", "own: sites", "examples"]
    assert groups(config={"fine_tune_steps": 3})[1:3] == ["test: global", "examples"]
    row = RoundTable(of(num_held_back=3), 120).row(1, RESULTS)
    assert row.split()[8:10] == ["0.7500", "0.812"]


def test_a_loss_far_above_that_of_guessing_is_noted() -> None:
    two, many = of(), of(label_names=tuple("abcdefgh"))
    # ln 2 = 0.6931 and ln 8 = 2.0794
    assert divergence_note(two, 1, {"train.loss": 2.0, "validation.loss": 2.0}) is None
    assert divergence_note(many, 1, {"train.loss": 6.2, "validation.loss": "nan"}) is None
    assert divergence_note(two, 0, {"validation.loss": 50.0}) is None, "a model's own head, before training"
    note = divergence_note(two, 4, {"train.loss": 0.5, "validation.loss": 161157.5791})
    assert note is not None
    assert note.startswith(
        "note: round 4: the test loss 1.612e5 is far above 0.6931, that of guessing among 2 classes; if it stays there, "
        f"lower learning_rate={Config().learning_rate:g} or server_learning_rate"
    )
    assert note.endswith("or set max_grad_norm=1.0")
    note = divergence_note(many, 2, {"train.loss": 6.3})
    assert note is not None
    assert "training loss 6.3000 is far above 2.0794" in note
    tokens = of({"max_grad_norm": 2.0}, label_names=(), vocab_size=1000)  # ln 1000 = 6.9078
    note = divergence_note(tokens, 2, {"train.loss": 20.8})
    assert note is not None
    assert "6.9078, that of guessing among 1,000 tokens; " in note
    assert note.endswith("or lower max_grad_norm")
