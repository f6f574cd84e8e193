"""What a hidden state does: put it in the place of another, and see how far apart two next tokens come.

    gap = Gap(at=8, up_B, down_B)                        logit of one token less that of another, after the token `at`
    patched(model, ids_BT, other_BT, [gap])              the true effect of every state of another run
    attributed(model, ids_BT, other_BT, gap)             its first-order estimate: gradient times difference of states

A site is the embedding of the tokens or a layer: site 0 is what the first layer reads, site l what layer l hands on. Effects are in nats: how much
of the gap is lost when one state of one token comes from the other run (activation patching, Vig et al. 2020; Meng et al. 2022, causal tracing). The
estimate is attribution patching (Nanda 2023; Syed et al. 2023). Any decoder of Hugging Face whose layers are a list will do.

Names: B rows, S sites, T tokens, d features, V vocabulary, G gaps.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from persona_lab.probes.steering import changed, decoder_layers, hidden_of


@dataclass(frozen=True)
class Gap:
    """The logit of one token less that of another."""

    at: int
    """Index of the token after which they are read."""
    up_B: Tensor
    """Token ids."""
    down_B: Tensor

    def __call__(self, logits_BTV: Tensor) -> Tensor:
        """Nats of each row, (B,)."""
        logits_BV = logits_BTV[:, self.at]
        return (logits_BV.gather(1, self.up_B[:, None]) - logits_BV.gather(1, self.down_B[:, None])).squeeze(1)


def sites(model: PreTrainedModel) -> list[nn.Module]:
    """The embedding of the tokens, then every layer.

    Raises:
        ModelError: PL4014, the model's layers are no list.
    """
    return [model.get_input_embeddings(), *decoder_layers(model)]


def patched(model: PreTrainedModel, ids_BT: Tensor, other_BT: Tensor, gaps: Sequence[Gap]) -> Tensor:
    """Gap as it is less the gap with one state of the other run, for every state: (G, B, S, T), nats."""
    modules = sites(model)
    with torch.inference_mode():
        with _seen(modules) as other_SBTd:
            model(input_ids=other_BT, use_cache=False)
        plain_GB = _gaps(model, ids_BT, gaps)
        lost_GBST = torch.zeros(len(gaps), len(ids_BT), len(modules), ids_BT.shape[1])
        # Up to the first token that differs the states are the same.
        begin = int((ids_BT != other_BT).any(0).nonzero()[0]) if (ids_BT != other_BT).any() else ids_BT.shape[1]
        for site, module in enumerate(modules):
            for token in range(begin, ids_BT.shape[1]):
                with _replaced(module, token, other_SBTd[site]):
                    lost_GBST[:, :, site, token] = plain_GB - _gaps(model, ids_BT, gaps)
    return lost_GBST


def attributed(model: PreTrainedModel, ids_BT: Tensor, other_BT: Tensor, gap: Gap) -> Tensor:
    """What `patched` would be if the gap were linear in every state: (B, S, T), nats."""
    modules = sites(model)
    with torch.inference_mode(), _seen(modules) as other_SBTd:
        model(input_ids=other_BT, use_cache=False)
    with _seen(modules, gradients=True) as own_SBTd:
        total = gap(model(input_ids=ids_BT, use_cache=False).logits.float()).sum()
    grad_SBTd = torch.autograd.grad(total, own_SBTd)
    lost_SBT = [(grad * (own - other)).sum(-1) for grad, own, other in zip(grad_SBTd, own_SBTd, other_SBTd, strict=True)]
    return torch.stack(lost_SBT, 1).detach().float().cpu()


def gaps_of(model: PreTrainedModel, ids_BT: Tensor, gaps: Sequence[Gap]) -> Tensor:
    """Each gap as it is, (G, B), nats."""
    with torch.inference_mode():
        return _gaps(model, ids_BT, gaps)


def _gaps(model: PreTrainedModel, ids_BT: Tensor, gaps: Sequence[Gap]) -> Tensor:
    logits_BTV = model(input_ids=ids_BT, use_cache=False).logits.float()
    return torch.stack([gap(logits_BTV) for gap in gaps]).cpu()


@contextmanager
def _seen(modules: Sequence[nn.Module], *, gradients: bool = False) -> Iterator[list[Tensor]]:
    """Inside, what each module hands on is kept; with gradients, what the first hands on is where they end."""
    kept: list[Tensor] = []

    def keep(module: nn.Module, given: Any, found: Any) -> Any:
        if gradients and not kept:
            assert isinstance(found, Tensor), "an embedding hands on a tensor"
            found = found.detach().requires_grad_()
        kept.append(hidden_of(found))
        return found

    with ExitStack() as hooks:
        for module in modules:
            hooks.callback(module.register_forward_hook(keep).remove)
        yield kept


@contextmanager
def _replaced(module: nn.Module, token: int, state_BTd: Tensor) -> Iterator[None]:
    """Inside, the module hands on another state for one token."""

    def put(hidden: Tensor) -> Tensor:
        other = hidden.clone()
        other[:, token] = state_BTd[:, token]
        return other

    with changed([module], put):
        yield
