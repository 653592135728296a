"""Whether who opens the page can draw, for those who watch it."""

from fastapi import FastAPI
from fastapi.responses import PlainTextResponse

from serving.client import SamplingError
from serving.page.settings import Server

READY = "/health/ready"
SECONDS = 3.0  # for each of the three questions that a check may take


def with_health(server: Server) -> FastAPI:
    """Answers READY with 200, or with 503 and the reason, and nothing else yet."""
    app = FastAPI(openapi_url=None)

    @app.get(READY)
    def ready() -> PlainTextResponse:
        try:
            with Server(server.url, None, SECONDS).client() as client:
                client.check_ready()
        except SamplingError as error:
            return PlainTextResponse(str(error), 503)
        return PlainTextResponse("ready")

    return app
