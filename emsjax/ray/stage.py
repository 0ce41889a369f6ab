"""The actor class for `Dataset.map_batches`."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any

from emsjax.errors import UserError
from emsjax.ray.rows import Batch, read_row, rows_of, with_results
from emsjax.requests.outputs import Piece, RequestOutput
from emsjax.requests.sampling_params import SamplingParams


class Generate:
    """Generates a text for each row of a dataset, with one `LLM` for an actor.

    Ray hands an actor several batches at once, and the slots take rows of all of them. So they stay
    busy when a batch comes to its end, and batches may be small.
    """

    def __init__(
        self,
        sampling_params: Mapping[str, Any] | None = None,
        id_column: str = "id",
        **engine: Any,
    ):
        """Loads the model.

        Args:
          sampling_params: sampling parameters for rows that do not have them.
          id_column: where a row may have its id, from which its seed follows.
          engine: the arguments for `LLM`.

        Raises:
          UserError: as for `LLM`, or `sampling_params` are not sampling parameters.
        """
        # Imported here because the process that plans the job needs no jax, and no device.
        from emsjax.llm import LLM

        self._defaults = dict(sampling_params or {})
        SamplingParams.from_mapping(self._defaults)
        self._id_column = id_column
        self._llm = LLM(**engine)
        self._service = self._llm.service()

    async def __call__(self, batch: Batch) -> AsyncIterator[dict[str, Any]]:
        """Generates for the rows of a batch.

        Args:
          batch: columns, of which `rows.read_row` reads some.

        Yields:
          Once, the batch with columns of results, see `rows.with_results`. A row that cannot be run
          has an error in one of them.
        """
        results = [self._result(row) for row in rows_of(batch)]
        yield with_results(batch, await asyncio.gather(*results))

    async def _result(self, row: Mapping[str, Any]) -> RequestOutput | str:
        """Returns the result of a row, or the error why there is none."""
        try:
            prompt, params, name = read_row(row, self._defaults, self._id_column)
            request = self._llm.request(prompt, params, name)
        except UserError as error:
            return str(error)
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[RequestOutput | str] = loop.create_future()

        def listen(message: Piece | Exception) -> None:
            if isinstance(message, UserError):
                loop.call_soon_threadsafe(answer.set_result, str(message))
            elif isinstance(message, Exception):
                loop.call_soon_threadsafe(answer.set_exception, message)
            elif message.output is not None:
                loop.call_soon_threadsafe(answer.set_result, message.output)

        self._service.submit([request], listen)
        return await answer
