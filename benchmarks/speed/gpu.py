"""A denoiser at real size on one GPU, beside diffusers with the same weights.

benchmarks/gpu.sh, or python -m benchmarks.speed.gpu --out FOLDER [--page docs/gpu.md] [--seconds 570]
    [--device cuda] [--tiny]

The parts go by importance, each within its share of the time, and every number is in FOLDER/gpu.json and in
the page's tables as soon as it is there: a run that is cut off has what it had. What fails is written down
with its reason, and the next part begins. --tiny has transformers of two blocks in float32, on a CPU: a trial
of the script, whose numbers say nothing.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import command_line
from benchmarks.speed.gpu_models import (
    CASES,
    FLUX_DEV,
    SD35_MEDIUM,
    Case,
    as_theirs,
    given_to,
    ours,
    theirs,
    without_memory,
)
from benchmarks.speed.gpu_tables import write_page
from triptych.compute.compilation import compile_modules
from triptych_denoiser.models.attention import Backend, choose_backend, use_backend
from triptych_denoiser.models.transformer import Transformer, blocks
from triptych_denoiser.predictor import Predictor, create_predictor, random_row
from triptych_denoiser.row import Row
from triptych_denoiser.settings import DenoiserOptions

BATCHES = (1, 4, 16, 2, 8)
MOST_ROWS = 16
LEAST_SECONDS, MOST_REPEATS = 1.0, 20
PEAK_SIZE = 8192
HALF_SIZE = 2


@dataclass(eq=False)
class Run:
    """What is measured where, and what was found.

    until: when the part that runs must end, by the monotonic clock.
    """

    device: torch.device
    dtype: torch.dtype
    tiny: bool
    out: Path
    page: Path | None
    results: list[dict[str, Any]] = field(default_factory=list)
    until: float = 0.0

    def case(self, case: Case) -> Case:
        """The case itself, or its tiny kin."""
        return case.tiny() if self.tiny else case

    @property
    def has_time(self) -> bool:
        """Whether the part may measure something more."""
        return time.monotonic() < self.until

    def found(self, part: str, **values: object) -> None:
        """Writes a result down."""
        self.results.append({"part": part} | values)
        print(*(f"{name}={_short(value)}" for name, value in self.results[-1].items()), flush=True)
        self.out.mkdir(parents=True, exist_ok=True)
        (self.out / "gpu.json").write_text(json.dumps(self.results, indent=1) + "\n")
        if self.page is not None:
            write_page(self.page, self.results)

    def seconds(self, work: Callable[[], object]) -> dict[str, float]:
        """The median seconds of a call behind a first one, and the most memory in GB that it needed."""
        self._reset_peak()
        work()
        taken: list[float] = []
        least = 0.0 if self.tiny else LEAST_SECONDS
        while not taken or (sum(taken) < least and len(taken) < MOST_REPEATS and self.has_time):
            self._wait()
            began = time.perf_counter()
            work()
            self._wait()
            taken.append(time.perf_counter() - began)
        return {"seconds": statistics.median(taken), "repeats": len(taken), "memory_gb": self._peak()}

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _reset_peak(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    def _peak(self) -> float:
        return torch.cuda.max_memory_allocated(self.device) / 1e9 if self.device.type == "cuda" else 0.0


def machine(run: Run) -> None:
    """What computes, and the products a second that it reaches: what shares of the peak are shares of."""
    size = 256 if run.tiny else PEAK_SIZE
    left, right = (torch.randn(size, size, device=run.device, dtype=run.dtype) for _ in range(2))
    timing = run.seconds(partial(torch.matmul, left, right))
    cuda = run.device.type == "cuda"
    name = torch.cuda.get_device_name(run.device) if cuda else platform.processor() or platform.machine()
    flops = 2 * size**3 / timing["seconds"]
    run.found("machine", device=name, torch=torch.__version__, dtype=str(run.dtype), matmul_flops=flops)


def passes(run: Run, case: Case) -> None:
    """A pass of 1 to 16 rows: fast, with a row's bits the same in any company, and by diffusers."""
    case = run.case(case)
    model = ours(case, run.device, run.dtype)
    other = theirs(case, model, run.device)
    run.found("weights", model=case.name, error=error(run, case, model, other), flops=flops_of(case))
    fast = predictor_of(run, model, DenoiserOptions(determinism="fast", max_batch_rows=MOST_ROWS))
    for rows in run_batches(run):
        time_predictor(run, fast, case, rows, "fast")
        time_theirs(run, other, model, case, rows, "diffusers")
    del other
    invariant = predictor_of(run, model, DenoiserOptions(max_batch_rows=MOST_ROWS))
    run.found("invariant", model=case.name, rows=invariant.max_rows, mixes=invariant.mixes)
    for rows in run_batches(run):
        time_predictor(run, invariant, case, rows, "batch-invariant")


