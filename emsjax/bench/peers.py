"""Makes other libraries ready to run with the target's weights."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from emsjax.bench.contenders import Spec
from emsjax.bench.peer import PEERS, TRANSFORMERS, Starter
from emsjax.bench.target import Target
from emsjax.bench.transformers_peer import Transformers, load
from emsjax.bench.vllm_peer import Vllm
from emsjax.errors import foreign
from emsjax.loading.export import export_hugging_face


@contextmanager
def peers_of(
    names: Sequence[str], target: Target, vllm_python: Path | None
) -> Iterator[dict[Spec, Starter]]:
    """Provides what starts each contender of some libraries.

    The weights are exported when the first peer starts, for all of them.

    Args:
      names: keys of `PEERS`.
      target: the model.
      vllm_python: the Python of vLLM's environment, if vLLM is one of the names.
    """
    with TemporaryDirectory() as directory:

        @cache
        def exported() -> Path | None:
            if target.loaded is None:
                return None
            export_hugging_face(target.loaded, Path(directory))
            return Path(directory)

        @cache
        def loaded() -> tuple[Any, str]:
            return load(target, exported())

        def start(spec: Spec, size: int, max_model_len: int) -> Any:
            with foreign(f"{spec.method} cannot run {target.name}", "leave out --compare"):
                if spec.method == TRANSFORMERS:
                    return Transformers(*loaded(), size)
                assert vllm_python is not None
                return Vllm(vllm_python, exported(), spec, target.model, size, max_model_len)

        yield {spec: partial(start, spec) for name in names for spec in PEERS[name]}
