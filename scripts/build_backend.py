"""Builds emsjax: setuptools, with another kind of editable install.

The editable install of setuptools answers only after Python has searched all of `sys.path`. A clone
is named `emsjax`, so for a script next to it Python finds the clone's folder first and takes it for
a package without contents. Here an editable install puts a real package into `site-packages`, which
Python prefers to such a folder, and which hands over to the clone.
"""

import base64
import hashlib
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403 a frontend looks up all hooks here

_PACKAGE = '''"""Hands over to the clone from which emsjax was installed with `pip install -e`."""

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

_FILE = Path({file!r})
if not _FILE.is_file():
    raise ModuleNotFoundError(
        f"emsjax was installed from {{_FILE.parents[1]}}, which has moved; install it again.",
        name="emsjax",
    )
_spec = spec_from_file_location(
    "emsjax", _FILE, submodule_search_locations=[str(_FILE.parent)]
)
# The import system returns what it finds here under the name that it imports.
sys.modules["emsjax"] = module_from_spec(_spec)
_spec.loader.exec_module(sys.modules["emsjax"])
'''


def build_editable(
    wheel_directory: str,
    config_settings: Mapping[str, Any] | None = None,
    metadata_directory: str | None = None,
) -> str:
    """Builds the wheel of an editable install and returns its name."""
    name = build_meta.build_editable(wheel_directory, config_settings, metadata_directory)
    wheel = Path(wheel_directory, name)
    with zipfile.ZipFile(wheel) as archive:
        files = {each: archive.read(each) for each in archive.namelist()}
    # The metadata stays; the finder of setuptools and the .pth file that starts it do not.
    kept = {each: content for each, content in files.items() if ".dist-info/" in each}
    (record,) = (each for each in kept if each.endswith(".dist-info/RECORD"))
    del kept[record]
    file = Path(__file__).resolve().parents[1] / "emsjax" / "__init__.py"
    kept["emsjax/__init__.py"] = _PACKAGE.format(file=str(file)).encode()
    lines = [f"{each},sha256={_digest(content)},{len(content)}" for each, content in kept.items()]
    kept[record] = "\n".join([*lines, f"{record},,", ""]).encode()
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for each, content in kept.items():
            archive.writestr(each, content)
    return name


def _digest(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
