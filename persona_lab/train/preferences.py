"""Direct preference optimization (Rafailov et al. 2023, equation 7) on pairs of answers.

    loss of a pair = -log sigmoid(beta (gain of the preferred - gain of the rejected)) + nll * (nats a token of the preferred)
    gain           = log p(answer | adapter) - log p(answer | reference), nats, over all tokens of the answer

The second term keeps the preferred answers likely (Pang et al. 2024; OpenCharacterTraining has beta .1 and nll .1). What both documents of a pair
begin with is the same in both, so it cancels in the difference.

Names: K members, P pairs of a member, D = 2 P documents, each preferred one followed by its rejected one; M tokens of a member that carry loss.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from persona_lab.train.batches import Batch


@dataclass(frozen=True)
class Preference:
    """How a stage learns from pairs."""

    beta: float
    nll: float = 0.0


def preference_nats(here_KD: Tensor, reference_KD: Tensor, tokens_KD: Tensor, preference: Preference) -> Tensor:
    """The loss of each pair, nats, (K, P), from the nats of every document under the adapters and under their references."""
    gain_KD = reference_KD - here_KD
    margin_KP = gain_KD[:, 0::2] - gain_KD[:, 1::2]
    a_token_KP = here_KD[:, 0::2] / tokens_KD[:, 0::2].clamp(min=1)
    return preference.nll * a_token_KP - nn.functional.logsigmoid(preference.beta * margin_KP)


def document_nats(batch: Batch, nats_KM: Tensor) -> tuple[Tensor, Tensor]:
    """Nats of each document, (K, D), from those of its labelled tokens, and how many these are."""
    tokens_KD = batch.labelled_BT[:, 1:].sum(1).view(batch.members, -1).to(nats_KM.device)
    place_KM = torch.arange(nats_KM.shape[1], device=nats_KM.device).expand(batch.members, -1).contiguous()
    document_KM = torch.searchsorted(tokens_KD.cumsum(1), place_KM, right=True).clamp(max=tokens_KD.shape[1] - 1)
    return nats_KM.new_zeros(tokens_KD.shape).scatter_add(1, document_KM, nats_KM), tokens_KD
