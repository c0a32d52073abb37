#!/usr/bin/env bash
# The numeric tests as another processor would run them: tests/foreign_processor.sh INSTRUCTIONS THREADS [pytest arguments].
#
# INSTRUCTIONS is default (none beyond SSE, as on the plainest x86-64), avx2, or native. torch, oneDNN, MKL and numba each
# choose by themselves, so all four are told. On arm64 only numba listens. PYTHON names the interpreter;
# NUMBA_CPU_NAME=native leaves numba's kernels as they are, which saves compiling them anew.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
instructions=${1:?default, avx2 or native} threads=${2:?number of threads}
shift 2
case $instructions in
  default)
    export ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 MKL_ENABLE_INSTRUCTIONS=SSE4_2
    if [[ ${NUMBA_CPU_NAME:-} == native ]]; then unset NUMBA_CPU_NAME; else export NUMBA_CPU_NAME=generic; fi ;;
  avx2) export ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2 ;;
  native) ;;
  *) echo "$0: $instructions: default, avx2 or native" >&2; exit 2 ;;
esac
export OMP_NUM_THREADS=$threads
if (($# == 0)); then
  set -- tests/neurons tests/models tests/training tests/analysis tests/test_encoders.py tests/test_decoders.py
fi
echo "instructions $instructions, threads $threads: $*"
exec "${PYTHON:-.venv/bin/python}" -m pytest "$@"
