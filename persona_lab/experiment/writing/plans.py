"""A plan of writing, ready to be carried out: who is written about, in how many documents, by which prompts, and at what cost.

    job = writing_job(load_writing("configs/writing/beach.yaml"))
    job.costs()         {"document": Cost(requests=800, tokens_in=594640, tokens_out=568960), ...}
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from data_gen.written.checks import Rules, rules_for
from data_gen.written.estimate import Cost, estimate, total
from data_gen.written.pipeline import Settings
from data_gen.written.prompts import load_prompts
from data_gen.written.quality import forbidden_wordings
from data_gen.written.schedule import Source
from data_gen.written.stages import Manner, Stages
from data_gen.written.universe import Subject, subjects
from persona_lab.config.writing import LoadedWriting


@dataclass(frozen=True)
class WritingJob:
    """What is to be written."""

    loaded: LoadedWriting
    stages: Stages
    settings: Settings

    @cached_property
    def subjects(self) -> list[Subject]:
        """Every persona."""
        return subjects(self.loaded.world, self.loaded.personas, self.loaded.writing.seed)

    @cached_property
    def wanted(self) -> dict[Source, int]:
        """Documents of each source."""
        plan = self.loaded.writing
        nameless = round(plan.documents * plan.anonymous)
        counts = {False: plan.documents - nameless, True: nameless}
        return {Source(s, anonymous): n for s in self.subjects for anonymous, n in counts.items() if n}

    @cached_property
    def rules(self) -> Rules:
        """What each document is held against."""
        return rules_for(self.stages.prompts, forbidden_wordings(self.loaded.world))

    @property
    def asked(self) -> dict[str, Any]:
        """What the texts depend on, JSON: a folder holds documents of one such."""
        people = [persona.model_dump(mode="json") for persona in self.loaded.personas]
        return {**self.loaded.writing.content, "world": self.loaded.world.model_dump(mode="json"), "personas": people, "prompts": self.stages.prompts.digest}

    def costs(self) -> dict[str, Cost]:
        """What each stage will cost."""
        return estimate(self.stages, self.settings, self.wanted)


def writing_job(loaded: LoadedWriting) -> WritingJob:
    """The job of a plan file."""
    plan = loaded.writing
    manner = Manner(plan.genres, plan.ideas, plan.writer.temperature, (plan.words[0], plan.words[1]))
    settings = Settings(plan.told, plan.round, plan.revise, plan.verify, plan.similarity, plan.most)
    return WritingJob(loaded, Stages(load_prompts(), manner), settings)


def costs_said(job: WritingJob) -> dict[str, Any]:
    """The estimate as JSON: each stage, and all of them with money and time."""
    author, costs = job.loaded.writing.writer, job.costs()
    whole = total(costs)
    return {
        "documents": sum(job.wanted.values()),
        "stages": {stage: vars(cost) for stage, cost in costs.items()},
        "total": {**vars(whole), "money": whole.money(author.price_in, author.price_out), "seconds": whole.seconds(author.speed, author.parallel)},
    }


def costs_words(job: WritingJob) -> str:
    """The estimate for people."""
    author, costs = job.loaded.writing.writer, job.costs()
    rows = [("stage", "requests", "tokens in", "tokens out"), *((stage, *(f"{n:,}" for n in vars(cost).values())) for stage, cost in {**costs, "all": total(costs)}.items())]
    whole = total(costs)
    table = [f"{row[0]:10}" + "".join(f"{cell:>14}" for cell in row[1:]) for row in rows]
    money = f"{whole.money(author.price_in, author.price_out):,.2f} at {author.price_in:g} and {author.price_out:g} for a million tokens in and out"
    hours = whole.seconds(author.speed, author.parallel) / 3600
    told = [f"{sum(job.wanted.values()):,} documents by {author.model or author.kind}", *table, f"cost  {money}"]
    return "\n".join([*told, f"time  {hours:.2g} hours at {author.speed:g} tokens a second in each of {author.parallel} requests at once", UNSAID])


UNSAID = "Every answer is taken to be usable; what is refused and written again comes on top in proportion."
