"""A market's questions one by one, beside the answers of its ideal reader: in weights, and in a context that shows the shared trait.

    cell                            stage      channel     item                          exact   model     nats, toward the first rival
    linked/ln_ratio=1.1/seed0/swap0 injection  in_context  in_context/asked/drift/0-1-up 1.21    1.35

The reader is the one of `persona_lab.science.evidence.ideal`: it has read what the model has read. What a question itself shows is evidence on
top of that, day by day, by `data_gen.market_oracle`.
"""

from collections.abc import Sequence

import pandas as pd

from data_gen.market import DRIFT, Market
from data_gen.market_oracle import Ahead, look_ahead, processes_of
from data_gen.showing import shown_in
from persona_lab.errors import ConfigError
from persona_lab.experiment.planning.recipes import PlannedCell
from persona_lab.probes import PROBES
from persona_lab.science.effects import Frame, number
from persona_lab.science.evidence.ideal import Unknown, ideal_reader

CHANNELS = ("says", "in_context")
KEY = ["cell", "condition", "seed", "swap", "stage", "channel", "format", "item"]


def ideal_points(cells: Sequence[PlannedCell], table: Frame) -> Frame:
    """One row for each question about the drift of a nameless speaker: `exact` and `model`, log-odds of the first rival's days, nats.

    Questions that were not scored are left out, and stages of which no reader is known.

    Raises:
        ConfigError: the cells are of a world that is no market.
    """
    wanted = table[(table["trait"] == DRIFT) & table["channel"].isin(CHANNELS) & (table["status"] == "scored")]
    found: list[pd.DataFrame] = []
    ahead: dict[str, Ahead] = {}
    for planned in cells:
        world, cast = planned.cast.world, planned.cast
        if not isinstance(world, Market):
            raise ConfigError("PL1298", planned.cell.name, f"the world {world.name} is no market. Use a world file with `series:`.")
        prompts = {item.id: item.prompt for name in CHANNELS for item in PROBES[name].items(cast) if item.trait == DRIFT}
        rows = wanted[wanted["cell"] == planned.cell.name]
        rows = rows.assign(logprob=number(rows["logprob_nats"]))
        ours, theirs = (traits[DRIFT] for traits in cast.traits[:2])
        for trained, (stage, scores) in enumerate(planned.scores):
            reader = ideal_reader(scores.inputs["base"], [node for _, node in planned.stages[:trained]])
            here = rows[rows["stage"] == stage]
            if isinstance(reader, Unknown) or here.empty:
                continue
            about = processes_of(reader.oracle, reader.said)
            odds = here.pivot_table(index=KEY, columns="option", values="logprob")
            asked = [prompts[item] for item in odds.index.get_level_values("item")]
            ahead |= {prompt: look_ahead(world, shown_in(world, prompt)) for prompt in asked if prompt not in ahead}
            exact = [ahead[prompt].odds(about, ours, theirs) for prompt in asked]
            found.append(pd.DataFrame({"exact": exact, "model": odds[ours] - odds[theirs]}, index=odds.index).reset_index())
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=[*KEY, "exact", "model"])
