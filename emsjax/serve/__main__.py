"""The command line of the server: `python -m emsjax.serve`."""

import sys
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Annotated

from emsjax.cli import command
from emsjax.cli import hosts_options as hosts
from emsjax.cli import model_options as shared
from emsjax.cli.declare import number, option
from emsjax.errors import UserError
from emsjax.serve.options import Options, check

_app = command.new_app()
_SERVER = "Server"
_NEEDED = ("fastapi", "uvicorn", "prometheus_client")


@_app.command()
def _serve(
    host: Annotated[
        str, option("--host", "Address to listen on; 0.0.0.0 for other machines.", _SERVER)
    ] = "127.0.0.1",
    port: Annotated[int, number("--port", "Port to listen on.", _SERVER)] = 8000,
    allowed_hosts: Annotated[
        str,
        option(
            "--allowed-hosts",
            "Further names for clients to call it by, comma-separated; * for any.",
            _SERVER,
            "NAMES",
        ),
    ] = "",
    api_key: Annotated[
        str | None,
        option(
            "--api-key",
            "Key that clients must send. (default: none)",
            _SERVER,
            "KEY",
            envvar="EMSJAX_API_KEY",
        ),
    ] = None,
    served_model_name: Annotated[
        str | None,
        option("--served-model-name", "The model's name for clients. (default: its own)", _SERVER),
    ] = None,
    max_body_mb: Annotated[
        int, number("--max-body-mb", "Largest request body, in megabytes.", _SERVER)
    ] = 8,
    max_waiting: Annotated[
        int, number("--max-waiting", "Outputs that may wait for a slot; more get 429.", _SERVER)
    ] = 1024,
    time_limit: Annotated[
        float, number("--time-limit", "Seconds before a request is abandoned.", _SERVER, float)
    ] = 600.0,
    shutdown_time: Annotated[
        float, number("--shutdown-time", "Seconds for open requests after Ctrl-C.", _SERVER, float)
    ] = 30.0,
    page: Annotated[bool, option("--page/--no-page", "Serve a chat page at /.", _SERVER)] = True,
    model: shared.Model = None,
    tokenizer: shared.Tokenizer = None,
    dtype: shared.Dtype = "auto",
    quantize: shared.Quantize = None,
    kv_dtype: shared.KvDtype = None,
    tensor_parallel: shared.TensorParallel = None,
    batch_size: shared.BatchSize = None,
    prefix_slots: shared.PrefixSlots = 0,
    # Two flags: a pair of names as long as these would be cut in `--help`.
    no_enable_prefix_caching: Annotated[
        bool, option("--no-enable-prefix-caching", "Read all prompts in full.", "Model")
    ] = False,
    enable_prefix_caching: Annotated[
        bool, option("--enable-prefix-caching", "As by default.", "Model", hidden=True)
    ] = False,
    max_model_len: shared.MaxModelLen = None,
    exact: shared.Exact = False,
    method: shared.Method = "ems",
    drafter: shared.Drafter = None,
    draft_model: shared.DraftModel = None,
    draft_quantize: shared.DraftQuantize = None,
    draft_length: shared.DraftLength = None,
    max_ngram: shared.MaxNgram = None,
    min_ngram: shared.MinNgram = None,
    planner: shared.Planner = True,
    distributed: hosts.Distributed = False,
    coordinator_address: hosts.CoordinatorAddress = None,
    num_processes: hosts.NumProcesses = None,
    process_id: hosts.ProcessId = None,
    seed: Annotated[
        int, number("--seed", "Requests without a seed derive theirs from this.", _SERVER)
    ] = 0,
) -> Options:
    """Serve a model to clients of the OpenAI API."""
    given = locals()
    if enable_prefix_caching and no_enable_prefix_caching:
        raise UserError(
            "--enable-prefix-caching and --no-enable-prefix-caching contradict each other; give "
            "one of them."
        )
    given["enable_prefix_caching"] = not given.pop("no_enable_prefix_caching")
    return Options(**given)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit status, see `command`."""

    def body() -> int:
        options = command.parse(_app, "serve", arguments)
        if not isinstance(options, Options):
            return options
        check(options)
        _check_installed()
        from emsjax.serve.run import run

        return run(options)

    names = {"max_batch_size": "--batch-size", "tensor_parallel_size": "--tensor-parallel"}
    return command.run(body, _app, names)


def _check_installed() -> None:
    for name in _NEEDED:
        if find_spec(name) is None:
            raise UserError(
                f"the server needs {name}, which is not installed; pip install 'emsjax[serve]'."
            )


if __name__ == "__main__":
    sys.exit(main())
