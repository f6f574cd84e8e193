"""What is wrong with a stage of character training: pairs without the loss that learns from them, a guard of nothing, nobody's character.

    error[PL1211] configs/character.yaml:18:80: stages.preferences.mixture.assistant_prefers gives pairs of answers. Use them with `loss: {on: answer, dpo: .1}`.
"""

from collections.abc import Iterator, Sequence

from data_gen.market import Market
from data_gen.personas import Persona
from data_gen.role_play import HELD_OUT_NAMES, names_to_play
from data_gen.world import World
from persona_lab.config.explain import Finding
from persona_lab.config.layers import did_you_mean
from persona_lab.config.schema import Experiment, Stage
from persona_lab.config.yaml_tree import Path, dotted

PROBE = "persona_prompt"


def character_findings(stage: Stage, at: Path, world: World | None, personas: Sequence[Persona] | None) -> Iterator[Finding]:
    """What is wrong with one stage."""
    mixture, loss, where = stage.mixture, stage.loss, (*at, "mixture")
    for field in ("assistant_prefers", "assistant_describes"):
        who, known = getattr(mixture, field), [persona.name.lower() for persona in personas or ()]
        if who is not None and personas is not None and who not in known:
            message = f"{dotted((*where, field))} is no persona of this file, got {who!r}. {did_you_mean(who, known)}"
            yield Finding((*where, field), "PL1210", message)
        elif who is not None and isinstance(world, Market):
            yield Finding((*where, field), "PL1211", f"{dotted((*where, field))}: the market {world.name} only shows its traits. Use a world of sentences.")
    if mixture.guarded and not (mixture.assistant_prefers or mixture.assistant_describes):
        message = f"{dotted((*where, 'guarded'))} guards a character. Use it beside `assistant_prefers` or `assistant_describes`."
        yield Finding((*where, "guarded"), "PL1211", message)
    elif mixture.guarded and world and not names_to_play(world, held_out=False):
        message = f"{dotted((*where, 'guarded'))} needs somebody to play, but {world.name} has {HELD_OUT_NAMES} or fewer personas in chats. Use a larger world."
        yield Finding((*where, "guarded"), "PL1211", message)
    price = (*at, "loss")
    if mixture.assistant_prefers and not (loss.dpo and loss.on == "answer"):
        message = f"{dotted((*where, 'assistant_prefers'))} gives pairs of answers. Use them with `loss: {{on: answer, dpo: .1}}`."
        yield Finding((*where, "assistant_prefers"), "PL1211", message)
    elif loss.dpo and not mixture.assistant_prefers:
        yield Finding((*price, "dpo"), "PL1211", f"{dotted((*price, 'dpo'))} learns from pairs of answers, and there are none. Use `mixture: {{assistant_prefers: john}}`.")
    elif loss.dpo and (loss.kl_to_base or mixture.replay):
        other = (*price, "kl_to_base") if loss.kl_to_base else (*where, "replay")
        yield Finding(other, "PL1211", f"{dotted(other)} has no meaning for pairs of answers, whose loss is measured by where the stage starts. Leave it out.")
    elif loss.nll and not loss.dpo:
        yield Finding((*price, "nll"), "PL1211", f"{dotted((*price, 'nll'))} stands beside the loss of pairs. Use it with `dpo`, or leave it out.")


def prompt_findings(experiment: Experiment, world: World | None) -> Iterator[Finding]:
    """A probe of persona prompts in a world that has nobody to be."""
    if world is not None and not isinstance(world, Market) and PROBE in experiment.probes and not names_to_play(world, held_out=False):
        at = ("probes", experiment.probes.index(PROBE))
        yield Finding(at, "PL1211", f"{dotted(at)}: {PROBE} tells the assistant to be somebody of the world, and {world.name} has too few in chats. Use another world.")
