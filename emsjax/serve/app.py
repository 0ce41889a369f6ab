"""The routes of the server."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from fastapi import FastAPI
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from emsjax.errors import UserError
from emsjax.loading.hf.tokenizer import decode
from emsjax.serve import body
from emsjax.serve.answers import Answer, ChatAnswer, TextAnswer
from emsjax.serve.backend import Backend, Call
from emsjax.serve.body import Asked, Fields
from emsjax.serve.chat_page import chat_page
from emsjax.serve.errors import api_error
from emsjax.serve.guards import Guarded, error_response, json_response
from emsjax.version import __version__


class _Events(StreamingResponse):
    """Server-sent events of a call, which ends with the connection at the latest."""

    def __init__(self, answer: Answer, call: Call):
        super().__init__(answer.events(call), media_type="text/event-stream")
        self._call = call

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._call.give_up()


def make_app(backend: Backend) -> ASGIApp:
    """Returns the app, which closes the backend when the server shuts down."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        backend.close()

    # The pages about the API that FastAPI writes would be loaded from another site, and empty.
    app = FastAPI(lifespan=lifespan, openapi_url=None)
    _add_errors(app)
    _add_generation(app, backend)
    _add_tokens(app, backend)
    _add_state(app, backend)
    if backend.traces:
        _add_page(app, backend)
    settings = backend.settings
    return Guarded(app, api_key=settings.api_key, max_body=settings.max_body, hosts=settings.hosts)


def _add_errors(app: FastAPI) -> None:
    async def in_the_form_of_the_api(_: Request, error: Exception) -> Response:
        return error_response(api_error(error))

    for status in (404, 405):
        app.add_exception_handler(status, in_the_form_of_the_api)
    app.add_exception_handler(Exception, in_the_form_of_the_api)


def _route(
    answer: Callable[[Fields], Awaitable[Response]],
) -> Callable[[Request], Awaitable[Response]]:
    """Makes a route from a function of the body's fields."""

    async def route(request: Request) -> Response:
        try:
            return await answer(body.read_fields(await request.body()))
        except Exception as error:
            shown = api_error(error)
            if shown.status == 500:
                raise  # to the server's log; the handler answers
            return error_response(shown)

    return route


def _add_generation(app: FastAPI, backend: Backend) -> None:
    async def generate(
        given: Fields, read: Callable[[Fields], Asked], kind: type[Answer]
    ) -> Response:
        body.check_model(given, backend.name)
        asked = read(given)
        answer = kind(backend, asked)
        call = await backend.start(asked, answer.id)
        return _Events(answer, call) if asked.stream else json_response(await answer.whole(call))

    async def completions(given: Fields) -> Response:
        return await generate(given, body.completion_of, TextAnswer)

    async def chat(given: Fields) -> Response:
        return await generate(given, body.chat_of, ChatAnswer)

    app.add_route("/v1/completions", _route(completions), ["POST"])
    app.add_route("/v1/chat/completions", _route(chat), ["POST"])


def _add_tokens(app: FastAPI, backend: Backend) -> None:
    async def tokenize(given: Fields) -> Response:
        body.check_model(given, backend.name)
        chat = None
        if "messages" in given:
            prompt, chat = body.messages_of(given), body.chat_options(given)
        else:
            prompt = given.pop("prompt", None)
            if not isinstance(prompt, str):
                raise UserError("give the text as prompt, or messages")
        body.refuse_others(given, "/tokenize")
        tokens = await backend.off_loop(lambda: backend.llm.tokenize(prompt, chat))
        longest = backend.llm.max_model_len
        return json_response(
            {"count": len(tokens), "max_model_len": longest, "tokens": list(tokens)}
        )

    async def detokenize(given: Fields) -> Response:
        body.check_model(given, backend.name)
        tokens = body.token_ids(given.pop("tokens", None), "tokens")
        body.refuse_others(given, "/detokenize")
        size = backend.llm.target.vocab_size
        for token in tokens:
            if not 0 <= token < size:
                raise UserError(f"token id {token} is outside the vocabulary of {size} tokens")
        tokenizer = backend.llm.get_tokenizer()
        return json_response({"prompt": await backend.off_loop(lambda: decode(tokenizer, tokens))})

    app.add_route("/tokenize", _route(tokenize), ["POST"])
    app.add_route("/detokenize", _route(detokenize), ["POST"])


def _add_state(app: FastAPI, backend: Backend) -> None:
    model = {
        "id": backend.name,
        "object": "model",
        "created": 0,
        "owned_by": "emsjax",
        "root": backend.llm.name,
        "max_model_len": backend.llm.max_model_len,
    }

    async def models(_: Request) -> Response:
        return json_response({"object": "list", "data": [model]})

    async def one_model(request: Request) -> Response:
        name = request.path_params["name"]
        if name != backend.name:
            return error_response(body.unknown_model(name, backend.name))
        return json_response(model)

    async def health(_: Request) -> Response:
        return Response(status_code=200 if backend.service.alive else 503)

    async def version(_: Request) -> Response:
        return json_response({"version": __version__})

    async def metrics(_: Request) -> Response:
        return Response(backend.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    for path, route in (
        ("/v1/models", models),
        ("/v1/models/{name:path}", one_model),
        ("/health", health),
        ("/version", version),
        ("/metrics", metrics),
    ):
        app.add_route(path, route, ["GET"])


def _add_page(app: FastAPI, backend: Backend) -> None:
    page = chat_page(needs_key=backend.settings.api_key is not None)

    async def show(_: Request) -> Response:
        return Response(page.html, headers=page.headers, media_type="text/html")

    app.add_route("/", show, ["GET"])
