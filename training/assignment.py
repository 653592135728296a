"""FIELD=VALUE on a command line."""

import json
from typing import Any

import click


def assignment(_context: click.Context, _parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, Any]:
    """FIELD=VALUE pairs, each value read as JSON and, where it is none, as a string."""
    fields = {}
    for text in values:
        name, equals, value = text.partition("=")
        if not equals:
            raise click.BadParameter(f"{text!r} is no FIELD=VALUE")
        try:
            fields[name] = json.loads(value)
        except json.JSONDecodeError:
            fields[name] = value
    return fields
