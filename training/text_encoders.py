"""Makes the default model's tokenizers and CLIP text encoders.

python -m training.text_encoders --data training/node_modules

The transformer reads `hidden_states[-2]` (SD3's recipe), so that is what is trained: linear read-outs,
thrown away afterwards, must find the scene in it. CLIP attends backwards only, so the token that ends the
prompt and those that pad it are the ones that have seen everything: the first tells the background and
the layout, the next two one object each and where it stands. The denoiser then finds the sentence
understood and only has to learn to paint.
"""

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

from training.captions import caption
from training.objects import OBJECTS
from training.scenes import BACKGROUNDS, Scene, sample_scene

START, END = "<|startoftext|>", "<|endoftext|>"
MAX_TOKENS = 32
MERGES = 1534  # with 512 bytes and two special tokens: a vocabulary of 2048
WIDTH = 128
LAYERS = 4
NOTHING = "nothing"
THINGS = (NOTHING, *OBJECTS)
GROUNDS = (NOTHING, *BACKGROUNDS)
PLACES = (NOTHING, "centre", "left", "right", "top", "bottom")
LAYOUTS = (NOTHING, "single", "horizontal", "vertical")
# The layout that a relation makes, and where its first and second object stand.
PLACES_OF: dict[str | None, tuple[str, tuple[str, ...]]] = {
    None: ("single", ("centre",)),
    "left of": ("horizontal", ("left", "right")),
    "right of": ("horizontal", ("right", "left")),
    "above": ("vertical", ("top", "bottom")),
    "below": ("vertical", ("bottom", "top")),
}
# What is read where: offset from the end token, and the number of classes.
READOUTS = {
    "background": (0, len(GROUNDS)),
    "layout": (0, len(LAYOUTS)),
    "first": (1, len(THINGS)),
    "first place": (1, len(PLACES)),
    "first background": (1, len(GROUNDS)),
    "second": (2, len(THINGS)),
    "second place": (2, len(PLACES)),
    "second background": (2, len(GROUNDS)),
}
POOLED_READOUTS = ("background", "layout", "first", "second")


def words(data: Path) -> list[str]:
    """English text for the tokenizer: every emoji's name and tags."""
    emoji = json.loads((data / "emojibase-data" / "en" / "data.json").read_text())
    return [text for entry in emoji for text in (entry["label"], *entry.get("tags", []))]


def train_merges(texts: list[str], count: int = MERGES) -> list[tuple[str, str]]:
    """`count` byte-pair merges with CLIP's normalisation, splitting and end-of-word mark, most frequent
    first.
    """
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>", continuing_subword_prefix=""))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=count + 512, show_progress=False, end_of_word_suffix="</w>", max_token_length=24
    )
    tokenizer.train_from_iterator(texts, trainer)
    return [tuple(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]][:count]


