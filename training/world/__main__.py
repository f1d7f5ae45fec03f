"""Makes the wide model: `python -m training.world --data training/node_modules --out runs/world/model`.

The text encoders, the VAE's decoder, then the transformer; each goes on where it was cut off and is a command
of its own, with further settings. `--only` runs some of them.
"""

import argparse
import math
import subprocess
import sys
import time
from pathlib import Path

from training.folder import write_index

STEPS = ("text-encoders", "vae", "transformer")
GPU = {
    "text-encoders": ["--pairs", "256", "--workers", "14"],
    "vae": ["--crops", "128", "--steps", "4000"],
    "transformer": ["--rows", "2048", "--workers", "14", "--compile"],
}


def command(step: str, arguments: argparse.Namespace, minutes: float) -> list[str]:
    """The command of a step, as one would type it after `python -m`."""
    data, device = ["--data", str(arguments.data)], ["--device", arguments.device]
    run = ["--run", str(arguments.runs / step.replace("-", "_"))]
    model = str(arguments.out)
    own = {
        "text-encoders": ["training.world.text_encoders", "--out", model],
        "vae": ["training.world.vae", "--out", model, "--weights", str(arguments.start / "vae")],
        "transformer": [
            *("training.world.transformer", "--model", model, "--levels", arguments.levels),
            *("--weights", str(arguments.start / "transformer"), "--minutes", str(minutes)),
        ],
    }[step]
    gpu = GPU[step] if arguments.device.startswith("cuda") else []
    return [*own, *data, *run, *device, *gpu]


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
    parser.add_argument("--out", type=Path, default=Path("runs/world/model"), help="the model's folder")
    parser.add_argument("--runs", type=Path, default=Path("runs/world"), help="checkpoints and logs")
    parser.add_argument(
        "--start",
        type=Path,
        default=Path("shared/triptych/models/triptych-small"),
        help="the model that the VAE's decoder and the transformer start from",
    )
    parser.add_argument("--levels", default="128:0.9,192:0.1", help="shares of the pictures' sizes")
    parser.add_argument("--minutes", type=float, default=math.inf, help="end, saved, after so many")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", nargs="+", choices=STEPS, default=STEPS)
    arguments = parser.parse_args()
    if not (arguments.data / "@lobehub").is_dir():
        sys.exit(
            f"{arguments.data} has no sprites: run `npm install` in training/, or name the folder with --data"
        )
    write_index(arguments.out)
    end = time.monotonic() + 60 * arguments.minutes
    for step in arguments.only:
        words = command(step, arguments, (end - time.monotonic()) / 60)
        print(f"\n== {step}: python -m {' '.join(words)}", flush=True)
        subprocess.run([sys.executable, "-m", *words], check=True)


if __name__ == "__main__":
    main()
