"""Parity cases of T5: encoder alone and whole, every form of the feed-forward part, buckets, masks, layouts."""

import sys

import torch
from transformers import T5Config, T5EncoderModel, T5ForConditionalGeneration, T5Model

from common import (
    Case,
    Retry,
    as_list,
    check_every_weight_matters,
    check_options_matter,
    first_good,
    forward,
    generate,
    ids,
    left_padding,
    randomise,
    reload_as,
    right_padding,
    round_weights,
    run_all,
    weights_of,
    write_bin,
    write_config,
    write_safetensors,
    write_sharded_safetensors,
)
from training import adapter_case, lora, step_case

# What transformers derives from other keys and official files do not say.
DERIVED = ("dense_act_fn", "is_gated_act", "scale_decoder_outputs")
# One row padded on the right, one on the left, one with a hole, one that shows no token at all.
ODD_MASK = torch.tensor([[1] * 6 + [0] * 3, [0, 0] + [1] * 7, [1, 1, 0, 0, 1, 1, 1, 0, 1], [0] * 9])


def config(**changes):
    """Odd sizes on purpose: three heads of 5 in a width of 22, buckets that fill within twenty steps."""
    fields = dict(vocab_size=89, d_model=22, d_kv=5, d_ff=37, num_layers=3, num_decoder_layers=2, num_heads=3,
                  relative_attention_num_buckets=12, relative_attention_max_distance=21, layer_norm_epsilon=3e-5,
                  decoder_start_token_id=0)
    return T5Config(**{**fields, **changes})


def build(model_class, cfg, seed, untied=False, gain=1.3):
    """A random model whose scores and biases are of a size that keeps every key in view."""
    model = model_class(cfg)
    if untied:
        model.lm_head.weight = torch.nn.Parameter(torch.empty_like(model.shared.weight))
    model = randomise(model, seed, gain)
    random = torch.Generator().manual_seed(seed + 11)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("Attention.q.weight"):
                weight.mul_(cfg.d_kv**-0.5)
            elif "relative_attention_bias" in name:
                weight.copy_(torch.randn(weight.shape, generator=random))
            elif name == "shared.weight":
                weight.copy_(0.7 * torch.randn(weight.shape, generator=random))
    return model


def tensors(model, write, dtype, untied, duplicates):
    """The file's tensors; with `duplicates`, every copy of the word table and the bias that nothing uses."""
    weights = weights_of(model, dtype)
    if untied:
        weights["lm_head.weight"] = model.lm_head.weight.detach().to(dtype).clone()
    if duplicates:
        whole = {"encoder", "decoder"} if hasattr(model, "decoder") else {"encoder"}
        # Files of PyTorch hold one storage under several names.
        copy = (lambda table: table) if write is write_bin else torch.clone
        weights |= {f"{part}.embed_tokens.weight": copy(weights["shared.weight"]) for part in whole}
        if "decoder" in whole:
            heads, buckets = model.config.num_heads, model.config.relative_attention_num_buckets
            unused = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
            weights[unused] = torch.ones(buckets, heads)
    return weights


def save(case, model, write, dtype, untied, duplicates, architecture, drop=DERIVED, **said):
    said = {"tie_word_embeddings": not untied} | said
    write_config(case.model, model.config, [architecture or type(model).__name__], drop=drop, **said)
    write(case.model, tensors(model, write, dtype, untied, duplicates))


def states(mask=right_padding((9, 6, 2)), whole=False, architecture=None, write=write_safetensors, duplicates=False,
           dtype=torch.float32, others=(), drop=DERIVED, note=None, **changes):
    """The encoder's states; with `whole`, from a file of encoder and decoder."""

    def attempt(name, seed):
        cfg = config(**changes)
        model = build(T5ForConditionalGeneration if whole else T5EncoderModel, cfg, seed)
        round_weights(model, dtype)
        inputs = {"input_ids": ids(seed, mask.shape, cfg.vocab_size) * mask, "attention_mask": mask}
        fields = ["last_hidden_state"]
        run = lambda network: forward(network, inputs, fields)
        encoder = model
        if whole:
            encoder = T5EncoderModel(config(**changes)).eval()
            encoder.set_attn_implementation("eager")
            encoder.load_state_dict(model.state_dict(), strict=False)
        check_every_weight_matters(encoder, run)
        check_options_matter(encoder, run, others)

        case = Case(name, "T5")
        save(case, model, write, dtype, False, duplicates, architecture, drop)
        options = {} if dtype == torch.float32 else {"dtype": "float32"}
        case.write("T5EncoderModel", "forward", inputs, run(encoder), options, note=note)
        case.check_repeats(reload_as(T5EncoderModel), run)

    return lambda name: first_good(name, lambda seed: attempt(name, seed))


