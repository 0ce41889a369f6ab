"""Loads the model, and serves it until the command is interrupted."""

import sys

import uvicorn

from emsjax.cli.interrupts import interrupts_wait
from emsjax.serve.app import make_app
from emsjax.serve.backend import Backend, Settings
from emsjax.serve.options import Options


def run(options: Options) -> int:
    """Serves until SIGINT or SIGTERM; requests that are open then have some time to finish.

    Returns:
      The exit status: 0 after a shutdown that was asked for, 1 if the port cannot be used.

    Raises:
      UserError: the model cannot be loaded.
    """
    with interrupts_wait():
        from emsjax.llm import LLM

    backend = Backend(LLM(**options.engine()), settings_of(options))
    server = uvicorn.Server(
        uvicorn.Config(
            make_app(backend),
            host=options.host,
            port=options.port,
            lifespan="on",
            log_level="warning",
            server_header=False,
            timeout_graceful_shutdown=max(1, round(options.shutdown_time)),
        )
    )
    # The system shows a command line to everyone, so the key is not printed either.
    print(
        f"serving {backend.name} at http://{options.host}:{options.port}/v1, "
        f"{'with' if options.api_key else 'without'} a key; Ctrl-C ends it",
        file=sys.stderr,
        flush=True,
    )
    try:
        server.run()
    except KeyboardInterrupt:  # raised again after the shutdown that it caused
        if not server.started:
            raise
    finally:
        backend.close()
    return 0 if server.started else 1


def settings_of(options: Options) -> Settings:
    """Returns the options that concern clients."""
    return Settings(
        name=options.served_model_name,
        api_key=options.api_key,
        max_body=options.max_body_mb << 20,
        most_waiting=options.max_waiting,
        time_limit=options.time_limit,
    )
