"""Compressed checkpoints as Hugging Face models; importing this registers them with the Auto classes."""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

from modegpt.modeling.modeling_lowrank import (
    LowRankLlamaConfig,
    LowRankLlamaForCausalLM,
    LowRankLlamaForSequenceClassification,
    LowRankOPTConfig,
    LowRankOPTForCausalLM,
    LowRankOPTForSequenceClassification,
)
from modegpt.modeling.modeling_modegpt_llama import ModeGPTLlamaConfig, ModeGPTLlamaForCausalLM, ModeGPTLlamaModel
from modegpt.modeling.modeling_modegpt_opt import ModeGPTOPTConfig, ModeGPTOPTForCausalLM, ModeGPTOPTModel
from modegpt.modeling.modeling_modegpt_qwen import (
    ModeGPTOlmo2Config,
    ModeGPTOlmo2ForCausalLM,
    ModeGPTOlmo2Model,
    ModeGPTQwen2Config,
    ModeGPTQwen2ForCausalLM,
    ModeGPTQwen2Model,
    ModeGPTQwen3Config,
    ModeGPTQwen3ForCausalLM,
    ModeGPTQwen3Model,
)
from modegpt.modeling.modeling_slicegpt import (
    SliceGPTLlamaConfig,
    SliceGPTLlamaForCausalLM,
    SliceGPTOPTConfig,
    SliceGPTOPTForCausalLM,
)

COMPRESSED: dict[str, str] = {}  # model_type -> that of the dense model that it was made of
for config, model in (
    (ModeGPTLlamaConfig, ModeGPTLlamaForCausalLM),
    (ModeGPTOPTConfig, ModeGPTOPTForCausalLM),
    (ModeGPTQwen2Config, ModeGPTQwen2ForCausalLM),
    (ModeGPTQwen3Config, ModeGPTQwen3ForCausalLM),
    (ModeGPTOlmo2Config, ModeGPTOlmo2ForCausalLM),
    (SliceGPTLlamaConfig, SliceGPTLlamaForCausalLM),
    (SliceGPTOPTConfig, SliceGPTOPTForCausalLM),
    (LowRankLlamaConfig, LowRankLlamaForCausalLM),
    (LowRankOPTConfig, LowRankOPTForCausalLM),
):
    COMPRESSED[config.model_type] = config.__base__.model_type
    AutoConfig.register(config.model_type, config, exist_ok=True)
    AutoModelForCausalLM.register(config, model, exist_ok=True)
    # save_pretrained copies the class's file into the folder, for environments without this package
    config.register_for_auto_class()
    model.register_for_auto_class("AutoModelForCausalLM")
for config, model in (
    (LowRankLlamaConfig, LowRankLlamaForSequenceClassification),
    (LowRankOPTConfig, LowRankOPTForSequenceClassification),
):
    AutoModelForSequenceClassification.register(config, model, exist_ok=True)
    model.register_for_auto_class("AutoModelForSequenceClassification")
for base in (ModeGPTLlamaModel, ModeGPTOPTModel, ModeGPTQwen2Model, ModeGPTQwen3Model, ModeGPTOlmo2Model):
    AutoModel.register(base.config_class, base, exist_ok=True)
    base.register_for_auto_class("AutoModel")

__all__ = [
    "COMPRESSED",
    "LowRankLlamaConfig",
    "LowRankLlamaForCausalLM",
    "LowRankLlamaForSequenceClassification",
    "LowRankOPTConfig",
    "LowRankOPTForCausalLM",
    "LowRankOPTForSequenceClassification",
    "ModeGPTLlamaConfig",
    "ModeGPTLlamaForCausalLM",
    "ModeGPTLlamaModel",
    "ModeGPTOPTConfig",
    "ModeGPTOPTForCausalLM",
    "ModeGPTOPTModel",
    "ModeGPTOlmo2Config",
    "ModeGPTOlmo2ForCausalLM",
    "ModeGPTOlmo2Model",
    "ModeGPTQwen2Config",
    "ModeGPTQwen2ForCausalLM",
    "ModeGPTQwen2Model",
    "ModeGPTQwen3Config",
    "ModeGPTQwen3ForCausalLM",
    "ModeGPTQwen3Model",
    "SliceGPTLlamaConfig",
    "SliceGPTLlamaForCausalLM",
    "SliceGPTOPTConfig",
    "SliceGPTOPTForCausalLM",
]
