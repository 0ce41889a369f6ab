"""The command line of the server: `python -m emsjax.serve`."""

import sys
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Annotated, Any

import typer

from emsjax.cli import command
from emsjax.cli.devices_option import devices_option
from emsjax.errors import UserError
from emsjax.limits import DRAFTERS
from emsjax.serve.options import Options, check

_app = command.new_app()
_SERVER, _MODEL, _DRAFTING = "Server", "Model", "Drafting"
_NEEDED = ("fastapi", "uvicorn", "prometheus_client")


def _option(flag: str, text: str, panel: str, metavar: str | None = None, **more: Any) -> Any:
    return typer.Option(flag, help=text, rich_help_panel=panel, metavar=metavar, **more)


@_app.command()
def _serve(
    host: Annotated[
        str, _option("--host", "Address to listen at; 0.0.0.0 for other machines.", _SERVER)
    ] = "127.0.0.1",
    port: Annotated[int, _option("--port", "Port to listen at.", _SERVER, "N")] = 8000,
    api_key: Annotated[
        str | None,
        _option(
            "--api-key",
            "Key that clients must send. (default: none)",
            _SERVER,
            "KEY",
            envvar="EMSJAX_API_KEY",
        ),
    ] = None,
    served_model_name: Annotated[
        str | None,
        _option("--served-model-name", "The model's name for clients. (default: its own)", _SERVER),
    ] = None,
    max_body_mb: Annotated[
        int, _option("--max-body-mb", "Most megabytes of a request.", _SERVER, "N")
    ] = 8,
    max_waiting: Annotated[
        int, _option("--max-waiting", "Most outputs that wait; then 429.", _SERVER, "N")
    ] = 1024,
    time_limit: Annotated[
        float, _option("--time-limit", "Seconds until a request is given up.", _SERVER, "S")
    ] = 600.0,
    shutdown_time: Annotated[
        float, _option("--shutdown-time", "Seconds to finish after Ctrl-C.", _SERVER, "S")
    ] = 30.0,
    model: Annotated[
        str | None,
        _option("--model", "Directory or hub id. (default: SmolLM2-135M-Instruct)", _MODEL),
    ] = None,
    tokenizer: Annotated[
        str | None, _option("--tokenizer", "Directory or hub id. (default: the model's)", _MODEL)
    ] = None,
    dtype: Annotated[
        str, _option("--dtype", "auto, float32, bfloat16 or float16.", _MODEL, "TYPE")
    ] = "auto",
    quantize: Annotated[
        str | None,
        _option("--quantize", "int8: half the weights' memory. (default: none)", _MODEL, "int8"),
    ] = None,
    kv_dtype: Annotated[
        str | None,
        _option("--kv-dtype", "int8: half the cache's memory. (default: none)", _MODEL, "int8"),
    ] = None,
    tensor_parallel: Annotated[Any, devices_option(_MODEL)] = None,
    batch_size: Annotated[
        int | None, _option("--batch-size", "Outputs decoded together. (default: 8)", _MODEL, "N")
    ] = None,
    prefix_slots: Annotated[
        int,
        _option("--prefix-slots", "More slots that keep texts to share. (default: 0)", _MODEL, "N"),
    ] = 0,
    max_model_len: Annotated[
        int | None,
        _option("--max-model-len", "Limit on prompt plus output, in tokens.", _MODEL, "N"),
    ] = None,
    exact: Annotated[
        bool, _option("--exact", "Match plain decoding bit for bit; slower.", _MODEL)
    ] = False,
    seed: Annotated[
        int, _option("--seed", "Requests without a seed derive theirs from it.", _MODEL, "N")
    ] = 0,
    method: Annotated[
        str, _option("--method", "ems, or none for plain decoding.", _DRAFTING, "METHOD")
    ] = "ems",
    drafter: Annotated[
        str | None,
        _option("--drafter", f"{', '.join(DRAFTERS)}. (default: the best available)", _DRAFTING),
    ] = None,
    draft_model: Annotated[
        str | None,
        _option("--draft-model", "A smaller model, a trained draft, or own-layers.", _DRAFTING),
    ] = None,
    draft_quantize: Annotated[
        str | None,
        _option("--draft-quantize", "As --quantize, of a draft model.", _DRAFTING, "int8"),
    ] = None,
    draft_length: Annotated[
        int | None,
        _option("--draft-length", "Maximum draft tokens per step. (default: 7)", _DRAFTING, "N"),
    ] = None,
    planner: Annotated[
        bool, _option("--planner/--no-planner", "Verify only drafts that pay off.", _DRAFTING)
    ] = True,
) -> Options:
    """Serve a model to clients of the OpenAI API."""
    return Options(**locals())


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
