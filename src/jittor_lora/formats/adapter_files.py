"""Names of the files in an adapter's folder: PEFT's two, and ours, some of which a run folder has too."""

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
RECORD_FILE = "base_model.json"
PROMPTING_FILE, CHAT_TEMPLATE_FILE = "prompting.json", "chat_template.jinja"