def seq2seq(model_class=T5ForConditionalGeneration, mask=right_padding((9, 6, 2)), written=right_padding((8, 3, 5)),
            untied=False, write=write_safetensors, duplicates=False, others=(), drop=DERIVED, said=None, note=None,
            **changes):
    """One pass through encoder and decoder."""
    fields = ["encoder_last_hidden_state", "last_hidden_state" if model_class is T5Model else "logits"]

    def attempt(name, seed):
        cfg = config(tie_word_embeddings=not untied, **changes)
        model = build(model_class, cfg, seed, untied)
        inputs = {
            "input_ids": ids(seed, mask.shape, cfg.vocab_size) * mask, "attention_mask": mask,
            "decoder_input_ids": ids(seed + 3, written.shape, cfg.vocab_size) * written,
        }
        if not written.all():
            inputs["decoder_attention_mask"] = written
        run = lambda network: forward(network, inputs, fields)
        check_every_weight_matters(model, run)
        check_options_matter(model, run, others)

        case = Case(name, "T5")
        save(case, model, write, torch.float32, untied, duplicates, None, drop, **(said or {}))
        case.write(model_class.__name__, "forward", inputs, run(model), note=note)
        case.check_repeats(reload_as(model_class), run)

    return lambda name: first_good(name, lambda seed: attempt(name, seed))


def text(lengths, new_tokens=14, untied=False, stop=False, write=write_safetensors, left=False, note=None, **changes):
    """Greedy generation; with `stop`, one row meets the end token on the way and another does not."""

    def attempt(name, seed):
        # The reference's cache takes its depth from the encoder.
        cfg = config(tie_word_embeddings=not untied, num_decoder_layers=3, **changes)
        model = build(T5ForConditionalGeneration, cfg, seed, untied, gain=2.5)
        if not untied:
            with torch.no_grad():
                model.shared.weight.mul_(3)
        mask = (left_padding if left else right_padding)(lengths)
        inputs = {"input_ids": ids(seed, mask.shape, cfg.vocab_size) * mask, "attention_mask": mask}
        options = {"max_new_tokens": new_tokens, "pad_token_id": 0, "eos_token_id": 1}
        if stop:
            options["eos_token_id"] = met_by_some(generate(model, inputs, options)["sequences"])
        run = lambda network: generate(network, inputs, options)
        expected = run(model)
        check_rows_alone(model, inputs, options, expected["sequences"])

        case = Case(name, "T5")
        save(case, model, write, torch.float32, untied, False, None)
        case.write("T5ForConditionalGeneration", "generate", inputs, expected, options, note=note)
        case.check_repeats(reload_as(T5ForConditionalGeneration), run)

    return lambda name: first_good(name, lambda seed: attempt(name, seed))


def met_by_some(sequences):
    """A token that some rows emit early and at least one never does."""
    rows = [row[1:] for row in sequences.tolist()]
    for token in rows[0][3:-3]:
        if 0 < sum(token in row for row in rows) < len(rows) and rows[0].index(token) >= 3:
            return token
    raise Retry("no token ends some rows and not others")


def check_rows_alone(model, inputs, options, sequences):
    """A row in a padded batch must be answered as it is alone, and padded after its end."""
    end = as_list(options["eos_token_id"])
    for row, mask, expected in zip(inputs["input_ids"], inputs["attention_mask"], sequences):
        alone = generate(model, {"input_ids": row[mask == 1][None]}, options)["sequences"][0]
        assert torch.equal(expected[: len(alone)], alone)
        assert (expected[len(alone):] == options["pad_token_id"]).all()
        assert len(alone) == len(expected) or alone[-1] in end


# ---------------------------------------------------------------- training and adapters


def built(model_class=T5ForConditionalGeneration, untied=False, **changes):
    fields = dict(tie_word_embeddings=not untied, num_layers=2, dropout_rate=0.0)
    return lambda seed: build(model_class, config(**{**fields, **changes}), seed, untied)


def saved(untied=False):
    return lambda case, model: save(case, model, write_safetensors, torch.float32, untied, False, None, ())


def read(seed, cfg):
    mask = right_padding((9, 6, 2))
    return {"input_ids": ids(seed, mask.shape, cfg.vocab_size) * mask, "attention_mask": mask}


def labelled(seed, cfg):
    """Texts and what is to be written after them; the decoder reads the labels shifted right by the start token, with
    the padding token where they are -100."""
    written = right_padding((8, 3, 5))
    labels = ids(seed + 3, written.shape, cfg.vocab_size).masked_fill(written == 0, -100)
    return {**read(seed, cfg), "labels": labels}


