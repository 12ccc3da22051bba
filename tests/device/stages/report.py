"""Results of a stage."""

import json
import traceback
from collections.abc import Callable
from pathlib import Path


class Report(dict):
    """Results by name, written to a file at every change, so that a killed stage loses none."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def put(self, name: str, value: object) -> None:
        self[name] = value
        self.path.write_text(json.dumps(self, default=str))
        print(f"    {name}: {json.dumps(value, default=str)[:600]}", flush=True)

    def fail(self, name: str) -> None:
        self.put("failures", [*self.get("failures", []), name])

    def attempt(self, name: str, function: Callable, *arguments: object) -> None:
        """Put what `function` returns; where it raises, put the error, and let the stage go on."""
        try:
            value = function(*arguments)
        except Exception as error:
            traceback.print_exc()
            self.put(name, {"failed": f"{type(error).__name__}: {error}"[:500]})
            self.fail(name)
        else:
            self.put(name, value)
