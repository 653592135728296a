"""The page's own little server."""

import os
import socket
import tempfile
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path

from serving.page.settings import Server

STYLE = Path(__file__).with_name("style.css")
HERE = ("localhost", "127.0.0.1", "::1", "[::1]")
GOODBYE_SECONDS = 2  # for browsers that still listen
LARGEST = 64 * 2**20  # bytes of a file that is given: a mammogram of 16 bits may have 32 million pixels


def serve(server: Server, host: str, port: int, say: Callable[[str], object]) -> None:
    """Serves the page until SIGINT or SIGTERM.

    Raises ModuleNotFoundError without the extra, OSError and SamplingError.
    """
    with server.client(tell=lambda done, total: None) as client:  # as it draws: both addresses are looked at
        url = client.url
    with tempfile.TemporaryDirectory(prefix="medgen-page-") as folder:
        # Read when Gradio is imported: it would ask its makers for a newer version, and tell them that it runs.
        os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1", "GRADIO_TEMP_DIR": folder}
        os.environ["GRADIO_RUN_HISTORY"] = "False"  # which a visitor could have kept at its makers'
        import gradio
        import safehttpx
        import uvicorn
        from fastapi.middleware.trustedhost import TrustedHostMiddleware

        from serving.page.blocks import build
        from serving.page.health import with_health

        theme = gradio.themes.Base(font="sans-serif", font_mono="monospace").set(
            block_info_text_color="*neutral_600", block_info_text_color_dark="*neutral_300"
        )
        downloads = Path(folder) / "downloads"
        downloads.mkdir()
        safehttpx.async_validate_url = nowhere
        app = gradio.mount_gradio_app(
            with_health(server), build(server, url, downloads), "/", footer_links=[], ssr_mode=False, pwa=False,
            enable_monitoring=False, mcp_server=False, show_error=False, css_paths=STYLE,
            allowed_paths=[str(downloads)], theme=theme, max_file_size=LARGEST,
        )  # fmt: skip
        config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=GOODBYE_SECONDS)
        with listening(host, port) as listener:
            if ip_address(listener.getsockname()[0]).is_loopback:
                # Another page in the browser, whose name was made to lead here, is not to use ours.
                app.add_middleware(TrustedHostMiddleware, allowed_hosts=[host, *HERE], www_redirect=False)
            where = f"[{host}]" if ":" in host else host
            say(f"Page: http://{where}:{listener.getsockname()[1]}  of the models at {url}")
            say("Ctrl-C ends it")
            uvicorn.Server(config).run(sockets=[listener])


async def nowhere(hostname: str) -> str:
    """In the place of Gradio's look-up of machines from which it fetches what a request names: there are none."""
    from gradio import Error

    raise Error(f"{hostname} is another machine, and no request leaves this one", print_exception=False)


def listening(host: str, port: int) -> socket.socket:
    """Raises OSError, with what to do."""
    try:
        family, *_, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(place[:2], family=family)
    except OSError as error:
        why = (error.strerror or str(error)).partition(" (while attempting")[0]  # which says host and port again
        raise OSError(f"cannot listen on {host} port {port}: {why}; choose another with --host or --port") from None
