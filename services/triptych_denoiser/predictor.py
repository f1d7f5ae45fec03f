"""Rows in, velocities out: what runs the transformer."""

from __future__ import annotations

import logging
import math
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from triptych.caches import Cache
from triptych.compute.kernels import kernels_are_fixed
from triptych.compute.lora_changes import added
from triptych.compute.thread import turn
from triptych_denoiser.conditioning import Conditioning, Reference
from triptych_denoiser.features import (
    FeatureCache,
    Features,
    FirstBlockReuse,
    Key,
    all_blocks_reuse,
    key_of,
    named,
    noting_inputs,
    relative_change,
)
from triptych_denoiser.graphs import GraphedPasses
from triptych_denoiser.models.layers import tile_products
from triptych_denoiser.models.transformer import BlockReuse, RowGroup, Transformer, no_reuse
from triptych_denoiser.row import FeatureReuse, Row
from triptych_denoiser.settings import DenoiserOptions
from triptych_denoiser.verdicts import Verdict, remember, remembered

log = logging.getLogger(__name__)

_PROBE_ROWS = 8
# The first is small enough that filling it up wastes little, the last so large that more would not be faster.
_CPU_TILES = (64, 128, 256, 512, 1024)
_GPU_TILES = (1024, 2048, 4096, 8192)
_PROBE_MAX_SIZE = 16  # a picture of a large model would take minutes


StaticTexts = Cache[Key, Tensor]
"""What a model made of texts, and of references in them, alone: by both, skipped layers and LoRAs."""


class Velocities(NamedTuple):
    """What rows give: float32 [channels, height, width] each on the CPU, and whose features were reused.

    sums: what changes of a row's input add up to where that decided; 0 where it was computed whole.
    """

    velocities: Sequence[Tensor]
    reused: Sequence[bool]
    sums: Sequence[float]

    @classmethod
    def of(cls, velocities: Sequence[Tensor], reused: Sequence[bool]) -> Velocities:
        """Of rows whose changes are not added up."""
        return cls(velocities, reused, [0.0] * len(velocities))


