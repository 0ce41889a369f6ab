"""The options that only the server has, one type each."""

from typing import Annotated

from emsjax.cli.declare import number, option

_SERVER = "Server"

Host = Annotated[
    str, option("--host", "Address to listen on; 0.0.0.0 for other machines.", _SERVER)
]
Port = Annotated[int, number("--port", "Port to listen on.", _SERVER)]
AllowedHosts = Annotated[
    str,
    option(
        "--allowed-hosts",
        "Further names for clients to call it by, comma-separated; * for any.",
        _SERVER,
        "NAMES",
    ),
]
ApiKey = Annotated[
    str | None,
    option(
        "--api-key",
        "Key that clients must send. (default: none)",
        _SERVER,
        "KEY",
        envvar="EMSJAX_API_KEY",
    ),
]
ServedModelName = Annotated[
    str | None,
    option("--served-model-name", "The model's name for clients. (default: its own)", _SERVER),
]
MaxBodyMb = Annotated[int, number("--max-body-mb", "Largest request body, in megabytes.", _SERVER)]
MaxWaiting = Annotated[
    int, number("--max-waiting", "Outputs that may wait for a slot; more get 429.", _SERVER)
]
TimeLimit = Annotated[
    float, number("--time-limit", "Seconds before a request is abandoned.", _SERVER, float)
]
ShutdownTime = Annotated[
    float, number("--shutdown-time", "Seconds for open requests after Ctrl-C.", _SERVER, float)
]
Page = Annotated[bool, option("--page/--no-page", "Serve a chat page at /.", _SERVER)]
# Two flags: a pair of names as long as these would be cut in `--help`.
NoEnablePrefixCaching = Annotated[
    bool, option("--no-enable-prefix-caching", "Read all prompts in full.", "Model")
]
EnablePrefixCaching = Annotated[
    bool, option("--enable-prefix-caching", "As by default.", "Model", hidden=True)
]
Seed = Annotated[int, number("--seed", "Requests without a seed derive theirs from this.", _SERVER)]