def byte_characters() -> list[str]:
    """CLIP's character for each byte, in the order of its vocabulary ("!" is number 0)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    return [chr(b) for b in printable] + [chr(256 + i) for i in range(len(others))]


def write_tokenizer(
    folder: Path, merges: list[tuple[str, str]], pad_token: str, max_tokens: int = MAX_TOKENS
) -> None:
    """A CLIP tokenizer folder: vocab.json, merges.txt and the configs, as transformers reads them."""
    characters = byte_characters()
    tokens = [*characters, *(c + "</w>" for c in characters), *("".join(pair) for pair in merges), START, END]
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": pad_token}
    config = special | {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": max_tokens,
        "do_lower_case": True,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=2) + "\n")


def new_encoder(tokenizer: CLIPTokenizer, activation: str, seed: int) -> CLIPTextModelWithProjection:
    """A small CLIP text model with random weights."""
    torch.manual_seed(seed)
    return CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            projection_dim=WIDTH,
            num_hidden_layers=LAYERS,
            num_attention_heads=4,
            max_position_embeddings=tokenizer.model_max_length,
            hidden_act=activation,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def targets(scene: Scene | None) -> dict[str, int]:
    """The right answers of the read-outs. None stands for the empty prompt."""
    answers = dict.fromkeys(READOUTS, 0)
    if scene is None:
        return answers
    layout, places = PLACES_OF[scene.relation]
    answers["layout"] = LAYOUTS.index(layout)
    for name in ("background", "first background", "second background"):
        answers[name] = GROUNDS.index(scene.background)
    for slot, placed, place in zip(("first", "second"), scene.objects, places, strict=False):
        answers[slot] = THINGS.index(placed.name)
        answers[f"{slot} place"] = PLACES.index(place)
    return answers


@dataclass(frozen=True)
class Batch:
    """Token ids per tokenizer, [batch, 32] each, and answers, [batch] each."""

    ids: list[Tensor]
    answers: dict[str, Tensor]


def batches(tokenizers: list[CLIPTokenizer], size: int, split: str, seed: int) -> Iterator[Batch]:
    """Endless captions of random scenes, 3 % of them empty."""
    rng = np.random.default_rng(seed)
    while True:
        scenes = [None if rng.random() < 0.03 else sample_scene(rng, split) for _ in range(size)]
        texts = ["" if scene is None else caption(scene, rng) for scene in scenes]
        ids = [
            t(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids for t in tokenizers
        ]
        answers = [targets(scene) for scene in scenes]
        yield Batch(ids, {name: torch.tensor([a[name] for a in answers]) for name in READOUTS})


class Readouts(nn.Module):
    """Linear classifiers on the features of chosen tokens and on the pooled features."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.tokens = nn.ModuleDict(
            {name: nn.Linear(width, classes) for name, (_, classes) in READOUTS.items()}
        )
        self.pooled = nn.ModuleDict({name: nn.Linear(width, READOUTS[name][1]) for name in POOLED_READOUTS})

    def forward(self, sequence: Tensor, pooled: Tensor, ends: Tensor) -> list[tuple[str, Tensor]]:
        """(name, logits) of every read-out."""
        rows = torch.arange(len(ends))
        found = []
        for name, (offset, _) in READOUTS.items():
            found.append((name, self.tokens[name](sequence[rows, (ends + offset).clamp(max=MAX_TOKENS - 1)])))
        return found + [(name, self.pooled[name](pooled)) for name in POOLED_READOUTS]


def features(encoders: nn.ModuleList, batch: Batch, eos: int) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """hidden_states[-2] and pooled output of each encoder, and where the prompts end."""
    outputs = [
        encoder(ids, output_hidden_states=True) for encoder, ids in zip(encoders, batch.ids, strict=True)
    ]
    ends = (batch.ids[0] == eos).int().argmax(dim=1)
    return [o.hidden_states[-2] for o in outputs], [o.text_embeds for o in outputs], ends


def unit_scale(encoder: CLIPTextModelWithProjection, factor: float) -> None:
    """Scales the residual stream by `factor`; layer norms make every other result stay the same."""
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if "embedding" in name or "out_proj" in name or "fc2" in name:
                parameter.mul_(factor)


def measure(
    encoders: nn.ModuleList, readouts: nn.ModuleList, held_out: Iterator[Batch], eos: int
) -> dict[str, float]:
    """Accuracy of each token read-out of both encoders together, on captions of held-out scenes."""
    right: dict[str, list[float]] = {name: [] for name in (*READOUTS, "all")}
    with torch.inference_mode():
        for _ in range(8):
            batch = next(held_out)
            sequences, pooled, ends = features(encoders, batch, eos)
            logits = readouts[-1](torch.cat(sequences, -1), torch.cat(pooled, -1), ends)[: len(READOUTS)]
            hits = {name: values.argmax(-1) == batch.answers[name] for name, values in logits}
            hits["all"] = torch.stack(list(hits.values())).all(0)
            for name, hit in hits.items():
                right[name].append(float(hit.float().mean()))
    return {name: float(np.mean(values)) for name, values in right.items()}