@dataclass(eq=False)
class Predictor:
    """A transformer that computes up to `max_rows` rows in one forward pass, of several shapes if `mixes`.

    `device` and `dtype` are those that the model computes on and in; `features` are remembered, and `texts`:
    what the part of a model that sees text alone made of it. With `graphs` passes are captured and repeated.
    """

    model: Transformer
    device: torch.device
    dtype: torch.dtype
    max_rows: int
    features: FeatureCache = field(default_factory=lambda: FeatureCache(1))
    texts: StaticTexts = field(default_factory=lambda: StaticTexts(0, keeps_newest=False))
    mixes: bool = True
    graphs: GraphedPasses | None = None

    def group(self, row: Row) -> tuple[object, ...]:
        """What rows of one forward pass must have in common. Features are reused among equal rows alone."""
        if self.mixes and row.reuse is None:
            return row.variant
        return *row.variant, row.shape, row.reuses_all_blocks, row.adds_up_changes

    def tokens(self, row: Row) -> int:
        """Image and text tokens of a row, those of references included."""
        inputs = self.model.inputs
        beside = () if inputs.reference_same_size else row.references
        pictures = (row.latents, *(reference.latents for reference in beside))
        pixels = sum(picture.shape[-2] * picture.shape[-1] for picture in pictures)
        return pixels // inputs.token_size**2 + len(row.conditioning.sequence)

    @torch.inference_mode()
    def predict(self, rows: Sequence[Row]) -> Velocities:
        """Predicts rows of one group, 1 to max_rows of them, in one pass.

        Earlier evaluations whose features are forgotten are computed in passes before it.
        """
        if all(row.reuse is None for row in rows):
            return Velocities.of(self._forward(rows), [False] * len(rows))
        if rows[0].adds_up_changes:
            return self._predict_by_changes(rows)
        earlier = [row.reuse.earlier if row.reuse else None for row in rows]
        found = self._found_features([row for row in earlier if row is not None])
        if rows[0].reuses_all_blocks:
            kept = [found[key_of(row)] for row in earlier if row is not None]
            velocities = self._forward(rows, reuse=all_blocks_reuse(kept), blocks=False)
            return Velocities.of(velocities, [True] * len(rows))
        reuse = FirstBlockReuse(
            [(row.reuse and row.reuse.threshold) or 0.0 for row in rows],
            [found[key_of(row)] if row is not None else None for row in earlier],
        )
        velocities = self._forward(rows, reuse=reuse)
        for row, features in zip(rows, reuse.features, strict=True):
            if row.reuse and features:
                self.features.put(key_of(row), features)
        return Velocities.of(velocities, reuse.reused)

    def _predict_by_changes(self, rows: Sequence[Row]) -> Velocities:
        """All blocks' part is that of the earlier row where its input has changed little since (TeaCache)."""
        reuses = [(row.reuse, row.reuse.change) for row in rows if row.reuse and row.reuse.change]
        inputs = self._modulated_inputs([*rows, *(change.before for _, change in reuses)])
        changes = map(relative_change, inputs, inputs[len(rows) :])
        sums = [reuse.sum_with(change) for (_, reuse), change in zip(reuses, changes, strict=True)]
        few = [
            math.isfinite(added) and added < (reuse.threshold or 0.0)
            for (reuse, _), added in zip(reuses, sums, strict=True)
        ]
        decided = [
            replace(row, reuse=FeatureReuse(None, reuse.earlier if reused else None))
            for row, (reuse, _), reused in zip(rows, reuses, few, strict=True)
        ]
        velocities: dict[int, Tensor] = {}
        for kind in set(few):
            some = [index for index, reused in enumerate(few) if reused is kind]
            velocities |= zip(some, self.predict([decided[index] for index in some]).velocities, strict=True)
        return Velocities(
            [velocities[index] for index in range(len(rows))],
            few,
            [added if reused else 0.0 for added, reused in zip(sums, few, strict=True)],
        )

    def _modulated_inputs(self, rows: Sequence[Row]) -> list[Tensor]:
        """Of the first block, [tokens, width] each. No block is computed."""
        found: list[Tensor] = []
        for start in range(0, len(rows), self.max_rows):
            self._forward(rows[start : start + self.max_rows], reuse=noting_inputs(found), blocks=False)
        return found

    def _found_features(self, rows: Sequence[Row]) -> Mapping[Key, Features]:
        """The features of these rows, computed if they are not in the cache."""
        wanted = {key_of(row): row for row in rows}
        found = {key: features for key in wanted if (features := self.features.get(key))}
        missing = [key for key in wanted if key not in found]
        for start in range(0, len(missing), self.max_rows):
            keys = missing[start : start + self.max_rows]
            reuse = FirstBlockReuse([0.0] * len(keys), [None] * len(keys))
            self._forward([wanted[key] for key in keys], reuse=reuse)
            for key, features in zip(keys, reuse.features, strict=True):
                if features:
                    found[key] = features
                    self.features.put(key, features)
        return found

    def _forward(
        self, rows: Sequence[Row], reuse: BlockReuse = no_reuse, blocks: bool = True
    ) -> list[Tensor]:
        """One pass, without any of the blocks if `blocks` is False: float32 on the CPU."""
        by_shape: dict[tuple[int, ...], list[int]] = {}
        for index, row in enumerate(rows):
            by_shape.setdefault(row.shape, []).append(index)
        order = [index for alike in by_shape.values() for index in alike]
        ordered = [rows[index] for index in order]
        with added(self.model, rows[0].loras):
            groups = [self._group([rows[index] for index in alike]) for alike in by_shape.values()]
            sigma = self._float32([row.sigma for row in ordered])
            others = self._others(ordered)
            if not blocks:
                others["skipped_layers"] = range(self.model.inputs.num_layers)
            captured = self.graphs if reuse is no_reuse and not rows[0].loras else None
            forward = captured or self.model.mixed
            predicted = forward(groups, sigma, reuse=reuse, **others)
        velocities = [velocity for group in predicted for velocity in group.float().cpu()]
        return [velocity for _, velocity in sorted(zip(order, velocities, strict=True), key=lambda at: at[0])]

    def _group(self, rows: Sequence[Row]) -> RowGroup:
        """Rows of one shape as the transformer takes them."""
        references = zip(*(row.references for row in rows), strict=True)
        return RowGroup(
            torch.stack([row.latents for row in rows]).to(self.device, self.dtype),
            _stacked([self._text(row) for row in rows]),
            rows[0].conditioning.trailing_repeats,
            [torch.stack([each.latents for each in those]) for those in references],
        )

    def _text(self, row: Row) -> Tensor:
        """What the row's pass is given of its text, [tokens, ...]. The LoRAs of the pass are added."""
        if not self.model.has_static_text:
            return row.conditioning.sequence
        conditioning, inside = row.conditioning, self.model.inputs.references_in_text
        pictures = row.references if inside else ()
        attended = tuple(weakref.ref(each) for each in (conditioning, *pictures))
        key = (attended, row.skipped_layers, named(row.loras))
        text = self.texts.get(key)
        if text is None:
            latents = [picture.latents for picture in pictures]
            places = conditioning.reference_positions
            text = self.model.static_text(conditioning.sequence, row.skipped_layers, latents, places)
            self.texts.put(key, text)
        return text

    def _others(self, rows: Sequence[Row]) -> dict[str, Any]:
        """Which layers are weakened, and the inputs that not every family takes."""
        inputs, first = self.model.inputs, rows[0]
        others: dict[str, Any] = {
            "skipped_layers": first.skipped_layers,
            "perturbed_layers": first.perturbed_layers,
        }
        if inputs.pooled_projection_dim:
            others["pooled"] = torch.stack([row.conditioning.pooled for row in rows])
        if inputs.guidance:
            others["guidance"] = self._float32([row.guidance for row in rows])
        if inputs.target_sigma:
            others["target_sigma"] = self._float32([row.target_sigma for row in rows])
        return others

    def _float32(self, numbers: Sequence[float | None]) -> Tensor:
        return torch.tensor(numbers, dtype=torch.float32, device=self.device)


