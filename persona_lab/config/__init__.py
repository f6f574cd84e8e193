"""What an experiment is: a typed, validated YAML file, and the cells that it expands into."""

from persona_lab.config.expand import Cell, expand
from persona_lab.config.load import LoadedExperiment, load_experiment, load_persona, load_world
from persona_lab.config.mixtures import Mixture
from persona_lab.config.schema import Experiment, Machine, Stage

__all__ = ["Cell", "Experiment", "LoadedExperiment", "Machine", "Mixture", "Stage", "expand", "load_experiment", "load_persona", "load_world"]
