"""Where a training run keeps its state, so that it can be cut off at any moment and go on."""

import json
from pathlib import Path
from typing import Any

import torch


class RunFolder:
    """A folder with checkpoint.pt, replaced all or nothing, and log.jsonl."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)

    def save(self, state: dict[str, Any]) -> None:
        """Replaces the checkpoint."""
        partial = self.path / "checkpoint.partial"
        torch.save(state, partial)
        partial.replace(self.path / "checkpoint.pt")

    def load(self) -> dict[str, Any] | None:
        """The last checkpoint, in main memory; None in a new run."""
        path = self.path / "checkpoint.pt"
        return torch.load(path, map_location="cpu", weights_only=True) if path.exists() else None

    def log(self, **values: float) -> None:
        """Adds a line to the log and prints it."""
        with (self.path / "log.jsonl").open("a") as file:
            file.write(json.dumps(values) + "\n")
        print("  ".join(f"{name} {value:.4g}" for name, value in values.items()), flush=True)