def _stacked(texts: Sequence[Tensor]) -> Tensor:
    """[rows, tokens, ...] of each row's [tokens, ...], without copies of what all of them share."""
    shared = all(text is texts[0] for text in texts)
    return texts[0].expand(len(texts), *texts[0].shape) if shared else torch.stack(list(texts))


def create_predictor(
    model: Transformer,
    device: torch.device,
    dtype: torch.dtype,
    options: DenoiserOptions,
    quantized: bool = False,
    verdict_file: Path | None = None,
) -> Predictor:
    """The predictor that keeps what `determinism` promises: "batch-invariant" runs rows alone if it must.

    Or with equal ones alone, if that is enough; those of a compiled model do so anyway, for to its blocks
    other numbers of sizes are another program. Float32 on a CPU whose kernels are fixed needs nothing for the
    promise. Other devices, dtypes and libraries choose kernels by the number of rows, as do products of
    quantized weights: there they are made of tiles. Either way it is tried before it is promised, unless the
    verdict of an earlier start is in `verdict_file`.
    """
    features = FeatureCache(options.feature_cache_mb << 20, name="features")
    rows = options.max_batch_rows
    texts = StaticTexts(options.static_text_cache_mb << 20, keeps_newest=False, name="static texts")
    graphs = GraphedPasses(model) if options.compile and device.type == "cuda" else None
    together = Predictor(model, device, dtype, rows, features, texts, not options.compile, graphs)
    if options.determinism == "fast":
        log.info("up to %d rows share a pass, and their last bits may depend on it", rows)
        return together
    fixed = device.type == "cpu" and dtype == torch.float32 and not quantized and kernels_are_fixed()
    if not fixed:
        tile_products(list(model.modules()), _GPU_TILES if device.type == "cuda" else _CPU_TILES)
    verdict = remembered(verdict_file)
    when = "tried" if verdict is None else "tried at an earlier start"
    if verdict is None:
        verdict = _tried(together)
        remember(verdict_file, verdict)
    if verdict == "one at a time":
        log.info("rows run one at a time: in company, their last bits would depend on it (%s)", when)
        return Predictor(model, device, dtype, 1, features, texts, graphs=graphs)
    together.mixes = verdict == "of any sizes"
    log.info(
        "up to %d rows %s share a pass%s: %s, they have the same bits as alone",
        *(rows, verdict, "" if fixed else ", with products made of tiles", when),
    )
    return together


