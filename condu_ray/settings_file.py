"""A file of settings: YAML, read so that a slip in it is named and not taken for something else."""

from __future__ import annotations

import re
from typing import Any

import yaml

from condu_ray.store.location import given

YAML_BYTES = 1_000_000
"""Largest file of settings that is read."""


class ConfigError(ValueError):
    """A setting that is unknown, of the wrong type or out of range; the message names it."""


class Loader(yaml.SafeLoader):
    """YAML's safe loader, which also refuses what is a slip or an attack in a file of settings."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Refuses aliases: a few hundred bytes of them can stand for gigabytes."""
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise yaml.MarkedYAMLError(
                problem="anchors and aliases are not read: write the values out", problem_mark=event.start_mark
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        """Refuses a key that is there twice, of which YAML would take the last one."""
        keys: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in keys:
                raise yaml.MarkedYAMLError(
                    problem=f"{key.value!r} is there twice: keep one", problem_mark=key.start_mark
                )
            keys.add(str(key.value))
        return super().construct_mapping(node, deep)

    def whole_number(self, node: Any) -> int:
        """Refuses what YAML 1.1 counts otherwise than people: 0100 by eights as 64, 1:30 by sixties as 90."""
        read, text = int(self.construct_yaml_int(node)), str(node.value).lstrip("+-")
        if ":" in text or re.fullmatch("0[0-9_]+", text):
            raise yaml.MarkedYAMLError(
                problem=f"{node.value} is {read} in YAML: write that, or the number without a leading 0, or a text in "
                "quotes",
                problem_mark=node.start_mark,
            )
        return read


Loader.add_constructor("tag:yaml.org,2002:int", Loader.whole_number)


def read_yaml(path: str) -> dict[str, Any]:
    """Reads a YAML file of settings.

    Raises:
        ConfigError: the file is missing, too large, not YAML, or not a mapping, or has aliases or a key twice.
    """
    try:
        with open(given(path), "rb") as file:
            content = file.read(YAML_BYTES + 1)
        if len(content) > YAML_BYTES:
            raise ConfigError(f"--config {path}: has more than {YAML_BYTES:,} bytes; give a file of settings")
        loaded = Loader(content.decode("utf-8")).get_single_data()
    except ConfigError:
        raise
    except FileNotFoundError as error:
        raise ConfigError(f"--config {path}: no such file") from error
    except RecursionError as error:
        raise ConfigError(f"--config {path}: cannot be read as YAML: too many levels in one another") from error
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"--config {path}: cannot be read as YAML: {error}") from error
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise ConfigError(f"--config {path}: expected a mapping of settings, found {type(loaded).__name__}")
    return loaded
