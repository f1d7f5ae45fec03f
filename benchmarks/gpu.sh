#!/usr/bin/env bash
# Measures a denoiser at real size on one GPU and fills docs/gpu.md: benchmarks/gpu.sh FOLDER [--tiny] ...
# Environment: PYTHON (python3), WHEELS (a folder of wheels to install from, for a machine without a network).
set -euo pipefail
out=${1:?usage: benchmarks/gpu.sh FOLDER [options of benchmarks.speed.gpu]}
shift
python=${PYTHON:-python3}
root=$(cd "$(dirname "$0")/.." && pwd)
mkdir -p "$out"
out=$(cd "$out" && pwd)
export PYTHONPATH="$root:$root/shared:$root/services${PYTHONPATH:+:$PYTHONPATH}"
if [ -n "${WHEELS:-}" ]; then
  "$python" -m pip install -q --no-index --no-deps --no-compile --target "$out/site" "$WHEELS"/*.whl
  export PYTHONPATH="$PYTHONPATH:$out/site"
fi
cp "$root/docs/gpu.md" "$out/gpu.md"
cd "$root"
"$python" -m benchmarks.speed.gpu --out "$out" --page "$out/gpu.md" "$@"
echo "the page with its tables is $out/gpu.md"
