#!/usr/bin/env python
"""Draw the results of jobs.

./run-local.sh scripts/report.py news
./run-local.sh scripts/report.py news-4 news-16 --output comparison.html
./run-local.sh scripts/report.py news-4 news-16 --figures figures --format svg,pdf
"""

import argparse
import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(__file__))))

from scaling_fl import env_file
from scaling_fl.errors import UserError
from scaling_fl.text import for_stderr


def main(argv: list[str]) -> None:
    """Run the command. Exits with status 1 and one line if the input can't be used."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "source", nargs="*", help="a job's name, a folder of runs, a run's folder, an event file or a checkpoints_dir"
    )
    parser.add_argument("--mongo", action="store_true", help="also take the jobs in the MongoDB of .env")
    parser.add_argument(
        "--output", type=Path, metavar="PAGE", help="write the page there (default, without --figures: report.html)"
    )
    parser.add_argument("--figures", type=Path, metavar="DIR", help="write each chart to this folder")
    parser.add_argument("--format", default="svg", metavar="F,F", help="of the figures: svg, pdf, png (default: svg)")
    options = parser.parse_intermixed_args(argv)  # flags may stand between or before words
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # for `| head`
    if not options.source and not options.mongo:
        parser.error("expected a source, such as the name of a job, or --mongo")
    try:
        report(options)
    except UserError as error:
        sys.exit(for_stderr(f"Refused: {error}"))


def report(options: argparse.Namespace) -> None:
    """Load the records, write the page and the figures, and print their paths."""
    from scaling_fl.reporting import figures, frames, page, records
    from scaling_fl.tracking import mongo_address, secret_manager

    database = None
    if options.mongo:
        env_file.load(Path(__file__).resolve().parent.parent / ".env")
        database = mongo_address.from_environment(secret_manager.resolved(os.environ))
        if database is None:
            raise UserError("--mongo: .env names no database; set SACRED_MONGO_URL or SACRED_HOST")
    found = records.find(*options.source, database=database)
    for place, reason in found.skipped.items():
        print(for_stderr(f"note: {place} is left out: {reason}"), file=sys.stderr)
    if not found.records:
        raise UserError(f"{', '.join(options.source) or '--mongo'}: no job has started there")
    if options.figures is not None:
        for path in figures.write(frames.of_records(*found), options.figures, options.format.split(",")):
            print(path)
    if options.output is not None or options.figures is None:
        print(page.write(found, options.output or Path("report.html")))


if __name__ == "__main__":
    main(sys.argv[1:])
