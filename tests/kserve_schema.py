"""KServe's schemas of our two kinds, cut down to kserve_schema.json: the whole ones have two million characters.

An object that our manifests have keeps the names and kinds of all its fields; one that they have not must be empty,
until this is made again of a clone of https://github.com/kserve/kserve, Apache License 2.0, by
``PYTHONPATH=tests python tests/kserve_schema.py CLONE``.
"""

import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jsonschema
import yaml
from deployed import KUBERNETES

SCHEMAS = Path(__file__).with_suffix(".json")
DEFINITIONS = "config/crd/full"
KEPT = ("type", "enum", "pattern", "minimum", "maximum", "minLength", "maxLength", "required", "minItems", "maxItems")
EMPTY = {"array": "maxItems", "object": "maxProperties"}
Schema = dict[str, Any]


def validate(manifest: Schema) -> None:
    """Raises jsonschema's ValidationError, of a field that KServe does not know too: it would be dropped unsaid."""
    known: dict[str, Schema] = json.loads(SCHEMAS.read_text())["schemas"]
    kind = f"{manifest['apiVersion']} {manifest['kind']}"
    if kind not in known:
        raise jsonschema.ValidationError(f"{kind} is none of {', '.join(known)}")
    jsonschema.validate(manifest, known[kind])


def reduced(schema: Schema, values: Iterable[Any]) -> Schema:
    """As much of a schema as these values of it need."""
    values = list(values)
    if not values and schema.get("type") in EMPTY:
        return {"type": schema["type"], EMPTY[schema["type"]]: 0}
    kept = {word: schema[word] for word in KEPT if word in schema}
    if schema.get("x-kubernetes-int-or-string"):
        return {**kept, "type": ["integer", "string"]}
    if "items" in schema:
        kept["items"] = reduced(schema["items"], [item for value in values for item in value])
    if "properties" in schema:
        kept["properties"] = {
            name: reduced(field, [value[name] for value in values if name in value])
            for name, field in schema["properties"].items()
        }
        kept["additionalProperties"] = False
    elif isinstance(schema.get("additionalProperties"), dict):
        inner = [item for value in values for item in value.values()]
        kept["additionalProperties"] = reduced(schema["additionalProperties"], inner)
    return kept


def main(clone: Path) -> None:
    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", clone, *words], capture_output=True, text=True, check=True).stdout

    schemas = {}
    for plural, file in (("servingruntimes", "runtime.yaml"), ("inferenceservices", "service.yaml")):
        definition = yaml.safe_load(git("show", f"HEAD:{DEFINITIONS}/serving.kserve.io_{plural}.yaml"))
        manifest = yaml.safe_load((KUBERNETES / "kserve" / file).read_text())
        spec = definition["spec"]
        (version,) = [one for one in spec["versions"] if f"{spec['group']}/{one['name']}" == manifest["apiVersion"]]
        whole = version["schema"]["openAPIV3Schema"]
        whole["required"] = ["apiVersion", "kind", "metadata", "spec"]
        schemas[f"{manifest['apiVersion']} {spec['names']['kind']}"] = reduced(whole, [manifest])
    commit = git("rev-parse", "HEAD").strip()
    made = {
        "origin": f"https://github.com/kserve/kserve/tree/{commit}/{DEFINITIONS}, cut down",
        "licence": "Apache-2.0, the KServe authors",
        "schemas": schemas,
    }
    SCHEMAS.write_text(json.dumps(made, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
