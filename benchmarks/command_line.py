"""What the command lines of benchmarks have in common."""

from __future__ import annotations

import argparse
import json
from pathlib import Path


def parser(description: str | None, *, model: bool = True, out: bool = True) -> argparse.ArgumentParser:
    """A command line that is described as it is written, with --model and --out where they are asked for."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    if model:
        parser.add_argument(
            "--model", default="triptych-small", help="name or folder (default triptych-small)"
        )
    if out:
        parser.add_argument("--out", type=Path, help="also write the results to this JSON file")
    return parser


def write_json(file: Path | None, results: object) -> None:
    """Writes results for --out; nothing without it."""
    if file is not None:
        file.write_text(json.dumps(results, indent=1) + "\n")
