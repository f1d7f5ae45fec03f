"""Writes the default model's card from what training and benchmarks measured.

python -m training.model_card
"""

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from safetensors import safe_open

from training.objects import OBJECTS
from training.scenes import BACKGROUNDS, HELDOUT_PERCENT

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


def lines(path: Path) -> list[dict[str, Any]]:
    """The entries of a .jsonl log."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def plot(log: list[dict[str, Any]], adherence: list[dict[str, Any]], path: Path) -> None:
    """Loss, and what the detector finds in samples of held-out scenes, over the training."""
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 3.4), layout="constrained")
    left.plot([e["step"] for e in log], [e["loss"] for e in log], color="tab:blue", linewidth=1)
    left.set(xlabel="step", ylabel="velocity error", yscale="log", title="loss")
    for key, label in (
        ("single_object", "single object"),
        ("pair_objects", "pair, both objects"),
        ("pair_position", "pair, in place"),
        ("background", "background"),
    ):
        points = [e for e in adherence if key in e]
        right.plot([e["step"] for e in points], [e[key] for e in points], label=label, marker=".")
    right.set(xlabel="step", ylabel="right", ylim=(0, 1.02), title="held-out prompts, 48 or 96 a point")
    right.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def score_table(scores: dict[str, Any]) -> str:
    """A Markdown table of the adherence scores."""
    rows = ["| prompts | right | of | score | 95 % interval |", "|---|---|---|---|---|"]
    for name, row in scores.items():
        low, high = row["interval"]
        rows.append(
            f"| {name} | {row['right']} | {row['total']} | {row['score']:.0%} | {low:.0%} to {high:.0%} |"
        )
    return "\n".join(rows)


def card(out: Path) -> str:
    """The text of the card."""
    sizes = {name: parameters(out / name) for name in COMPONENTS}
    total = sum(count for count, _ in sizes.values())
    table = "\n".join(
        f"| {name} | {count / 1e6:.2f} M | {size / 1e6:.1f} MB |" for name, (count, size) in sizes.items()
    )
    text = json.loads((RESULTS / "text_encoders.json").read_text())
    vae = json.loads((RESULTS / "vae.json").read_text())
    log = lines(RESULTS / "transformer_log.jsonl")
    second_task = [entry for entry in log if "naming" in entry]
    measured = json.loads((RESULTS / "adherence" / "results.json").read_text())
    error = "\n".join(f"| {name} | {value:.1%} |" for name, value in measured["detector_error"].items())
    return f"""# {out.name}

The model that ships with Triptych, so that a prompt gives a picture on any laptop: SD3's architecture and
folder layout at {total / 1e6:.1f} M parameters. It draws {len(OBJECTS)} objects, alone or two at a time (left
of, right of, above, below), on {len(BACKGROUNDS)} plain backgrounds, at 128 x 128 pixels.

| part | parameters | file |
|---|---|---|
{table}

Objects: {", ".join(OBJECTS)}.

Backgrounds: {", ".join(BACKGROUNDS)}.

## Data and licence

The weights are Apache-2.0, as the project is. Every training picture is composed on the fly from
[Fluent emoji](https://github.com/microsoft/fluentui-emoji) (Microsoft, MIT) as packaged in
`@lobehub/fluent-emoji-3d` 1.1.0 (MIT), restricted to those that `@iconify-json/fluent-emoji` 1.2.7 (MIT) has;
names come from `emojibase-data` 17.0.0 (MIT). Captions are made by `training/captions.py`. No photograph
and no scraped text is in it.

{HELDOUT_PERCENT} % of the pairs of objects and of the pairs of object and background, chosen by a hash of
their names, were never trained on.

## Training

On two cores of an AMD EPYC (Zen 4), without a GPU, shared with other work:

- text encoders: {text["step"]} steps, {text["seconds"] / 60:.0f} minutes; linear read-outs of the states that
  the transformer sees get the whole scene right for {text["all"]:.2%} of captions of held-out scenes;
- VAE: the encoder is a linear 8 x 8-patch codec written into the convolutions, the decoder was trained:
  {vae["steps"]} steps; {vae["psnr"]:.1f} dB on held-out scenes;
- transformer: {log[-1]["step"]} steps, {log[-1]["samples"] / 1000:.0f} 000 samples,
  {log[-1]["seconds"] / 3600:.1f} hours. Until step {second_task[0]["step"] - 50} it learned the velocity
  alone; then its tokens were also taught to name what they show (`training/token_naming.py`), and learned
  fast. The recipe does so from the start.

![Loss and adherence over the training](../../../../docs/images/training_curve.png)

`python -m training` does it again.

## Quality

Held-out combinations, judged by a detector that knows the sprites (`python -m benchmarks.adherence`):

{score_table(measured["scores"])}

The detector's own error on rendered scenes, where every picture is right:

| rendered, then | error |
|---|---|
{error}

## Limits

Two objects need a place: "a zebra and a tent" is mostly drawn as one of them twice, because the text encoders
were trained on captions that place what they name. It knows the words above and little else: another noun
gives one of its objects or a blur. It was trained at 128 x 128 pixels; other sizes work, but objects then
repeat or dissolve. Counts, more than two objects, colours of objects and scenery are not in its training.
"""


def main() -> None:
    """Reads the command line and does the work."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--out", type=Path, default=Path("shared/triptych/models/triptych-small"), help="the model's folder"
    )
    parser.add_argument("--curve", type=Path, default=Path("docs/images/training_curve.png"))
    arguments = parser.parse_args()
    plot(lines(RESULTS / "transformer_log.jsonl"), lines(RESULTS / "adherence_log.jsonl"), arguments.curve)
    (arguments.out / "README.md").write_text(card(arguments.out))


if __name__ == "__main__":
    main()
