"""Model families: `family_of(model)` finds the one that fits, or says why none does."""

from transformers import PreTrainedConfig, PreTrainedModel

from modegpt.errors import ModegptError
from modegpt.families.attributes import told
from modegpt.families.base import Decomposed, Family, FreeMatrices
from modegpt.families.dialects import DIALECTS, Dialect, rewritten
from modegpt.families.llama import Llama
from modegpt.families.olmo import Olmo2
from modegpt.families.opt import OPT
from modegpt.families.qwen import Qwen2, Qwen3
from modegpt.modeling import COMPRESSED

FAMILIES: dict[str, Family] = {"llama": Llama(), "opt": OPT(), "qwen2": Qwen2(), "qwen3": Qwen3(), "olmo2": Olmo2()}
# What people call them; those in DIALECTS say it themselves
TITLES = {"llama": "Llama", "opt": "OPT", "qwen2": "Qwen2 and 2.5", "qwen3": "Qwen3", "olmo2": "OLMo 2"}


def supported() -> str:
    """The names of all models that the kit compresses, in one sentence's part."""
    titles = TITLES | {kind: dialect.title for kind, dialect in DIALECTS.items()}
    return ", ".join(titles.values())


def family_of(model: PreTrainedModel) -> Family:
    """The family of a model that the kit fully understands.

    Raises:
        ModegptError: another family, an already compressed model, or an unknown part, which is named.
    """
    kind = model.config.model_type
    if kind in COMPRESSED:
        raise ModegptError("this model is already compressed; compress its dense original instead")
    if kind not in FAMILIES and kind in DIALECTS:
        raise ModegptError(f"a '{kind}' is rewritten first: load it by modegpt.load_model, or call families.rewritten")
    if kind not in FAMILIES:
        raise ModegptError(
            f"model family '{kind}' is not supported{told(model.config.to_dict())} (supported: {supported()})"
        )
    FAMILIES[kind].check(model)
    return FAMILIES[kind]


def base_family(config: PreTrainedConfig) -> Family | None:
    """The family of a dense model, or of the dense model that a compressed one was made of; None if unknown."""
    return FAMILIES.get(COMPRESSED.get(config.model_type, config.model_type))


def learned_positions(config: PreTrainedConfig) -> int | None:
    """How many positions the model of this config has learnt; None if it computes them, or is of no known family."""
    family = base_family(config)
    return family.learned_positions(config) if family else None


__all__ = [
    "DIALECTS",
    "FAMILIES",
    "Decomposed",
    "Dialect",
    "Family",
    "FreeMatrices",
    "base_family",
    "family_of",
    "learned_positions",
    "rewritten",
    "supported",
]
