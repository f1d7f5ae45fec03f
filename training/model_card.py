"""Writes the model's card from what training and benchmarks measured.

python -m training.model_card

Reads log.jsonl of the trainings (text_encoders, vae, transformer) and adherence/SIZE/results.json
(`benchmarks.adherence`) for every size that was measured.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from safetensors import safe_open

from training.folder import DEFAULT_STEPS
from training.grounds import PLACES, PLAIN
from training.scenes import HELDOUT_PERCENT
from training.vocabulary import OBJECTS, RECOLOURABLE

RESULTS = Path("training/results")
COMPONENTS = ("text_encoder", "text_encoder_2", "transformer", "vae")


def parameters(component: Path) -> tuple[int, int]:
    """Number of parameters of a component and the size of its files in bytes."""
    count, size = 0, 0
    for path in component.glob("*.safetensors"):
        size += path.stat().st_size
        with safe_open(path, framework="np") as file:
            for name in file.keys():  # noqa: SIM118 (not a dict)
                length = 1
                for side in file.get_slice(name).get_shape():
                    length *= side
                count += length
    return count, size


def read(path: Path) -> Any:
    """What a JSON file says."""
    return json.loads(path.read_text())


def last_line(path: Path) -> Any:
    """The last entry of a .jsonl log."""
    return json.loads(path.read_text().splitlines()[-1])


def score_table(measured: dict[str, Any]) -> str:
    """A Markdown table of the scores of one size, and the detector's own error."""
    rows = [
        "| prompts | right | of | score | 95 % interval | detector's error |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in measured["scores"].items():
        low, high = row["interval"]
        error = measured["detector_error"][name]
        rows.append(
            f"| {name} | {row['right']} | {row['total']} | {row['score']:.0%} | {low:.0%} to {high:.0%} "
            f"| {error:.1%} |"
        )
    return "\n".join(rows)


def area(size: str) -> int:
    """Pixels of "192x128"."""
    width, height = map(int, size.split("x"))
    return width * height


def scores_by_size(run: Path) -> dict[str, Any]:
    """What was measured at each size, the smallest first."""
    found = {path.parent.name: read(path) for path in run.glob("adherence/*/results.json")}
    return {size: found[size] for size in sorted(found, key=area)}


def overall(measured: dict[str, Any]) -> str:
    """The scores of all prompts at each size, in a sentence."""
    rows = ((size, one["scores"]["overall"]) for size, one in measured.items())
    return ", ".join(f"{row['score']:.0%} of {row['total']} at {size}" for size, row in rows)


def parts_table(sizes: dict[str, tuple[int, int]]) -> str:
    """A Markdown table of the components."""
    rows = ["| part | parameters | file |", "|---|---|---|"]
    rows += [
        f"| {name} | {count / 1e6:.2f} M | {size / 1e6:.1f} MB |" for name, (count, size) in sizes.items()
    ]
    return "\n".join(rows)


def card(model: Path, runs: Path) -> str:
    """The text of the card."""
    sizes = {name: parameters(model / name) for name in COMPONENTS}
    total = sum(count for count, _ in sizes.values())
    lora, few = model / "loras" / "four-steps.safetensors", last_line(runs / "few_steps" / "log.jsonl")
    text, vae, last = (
        last_line(runs / name / "log.jsonl") for name in ("text_encoders", "vae", "transformer")
    )
    measured, in_few = scores_by_size(runs), scores_by_size(runs / "few_steps")
    scores = "\n\n".join(
        f"{size}, {measured[size]['scores']['overall']['score']:.0%} of all:\n\n{score_table(measured[size])}"
        for size in measured
    )
    return f"""# {model.name}

The model that ships with Triptych, so that a prompt gives a picture on any laptop and the whole system can be
tried: SD3's architecture and folder layout at {total / 1e6:.1f} M parameters. It is no image model to work
with; real pictures come from the checkpoints that people have.

It draws {len(OBJECTS)} objects, one to four of one, two or three different ones, with or without a place ("to
the left of", "above", "in the top left corner"), small or big, on {len(PLAIN)} plain colours and
{len(PLACES)} places, from 128 to 256 pixels and from 1:2 to 2:1.

{parts_table(sizes)}

Objects: {", ".join(OBJECTS)}. Most also by other words ("kitten", "sofa", "burger").

In other colours: {", ".join(RECOLOURABLE)}.

Backgrounds: {", ".join(PLAIN)}; {", ".join(PLACES)}.

## Data and licence

The weights are Apache-2.0, as the project is. Every training picture is composed on the fly from
[Fluent emoji](https://github.com/microsoft/fluentui-emoji) (Microsoft, MIT) as packaged in
`@lobehub/fluent-emoji-3d` 1.1.0 (MIT), restricted to those that `@iconify-json/fluent-emoji` 1.2.7 (MIT) has;
names come from `emojibase-data` 17.0.0 (MIT). Captions are made by `training/captions.py`. No photograph
and no scraped text is in it.

{HELDOUT_PERCENT} % of the combinations (of two objects; of an object and a background, a count, a size, a
colour, a place), chosen by a hash of their names, were never trained on.

## Training

On two cores of an AMD EPYC (Zen 4), without a GPU, at the lowest priority beside other work, so that the
times say little:

- text encoders: {text["step"]} steps, {text["seconds"] / 60:.0f} minutes; linear read-outs of the states that
  the transformer sees get the whole scene right for {text["all"]:.1%} of captions of held-out scenes;
- VAE: the encoder is a linear 8 x 8-patch codec written into the convolutions, the decoder was trained:
  {vae["step"]} steps, {vae["seconds"] / 60:.0f} minutes; {vae["psnr_128"]:.1f} dB on held-out scenes at 128
  pixels, {vae["psnr_256"]:.1f} at 256;
- transformer: {last["step"]} steps, {last["samples"] // 1000} 000 pictures,
  {last["seconds"] / 3600:.1f} hours.

The VAE's decoder and the transformer began from the weights of the model that was here before, of 80 of these
objects at 128 pixels, made in the same way of the same sprites: after 100 steps the loss was 0.58 where a
start from random weights had 1.24.

![Loss and adherence over the training](../../../../docs/images/training_curve.png)

`make train` makes such a model again, from random weights.

## Quality

Held-out combinations, judged by a detector that knows the sprites (`python -m benchmarks.adherence`); the
detector's error is that on rendered scenes, where all are right. "unknown" asks for things that the model
does not know on a ground that it does: right is the ground alone.

{scores}

## In four steps

`loras/four-steps.safetensors` ({lora.stat().st_size / 1e6:.1f} MB) makes of it a model of four steps without
guidance, 4 evaluations in place of {2 * DEFAULT_STEPS}: `triptych generate "two penguins" --lora four-steps`
needs no other option. It was distilled from the guided model (`training/few_steps.py`): {few["step"]} steps,
{few["seconds"] / 3600:.1f} hours. Right are {overall(in_few)}; at 128x128:

{score_table(in_few["128x128"])}

A negative prompt works by guidance, of which there is none here.

## Limits

It knows the words above and little else. A noun that it does not know is left out of the picture, or the
nearest thing that it knows is drawn. Objects stand where the prompt says or beside each other; they do not
hold, wear or do anything. At 256x256 what fills much of the picture is coarse: few of its training pictures
were so large.
"""


def main() -> None:
    """Reads the command line and does the work."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model", type=Path, default=Path("shared/triptych/models/triptych-small"), help="its folder"
    )
    parser.add_argument("--runs", type=Path, default=RESULTS, help="logs and scores")
    arguments = parser.parse_args()
    (arguments.model / "README.md").write_text(card(arguments.model, arguments.runs))


if __name__ == "__main__":
    main()
