"""What the coordinator loads."""

import subprocess
import sys


def test_the_coordinator_imports_no_torch() -> None:
    program = "import sys, triptych_coordinator.__main__; print([m for m in sys.modules if '.' not in m])"
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = set(finished.stdout.replace("'", "").strip("[]\n").split(", "))
    assert {"numpy", "grpc", "triptych_coordinator"} <= loaded
    assert not loaded & {"torch", "transformers", "diffusers", "safetensors", "scipy"}
    assert not loaded & {"triptych_text_encoder", "triptych_denoiser", "triptych_vae_codec", "triptych_local"}
