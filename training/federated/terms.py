"""What a server tells a site before they begin."""

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from serving.bundle import read_json
from training.models import load_family

if TYPE_CHECKING:
    from training.models.dmgan_image import DmGanPreset

PROTOCOL = 1


@dataclass(frozen=True)
class Terms:
    """Of a run: its model, the fields of its preset, its seed, and the sha256 of the weights of G1's prior."""

    model: str
    preset: "DmGanPreset"
    seed: int
    prior: str

    def to_json(self) -> dict[str, Any]:
        preset = {**asdict(self.preset), "vgg16": None}  # a path of the server's, where alone it is of use
        fields = {"protocol": PROTOCOL, "model": self.model, "preset": preset, "seed": self.seed, "prior": self.prior}
        return read_json(json.dumps(fields))

    @classmethod
    def from_json(cls, fields: Any) -> "Terms":
        """Raises ValueError if they are of another medgen."""
        if not isinstance(fields, dict) or fields.get("protocol") != PROTOCOL:
            raise ValueError("the server's medgen is of another version than this one")
        preset: Any = load_family(fields["model"]).presets["small"].replaced(fields["preset"])
        return cls(fields["model"], preset, fields["seed"], fields["prior"])

    @property
    def digest(self) -> str:
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()
