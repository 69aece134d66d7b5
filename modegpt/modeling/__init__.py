"""Compressed checkpoints as Hugging Face models; importing this registers them with the Auto classes."""

from transformers import AutoConfig, AutoModelForCausalLM

from modegpt.modeling.modeling_modegpt_llama import ModeGPTLlamaConfig, ModeGPTLlamaForCausalLM

AutoConfig.register(ModeGPTLlamaConfig.model_type, ModeGPTLlamaConfig, exist_ok=True)
AutoModelForCausalLM.register(ModeGPTLlamaConfig, ModeGPTLlamaForCausalLM, exist_ok=True)

__all__ = ["ModeGPTLlamaConfig", "ModeGPTLlamaForCausalLM"]
