"""Nobody runs all benchmarks after a change, so this at least finds names that have moved."""

import importlib
from pathlib import Path

import pytest

import benchmarks

PROGRAMS = sorted(file.stem for file in Path(benchmarks.__file__).parent.glob("[a-z]*.py"))


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_finds_all_that_it_imports(program):
    importlib.import_module(f"benchmarks.{program}")
