#!/usr/bin/env bash
# What only a GPU can show, in at most 9 minutes, and the section of docs/results.md that it makes.
#
#   DATA=~/data OUT=/tmp/gpu evidence/gpu.sh         # on a machine with a GPU; PYTHON says which Python has torch (2.9+)
#   DRY=1 OUT=/tmp/gpu evidence/gpu.sh               # all parts on a CPU at toy size
#
# It needs wmlc (pip install --no-deps --no-build-isolation -e .) with torch, torchvision and the pure-Python packages of
# pyproject.toml; ONNX Runtime and TensorRT are used where they can be imported. Nothing is fetched.
set -uo pipefail
: "${OUT:?where to write; it need not exist}"
PYTHON=${PYTHON:-python3} DRY=${DRY:-}
OUT=$(realpath -m "$OUT")
if [ -n "${DATA:-}" ]; then DATA=$(realpath -m "$DATA") && export DATA; fi
mkdir -p "$(dirname "$OUT")"
cd "$(dirname "$0")/.."
# Seconds of each part, the surest first; what takes longer is ended.
# `planned` is not among them, as it takes eight minutes an engine: LIMITS=planned:500 evidence/gpu.sh, into the same OUT.
LIMITS=${LIMITS:-tests:40 train:115 steps:90 latency:40 engines:115 compiled:140}
for each in $LIMITS; do
    part=${each%:*}
    # shellcheck disable=SC2086  # no word where it is not set
    timeout "${each#*:}" "$PYTHON" evidence/gpu.py "$OUT" "$part" ${DRY:+--dry} 2>&1 | tee -a "$OUT.log" | grep -v '^$' | tail -40 \
        || echo "evidence/gpu.sh: $part ended early; its JSON has what was measured until then"
done
"$PYTHON" evidence/gpu.py "$OUT" section ${DRY:+--dry}
