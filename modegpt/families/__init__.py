"""Model families: `family_of(model)` finds the one that fits, or says why none does."""

from transformers import PreTrainedModel

from modegpt.errors import ModegptError
from modegpt.families.base import Decomposed, Family, FreeMatrices
from modegpt.families.llama import Llama
from modegpt.families.opt import OPT

FAMILIES: dict[str, Family] = {"llama": Llama(), "opt": OPT()}


def family_of(model: PreTrainedModel) -> Family:
    """The family of a model that the kit fully understands.

    Raises:
        ModegptError: another family, an already compressed model, or an unknown part, which is named.
    """
    kind = model.config.model_type
    if kind.startswith(("modegpt_", "lowrank_", "slicegpt_")):
        raise ModegptError("this model is already compressed; compress its dense original instead")
    if kind not in FAMILIES:
        raise ModegptError(f"model family '{kind}' is not supported (supported: {', '.join(FAMILIES)})")
    FAMILIES[kind].check(model)
    return FAMILIES[kind]


__all__ = ["FAMILIES", "Decomposed", "Family", "FreeMatrices", "family_of"]
