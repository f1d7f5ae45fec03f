"""A target fuzzed by coverage, with atheris (pip install triptych[fuzz]) and libFuzzer's options.

    python -m tests.fuzz.guided lora -max_total_time=600

It ends with an error, and writes the bytes to crash-..., as soon as a reader raises what it should not.
"""

import sys
import tempfile
from pathlib import Path

import atheris


def main() -> None:
    """Reads the target's name; the rest is libFuzzer's."""
    with atheris.instrument_imports(include=["triptych", "triptych_coordinator", "triptych_denoiser", "PIL"]):
        from tests.fuzz.targets import TARGETS

    if len(sys.argv) < 2 or sys.argv[1] not in TARGETS:
        sys.exit(f"{__doc__}\nTargets: {', '.join(TARGETS)}")
    target = TARGETS[sys.argv[1]]
    corpus = Path(tempfile.mkdtemp())
    for number, seed in enumerate(target.seeds()):
        (corpus / f"seed-{number}").write_bytes(seed)
    atheris.Setup([sys.argv[0], "-close_fd_mask=0", *sys.argv[2:], str(corpus)], target.run)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
