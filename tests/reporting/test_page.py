"""The page of one and of several jobs, as HTML."""

import json
import re
from pathlib import Path

import pytest

from scaling_fl.errors import UserError
from scaling_fl.reporting import facts, frames, page, records
from scaling_fl.tracking import events
from tests.reporting import builders


def rendered(*paths: Path) -> str:
    return page.render(*records.find(*paths))


def facts_of(path: Path) -> facts.Facts:
    found = records.find(path).records
    return facts.of_job(found[0], frames.of_records(found))


def text_of(html: str) -> str:
    """What a reader sees: without scripts, styles and tags."""
    visible = re.sub(r"<(script|style)\b.*?</\1>", " ", html, flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]+>", " ", visible).split())


def specifications(html: str) -> dict[str, dict[str, object]]:
    found = re.findall(r'<script type="application/json" data-chart="([^"]+)">(.*?)</script>', html, re.DOTALL)
    return {name: json.loads(text) for name, text in found}


def test_the_page_of_a_job_says_what_the_record_holds(tmp_path: Path) -> None:
    html = rendered(builders.job(tmp_path, learning_rate=0.25, loss=0.5))
    text = text_of(html)
    # 1 − 0.125 × 2 rounds; 9 of the 13 test examples have the most frequent label.
    assert "test accuracy 0.7500 best: 0.8750, round 1; most frequent label: 0.692" in text
    assert "sites 3 4 to 9 examples each" in text
    # Shards of 5, 9 and 4 in batches of 4: 2 + 3 + 1 steps, two epochs, two rounds.
    assert "training examples 72 24 local steps" in text
    assert "time 5.8 s" in text  # 2 × (2 + 0.5 + 0.25) + 0.25
    assert "learning_rate 0.25 5e-05" in text
    assert text.count("3 of 30 texts are truncated to 16 tokens") == 1
    assert "3 test examples are labelled wrongly" in text
    command = re.search(r"<code>(\./run-local.*?)</code>", html, re.DOTALL)
    assert command is not None
    for key in ("job_name=news", "learning_rate=0.25", "batch_size=4", "num_sites=3", "checkpoints_dir=None"):
        assert f" {key}" in command[1]
    assert set(specifications(html)) == {
        f"job-0-{name}" for name in ("learning_curves", "costs", "label_counts", "shard_sizes", "phases", "confusion")
    }


def test_texts_of_a_data_set_are_shown_and_never_run(tmp_path: Path) -> None:
    html = rendered(builders.job(tmp_path, task_name="demo"))
    assert "&lt;/script&gt;&lt;b&gt;nobody&lt;/b&gt; &amp; &#39;quotes&#39;" in html
    assert "<b>nobody" not in html
    assert html.count("</script>") == html.count("<script")


def test_names_in_pictures_never_end_a_script(tmp_path: Path) -> None:
    """They are part of the charts' specifications, which are scripts for the browser."""
    cases = ("</script><b>nobody", "other & more")
    paths = [builders.job(tmp_path, f"j{number}", case=case) for number, case in enumerate(cases)]
    html = rendered(*paths)
    charts = specifications(html)
    assert all(f"case={case}" in str(charts["comparison-costs"]) for case in cases)
    assert "<b>nobody" not in html
    assert html.count("</script>") == html.count("<script")


def test_the_page_needs_no_network(tmp_path: Path) -> None:
    html = rendered(builders.job(tmp_path))
    tags = re.sub(r"<script\b[^>]*>.*?</script>", "", html, flags=re.DOTALL)
    assert not re.findall(r'(?:src|href)="(?!#|data:)[^"]*"', tags)
    assert "vegaEmbed" in html


def test_several_jobs_are_compared_by_the_keys_in_which_they_differ(tmp_path: Path) -> None:
    paths = [builders.job(tmp_path, name, learning_rate=rate) for name, rate in (("slow", 0.125), ("fast", 0.5))]
    html = rendered(*paths)
    text = text_of(html)
    assert "2 jobs" in text
    assert "job status learning_rate round" in text
    assert "slow COMPLETED 0.125 2 0.7500" in text
    assert "fast COMPLETED 0.5 2 0.7500" in text
    assert {name for name in specifications(html) if name.startswith("comparison")} == {
        "comparison-costs", "comparison-sweep_curves", "comparison-sweep_scaling"
    }  # fmt: skip
    assert html.count('<details class="job"') == 2


@pytest.mark.parametrize(
    ("cohorts", "shown"), [((3, 6), []), ((2, 4), ["sites_per_round"]), ((2, 6), ["sites_per_round"])]
)
def test_the_table_of_jobs_has_the_size_of_cohorts_unless_all_sites_take_part(
    tmp_path: Path, cohorts: tuple[int, int], shown: list[str]
) -> None:
    jobs = [
        {"num_sites": sites, "resolved": {"num_sites": sites, "sites_per_round": number}}
        for sites, number in zip((3, 6), cohorts, strict=True)
    ]
    table = page._table(builders.sweep(tmp_path, *jobs))
    assert table.columns == ["job", "status", "num_sites", *shown, "round", "test accuracy", "time"]
    assert [row[2 : 3 + len(shown)] for row in table.rows] == [
        [str(number) for number in ((sites, cohort) if shown else (sites,))]
        for sites, cohort in zip((3, 6), cohorts, strict=True)
    ]


