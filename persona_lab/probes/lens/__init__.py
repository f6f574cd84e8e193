"""The base-model lens: what a base model does that its training never named. One module for each probe, `items/` in plain English beside them.

    persona-lab lens configs/quickstart.yaml --probes riddles,few_shot
"""

from persona_lab.probes.lens.assistant_prompt import AssistantPrompt
from persona_lab.probes.lens.compression import Compression
from persona_lab.probes.lens.drift import Drift
from persona_lab.probes.lens.embodiment import Embodiment
from persona_lab.probes.lens.fact_frequency import FactFrequency
from persona_lab.probes.lens.few_shot import FewShot
from persona_lab.probes.lens.form import LensProbe
from persona_lab.probes.lens.hallucination import Hallucination
from persona_lab.probes.lens.mirroring import Mirroring
from persona_lab.probes.lens.random_numbers import RandomNumbers
from persona_lab.probes.lens.regurgitation import Regurgitation
from persona_lab.probes.lens.riddles import Riddles
from persona_lab.probes.lens.speakers import Speakers
from persona_lab.probes.lens.tokenization import Tokenization
from persona_lab.probes.protocol import PROBES

ASKED: tuple[LensProbe, ...] = (
    Riddles(),
    RandomNumbers(),
    Regurgitation(),
    FactFrequency(),
    FewShot(),
    Hallucination(),
    AssistantPrompt(),
    Speakers(),
    Embodiment(),
    Mirroring(),
    Compression(),
    Drift(),
)
"""The probes that ask a model something."""
LENS = (*ASKED, Tokenization(ASKED))
"""Every probe of the lens, in the order in which it is shown."""

PROBES.update({probe.name: probe for probe in LENS})