def compiled(run: Run, case: Case) -> None:
    """The same with compiled blocks, as --compile has it, and diffusers' with its blocks compiled."""
    case = run.case(case)
    model = ours(case, run.device, run.dtype)
    other = theirs(case, model, run.device)
    compile_modules(blocks(model))
    options = DenoiserOptions(determinism="fast", max_batch_rows=MOST_ROWS, compile=True)
    fast = predictor_of(run, model, options)
    for rows in run_batches(run, (1, 4)):
        time_predictor(run, fast, case, rows, "compiled", warm_ups=2)
    del fast
    for stack in (child for child in other.children() if isinstance(child, nn.ModuleList)):
        for block in stack:
            block.compile(fullgraph=not run.tiny)
    for rows in run_batches(run, (1, 4)):
        time_theirs(run, other, model, case, rows, "diffusers, compiled")


def attention(run: Run) -> None:
    """What computes attention, by passes of FLUX.1."""
    case = run.case(FLUX_DEV)
    model = ours(case, run.device, run.dtype)
    fast = predictor_of(run, model, DenoiserOptions(determinism="fast", max_batch_rows=MOST_ROWS))
    backends: tuple[Backend, ...] = ("sdpa", "efficient", "varlen", "flash-attn")
    for backend in backends:
        with told(run, "attention", model=case.name, way=backend):
            use_backend(model, choose_backend(backend, run.device, run.dtype))
            time_predictor(run, fast, case, 4, backend, part="attention")


def offload(run: Run) -> None:
    """FLUX.1 with weights in the host's memory: what a pass takes, what is on the card, and the same bits."""
    case = run.case(FLUX_DEV)
    options = DenoiserOptions(determinism="fast", max_batch_rows=MOST_ROWS)
    velocities: list[Tensor] = []
    for way, away in (("resident", False), ("offloaded", True)):
        predictor = predictor_of(run, ours(case, run.device, run.dtype, offload=away), options)
        for rows in (1, 4):
            time_predictor(run, predictor, case, rows, way, part="offload")
        velocities.append(predictor.predict(rows_of(predictor, case, 1)).velocities[0])
        del predictor
        free(run)
    run.found("offload bits", model=case.name, same=torch.equal(*velocities))


