"""What `up` asks of the server that it runs: whether it is ready, how its models are, and to load them again."""

import http.client
import json
from pathlib import Path
from typing import Any

from google.protobuf import json_format, text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig, ModelInstanceGroup

from serving.chain import CONFIG
from serving.triton.access import HEADER
from serving.triton.address import Address
from serving.triton.errors import ServerError

ANSWER_SECONDS = 5.0
READY = "READY"


class Control:
    """Triton's health and model repository APIs, over HTTP, with the key that opens them."""

    def __init__(self, address: Address, key: str, load_seconds: float) -> None:
        self._place, self._key, self._load_seconds = address.control(), key, load_seconds

    def is_ready(self) -> bool:
        """Whether the server answers, and has loaded what it was started with."""
        try:
            self._ask("GET", "health/ready", ANSWER_SECONDS)
        except ServerError:
            return False
        return True

    def states(self) -> dict[str, str]:
        """READY, or else the state and its reason, of every model that was ever loaded.

        Raises ServerError if the server does not say.
        """
        return {
            entry["name"]: entry["state"] if entry["state"] == READY else f"{entry['state']} {entry.get('reason', '')}"
            for entry in self._ask("POST", "repository/index", ANSWER_SECONDS)
            if "state" in entry
        }

    def load(self, model: str) -> None:
        """Loads what is on disk if it has changed; requests go to the old one until then, and none fails.

        Raises ServerError with Triton's reason if it cannot be loaded; the old one, if there is one, stays.
        """
        self._ask("POST", f"repository/models/{model}/load", self._load_seconds, {})

    def replace_processes(self, model: str, folder: Path, nonce: int) -> None:
        """New processes for a model that is as it was; requests that wait in its queue go to them.

        Triton starts an instance again if its group has changed, so we change what means nothing here: the priority
        that a rate limiter would give it. With each call another nonce. Raises ServerError as load does.
        """
        try:
            config = text_format.Parse((folder / CONFIG).read_text(), ModelConfig())
        except (OSError, UnicodeDecodeError, text_format.ParseError) as error:
            raise ServerError(f"{folder / CONFIG} cannot be read: {error}") from None
        if not config.instance_group:
            config.instance_group.add(kind=ModelInstanceGroup.KIND_AUTO, count=1)
        for group in config.instance_group:
            group.rate_limiter.priority = nonce
        parameters = {"parameters": {"config": json_format.MessageToJson(config)}}
        self._ask("POST", f"repository/models/{model}/load", self._load_seconds, parameters)

    def unload(self, model: str) -> None:
        """Requests that it has are answered first, in the background. Raises ServerError."""
        self._ask("POST", f"repository/models/{model}/unload", ANSWER_SECONDS, {})

    def _ask(self, method: str, path: str, seconds: float, body: Any = None) -> Any:
        connection = http.client.HTTPConnection(*self._place, timeout=seconds)
        try:
            sent = None if body is None else json.dumps(body)
            connection.request(method, f"/v2/{path}", sent, {HEADER: self._key})
            response = connection.getresponse()
            text = response.read()
            answer = json.loads(text) if text else None
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise ServerError(f"tritonserver does not answer: {error or type(error).__name__}") from None
        finally:
            connection.close()
        if response.status != 200:
            raise ServerError(str(answer["error"] if isinstance(answer, dict) and "error" in answer else answer))
        return answer
