"""Names of several devices."""

import pytest

from emsjax.costs.hardware import HARDWARE
from emsjax.errors import UserError
from emsjax.plan.slices import Slice, slice_named


@pytest.mark.parametrize(
    ("name", "chip", "number", "normal"),
    [
        ("v5e", "v5e", 1, "v5e"),
        ("V5E-1", "v5e", 1, "v5e"),
        ("v5e-4", "v5e", 4, "v5e-4"),
        ("v6e-8", "v6e", 8, "v6e-8"),
        # These count cores, of which a chip has two.
        ("v5p-8", "v5p", 4, "v5p-8"),
        ("v4-16", "v4", 8, "v4-16"),
        ("h100x2", "h100", 2, "h100x2"),
        ("H100x8", "h100", 8, "h100x8"),
        ("a100-40gbx4", "a100-40gb", 4, "a100-40gbx4"),
        ("l4x1", "l4", 1, "l4"),
    ],
)
def test_names(name: str, chip: str, number: int, normal: str):
    found = slice_named(name)
    assert found == Slice(chip, number)
    assert found.name == normal
    assert slice_named(normal) == found


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v5e-2", "v5e-2 is unknown; TPU v5e comes as v5e-1, v5e-4, v5e-8"),
        ("v5e-0", "v5e-0 is unknown; TPU v5e comes as"),
        ("v5ex8", "v5ex8 is unknown; TPU v5e comes as v5e-1, v5e-4, v5e-8"),
        ("v5p-4", r"v5p-4 is unknown; TPU v5p comes as v5p-1, v5p-8 \(4 chips\), v5p-16 \(8 ch"),
        ("h100x3", "h100x3 is unknown; NVIDIA H100 SXM comes as h100x1, h100x2, h100x4, h100x8"),
        ("h100-8", "h100-8 is unknown; NVIDIA H100 SXM comes as h100x1"),
        ("v99-8", "v99-8 is unknown; choose from v4, v5e, .*, or name several linked devices"),
        ("v5e-", "v5e- is unknown; choose from"),
        ("x8", "x8 is unknown; choose from"),
        ("", " is unknown; choose from"),
    ],
)
def test_names_that_make_no_sense(name: str, message: str):
    with pytest.raises(UserError, match=f"--topology {message}") as raised:
        slice_named(name)
    assert len(str(raised.value)) < 500


def test_every_device_has_a_link():
    assert all(hardware.link is not None for hardware in HARDWARE.values())
