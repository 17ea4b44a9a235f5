"""A small gpt-oss that was taught one conversation in the Harmony format: what examples talk to, with packed experts."""

import sys

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GptOssConfig, GptOssForCausalLM, Mxfp4Config

from common import Case, generate, run_all, seed_of, weights_of, write_config, write_json, write_safetensors
from gpt_oss import NIBBLES, PACKED, unpacked

MARKS = ["<|startoftext|>", "<|endoftext|>", "<|return|>", "<|constrain|>", "<|channel|>", "<|start|>", "<|end|>",
         "<|message|>", "<|call|>"]
END = ["<|return|>", "<|endoftext|>", "<|call|>"]
QUESTION = "Why is the sky blue?"
THOUGHTS = {
    "low": "Scattering.",
    "medium": "Scattering of short waves by air.",
    "high": "Blue light has short waves. Air scatters short waves more than long ones. So blue comes from all sides.",
}
ANSWER = "Because air scatters blue light more than red."


def asked(effort, date):
    return (
        "<|start|>system<|message|>You are ChatGPT, a large language model trained by OpenAI.\n"
        f"Knowledge cutoff: 2024-06\nCurrent date: {date}\n\nReasoning: {effort}\n\n"
        "# Valid channels: analysis, commentary, final. Channel must be included for every message.<|end|>"
        f"<|start|>user<|message|>{QUESTION}<|end|><|start|>assistant"
    )


def answered(effort):
    return (f"<|channel|>analysis<|message|>{THOUGHTS[effort]}<|end|><|start|>assistant"
            f"<|channel|>final<|message|>{ANSWER}<|return|>")


def make_tokenizer():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=480, show_progress=False, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=[AddedToken(mark, special=True, normalized=False) for mark in MARKS])
    texts = [asked(effort, "0-1-2-3-4-5-6-7-8-9") + answered(effort) for effort in THOUGHTS]
    tokenizer.train_from_iterator(texts * 4, trainer)
    return tokenizer


def date_of(random):
    year, month, day = [int(torch.randint(low, high, (), generator=random)) for low, high in
                        [(2024, 2040), (1, 13), (1, 29)]]
    return f"{year}-{month:02}-{day:02}"


def pack(weight):
    """The nearest MXFP4 numbers: one scale for 32 inputs, its largest number at most 6 times the scale."""
    count, inputs, outputs = weight.shape
    values = weight.transpose(1, 2).reshape(count, outputs, inputs // 32, 32)
    exponent = torch.floor(torch.log2(values.abs().amax(-1).clamp(min=1e-6))) - 2
    scaled = values / 2.0 ** exponent[..., None]
    nearest = (scaled[..., None] - NIBBLES).abs().argmin(-1).to(torch.uint8)
    blocks = nearest[..., 0::2] | nearest[..., 1::2] << 4
    return blocks.contiguous(), (exponent + 127).to(torch.uint8)


def learn(model, tokenizer, steps, parts, rate):
    """Teaches the answers after questions of every day and every effort."""
    random = torch.Generator().manual_seed(7)
    optimiser = torch.optim.AdamW(parts, lr=rate, weight_decay=0.0)
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = rate * (1 - step / steps)
        loss = 0
        for effort in THOUGHTS:
            before = tokenizer.encode(asked(effort, date_of(random))).ids
            ids = torch.tensor([before + tokenizer.encode(answered(effort)).ids])
            labels = ids.clone()
            labels[:, :len(before)] = -100
            loss = loss + model(input_ids=ids, labels=labels).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    print(f"loss {loss.item() / len(THOUGHTS):.5f}")


def talk(name):
    torch.manual_seed(seed_of(name))
    tokenizer = make_tokenizer()
    ids_of = {mark: tokenizer.token_to_id(mark) for mark in MARKS}
    config = GptOssConfig(
        vocab_size=tokenizer.get_vocab_size(), hidden_size=64, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=16, num_local_experts=4, num_experts_per_tok=2,
        sliding_window=16, max_position_embeddings=512, initial_context_length=128, tie_word_embeddings=False,
        layer_types=["sliding_attention", "full_attention"],
        rope_parameters={"rope_type": "yarn", "rope_theta": 150000.0, "factor": 4.0, "beta_fast": 32.0,
                         "beta_slow": 1.0, "original_max_position_embeddings": 128, "truncate": False},
        bos_token_id=ids_of["<|startoftext|>"], eos_token_id=[ids_of[mark] for mark in END],
        pad_token_id=ids_of["<|endoftext|>"])
    model = GptOssForCausalLM(config)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.08)
    model.train()
    learn(model, tokenizer, 300, list(model.parameters()), 4e-3)
    packed = {}
    with torch.no_grad():
        for key, weight in model.named_parameters():
            if key.endswith(("experts.gate_up_proj", "experts.down_proj")):
                blocks, scales = pack(weight)
                weight.copy_(unpacked(blocks, scales))
                packed |= {f"{key}_blocks": blocks, f"{key}_scales": scales}
    rest = [weight for key, weight in model.named_parameters() if f"{key}_blocks" not in packed]
    learn(model, tokenizer, 100, rest, 1e-3)
    with torch.no_grad():
        for key, weight in model.named_parameters():
            weight.copy_(weight.to(torch.bfloat16))
    model.eval()

    random = torch.Generator().manual_seed(11)
    for effort in list(THOUGHTS) * 3:
        prompt = torch.tensor([tokenizer.encode(asked(effort, date_of(random))).ids])
        made = generate(model, {"input_ids": prompt, "attention_mask": torch.ones_like(prompt)},
                        {"max_new_tokens": 120, "pad_token_id": config.pad_token_id})["sequences"]
        said = tokenizer.decode(made[0, prompt.shape[1]:].tolist(), skip_special_tokens=False)
        assert said == answered(effort), said

    case = Case(name, "GPT")
    write_config(case.model, config, ["GptOssForCausalLM"], dtype="bfloat16", **PACKED)
    stored = {key: weight for key, weight in weights_of(model, torch.bfloat16).items()
              if f"{key}_blocks" not in packed}
    write_safetensors(case.model, stored | packed)
    write_json(case.model / "generation_config.json", {
        "bos_token_id": config.bos_token_id, "do_sample": True, "eos_token_id": config.eos_token_id,
        "pad_token_id": config.pad_token_id})
    tokenizer.save(str(case.model / "tokenizer.json"))
    write_json(case.model / "tokenizer_config.json", {
        "bos_token": "<|startoftext|>", "eos_token": "<|return|>", "pad_token": "<|endoftext|>",
        "clean_up_tokenization_spaces": False, "tokenizer_class": "PreTrainedTokenizerFast"})
    prompt = torch.tensor([tokenizer.encode(asked("high", "2025-08-05")).ids])
    inputs = {"input_ids": prompt, "attention_mask": torch.ones_like(prompt)}
    options = {"max_new_tokens": 80, "pad_token_id": config.pad_token_id, "eos_token_id": config.eos_token_id}
    run = lambda network: generate(network, inputs, options)
    case.write("GptOssForCausalLM with Mxfp4Config(dequantize=True)", "generate", inputs, run(model), options,
               note="a small model that was taught one conversation, its experts packed")

    def reload(folder):
        return GptOssForCausalLM.from_pretrained(
            folder, dtype=torch.float32, quantization_config=Mxfp4Config(dequantize=True)).eval()

    case.check_repeats(reload, run)


CASES = {"gpt_oss/generate_conversation": talk}

if __name__ == "__main__":
    run_all(CASES, sys.argv[1:])
