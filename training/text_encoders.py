"""Makes the model's tokenizers and CLIP text encoders.

python -m training.text_encoders --data training/node_modules --out runs/model

The transformer reads `hidden_states[-2]` (SD3's recipe), so that is what is trained: linear read-outs,
thrown away afterwards, must find in it what the prompt says and how the things look, and the pooled features
of two paraphrases must be alike. A run can be cut off at any moment; the same command goes on from the last
checkpoint.
"""

import argparse
import json
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

from training.captions import caption
from training.linear_codec import LinearCodec
from training.looks import looks_by_answer, principal_components
from training.meaning import EACH
from training.nouns import plural
from training.optimizers import MuonAndAdam, cosine, muon
from training.readouts import Readouts, contrast
from training.run_folder import RunFolder
from training.scenes import sample_scene
from training.sprites import SpriteBank
from training.text_batches import ANY_CANVAS, TextBatch, TextBatches
from training.tokenizers import END, train_merges, words, write_tokenizer
from training.vocabulary import OBJECTS

MAX_TOKENS = 32
WIDTH = 128
LAYERS = 4
MERGES = 3582  # with 512 bytes and two special tokens: a vocabulary of 4096
CORPUS = 40_000  # captions that the tokenizer is made from
CONTRAST = 0.1
WARMUP_STEPS = 200
ENCODERS = ("text_encoder", "text_encoder_2")
TOKENIZERS = ("tokenizer", "tokenizer_2")


def write_tokenizers(data: Path, out: Path) -> None:
    """Both tokenizers, from captions, every word of the vocabulary, and the emoji's names and tags."""
    rng = np.random.default_rng(1)
    texts = [caption(sample_scene(rng, ANY_CANVAS), rng, every=True).text for _ in range(CORPUS)]
    known = [word for thing in OBJECTS.values() for word in (thing.name, plural(thing.name), *thing.synonyms)]
    merges = train_merges(texts + known * 20 + words(data), MERGES)
    for folder, pad in zip(TOKENIZERS, (END, "!"), strict=True):
        write_tokenizer(out / folder, merges, pad, MAX_TOKENS)


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


def unit_scale(encoder: CLIPTextModelWithProjection, factor: float) -> None:
    """Scales the residual stream by `factor`; layer norms make every other result stay the same."""
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if "embedding" in name or "out_proj" in name or "fc2" in name:
                parameter.mul_(factor)


def quickest_attention(device: torch.device) -> AbstractContextManager[Any]:
    """The plain products: the quickest at so few tokens on a CPU."""
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()


def optimizer_of(encoders: nn.Module, readouts: nn.Module, learning_rate: float) -> MuonAndAdam:
    """Muon for the matrices inside the encoders."""
    inside = {n: p for n, p in encoders.named_parameters() if p.ndim == 2 and ".layers." in n}
    rest = [p for n, p in encoders.named_parameters() if n not in inside]
    return MuonAndAdam(
        muon(inside.values(), learning_rate, weight_decay=0.01),
        torch.optim.AdamW(
            [*rest, *readouts.parameters()], learning_rate, betas=(0.9, 0.98), weight_decay=0.01
        ),
    )


