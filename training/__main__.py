"""Makes the default model from nothing: `python -m training --data training/node_modules`.

Each step goes on where it was cut off and is a command of its own: the linear codec (seconds), the text
encoders (minutes), the VAE's decoder (under an hour), the previews' colours (seconds), the transformer (hours
on two cores), the measurements, the model card. `--only` runs some of them.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from training.folder import write_index

OUT = Path("shared/triptych/models/triptych-small")
STEPS = ("codec", "text-encoders", "vae", "latent-rgb", "transformer", "measure", "card")


def command(step: str, arguments: argparse.Namespace) -> list[str]:
    """The command of a step, as one would type it after `python -m`."""
    data, out = ["--data", str(arguments.data)], ["--out", str(arguments.out)]
    return {
        "codec": ["training.linear_codec", *data],
        "text-encoders": ["training.text_encoders", *data, *out],
        "vae": ["training.vae", *data, *out],
        "latent-rgb": ["training.latent_rgb", *data, *out],
        "transformer": ["training.transformer", *data, *out, "--device", arguments.device],
        "measure": [
            "benchmarks.adherence",
            *data,
            "--model",
            str(arguments.out),
            "--out",
            "training/results/adherence",
        ],
        "card": ["training.model_card", *out],
    }[step]


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
    parser.add_argument("--out", type=Path, default=OUT, help="the model's folder")
    parser.add_argument("--device", default="cpu", help="of the transformer's training")
    parser.add_argument("--only", nargs="+", choices=STEPS, default=STEPS)
    arguments = parser.parse_args()
    if not (arguments.data / "@lobehub").is_dir():
        sys.exit(
            f"{arguments.data} has no sprites: run `npm install` in training/, or name the folder with --data"
        )
    write_index(arguments.out)
    for step in arguments.only:
        words = command(step, arguments)
        print(f"\n== {step}: python -m {' '.join(words)}", flush=True)
        subprocess.run([sys.executable, "-m", *words], check=True)


if __name__ == "__main__":
    main()