def small_pictures(run: Run) -> None:
    """SD3.5-medium at a quarter of the pixels, where launching kernels takes a share of the time."""
    whole = run.case(SD35_MEDIUM)
    case = Case(whole.name, whole.class_name, whole.config, whole.size // HALF_SIZE, whole.tokens)
    model = ours(case, run.device, run.dtype)
    options = DenoiserOptions(determinism="fast", max_batch_rows=MOST_ROWS)
    plain = predictor_of(run, model, options)
    time_predictor(run, plain, case, 1, "fast", part="small pictures")
    compile_modules(blocks(model))
    quick = predictor_of(run, model, options.model_copy(update={"compile": True}))
    time_predictor(run, quick, case, 1, "compiled", part="small pictures", warm_ups=2)


Part = Callable[[Run], None]
PARTS: Sequence[tuple[Part, float]] = (
    (machine, 0.02),
    *((partial(passes, case=case), share) for case, share in zip(CASES, (0.1, 0.17, 0.13), strict=True)),
    *((partial(compiled, case=case), 0.12) for case in CASES),
    (offload, 0.1),
    (attention, 0.06),
    (small_pictures, 0.06),
)
"""By importance, each with its share of the time; what one leaves is the next one's."""


def run_batches(run: Run, batches: Sequence[int] = BATCHES) -> Iterator[int]:
    """Numbers of rows, for as long as there is time."""
    for rows in batches:
        if run.has_time and not (run.tiny and rows > 4):
            yield rows


def predictor_of(run: Run, model: Transformer, options: DenoiserOptions) -> Predictor:
    """What the service runs."""
    invariant = options.determinism == "batch-invariant"
    use_backend(model, choose_backend(options.attention, run.device, run.dtype, invariant))
    return create_predictor(model, run.device, run.dtype, options)


def rows_of(predictor: Predictor, case: Case, count: int) -> list[Row]:
    """Random rows of a picture's size."""
    generator = torch.Generator().manual_seed(0)
    return [random_row(predictor, case.size, case.size, case.tokens, 1, generator) for _ in range(count)]


def time_predictor(
    run: Run,
    predictor: Predictor,
    case: Case,
    count: int,
    way: str,
    part: str = "passes",
    warm_ups: int = 0,
) -> None:
    """A pass as the service makes it, from rows to velocities on the CPU."""
    with told(run, part, model=case.name, way=way, rows=count):
        rows = rows_of(predictor, case, count)
        passes = [rows[first : first + predictor.max_rows] for first in range(0, count, predictor.max_rows)]

        def work() -> None:
            for each in passes:
                predictor.predict(each)

        for _ in range(warm_ups):
            work()
        run.found(part, model=case.name, way=way, rows=count, **run.seconds(work))


def time_theirs(
    run: Run, other: nn.Module, model: Transformer, case: Case, count: int, way: str, part: str = "passes"
) -> None:
    """A call of diffusers' transformer, inputs and velocity on the device."""
    with told(run, part, model=case.name, way=way, rows=count):
        given, _ = as_theirs(case.class_name, given_to(model, case, count, run.device, run.dtype))
        run.found(part, model=case.name, way=way, rows=count, **run.seconds(partial(called, other, given)))


@torch.inference_mode()
def called(other: nn.Module, given: Mapping[str, Any]) -> Tensor:
    """What diffusers' transformer gives."""
    (velocity,) = other(**given, return_dict=False)
    return velocity  # type: ignore[no-any-return]


@torch.inference_mode()
def error(run: Run, case: Case, model: Transformer, other: nn.Module) -> float:
    """The root mean square of what lies between our velocities and diffusers', over diffusers'."""
    given = given_to(model, case, 1, run.device, run.dtype)
    their_given, packed = as_theirs(case.class_name, given)
    velocity, expected = packed(model(**given)).float(), called(other, their_given).float()
    expected = expected[:, -velocity.shape[1] :]  # with text before the picture
    return float((velocity - expected).norm() / expected.norm())


@torch.inference_mode()
def flops_of(case: Case) -> float:
    """Floating point operations of products in a pass of one row, what is computed once a prompt left out."""
    meta, model = torch.device("meta"), without_memory(case)
    shapes = {name: value.shape for name, value in given_of_one(model, case).items()}
    given = {name: torch.empty(shape, device=meta) for name, shape in shapes.items()}
    with FlopCounterMode(display=False) as all_of_it:
        model(**given)
    with FlopCounterMode(display=False) as once:
        if model.has_static_text:
            model.static_text(given["sequence"][0], ())
    return float(all_of_it.get_total_flops() - once.get_total_flops())


def given_of_one(model: Transformer, case: Case) -> Mapping[str, Tensor]:
    """One row, on the CPU."""
    return given_to(model, case, 1, torch.device("cpu"), torch.float32)


@contextmanager
def told(run: Run, part: str, **values: object) -> Iterator[None]:
    """Writes down why something could not be measured, and goes on."""
    try:
        yield
    except Exception as reason:  # of the device, the compiler and diffusers there are many kinds
        line = (str(reason) or type(reason).__name__).splitlines()[0]
        run.found(part, **values, failed=line[:200])
        free(run)


def free(run: Run) -> None:
    """Gives memory back that nobody holds, once the compiler has forgotten what it compiled."""
    torch._dynamo.reset()
    gc.collect()
    if run.device.type == "cuda":
        torch.cuda.empty_cache()


def name_of(part: Part) -> str:
    """The function's name, with its model's."""
    function = part.func if isinstance(part, partial) else part
    model = part.keywords["case"].name if isinstance(part, partial) else ""
    return f"{function.__name__} {model}".strip()


def measure(run: Run, seconds: float) -> None:
    """All parts within the time."""
    began, share = time.monotonic(), 0.0
    for part, more in PARTS:
        share += more
        run.until = began + min(1.0, share) * seconds
        with told(run, name_of(part)):
            part(run)
        free(run)
    run.found("end", seconds=time.monotonic() - began)


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the options and measures."""
    parser = command_line.parser(__doc__, model=False, out=False)
    parser.add_argument("--out", type=Path, required=True, help="folder of the results, gpu.json")
    parser.add_argument("--page", type=Path, help="page whose tables are filled")
    parser.add_argument("--seconds", type=float, default=570.0)
    parser.add_argument("--device", default=None, help="default: cuda, with --tiny cpu")
    parser.add_argument("--tiny", action="store_true", help="two blocks a model: a trial of the script")
    options: argparse.Namespace = parser.parse_args(arguments)
    device = torch.device(options.device or ("cpu" if options.tiny else "cuda"))
    dtype = torch.float32 if options.tiny else torch.bfloat16
    measure(Run(device, dtype, options.tiny, options.out, options.page), options.seconds)


if __name__ == "__main__":
    main()
