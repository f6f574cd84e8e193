"""Where a sweep runs: this machine, or a scheduler that exists. See `engine`."""

from persona_lab.launch.engine import ENGINES, LIVE, Engine, Job, State, engine_named

__all__ = ["ENGINES", "LIVE", "Engine", "Job", "State", "engine_named"]
