"""Commands that tests write, for a PATH of their own."""

import os
from pathlib import Path


def executable(folder: Path, name: str, body: str) -> str:
    """A PATH on which the command `name` runs `body`."""
    script = folder / name
    script.write_text(f"#!/bin/sh\n{body}\n")
    script.chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"
