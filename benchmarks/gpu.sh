#!/usr/bin/env bash
# Everything that needs a GPU, in under 8 minutes; results in benchmarks/results/*_cuda.json, tables and images in docs/.
#   PYTHON=.venv/bin/python bash benchmarks/gpu.sh
set -u
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-.venv/bin/python}
export PYTHONUNBUFFERED=1
status=0
timeout 240 "$PYTHON" benchmarks/distill_step.py --device cuda --repeats 20 || status=1
timeout 90 "$PYTHON" benchmarks/inference.py --device cuda --repeats 50 || status=1
timeout 120 "$PYTHON" benchmarks/growth.py --device cuda --repeats 5 || status=1
timeout 30 "$PYTHON" benchmarks/report.py || status=1
exit $status
