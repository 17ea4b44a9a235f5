"""Parity cases of Chronos on T5 and GPT-2, Chronos-Bolt and Chronos-2: every branch of tokens, patches and groups."""

import copy
import sys
import warnings
from importlib.metadata import version

import torch
from chronos import BaseChronosPipeline, Chronos2Pipeline, ChronosBoltPipeline, ChronosPipeline
from chronos.chronos2.config import Chronos2CoreConfig
from chronos.chronos2.model import Chronos2Model
from chronos.chronos_bolt import ChronosBoltModelForForecasting
from peft import LoraConfig
from transformers import GPT2Config, GPT2LMHeadModel, T5Config, T5ForConditionalGeneration

import common
from common import (
    Case,
    Retry,
    check_every_weight_matters,
    distance,
    first_good,
    run_all,
    weights_of,
    write_bin,
    write_config,
    write_safetensors,
)
from training import model_loss, write_adapters, write_train_step

common.REFERENCE = f"chronos-forecasting {version('chronos-forecasting')}"
warnings.filterwarnings("ignore")
NAN = float("nan")
# One token sees itself alone, whatever its query and key are.
UNSEEN = ("SelfAttention.q.weight", "SelfAttention.k.weight", "SelfAttention.relative_attention_bias.weight")


def fill(model, seed, gain=1.3):
    """Random weights that keep every key in view and no branch near zero."""
    model.set_attn_implementation("eager")
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=random)
            if "norm" in name or "ln_" in name:
                weight.copy_(1 + 0.3 * noise if name.endswith("weight") else 0.3 * noise)
            elif weight.dim() == 1:
                weight.copy_(0.3 * noise)
            elif any(part in name for part in ("shared", "relative_attention_bias", "wte", "wpe")):
                weight.copy_(0.7 * noise)
            else:
                conv = "c_attn" in name or "c_proj" in name or "c_fc" in name
                weight.copy_(gain * noise / weight.shape[0 if conv else 1] ** 0.5)
            if name.endswith(("ttention.q.weight", "self_attention.q.weight")):
                weight.mul_(model.config.d_kv**-0.5)
    return model.eval()


def series(seed, rows, steps):
    """Waves with a trend and noise, of unlike size, one of them negative; then gaps of every kind."""
    random = torch.Generator().manual_seed(seed + 5)
    t = torch.arange(steps, dtype=torch.float32)
    waves = []
    for row in range(rows):
        wave = torch.sin(t * (0.3 + 0.17 * row)) + 0.02 * row * t + 0.2 * torch.randn(steps, generator=random)
        waves.append((1 + 3 * row) * wave + 5 * row * (-1) ** row)
    return torch.stack(waves)


