"""A platform that jax cannot use is named in one sentence."""

import jax
import pytest

from emsjax.errors import UserError
from emsjax.host.device import check_device


@pytest.mark.parametrize("error", [AssertionError(), RuntimeError("Backend 'foo' is unknown")])
@pytest.mark.parametrize(
    ("asked", "message"),
    [("foo", "the platform 'foo' of JAX_PLATFORMS"), (None, "any device")],
)
def test_a_platform_that_jax_cannot_use(
    error: Exception, asked: str | None, message: str, monkeypatch: pytest.MonkeyPatch
):
    """Jax raises an AssertionError for "cuda" without the package for it."""

    def fail() -> None:
        raise error

    check_device()
    monkeypatch.setattr(jax, "devices", fail)
    before = jax.config.values["jax_platforms"]
    jax.config.update("jax_platforms", asked)
    try:
        with pytest.raises(UserError, match=f"^jax cannot use {message} \\({type(error).__name__}"):
            check_device()
    finally:
        jax.config.update("jax_platforms", before)
