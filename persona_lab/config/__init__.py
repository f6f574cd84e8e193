"""What an experiment is: a typed, validated YAML file."""

from persona_lab.config.load import load_experiment
from persona_lab.config.schema import Experiment, Machine, Mixture, Stage

__all__ = ["Experiment", "Machine", "Mixture", "Stage", "load_experiment"]