def with_gaps(x, patch):
    """A gap, a patch that is all gap, a short series, a constant one, and one without a value."""
    x = x.clone()
    x[0, 3:6] = NAN
    x[1, -3 * patch : -patch] = NAN
    x[2, : x.shape[1] // 2 + 1] = NAN
    if x.shape[0] > 3:
        x[3] = 4.5
    if x.shape[0] > 4:
        x[4] = NAN
    return x


def save(case, model, own, pipeline, write=write_safetensors, architecture=None):
    write_config(case.model, model.config, [architecture or type(model).__name__], chronos_config=own,
                 **({"chronos_pipeline_class": pipeline} if pipeline else {}))
    weights = weights_of(model)
    weights = {name: w for name, w in weights.items() if not name.endswith("embed_tokens.weight")}
    write(case.model, weights)


def settled(model, run, expected):
    """Refuses an answer that a nudge to the weights changes: it rests on a near-tie."""
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        kept = {name: weight.clone() for name, weight in model.named_parameters()}
        for weight in model.parameters():
            weight.mul_(1 + 3e-5 * torch.randn(weight.shape, generator=random))
        moved = distance(expected, run(), atol=1e-3, rtol=1e-2)
        for name, weight in model.named_parameters():
            weight.copy_(kept[name])
    if moved > 1:
        raise Retry("a step is a near-tie")


# ---------------------------------------------------------------- Chronos-Bolt


def bolt(seed, **own):
    t5 = {key: own.pop(key) for key in list(own) if key in ("feed_forward_proj", "num_layers",
                                                               "num_decoder_layers", "d_kv")}
    settings = dict(context_length=48, prediction_length=7, input_patch_size=8, input_patch_stride=8,
                    quantiles=[0.1, 0.3, 0.5, 0.8], use_reg_token=True) | own
    cfg = T5Config(**(dict(d_model=26, d_kv=5, d_ff=37, num_layers=3, num_decoder_layers=2, num_heads=3,
                           relative_attention_num_buckets=8, relative_attention_max_distance=6,
                           layer_norm_epsilon=3e-5, decoder_start_token_id=0) | t5))
    cfg.chronos_config = settings
    return fill(ChronosBoltModelForForecasting(cfg), seed), settings


def bolt_forward(steps=43, rows=5, write=write_safetensors, note=None, **own):
    @torch.inference_mode()
    def run(model, context):
        states, (loc, scale), embeds, mask = model.encode(context=context)
        return {
            "quantile_preds": model(context=context).quantile_preds, "encoder_hidden_states": states, "loc": loc,
            "scale": scale, "input_embeds": embeds, "attention_mask": mask.long(),
        }

    def attempt(name, seed):
        model, settings = bolt(seed, **own)
        context = with_gaps(series(seed, rows, steps), settings["input_patch_size"])
        unseen = tuple(f"decoder.block.{i}.layer.0.{part}" for i in range(9) for part in UNSEEN)
        check_every_weight_matters(model, lambda m: run(m, context), unseen)
        case = Case(name, "TimeGPT")
        save(case, model, settings, "ChronosBoltPipeline", write)
        case.write("ChronosBoltModelForForecasting", "forward", {"context": context}, run(model, context), note=note)
        case.check_repeats(lambda folder: load(folder).model, lambda m: run(m, context))

    return lambda name: first_good(name, lambda seed: attempt(name, seed))


def load(folder):
    pipeline = BaseChronosPipeline.from_pretrained(folder, dtype=torch.float32)
    pipeline.inner_model.set_attn_implementation("eager")
    return pipeline


def bolt_predict(horizon, levels, other=None, steps=43, rows=3, note=None, **own):
    def run(pipeline, context, options):
        out = {"predictions": pipeline.predict(context, prediction_length=options["prediction_length"])}
        quantiles, mean = pipeline.predict_quantiles(
            context, prediction_length=options["prediction_length"], quantile_levels=options["quantile_levels"])
        out |= {"quantiles": quantiles, "mean": mean}
        if "trained_levels_call" in options:
            out["quantiles_trained_levels"] = pipeline.predict_quantiles(context, **options["trained_levels_call"])[0]
        return out

    def attempt(name, seed):
        model, settings = bolt(seed, **own)
        context = with_gaps(series(seed, rows, steps), settings["input_patch_size"])
        options = {"prediction_length": horizon, "quantile_levels": levels}
        if other:
            options["trained_levels_call"] = other
        case = Case(name, "TimeGPT")
        save(case, model, settings, "ChronosBoltPipeline")
        expected = run(ChronosBoltPipeline(model), context, options)
        case.write("ChronosBoltPipeline.predict / predict_quantiles", "generate", {"context": context}, expected,
                   options, note=note)
        case.check_repeats(load, lambda pipeline: run(pipeline, context, options))

    return lambda name: first_good(name, lambda seed: attempt(name, seed))


# ---------------------------------------------------------------- Chronos on T5 and GPT-2


def tokens(seed, causal, **own):
    settings = dict(
        tokenizer_class="MeanScaleUniformBins", tokenizer_kwargs={"low_limit": -6.0, "high_limit": 8.0},
        context_length=30, prediction_length=6, n_tokens=83, n_special_tokens=2, pad_token_id=0, eos_token_id=1,
        use_eos_token=True, model_type="causal" if causal else "seq2seq", num_samples=5, temperature=0.9, top_k=12,
        top_p=0.9) | own
    vocabulary, layers = settings["n_tokens"], settings.pop("num_layers", 3)
    if causal:
        cfg = GPT2Config(vocab_size=vocabulary, n_positions=60, n_embd=27, n_layer=layers, n_head=3, bos_token_id=1,
                         eos_token_id=1, pad_token_id=0)
        model = GPT2LMHeadModel(cfg)
    else:
        cfg = T5Config(vocab_size=vocabulary, d_model=26, d_kv=5, d_ff=37, num_layers=layers, num_decoder_layers=layers,
                       num_heads=3, relative_attention_num_buckets=8, relative_attention_max_distance=15,
                       layer_norm_epsilon=3e-5, decoder_start_token_id=0, pad_token_id=0, eos_token_id=1)
        model = T5ForConditionalGeneration(cfg)
    cfg.chronos_config = settings
    return model, settings


def tokenizer(steps, causal=False, rows=5, note=None, **own):
    def run(pipeline, context, samples):
        ids, mask, scale = pipeline.tokenizer.context_input_transform(context.clone())
        return {
            "token_ids": ids, "attention_mask": mask.long(), "scale": scale, "centers": pipeline.tokenizer.centers,
            "boundaries": pipeline.tokenizer.boundaries.clamp(-1e9, 1e9),
            "forecasts": pipeline.tokenizer.output_transform(samples, scale),
        }

    def make(name):
        seed = common.seed_of(name)
        model, settings = tokens(seed, causal, **own)
        context = with_gaps(series(seed, rows, steps), 4)
        context[3] = 0
        context[0, -2], context[1, -5] = 400.0, -900.0
        samples = torch.randint(0, settings["n_tokens"], (rows, 3, 8), generator=torch.Generator().manual_seed(seed))
        samples[0, 0, :4] = torch.tensor([0, 1, 2, settings["n_tokens"] - 1])
        case = Case(name, "TimeGPT")
        write_config(case.model, model.config, [type(model).__name__], chronos_config=settings)
        chronos = pipeline_of(model.eval(), settings)
        expected = run(chronos, context, samples)
        case.write("MeanScaleUniformBins", "encode", {"context": context, "samples": samples}, expected,
                   {"decode": "samples"}, atol=1e-5, rtol=1e-5,
                   note=note or "a tokenizer needs no weights; the outermost boundaries are clamped to 1e9")
        again = run(chronos, context, samples)
        assert distance(expected, again) == 0
        print(f"{name:44} repeats")

    return make


def pipeline_of(model, settings):
    from chronos.chronos import ChronosConfig, ChronosModel

    config = ChronosConfig(**settings)
    return ChronosPipeline(tokenizer=config.create_tokenizer(), model=ChronosModel(config=config, model=model))


def tokens_forward(causal=False, written=7, note=None, **own):
    @torch.inference_mode()
    def run(model, inputs):
        out = model(**inputs)
        fields = ["logits"] if causal else ["logits", "encoder_last_hidden_state"]
        return {field: out[field] for field in fields}

    def attempt(name, seed):
        model, settings = tokens(seed, causal, **own)
        fill(model, seed)
        ids, mask, _ = pipeline_of(model, settings).tokenizer.context_input_transform(series(seed, 3, 26))
        mask = mask.long()
        if not causal:
            mask[1, 4:9] = 0
            mask[2, :7] = 0
        inputs = {"input_ids": ids * mask, "attention_mask": mask}
        if not causal:
            inputs["decoder_input_ids"] = common.ids(seed, (3, written), settings["n_tokens"])
        check_every_weight_matters(model, lambda m: run(m, inputs), ("c_attn.bias",))
        case = Case(name, "TimeGPT")
        save(case, model, settings, None)
        case.write(type(model).__name__, "forward", inputs, run(model, inputs), note=note)
        case.check_repeats(lambda folder: load(folder).inner_model, lambda m: run(m, inputs))

    return lambda name: first_good(name, lambda seed: attempt(name, seed))


def tokens_predict(horizon, causal=False, samples=3, steps=26, rows=3, note=None, write=write_safetensors, **own):
    def run(pipeline, context, options):
        torch.manual_seed(0)
        how = {"prediction_length": horizon, "num_samples": samples, "top_k": 1}
        forecasts = pipeline.predict(context, **how)
        quantiles, mean = pipeline.predict_quantiles(context, quantile_levels=options["quantile_levels"], **how)
        return {"forecasts": forecasts, "quantiles": quantiles, "mean": mean}

    def attempt(name, seed):
        model, settings = tokens(seed, causal, **own)
        fill(model, seed, gain=2.5)
        context = with_gaps(series(seed, rows, steps), 4)
        options = {"prediction_length": horizon, "num_samples": samples, "top_k": 1,
                   "quantile_levels": [0.1, 0.5, 0.85]}
        chronos = pipeline_of(model, settings)
        expected = run(chronos, context, options)
        if any(len(set(row)) < 3 for row in expected["mean"].tolist()):
            raise Retry("a row repeats itself")
        settled(model, lambda: run(chronos, context, options), expected)
        case = Case(name, "TimeGPT")
        save(case, model, settings, None, write)
        case.write("ChronosPipeline.predict / predict_quantiles", "generate", {"context": context}, expected, options,
                   note=note)
        case.check_repeats(load, lambda pipeline: run(pipeline, context, options))

    return lambda name: first_good(name, lambda seed: attempt(name, seed))


# ---------------------------------------------------------------- Chronos-2


def two(seed, gain=1.0, **own):
    core = {key: own.pop(key) for key in list(own) if key in ("d_kv", "num_heads", "feed_forward_proj", "rope_theta")}
    settings = dict(context_length=48, output_patch_size=6, input_patch_size=6, input_patch_stride=6,
                    quantiles=[0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.99], use_reg_token=True,
                    use_arcsinh=True, max_output_patches=3, time_encoding_scale=37) | own
    settings = {key: value for key, value in settings.items() if value is not None}
    cfg = Chronos2CoreConfig(**(dict(d_model=26, d_kv=6, d_ff=37, num_layers=2, num_heads=3, layer_norm_epsilon=3e-5,
                                     rope_theta=500.0, attn_implementation="eager") | core),
                             chronos_config=dict(settings))
    return fill(Chronos2Model(cfg), seed, gain), settings


def two_forward(patches, groups, known=None, steps=51, states=False, note=None, **own):
    @torch.inference_mode()
    def run(model, inputs):
        out = {"quantile_preds": model(**inputs, num_output_patches=patches).quantile_preds}
        if states:
            encoded, (loc, scale), *_ = model.encode(**inputs, num_output_patches=patches)
            out |= {"last_hidden_state": encoded.last_hidden_state, "loc": loc, "scale": scale}
        return out

    def attempt(name, seed):
        model, settings = two(seed, **own)
        rows = len(groups) if groups else 4
        inputs = {"context": with_gaps(series(seed, rows, steps), settings["input_patch_size"])}
        if groups:
            inputs["group_ids"] = torch.tensor(groups)
        if known:
            future = series(seed + 1, rows, known)
            future[0] = NAN
            future[1, 3:] = NAN
            inputs["future_covariates"] = future
        alone = not groups or len(set(groups)) == len(groups)
        check_every_weight_matters(model, lambda m: run(m, inputs),
                                   ("layer.1.self_attention.q.weight", "layer.1.self_attention.k.weight") if alone else ())
        case = Case(name, "TimeGPT")
        save(case, model, settings, "Chronos2Pipeline")
        case.write("Chronos2Model", "forward", inputs, run(model, inputs), {"num_output_patches": patches}, note=note)
        case.check_repeats(lambda folder: load(folder).model, lambda m: run(m, inputs))

    return lambda name: first_good(name, lambda seed: attempt(name, seed))


def two_predict(horizon, levels, variates=None, known=False, steps=40, rows=3, note=None, **own):
    """`variates`: each series has so many; `known`: rows of one group, some of which are known ahead."""

    def run(pipeline, inputs):
        if known:
            predictions = pipeline._predict_batch(
                context=inputs["context"], group_ids=inputs["group_ids"],
                future_covariates=inputs["future_covariates"],
                unrolled_quantiles_tensor=torch.tensor([i / 10 for i in range(1, 10)]), prediction_length=horizon,
                max_output_patches=pipeline.max_output_patches,
                target_idx_ranges=[(i, i + 1) for i in range(len(inputs["context"]))])
            return {"predictions": torch.stack(predictions)}
        context = inputs["context"] if variates else list(inputs["context"])
        predictions = pipeline.predict(context, prediction_length=horizon)
        quantiles, mean = pipeline.predict_quantiles(context, prediction_length=horizon, quantile_levels=levels)
        return {"predictions": torch.stack(predictions), "quantiles": torch.stack(quantiles), "mean": torch.stack(mean)}

    def attempt(name, seed):
        model, settings = two(seed, gain=0.8, **own)
        context = with_gaps(series(seed, rows, steps), settings["input_patch_size"])
        inputs = {"context": context}
        if variates:
            inputs["context"] = torch.cat([context, series(seed + 2, rows * (variates - 1), steps)]).reshape(
                rows, variates, steps)
        options = {"prediction_length": horizon, "quantile_levels": levels}
        if known:
            future = series(seed + 1, rows, horizon)
            future[0] = NAN
            future[1, 8:] = NAN
            inputs |= {"group_ids": torch.tensor([0, 0, 1, 0][:rows]), "future_covariates": future}
        with torch.inference_mode():
            expected = run(Chronos2Pipeline(model), inputs)
            case = Case(name, "TimeGPT")
            save(case, model, settings, "Chronos2Pipeline")
            case.write("Chronos2Pipeline.predict / predict_quantiles", "generate", inputs, expected, options, note=note)
            case.check_repeats(load, lambda pipeline: run(pipeline, inputs))

    return lambda name: first_good(name, lambda seed: attempt(name, seed))


# ---------------------------------------------------------------- training


def trained(build, pipeline="ChronosBoltPipeline", note=None):
    """A case of one step; `build(seed)` gives a model, its settings, a batch, options, the loss, the names of what the loss
    compares with, and the parameters that it cannot see."""

    def attempt(name, seed):
        model, settings, inputs, options, loss_of, labels, unseen = build(seed)
        case = Case(name, "TimeGPT")
        save(case, model, settings, pipeline)
        write_train_step(case, type(model).__name__, model, loss_of, inputs, labels, network, options, unseen=unseen,
                         note=note)

    return lambda name: first_good(name, lambda seed: attempt(name, seed))


def network(folder):
    """The network of a checkpoint."""
    model = load(folder).inner_model
    if isinstance(model, ChronosBoltModelForForecasting):
        with_embeddings(model)
    return model


def with_embeddings(model):
    """PEFT asks models of T5's configuration for their embeddings, which Chronos-Bolt's class does not name."""
    model.get_input_embeddings = lambda: model.shared
    return model


def tokens_trained(causal=False):
    """The batch that the training script of chronos-forecasting makes of series: the bins of what follows a context, with
    -100 where nothing is known; a causal model reads context and future in one row, padding moved to its end."""

    def build(seed):
        model, settings = tokens(seed, causal, num_layers=2)
        fill(model, seed)
        tokenizer = pipeline_of(model, settings).tokenizer
        waves = series(seed, 3, 30)
        waves[0, 4:6] = NAN
        waves[1, :9] = NAN
        waves[2, 26] = NAN
        ids, mask, scale = tokenizer.context_input_transform(waves[:, :24])
        labels, known = tokenizer.label_input_transform(waves[:, 24:], scale)
        if causal:
            empty = (waves[:, :24].isnan().cumprod(1)).sum(1).tolist()
            order = [[*range(start, ids.shape[1]), *range(ids.shape[1], ids.shape[1] + labels.shape[1]), *range(start)]
                     for start in empty]
            order = torch.tensor(order)
            ids, mask = (torch.cat(pair, 1).gather(1, order) for pair in ((ids, labels), (mask, known)))
            labels, known = ids, mask
        labels = labels.masked_fill(~known, -100)
        inputs = {"input_ids": ids.masked_fill(~mask, settings["pad_token_id"]), "attention_mask": mask.long(),
                  "labels": labels}
        return model, settings, inputs, {}, model_loss, ["labels"], ()

    return trained(build, None)


def bolt_trained():
    """A horizon cut short, masked in part; a constant series, whose spread is floored."""

    def build(seed):
        model, settings = bolt(seed, num_layers=2)
        waves = series(seed, 5, 49)
        context, target = with_gaps(waves[:, :43], 8), waves[:, 43:].clone()
        target[3] = 4.5
        mask = torch.ones_like(target)
        mask[1, 3:] = 0
        mask[2, 1] = 0
        inputs = {"context": context, "target": target, "target_mask": mask}
        loss_of = lambda m, batch: m(batch["context"], target=batch["target"].clone(),
                                     target_mask=batch["target_mask"] > 0).loss
        unseen = tuple(f"decoder.block.{i}.layer.0.{part}" for i in range(2) for part in UNSEEN)
        return model, settings, inputs, {}, loss_of, ["target"], unseen

    return trained(build)


def two_trained(groups):
    """Futures known in part count nothing; a target masked in part; a constant series."""

    def build(seed):
        model, settings = two(seed)
        waves = series(seed, 5, 60)
        context, target = with_gaps(waves[:, :51], 6), waves[:, 51:].clone()
        target[3] = 4.5
        mask = torch.ones_like(target)
        mask[2, 4:6] = 0
        known = series(seed + 1, 5, 9)
        known[:3], known[3, 3:], known[4, 7:] = NAN, NAN, NAN
        known[3] = torch.where(known[3].isnan(), NAN, 4.5)
        inputs = {"context": context, "group_ids": torch.tensor(groups), "future_covariates": known,
                  "future_target": target, "future_target_mask": mask}
        options = {"num_output_patches": 2}
        return model, settings, inputs, options, lambda m, batch: m(**batch, **options).loss, ["future_target"], ()

    return trained(build, "Chronos2Pipeline")


# ---------------------------------------------------------------- adapters


def with_adapter(build, configs, run, options=None, pipeline=None, unseen=(), scales=None, safe=True, note=None):
    """A forward pass with adapters; `build(seed)` gives a model, its settings and inputs."""

    def attempt(name, seed):
        model, settings, inputs = build(seed)
        case = Case(name, "TimeGPT")
        save(case, model, settings, pipeline)
        write_adapters(case, type(model).__name__, "forward", model, copy.deepcopy(configs), lambda m: run(m, inputs),
                       inputs, network, seed, options, scales, safe, unseen, note=note)

    return lambda name: first_good(name, lambda seed: attempt(name, seed))


@torch.inference_mode()
def tokens_answer(model, inputs):
    return {"logits": model(**inputs).logits}


def tokens_inputs(causal):
    def build(seed):
        model, settings = tokens(seed, causal, num_layers=2)
        fill(model, seed)
        ids, mask, _ = pipeline_of(model, settings).tokenizer.context_input_transform(series(seed, 3, 18))
        mask = mask.long()
        if not causal:
            mask[2, :7] = 0
        inputs = {"input_ids": ids * mask, "attention_mask": mask}
        if not causal:
            inputs["decoder_input_ids"] = common.ids(seed, (3, 5), settings["n_tokens"])
        return model, settings, inputs

    return build


def bolt_inputs(seed):
    model, settings = bolt(seed, num_layers=2)
    with_embeddings(model)
    return model, settings, {"context": with_gaps(series(seed, 3, 43), 8)}


@torch.inference_mode()
def bolt_answer(model, inputs):
    return {"quantile_preds": model(**inputs).quantile_preds}


def two_inputs(seed):
    model, settings = two(seed, gain=0.5)
    return model, settings, {"context": with_gaps(series(seed, 4, 51), 6), "group_ids": torch.tensor([1, 0, 1, 0])}


@torch.inference_mode()
def two_answer(model, inputs):
    return {"quantile_preds": model(**inputs, num_output_patches=2).quantile_preds}


# What Chronos2Pipeline.fit adapts, and how, if nothing else is said.
FIT = dict(r=8, lora_alpha=16, target_modules=[
    "self_attention.q", "self_attention.v", "self_attention.k", "self_attention.o",
    "output_patch_embedding.output_layer"])
ALONE = tuple(f"decoder.block.{i}.layer.0.SelfAttention.q.lora_{part}.adapter.weight" for i in range(2) for part in "AB")

CASES = {
    "chronos/bolt_forward": bolt_forward(note="gaps, a patch without a value, a constant series, one without a value"),
    "chronos/bolt_forward_longer_than_the_context": bolt_forward(steps=67, write=write_bin),
    "chronos/bolt_forward_no_reg_token": bolt_forward(
        use_reg_token=False, note="a series without a value attends to all patches alike"),
    "chronos/bolt_forward_overlapping_patches": bolt_forward(input_patch_stride=3, rows=4),
    "chronos/bolt_forward_gated": bolt_forward(feed_forward_proj="gated-gelu", num_decoder_layers=3, rows=4),
    "chronos/bolt_predict_short": bolt_predict(5, [0.3, 0.5], other={"prediction_length": 7, "quantile_levels": [0.8]}),
    "chronos/bolt_predict_long": bolt_predict(
        25, [0.05, 0.1, 0.5, 0.61, 0.97], other={"prediction_length": 15, "quantile_levels": [0.1, 0.8]}, rows=4,
        note="every quantile becomes a path; levels between and beyond the trained ones"),
    "chronos/bolt_predict_outgrows_the_context": bolt_predict(30, [0.2], steps=60, context_length=24),
    "chronos/t5_encode": tokenizer(52),
    "chronos/t5_encode_as_released": tokenizer(
        40, n_tokens=4096, tokenizer_kwargs={"low_limit": -15.0, "high_limit": 15.0}, context_length=512,
        note="the bins of every release"),
    "chronos/t5_encode_no_end_token": tokenizer(30, use_eos_token=False, n_special_tokens=4, pad_token_id=3),
    "chronos/gpt2_encode": tokenizer(33, causal=True),
    "chronos/t5_forward": tokens_forward(),
    "chronos/gpt2_forward": tokens_forward(causal=True),
    "chronos/t5_predict_short": tokens_predict(4, write=write_bin),
    "chronos/t5_predict_long": tokens_predict(15, steps=33, note="the medians are appended and the scale is new"),
    "chronos/gpt2_predict_short": tokens_predict(5, causal=True, samples=2,
                                                 note="gaps in the middle are seen by no token"),
    "chronos/gpt2_predict_long": tokens_predict(14, causal=True, samples=2),
    "chronos/two_forward_groups": two_forward(2, [7, 3, 7, 3, 7], known=11, states=True,
                                              note="futures known in part; a row without a value"),
    "chronos/two_forward_alone": two_forward(1, None, steps=29, states=True),
    "chronos/two_forward_plain_values": two_forward(3, [0, 0, 1, 2], use_arcsinh=False, time_encoding_scale=None),
    "chronos/two_forward_odd_heads": two_forward(2, [0, 1, 1, 1], known=12, steps=48, d_kv=10, num_heads=5,
                                                 feed_forward_proj="silu"),
    "chronos/two_predict_short": two_predict(11, [0.05, 0.25, 0.995]),
    "chronos/two_predict_variates": two_predict(8, [0.1, 0.5], variates=2),
    "chronos/two_predict_long": two_predict(45, [0.2, 0.55], note="nine paths; the context outgrows its length"),
    "chronos/two_predict_long_covariates": two_predict(40, [0.5], known=True, rows=4,
                                                       note="what is known ahead happens, on every path"),
    "chronos/train_step_t5": tokens_trained(),
    "chronos/train_step_gpt2": tokens_trained(causal=True),
    "chronos/train_step_bolt": bolt_trained(),
    "chronos/train_step_two": two_trained([7, 3, 7, 3, 7]),
    "chronos/adapter_two_fit": with_adapter(
        two_inputs, [LoraConfig(**FIT)], two_answer, {"num_output_patches": 2}, "Chronos2Pipeline",
        note="as Chronos2Pipeline.fit adapts"),
    "chronos/adapter_two_of_two": with_adapter(
        two_inputs, [LoraConfig(**FIT | {"r": 2, "lora_alpha": 3}), LoraConfig(r=3, lora_alpha=2, target_modules=["wi", "wo"])],
        two_answer, {"num_output_patches": 2}, "Chronos2Pipeline", scales=[0.5, -0.4],
        note="two adapters of other modules, scaled"),
    "chronos/adapter_bolt_rank_stabilized_biases": with_adapter(
        bolt_inputs, [LoraConfig(r=3, lora_alpha=5, use_rslora=True, target_modules=["q", "v", "wi", "output_layer"],
                                 bias="all")],
        bolt_answer, None, "ChronosBoltPipeline", unseen=ALONE),
    "chronos/adapter_t5_dora": with_adapter(
        tokens_inputs(False), [LoraConfig(r=2, lora_alpha=3, use_dora=True, target_modules=["q", "v", "o", "wo"])],
        tokens_answer),
    "chronos/adapter_gpt2_fan_in": with_adapter(
        tokens_inputs(True), [LoraConfig(r=2, lora_alpha=4, fan_in_fan_out=True, bias="lora_only",
                                         target_modules=["c_attn", "c_proj", "c_fc"])],
        tokens_answer, unseen=("c_attn.base_layer.bias",), safe=False),
}

if __name__ == "__main__":
    run_all(CASES, sys.argv[1:])