def test_many_jobs_are_only_compared(tmp_path: Path) -> None:
    html = rendered(*(builders.job(tmp_path, f"j{number}", seed=number) for number in range(13)))
    assert '<details class="job"' not in html
    assert text_of(html).count("COMPLETED") == 13


def test_a_job_that_failed_before_its_first_round_has_a_page_with_the_reason(tmp_path: Path) -> None:
    path = builders.job(tmp_path)
    lines = path.read_text().splitlines(keepends=True)
    first = next(number for number, line in enumerate(lines) if json.loads(line)["event"] == "round")
    failed = {"event": "failed", "trace": ["Traceback …\n", "site 1 ran out of memory\n"], "time": 2e9}
    path.write_text("".join(lines[:first]) + json.dumps(failed) + "\n")
    text = text_of(rendered(path))
    assert "failed" in text
    assert "site 1 ran out of memory" in text


def test_left_out_records_are_named(tmp_path: Path) -> None:
    (tmp_path / "_events").mkdir()
    builders.job(tmp_path / "_events")
    (tmp_path / "_events" / "foreign.jsonl").write_text("[1]\n")
    assert "foreign.jsonl" in text_of(rendered(tmp_path))


def test_a_page_that_cannot_be_written_is_one_error(tmp_path: Path) -> None:
    found = records.find(builders.job(tmp_path))
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"--output .*report\.html: can't write there"):
        page.write(found, tmp_path / "file" / "report.html")


def test_own_test_rows_privacy_and_attackers_are_shown(tmp_path: Path) -> None:
    of_sites = {"accuracy": 0.6, "mean_site.accuracy": 0.625, "std_site.accuracy": 0.0625, "worst_site.accuracy": 0.5}
    others = {
        f"{kind}.{name}": [0.9375, value + more]  # in the first round more than in the last one
        for kind, more in (("site_test", 0.0), ("personal", 0.125))
        for name, value in of_sites.items()
    }
    others |= {
        "dp.epsilon_pld": [1.5, 2.25],
        "dp.epsilon_rdp": [1.75, 2.5],
        "bytes.up": [100, 100],
        "bytes.down": [50, 50],
    }
    path = builders.cell(
        tmp_path, "own", [0.25, 0.5, 0.5], others=others, dp_delta=1e-3, dp_seed=3, dp_clip=1.0, dp_noise_multiplier=1.0, weighting="uniform", num_sites=2, attack="scale", attackers=1,
        shards=[{"site": 0, "examples": 3}, {"site": 1, "examples": 5, "attack": "scale"}],
    )  # fmt: skip
    text = text_of(rendered(path))
    assert "accuracy on own test rows 0.6250 ± 0.0625 over sites; worst 0.5000" in text
    assert "own models on own test rows 0.7500 ± 0.1875 over sites; worst 0.6250" in text
    assert "privacy ε = 2.25 at δ = 0.001, by PLD; dp_seed is set: it protects nobody" in text
    assert "traffic 300 bytes to and from the sites" in text
    assert re.search(r"site examples attacks 0 3 – 1 5 1", text)


def test_an_epsilon_that_only_earlier_rounds_have_is_not_shown(tmp_path: Path) -> None:
    """Above 100 there is none by PLD."""
    others = {"dp.epsilon_pld": [75.0, 99.0], "dp.epsilon_rdp": [80.0, 105.0]}
    path = builders.cell(
        tmp_path, "loud", [0.25, 0.5, 0.5], others=others, dp_delta=1e-3, dp_clip=1.0, dp_noise_multiplier=0.25,
        weighting="uniform",
    )  # fmt: skip
    path.write_text(path.read_text().replace(', "dp.epsilon_pld": 99.0', ""))
    (privacy,) = (figure for figure in facts_of(path).figures if figure.name == "privacy")
    assert privacy == ("privacy", "ε = 105", "at δ = 0.001, by RDP")


def test_devices_and_versions_are_those_of_the_last_start(tmp_path: Path) -> None:
    path = builders.job(tmp_path)
    first = next(event for event in events.read(path)[0] if event["event"] == "started")
    again = first["start"] | {"after_round": 1, "environment": {"torch": "3"}, "devices": ["cuda:0"]}
    log = events.EventLog(path)
    log.append("started", start=again, **{name: first[name] for name in ("sacred", "config", "info")})
    log.close()
    found = facts_of(path).environment
    assert ("devices", "cuda:0") in found
    assert [value for name, value in found if name == "torch"] == ["3"]
    starts = [value.partition(" UTC ")[2] for name, value in found if name == "started"]
    assert starts == ["on h, from the beginning; completed", "on h, after round 1; not ended"]


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1 kB"),
        (1536, "1.54 kB"),
        (1e6, "1 MB"),
        (999e9, "999 GB"),
        (2.5e15, "2.5e+03 TB"),
    ],
)
def test_bytes_have_a_unit_that_fits(number: float, text: str) -> None:
    assert facts._bytes(number) == text