class Training:
    """Both encoders in training, each with read-outs of its own, and those of both together."""

    def __init__(
        self, out: Path, folder: RunFolder, device: torch.device, learning_rate: float, looks: Tensor
    ) -> None:
        self.folder, self.device, self.looks = folder, device, looks.to(device)
        tokenizers = [CLIPTokenizer.from_pretrained(out / name) for name in TOKENIZERS]
        self.each = [
            new_encoder(tokenizer, activation, seed)
            for tokenizer, activation, seed in zip(tokenizers, ("quick_gelu", "gelu"), (1, 2), strict=True)
        ]
        self.encoders = nn.ModuleList(self.each).to(device)
        self.read = [Readouts(w, w) for w in (WIDTH, WIDTH, 2 * WIDTH)]
        self.readouts = nn.ModuleList(self.read).to(device)
        self.optimizer = optimizer_of(self.encoders, self.readouts, learning_rate)
        self.step, self.seconds = 0, 0.0
        if (state := folder.load()) is not None:
            for name in ("encoders", "readouts", "optimizer"):
                getattr(self, name).load_state_dict(state[name])
            self.step, self.seconds = state["step"], state["seconds"]
            print(f"going on from step {self.step}", flush=True)

    def views(self, batch: TextBatch) -> list[tuple[Tensor, Tensor]]:
        """(hidden_states[-2], pooled) of the first encoder, of the second, and of both together."""
        found = []
        for encoder, ids in zip(self.each, (batch.ids, batch.ids_2), strict=True):
            out = encoder(ids, output_hidden_states=True)
            found.append((out.hidden_states[-2], out.text_embeds))
        return [*found, (torch.cat([s for s, _ in found], -1), torch.cat([p for _, p in found], -1))]

    def looks_of(self, batch: TextBatch) -> Tensor:
        """How the named things look: [texts, SLOTS, COMPONENTS]."""
        name, colour = (batch.each[..., list(EACH).index(part)] for part in ("name", "colour"))
        return self.looks[name, colour]

    def update(self, batch: TextBatch, factor: float) -> float:
        """One step at `factor` times the learning rate; returns the loss."""
        batch = batch.to(self.device)
        half = len(batch.ids) // 2
        with torch.autocast(self.device.type, torch.bfloat16), quickest_attention(self.device):
            losses = []
            for readouts, (sequence, pooled) in zip(self.read, self.views(batch), strict=True):
                losses.append(readouts.loss(sequence, pooled, batch.ends, batch.whole, batch.each))
                losses.append(readouts.unexplained(sequence, batch.ends, self.looks_of(batch)))
                losses.append(CONTRAST * contrast(pooled[:half], pooled[half:]))
        loss = torch.stack(losses).sum()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(self.encoders.parameters(), 1.0)
        self.optimizer.step(factor)
        self.step += 1
        return float(loss.detach())

    @torch.inference_mode()
    def measure(self, held_out: list[TextBatch]) -> dict[str, float]:
        """What the read-outs of both encoders together find in captions of held-out scenes, in float32."""
        found = []
        for batch in (b.to(self.device) for b in held_out):
            sequence, pooled = self.views(batch)[-1]
            right = self.read[-1].right(sequence, pooled, batch.ends, batch.whole, batch.each)
            unexplained = self.read[-1].unexplained(sequence, batch.ends, self.looks_of(batch))
            found.append(right | {"looks unexplained": float(unexplained)})
        return {name: float(np.mean([f[name] for f in found])) for name in found[0]}

    def save(self) -> None:
        """Replaces the checkpoint."""
        state = {name: getattr(self, name).state_dict() for name in ("encoders", "readouts", "optimizer")}
        self.folder.save(state | {"step": self.step, "seconds": self.seconds})

    @torch.inference_mode()
    def export(self, out: Path, batch: TextBatch) -> None:
        """Writes the encoders in float16, scaled so that the transformer sees a sequence of unit variance."""
        for encoder, (sequence, _), name in zip(
            self.each, self.views(batch.to(self.device)), ENCODERS, strict=False
        ):
            scale = 1 / float(sequence.float().square().mean().sqrt())
            unit_scale(encoder, scale)
            folder = out / name
            folder.mkdir(parents=True, exist_ok=True)
            tensors = {k: v.half().cpu().contiguous() for k, v in encoder.state_dict().items()}
            save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
            config = encoder.config.to_diff_dict() | {"dtype": "float16"}
            config["architectures"] = ["CLIPTextModelWithProjection"]
            (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
            unit_scale(encoder, 1 / scale)


def train(arguments: argparse.Namespace) -> None:
    """Tokenizers first, then both encoders together."""
    if not (arguments.out / TOKENIZERS[-1] / "vocab.json").exists():
        write_tokenizers(arguments.data, arguments.out)
    device = torch.device(arguments.device)
    components = principal_components(SpriteBank(arguments.data, device), LinearCodec.load())
    looks = looks_by_answer(components)
    training = Training(arguments.out, RunFolder(arguments.run), device, arguments.learning_rate, looks)
    data = TextBatches(arguments.out, arguments.pairs, "train", training.step)
    held_out_data = iter(TextBatches(arguments.out, 128, "heldout", 10**6))
    held_out = [next(held_out_data) for _ in range(16)]
    loader = DataLoader(data, batch_size=None, num_workers=arguments.workers)
    began, losses = time.monotonic(), []
    for batch in loader:
        if training.step >= arguments.steps:
            break
        losses.append(training.update(batch, cosine(training.step, arguments.steps, WARMUP_STEPS)))
        if training.step % arguments.save_every == 0 or training.step == arguments.steps:
            now = time.monotonic()
            training.seconds, began = training.seconds + now - began, now
            right = training.measure(held_out)
            training.folder.log(
                step=training.step, loss=float(np.mean(losses)), **right, seconds=training.seconds
            )
            losses.clear()
            training.save()
            training.export(arguments.out, held_out[0])


def main() -> None:
    """Reads the command line and does the work."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", type=Path, required=True, help="the node_modules folder with words and sprites"
    )
    parser.add_argument("--out", type=Path, required=True, help="the model's folder")
    parser.add_argument("--run", type=Path, default=Path("runs/text_encoders"), help="checkpoint and log")
    parser.add_argument("--steps", type=int, default=1900)
    parser.add_argument("--pairs", type=int, default=96)
    parser.add_argument("--learning-rate", type=float, default=4e-3)
    parser.add_argument("--save-every", type=int, default=100)
    parser.add_argument("--workers", type=int, default=0, help="processes that make batches")
    parser.add_argument("--device", default="cpu")
    train(parser.parse_args())


if __name__ == "__main__":
    main()
