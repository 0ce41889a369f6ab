# Sourced by the other scripts: goes to the repository root and finds its Python.
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [ -z "${PYTHON:-}" ]; then
  PYTHON=python3
  [ -x .venv-test/bin/python ] && PYTHON=$PWD/.venv-test/bin/python
fi
export JAX_PLATFORMS=cpu
# The compile cache is outside the checkout, so that a fresh clone can use it, too.
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/emsjax-tests}
