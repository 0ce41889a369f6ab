"""The command line of the server: `python -m emsjax.serve`."""

import sys
from collections.abc import Sequence
from importlib.util import find_spec

from emsjax.cli import command
from emsjax.cli import hosts_options as hosts
from emsjax.cli import model_options as shared
from emsjax.errors import UserError
from emsjax.serve import own_options as own
from emsjax.serve.options import Options, check

_app = command.new_app()
_NEEDED = ("fastapi", "uvicorn", "prometheus_client")


@_app.command()
def _serve(
    host: own.Host = "127.0.0.1",
    port: own.Port = 8000,
    allowed_hosts: own.AllowedHosts = "",
    api_key: own.ApiKey = None,
    served_model_name: own.ServedModelName = None,
    max_body_mb: own.MaxBodyMb = 8,
    max_waiting: own.MaxWaiting = 1024,
    time_limit: own.TimeLimit = 600.0,
    shutdown_time: own.ShutdownTime = 30.0,
    page: own.Page = True,
    model: shared.Model = None,
    tokenizer: shared.Tokenizer = None,
    dtype: shared.Dtype = "auto",
    quantize: shared.Quantize = None,
    kv_dtype: shared.KvDtype = None,
    tensor_parallel: shared.TensorParallel = None,
    batch_size: shared.BatchSize = None,
    prefix_slots: shared.PrefixSlots = 0,
    no_enable_prefix_caching: own.NoEnablePrefixCaching = False,
    enable_prefix_caching: own.EnablePrefixCaching = False,
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
    seed: own.Seed = 0,
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
