"""Makes the model inside: `python -m training --data training/node_modules`.

Stages, each a command of its own with further settings, printed as it is started:

    text-encoders  tokenizers and text encoders: half an hour on two cores
    vae            the VAE: as long
    transformer    the transformer: ten hours, larger pictures after small ones
    index          what the folder says of itself: the words, the colours of previews, MagCache's ratios
    few-steps      a LoRA that draws in four steps: an hour and a half
    measure        scores by category at four sizes, without and with the LoRA: two hours
    card           the model's card

A training that was cut off goes on where it was, by the same command; `--only` runs some stages.
"""

import argparse
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from training.folder import write_index

STAGES = ("text-encoders", "vae", "transformer", "index", "few-steps", "measure", "card")
# Small pictures first, large ones later; at the end the learning rate falls to zero.
TRANSFORMER = (
    "--levels 128:0.85,192:0.1,256:0.05 --steps 1300",
    "--levels 128:0.7,192:0.15,256:0.15 --steps 3000",
    "--levels 128:0.5,192:0.2,256:0.3 --steps 4500",
    "--levels 128:0.2,192:0.15,256:0.65 --steps 7300 --decay-from 6100",
)
SIZES = ("128x128", "192x128", "128x192", "256x256")


def commands(stage: str, data: Path, model: Path, runs: Path, device: str) -> Iterator[list[str]]:
    """A stage's commands, as one would type them after `python -m`."""
    sprites, on = ["--data", str(data)], ["--device", device]
    if stage == "text-encoders":
        yield [
            "training.text_encoders",
            *sprites,
            *on,
            "--out",
            str(model),
            "--run",
            str(runs / "text_encoders"),
        ]
    if stage == "vae":
        yield ["training.vae", *sprites, *on, "--out", str(model), "--run", str(runs / "vae")]
    if stage == "transformer":
        run = [
            "training.transformer",
            *sprites,
            *on,
            "--model",
            str(model),
            "--run",
            str(runs / "transformer"),
        ]
        yield from ([*run, *settings.split()] for settings in TRANSFORMER)
    if stage == "index":
        yield ["training.latent_rgb", *sprites, "--model", str(model)]
        yield ["benchmarks.quality.mag_ratios", "--model", str(model), "--write"]
    if stage == "few-steps":
        yield ["training.few_steps", *sprites, *on, "--model", str(model), "--run", str(runs / "few_steps")]
    if stage == "measure":
        run = ["benchmarks.adherence", *sprites, "--model", str(model), "--run", str(runs / "transformer")]
        yield from ([*run, "--size", size, "--out", str(runs / "adherence" / size)] for size in SIZES)
        scores, lora = runs / "few_steps" / "adherence", ["--lora", "four-steps"]
        yield from ([*run, *lora, "--size", size, "--out", str(scores / size)] for size in SIZES)
    if stage == "card":
        yield ["training.model_card", "--model", str(model), "--runs", str(runs)]


def main() -> None:
    """Reads the command line and does the work."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data",
        type=Path,
        default=Path("training/node_modules"),
        help="what `npm install` in training/ made",
    )
    parser.add_argument("--out", type=Path, default=Path("runs/model"), help="the model's folder")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="checkpoints, logs and scores")
    parser.add_argument("--device", default="cpu", help="of the trainings")
    parser.add_argument("--only", nargs="+", choices=STAGES, default=STAGES)
    arguments = parser.parse_args()
    if not (arguments.data / "@lobehub").is_dir():
        sys.exit(
            f"{arguments.data} has no sprites: run `npm install` in training/, or name the folder with --data"
        )
    write_index(arguments.out)
    for stage in arguments.only:
        for words in commands(stage, arguments.data, arguments.out, arguments.runs, arguments.device):
            print(f"\n== {stage}: python -m {' '.join(words)}", flush=True)
            subprocess.run([sys.executable, "-m", *words], check=True)


if __name__ == "__main__":
    main()
