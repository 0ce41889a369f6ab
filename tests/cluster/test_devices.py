"""How many devices share a model of several hosts."""

from types import SimpleNamespace

import jax
import pytest

from emsjax.cluster.devices import devices_of_hosts
from emsjax.errors import UserError


@pytest.fixture(autouse=True)
def _four_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    """One on the first host, three on the second."""
    found = [SimpleNamespace(process_index=index) for index in (0, 1, 1, 1)]
    monkeypatch.setattr(jax, "devices", lambda: found)


@pytest.mark.parametrize("asked", [1, "auto", 4])
def test_all_devices_share_it(asked: int | str) -> None:
    assert devices_of_hosts(asked) == 4


def test_another_number_is_refused_with_the_devices_of_each_host() -> None:
    with pytest.raises(UserError, match=r"=2 .*\(1 on host 0, 3 on host 1\).* give 4$"):
        devices_of_hosts(2)
