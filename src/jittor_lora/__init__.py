"""LoRA fine-tuning of GPT-2 and Llama-family models on Jittor."""

__version__ = "0.1.0"
