# Sourced by the other scripts: go to the repository root and find its Python.
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [ -z "${PYTHON:-}" ]; then
  PYTHON=python3
  [ -x .venv-test/bin/python ] && PYTHON=$PWD/.venv-test/bin/python
fi
export JAX_PLATFORMS=cpu
# Outside the checkout: a fresh clone, too, finds its programs compiled.
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/emsjax-tests}
