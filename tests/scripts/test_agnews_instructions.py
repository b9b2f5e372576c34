"""Headlines with their topics as instructions with four choices."""

import json
import sys
from pathlib import Path

import pytest

from tests.scripts.imported import imported


def test_each_headline_is_a_question_that_its_topic_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = tmp_path / "news.csv", tmp_path / "news.jsonl"
    source.write_text(
        'Class Index,Title,Description\n3,"Oil, again",a\n1,Talks,b\n4,Ümlaut,c\n2,Final,d\n', encoding="utf-8"
    )
    monkeypatch.setattr(sys, "argv", ["agnews_instructions.py", str(source), str(target)])
    imported("agnews_instructions").main()
    text = target.read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    found = [(row["prompt"].splitlines()[-1], row["response"], row["topic"]) for row in rows]
    assert found == [
        ("Oil, again", "Business", "Business"), ("Talks", "World", "World"), ("Ümlaut", "Sci/Tech", "Sci/Tech"),
        ("Final", "Sports", "Sports"),
    ]  # fmt: skip
    assert [row["choices"] for row in rows] == [["World", "Sports", "Business", "Sci/Tech"]] * 4
    assert "Ümlaut" in text, "as it is, not escaped"