def train(arguments: argparse.Namespace) -> None:
    """Tokenizers first, then both encoders together; goes on from a checkpoint of the same run."""
    rng = np.random.default_rng(1)
    texts = [caption(sample_scene(rng), rng) for _ in range(20_000)] + words(arguments.data) * 4
    folders = ["tokenizer", "tokenizer_2"]
    merges = train_merges(texts)
    for folder, pad in zip(folders, (END, "!"), strict=True):
        write_tokenizer(arguments.out / folder, merges, pad)
    tokenizers = [CLIPTokenizer.from_pretrained(arguments.out / folder) for folder in folders]
    eos = tokenizers[0].eos_token_id
    encoders = nn.ModuleList(
        new_encoder(t, activation, seed)
        for t, activation, seed in zip(tokenizers, ("quick_gelu", "gelu"), (1, 2), strict=True)
    )
    readouts = nn.ModuleList(Readouts(width) for width in (WIDTH, WIDTH, 2 * WIDTH))
    optimizer = torch.optim.AdamW(
        [*encoders.parameters(), *readouts.parameters()], lr=1e-3, weight_decay=0.01
    )
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=arguments.steps, pct_start=0.1)
    arguments.run.mkdir(parents=True, exist_ok=True)
    checkpoint, step, seconds = arguments.run / "checkpoint.pt", 0, 0.0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        encoders.load_state_dict(state["encoders"])
        readouts.load_state_dict(state["readouts"])
        optimizer.load_state_dict(state["optimizer"])
        rate.load_state_dict(state["rate"])
        step, seconds = state["step"], state["seconds"]
    data, held_out = (
        batches(tokenizers, arguments.batch, "train", step),
        batches(tokenizers, 512, "heldout", 10**6),
    )
    began = time.monotonic()
    while step < arguments.steps:
        batch = next(data)
        with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):  # the quickest at 32 tokens
            sequences, pooled, ends = features(encoders, batch, eos)
            views = [*zip(sequences, pooled, strict=True), (torch.cat(sequences, -1), torch.cat(pooled, -1))]
            answers = [r(s, p, ends) for r, (s, p) in zip(readouts, views, strict=True)]
        loss = torch.stack(
            [F.cross_entropy(x.float(), batch.answers[n]) for view in answers for n, x in view]
        ).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(encoders.parameters(), 1.0)
        optimizer.step()
        rate.step()
        step += 1
        if step % 100 == 0 or step == arguments.steps:
            now = time.monotonic()
            seconds, began = seconds + now - began, now
            result = {"step": step, "loss": float(loss.detach()), "seconds": seconds} | measure(
                encoders, readouts, held_out, eos
            )
            with (arguments.run / "log.jsonl").open("a") as file:
                file.write(json.dumps(result) + "\n")
            print("  ".join(f"{name} {value:.4g}" for name, value in result.items()), flush=True)
            state = {
                "encoders": encoders.state_dict(),
                "readouts": readouts.state_dict(),
                "step": step,
                "seconds": seconds,
            }
            torch.save(state | {"optimizer": optimizer.state_dict(), "rate": rate.state_dict()}, checkpoint)
    with torch.inference_mode():
        sequences, _, _ = features(encoders, next(held_out), eos)
    for encoder, sequence, name in zip(encoders, sequences, ("text_encoder", "text_encoder_2"), strict=True):
        unit_scale(encoder, 1 / float(sequence.square().mean().sqrt()))
        encoder.save_pretrained(arguments.out / name)
    arguments.results.write_text(json.dumps(result, indent=2) + "\n")


def main() -> None:
    """Reads the command line and does the work."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", type=Path, required=True, help="the node_modules folder with emojibase-data"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("shared/triptych/models/triptych-small"), help="the model's folder"
    )
    parser.add_argument("--run", type=Path, default=Path("runs/text_encoders"), help="checkpoint and log")
    parser.add_argument("--results", type=Path, default=Path("training/results/text_encoders.json"))
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch", type=int, default=128)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
