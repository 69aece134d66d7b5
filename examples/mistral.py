"""A family of one's own: Mistral 7B from version 0.2 on, which has no sliding window."""

from transformers import MistralForCausalLM

from modegpt.cli import main
from modegpt.errors import ModegptError
from modegpt.families import FAMILIES
from modegpt.families.llama import Llama


class Mistral(Llama):
    """Without its window a Mistral computes what a Llama does, and is compressed to one."""

    model_class = MistralForCausalLM

    def check(self, model):
        model.config.update({"attention_bias": False, "mlp_bias": False})  # a Mistral has none, and says nothing
        super().check(model)
        if model.config.sliding_window is not None:
            raise ModegptError("the sliding window of this Mistral would be lost")


FAMILIES["mistral"] = Mistral()

if __name__ == "__main__":
    main()
