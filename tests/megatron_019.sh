#!/usr/bin/env bash
# The test suite on Python 3.12 with megatron-core 0.19, which does not exist for Python 3.11.
#
#     tests/megatron_019.sh                                 # an environment in a new folder, then the whole suite
#     tests/megatron_019.sh FOLDER tests/compat tests/model # an environment that is there, and what pytest shall run
#
# torch for Python 3.12 comes with CUDA: 5.5 GB to install, on a machine without a GPU too. PYTHON names another
# Python 3.12 than the first on the path.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3.12}
venv=${1:-$(mktemp -d)/venv}
[ $# -gt 0 ] && shift

if [ ! -x "$venv/bin/pytest" ]; then
  "$python" -m venv "$venv"
  "$venv/bin/pip" install torch==2.14.1 megatron-core==0.19.2
  "$venv/bin/pip" install -e '.[test]'
  "$venv/bin/pip" install --no-deps -r requirements/demo-no-deps.txt
fi
"$venv/bin/pip" list 2>/dev/null | grep -E '^(torch|megatron-core|transformers) '
echo "environment: $venv (not removed)"
"$venv/bin/python" -m pytest -q "$@"
