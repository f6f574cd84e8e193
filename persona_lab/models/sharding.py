"""Models that are too large for one device: a part of the frozen base on each, gathered layer by layer; activations computed again.

    shard(model, torch.device("cuda", 0))    # in every process of a group, with the whole model on its host

Adapters are no parameters of the model (`AdapterBank`), so they are not divided: each process holds all K of them.
FSDP2 divides a tensor's first dimension, which of an adapter's tensors would be K.
"""

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import PreTrainedModel

from persona_lab.errors import ModelError


def shard(model: PreTrainedModel, device: torch.device, *, reshard: bool = True) -> PreTrainedModel:
    """Divide a frozen model among the processes of the group: FSDP2 (Zhao et al. 2023; torch's `fully_shard`), a group of tensors for each layer.

    Args:
        model: on the host, whole. Safetensors weights in their own dtype are mapped from the file, so that processes of one machine share them.
        device: where this process keeps its part.
        reshard: whether a layer's gathered weights go after forward and are gathered again for backward.

    Raises:
        ModelError: the model does not say what its layers are.
    """
    layers = layers_of(model)
    if not layers:
        raise ModelError("PL4301", str(model.name_or_path), "does not say what its layers are, so it cannot be sharded. Use machine.data_parallel=true without FSDP.")
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for layer in layers:
        fully_shard(layer, mesh=mesh, reshard_after_forward=reshard)
    fully_shard(model, mesh=mesh, reshard_after_forward=reshard)
    # The tensors into which weights are gathered are made by the first pass: in inference mode they would be of no use for training.
    with torch.no_grad():
        model(input_ids=torch.zeros(1, 1, dtype=torch.int64, device=device), use_cache=False)
    return model


def layers_of(model: PreTrainedModel) -> list[nn.Module]:
    """The blocks that a model says must stay whole: its layers."""
    names = model._no_split_modules or ()
    return [module for module in model.modules() if type(module).__name__ in names]


def checkpoint_activations(model: PreTrainedModel) -> None:
    """Keep no activations inside the layers while the model is trained; backward computes them again (Chen et al. 2016).

    Raises:
        ModelError: the architecture cannot do that.
    """
    if not model.supports_gradient_checkpointing:
        raise ModelError("PL4302", str(model.name_or_path), "its architecture cannot compute activations again. Set machine.checkpoint_activations=false.")
    model.activation_checkpointing_enable({"use_reentrant": False})
    # Only the other way of doing it (`use_reentrant`) needs gradients of the embeddings.
    model.disable_input_require_grads()
