"""Names of the files in an adapter's folder: PEFT's two, and ours, which a run folder has too."""

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
RECORD_FILE = "base_model.json"