def _tried(predictor: Predictor) -> Verdict:
    """Which rows may share a pass; their sizes only if the predictor mixes them."""
    if not rows_are_independent(predictor):
        return "one at a time"
    mixed = predictor.mixes and mixed_rows_are_independent(predictor)
    return "of any sizes" if mixed else "of one size and text length"


def warm_up(predictor: Predictor) -> None:
    """Predicts random rows of the default size: 1, 2 and 4 of them, as far as they may share a pass.

    A compiled block has a variant for a row alone and one for fewer than four, which Linear fills up; SD3's
    has one more for text that ends in equal tokens. Perturbed layers are compiled for when asked for.
    """
    inputs, generator = predictor.model.inputs, torch.Generator().manual_seed(0)
    size = inputs.default_size // inputs.size_multiple * inputs.size_multiple
    for repeats in (1,) if inputs.text_positions else (1, 256):
        rows = [random_row(predictor, size, size, 77, repeats, generator) for _ in range(4)]
        for count in (1, 2, 4):
            if count <= predictor.max_rows:
                predictor.predict(rows[:count])


def rows_are_independent(predictor: Predictor) -> bool:
    """Whether random rows get the same bits in one pass as alone, for two shapes and two numbers of rows."""
    rows = _probe_rows(predictor)
    passes = [alike[:count] for alike in rows[:2] for count in (2, predictor.max_rows)]
    return all(_have_the_bits_of_alone(predictor, each) for each in passes)


def mixed_rows_are_independent(predictor: Predictor) -> bool:
    """Whether random rows of three shapes get the same bits in one pass as alone."""
    first, second, third = _probe_rows(predictor)
    passes = [first[:1] + second[:1], second[:3] + third[:2] + first[:3]]
    return all(_have_the_bits_of_alone(predictor, each[: predictor.max_rows]) for each in passes)


def _have_the_bits_of_alone(predictor: Predictor, rows: Sequence[Row]) -> bool:
    def predicted(rows: Sequence[Row]) -> Sequence[Tensor]:
        with turn():
            return predictor.predict(rows).velocities

    alone = [predicted([row])[0] for row in rows]
    return all(map(torch.equal, predicted(rows), alone))


def _probe_rows(predictor: Predictor) -> list[list[Row]]:
    """Rows for trials, of three shapes, the last of few tokens."""
    inputs, generator = predictor.model.inputs, torch.Generator().manual_seed(0)
    multiple = inputs.size_multiple
    size = min(inputs.default_size, _PROBE_MAX_SIZE) // multiple * multiple
    half = max(size // 2 // multiple, 1) * multiple
    return [
        [random_row(predictor, *shape, generator) for _ in range(_PROBE_ROWS)]
        for shape in ((size, size, 33, 256), (half, size, 77, 1), (multiple, half, 20, 7))
    ]


def random_row(
    predictor: Predictor, height: int, width: int, tokens: int, repeats: int, generator: torch.Generator
) -> Row:
    """A row of noise, for trials: the last of its `tokens` text tokens stands for `repeats` equal ones."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    inputs = predictor.model.inputs
    sequence = normal(min(tokens, inputs.max_tokens), inputs.joint_attention_dim)
    conditioning = Conditioning(
        sequence.to(predictor.device, predictor.dtype),
        normal(inputs.pooled_projection_dim).to(predictor.device, predictor.dtype),
        1 if inputs.text_positions else repeats,
    )
    sigma, other = torch.rand(2, generator=generator).tolist()
    latents = normal(inputs.channels, height, width)
    row = Row(
        *(latents, sigma, conditioning, other if inputs.guidance else None),
        target_sigma=sigma * other if inputs.target_sigma else None,
    )
    if not inputs.reference_same_size:
        return row
    needed = normal(inputs.reference_channels, height, width)
    return replace(row, references=(Reference(needed.to(predictor.device, predictor.dtype)),))
