#!/usr/bin/env bash
# The bench on a GPU machine that has torch 2.9 or later (2.11, say), Python 3.12, and no network. In two calls:
#
#   benchmarks/gpu.sh --collect   # here, with a network: wheels into benchmarks/.wheels, less than 64 MiB, never torch
#   benchmarks/gpu.sh [OUT]       # there, with this checkout and that folder: OUT/gpu.md and gpu.json, under 9 minutes
#   benchmarks/gpu.sh --try [OUT] # anywhere, on the CPU: tiny sizes, Triton's interpreter; measures nothing
#
# Packages go into a folder of their own behind the machine's, and only those that it lacks: nothing replaces its torch.
# Results are written part by part, the most asked for first: being cut off loses the last ones only.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
wheels=$here/.wheels packages=$here/.gpu-packages
python=${PYTHON:-python3}
# numba 0.61.2 is the smallest that pyproject.toml admits: llvmlite 0.45 and later would not fit
wanted=(numpy==2.2.6 numba==0.61.2 llvmlite==0.44.0 omegaconf==2.3.0 PyYAML==6.0.3 antlr4-python3-runtime==4.9.3
  snntorch==1.0.0 spikingjelly==2.0.0 loguru==0.7.3 filelock==3.20.0)

collect() {
  mkdir -p "$wheels"
  for package in "${wanted[@]}"; do
    "$python" -m pip download -q --no-deps --dest "$wheels" --only-binary :all: --python-version 3.12 \
      --platform manylinux_2_28_x86_64 --platform manylinux2014_x86_64 --platform manylinux_2_17_x86_64 "$package" \
      2>/dev/null || "$python" -m pip wheel -q --no-deps --wheel-dir "$wheels" "$package"
  done
  if ls "$wheels" | grep -iE '^(torch|triton|nvidia)'; then echo "gpu.sh: these would replace the machine's torch" >&2; exit 1; fi
  bytes=$(cat "$wheels"/*.whl | wc -c)
  echo "$(ls "$wheels"/*.whl | wc -l) wheels, $bytes bytes in $wheels"
  [[ $bytes -lt $((64 << 20)) ]] || { echo "gpu.sh: more than 64 MiB" >&2; exit 1; }
}

# What the machine lacks, without dependencies: pip has nothing to decide.
install() {
  [[ -d $wheels ]] || { echo "gpu.sh: no $wheels; run $0 --collect where there is a network" >&2; exit 2; }
  local package name lacking=()
  for package in "${wanted[@]}"; do
    name=${package%%==*}
    PYTHONPATH=$packages "$python" -c "import importlib.metadata as m; m.version('$name')" 2>/dev/null || lacking+=("$package")
  done
  # the numba that is brought along does not know the newest numpy: then its own comes along, too, in front
  if [[ " ${lacking[*]} " == *" numba="* && " ${lacking[*]} " != *" numpy="* ]]; then
    "$python" -c 'import numpy; raise SystemExit(tuple(map(int, numpy.__version__.split(".")[:2])) > (2, 2))' || lacking+=("${wanted[0]}")
  fi
  [[ ${#lacking[@]} -eq 0 ]] || "$python" -m pip install -q --no-index --find-links "$wheels" --no-deps --no-compile \
    --disable-pip-version-check --target "$packages" "${lacking[@]}"
  if ls "$packages" 2>/dev/null | grep -iE '^(torch|triton|nvidia)'; then echo "gpu.sh: torch was replaced" >&2; exit 1; fi
}

torch_of() { "$python" -c 'import torch; print(torch.__version__, torch.__file__)'; }

mode=${1:-}
if [[ $mode == --collect ]]; then collect; exit; fi
flags=()
if [[ $mode == --try ]]; then
  flags=(--try); shift; export TRITON_INTERPRET=1
  [[ ! -d $wheels ]] || install
else
  install
fi
out=${1:-outputs/gpu}
before=$(PYTHONPATH='' torch_of)
cd "$here/.."
export PYTHONPATH="$PWD/src:$PWD:$packages${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 MPLBACKEND=Agg
[[ $(torch_of) == "$before" ]] || { echo "gpu.sh: another torch than the machine's own ($before)" >&2; exit 1; }
exec "$python" -m benchmarks.gpu "${flags[@]}" --out "$out"