def both(seed, cfg):
    written = right_padding((8, 3, 5))
    return {**read(seed, cfg), "decoder_input_ids": ids(seed + 3, written.shape, cfg.vocab_size) * written,
            "decoder_attention_mask": written}


CASES = {
    "t5/encoder_relu": states(others=[{"relative_attention_num_buckets": 12, "relative_attention_max_distance": 8}]),
    "t5/encoder_gated_gelu": states(feed_forward_proj="gated-gelu", others=[{"dense_act_fn": "gelu"}],
                                    note="gelu means its tanh form"),
    "t5/encoder_gated_silu": states(feed_forward_proj="gated-silu"),
    "t5/encoder_derived_keys_win": states(
        feed_forward_proj="gated-gelu", dense_act_fn="silu", drop=(), others=[{"dense_act_fn": "gelu_new"}],
        note="where dense_act_fn says something else, it wins"),
    "t5/encoder_gelu_new": states(feed_forward_proj="gelu_new"),
    "t5/encoder_masks": states(mask=ODD_MASK, note="a row that shows no token attends to all of them alike"),
    "t5/encoder_long": states(mask=right_padding((70, 41)), num_layers=2,
                              relative_attention_num_buckets=8, relative_attention_max_distance=20,
                              note="most distances are beyond the last bucket's border"),
    "t5/encoder_default_buckets": states(
        mask=torch.ones(1, 150, dtype=torch.long), num_layers=2, d_model=16, relative_attention_num_buckets=32,
        relative_attention_max_distance=128, layer_norm_epsilon=1e-6,
        drop=DERIVED + ("relative_attention_num_buckets", "relative_attention_max_distance", "layer_norm_epsilon",
                        "num_decoder_layers"),
        note="keys left out of the config; past the longest distance"),
    "t5/encoder_of_whole_bin": states(
        whole=True, write=write_bin, duplicates=True, architecture="T5WithLMHeadModel",
        note="as the official file: copies of the table, an unused bias; the config names the whole model"),
    "t5/encoder_of_whole": states(whole=True, architecture="T5EncoderModel", duplicates=True,
                                  note="the decoder is left unread"),
    "t5/encoder_bin_duplicates": states(write=write_bin, duplicates=True, feed_forward_proj="gated-gelu"),
    "t5/encoder_sharded": states(write=write_sharded_safetensors, d_kv=8, num_heads=4, d_model=32),
    "t5/encoder_bfloat16": states(dtype=torch.bfloat16),
    "t5/whole_tied": seq2seq(note="the decoder's output is scaled before the head", drop=()),
    "t5/whole_untied": seq2seq(untied=True, feed_forward_proj="gated-gelu"),
    "t5/whole_untied_saved_again": seq2seq(
        untied=True, feed_forward_proj="gated-gelu", drop=(), said={"tie_word_embeddings": True},
        note="as transformers 5 saves v1.1: tied by its config, with a head of its own and no scale"),
    "t5/whole_masks": seq2seq(mask=ODD_MASK, written=torch.ones(4, 30, dtype=torch.long), num_decoder_layers=3,
                              note="a row that shows no token; written past the longest distance"),
    "t5/whole_bin": seq2seq(write=write_bin, duplicates=True, feed_forward_proj="gated-silu"),
    "t5/whole_no_head": seq2seq(T5Model),
    "t5/generate_tied": text((7, 7)),
    "t5/generate_untied_padding_eos": text((9, 6, 3), untied=True, stop=True, feed_forward_proj="gated-gelu"),
    "t5/generate_left_padding_bin": text((8, 4), untied=True, left=True, write=write_bin, new_tokens=30,
                                         note="past the longest distance"),
    "t5/train_step_tied": step_case("T5", built(), labelled, save=saved()),
    "t5/train_step_untied": step_case("T5", built(untied=True, feed_forward_proj="gated-gelu"), labelled, save=saved(True)),
    "t5/adapter_query_value": adapter_case("T5", built(), both, ["logits"], [lora(["q", "v"])], save=saved()),
    "t5/adapter_all_linear": adapter_case(
        "T5", built(untied=True, feed_forward_proj="gated-gelu"), both, ["logits"],
        [lora("all-linear", alpha_pattern={"decoder.block.0.layer.1.EncDecAttention.q": 15})], save=saved(True)),
    "t5/adapter_encoder_dora": adapter_case(
        "T5", built(T5EncoderModel), read, ["last_hidden_state"], [lora(["q", "o", "wi"], use_dora=True)], save=saved()),
    "t5/adapter_shared": adapter_case(
        "T5", built(untied=True), both, ["logits"], [lora(["q"], modules_to_save=["lm_head"])], save=saved(True)),
}

if __name__ == "__main__":
    run_all(CASES, sys.argv[1:])
