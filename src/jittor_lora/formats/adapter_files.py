"""Names of the files in an adapter's folder: PEFT's two, and ours, which a run folder has too."""

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
OLD_WEIGHTS_FILE = "adapter_model.bin"  # of PEFT's older versions, and with safe_serialization=False
RECORD_FILE = "base_model.json"
