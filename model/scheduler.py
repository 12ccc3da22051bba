"""`scheduler_config.json`, as it was given."""

import json
from pathlib import Path

from diffusers import SchedulerMixin

from ..core.files import write_json
from ..core.schema import JsonObject


def scheduler_config(scheduler: SchedulerMixin) -> JsonObject:
    """The settings that were given to `scheduler`, and the name of its class.

    Without the defaults that diffusers adds to them: what is left out takes those of the class that reads it.
    """
    added = scheduler.config.get("_use_default_values", ())
    return {key: value for key, value in json.loads(scheduler.to_json_string()).items() if key not in added}


def write_scheduler(scheduler: SchedulerMixin, folder: Path) -> None:
    folder.mkdir()
    write_json(folder / "scheduler_config.json", scheduler_config(scheduler))
