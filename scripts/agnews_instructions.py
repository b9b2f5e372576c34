#!/usr/bin/env python
"""Write AG News as instructions with four choices, for `task_name=instructions`: a row of JSON for each headline.

./run-local.sh scripts/agnews_instructions.py data/agnews/train.csv data/agnews/train.jsonl
"""

import argparse
import json
from pathlib import Path

import pandas

TOPICS = ["World", "Sports", "Business", "Sci/Tech"]  # of the file's classes 1 to 4
_PROMPT = "Which of the topics World, Sports, Business and Sci/Tech has this headline?\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="AG News as CSV with the columns Class Index, Title, Description")
    parser.add_argument("target", type=Path)
    options = parser.parse_args()
    rows = pandas.read_csv(options.source)
    with open(options.target, "w", encoding="utf-8") as file:
        for number, title in zip(rows["Class Index"], rows["Title"], strict=True):
            topic = TOPICS[number - 1]
            row = {"prompt": _PROMPT + title, "response": topic, "choices": TOPICS, "topic": topic}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
