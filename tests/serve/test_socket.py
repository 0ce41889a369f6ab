"""The official client of OpenAI against the command, on a real socket."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from emsjax import LLM, SamplingParams
from emsjax.serve.backend import Backend
from tests.serve.conftest import NAME

PATIENCE = 60.0  # seconds, after which a test that hangs fails
