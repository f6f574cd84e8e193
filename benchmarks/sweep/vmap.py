"""P6: the generic way to train a stack, `torch.func.vmap` over dictionaries of stacked LoRA weights; the base is not stacked.

Names: K cells, B documents, T tokens.
"""

from collections.abc import Sequence

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from benchmarks.sweep.loop import IGNORED, Loop
from benchmarks.sweep.work import Work
from benchmarks.sweep.worker import Order

STACK = 8


class Vmap(Loop):
    """The model of P2, called with the weights of each cell; every cell is padded to the longest document of all."""

    def __init__(self, work: Work) -> None:
        super().__init__(work)
        self.names = [name for name, p in self.model.named_parameters() if p.requires_grad]
        self.weights_K: dict[str, Tensor] = {}

    def __str__(self) -> str:
        return f"vmap over {STACK} cells"

    def _fastest(self) -> tuple[bool, bool]:
        """Padding is all it can do; fused AdamW works on any tensors."""
        return False, True

    def together(self, order: Order) -> int:
        """As asked, or 8."""
        return order.stack or STACK

    def train(self, cells: Sequence[int], order: Order) -> None:
        """One stack."""
        init_K = [load_file(self.work.init(cell) / "adapter_model.safetensors") for cell in cells]
        recipe = self.work.recipe
        self.weights_K = {name: torch.stack([init[saved(name)] for init in init_K]).requires_grad_() for name in self.names}
        documents_K = [self._tokenized(order.chosen(self.work.texts(cell))) for cell in cells]
        optimizer = torch.optim.AdamW(list(self.weights_K.values()), lr=recipe.rate, weight_decay=0.0, fused=True)
        for start in range(0, order.steps * order.batch, order.batch):
            self._gradients([documents[start : start + order.batch] for documents in documents_K], recipe.clip)
            optimizer.step()

    def _gradients(self, documents_K: Sequence[Sequence[Tensor]], clip: float) -> None:
        """Of each cell by itself, clipped by itself."""
        every = [ids for documents in documents_K for ids in documents]
        ids_KBT = nn.utils.rnn.pad_sequence(every, batch_first=True, padding_value=self.tokenizer.pad_token_id).unflatten(0, (len(documents_K), -1))
        real_KBT = torch.arange(ids_KBT.shape[2]) < torch.tensor([len(ids) for ids in every]).view(*ids_KBT.shape[:2], 1)
        target_KBT = ids_KBT.masked_fill(~real_KBT, IGNORED)

        def loss_of(weights: dict[str, Tensor], ids_BT: Tensor, target_BT: Tensor) -> Tensor:
            logits_BTV = functional_call(self.model, weights, (), {"input_ids": ids_BT, "use_cache": False}).logits
            return nn.functional.cross_entropy(logits_BTV[:, :-1].flatten(0, 1), target_BT[:, 1:].flatten(), ignore_index=IGNORED)

        with torch.no_grad():
            grads_K = vmap(grad(loss_of))({name: w.detach() for name, w in self.weights_K.items()}, ids_KBT, target_KBT)
            norm_K = torch.stack([g.flatten(1).norm(dim=1) for g in grads_K.values()]).norm(dim=0)
            factor_K = (clip / (norm_K + 1e-6)).clamp(max=1.0)
        for name, weight in self.weights_K.items():
            weight.grad = grads_K[name] * factor_K.view(-1, 1, 1)

    def write(self, cells: Sequence[int], order: Order) -> None:
        """Slices of the stack."""
        for row, cell in enumerate(cells):
            folder = order.folder(cell) / "adapter"
            folder.mkdir(exist_ok=True)
            save_file({saved(name): w.detach()[row].clone() for name, w in self.weights_K.items()}, folder / "adapter_model.safetensors")


def saved(name: str) -> str:
    """The name of a weight in a peft folder."""
    return name.replace(".default", "")
