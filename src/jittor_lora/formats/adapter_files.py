"""Names of the files in an adapter's folder: PEFT's two, and ours, some of which a run folder has too."""

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
OLD_WEIGHTS_FILE = "adapter_model.bin"  # of PEFT's older versions, and with safe_serialization=False
RECORD_FILE = "base_model.json"
PROMPTING_FILE, CHAT_TEMPLATE_FILE = "prompting.json", "chat_template.jinja"
