"""Parity cases of sentence embedders, answered by sentence-transformers itself: Dense modules, prompts, lower case and
every pooling, in the files of its earlier versions and in those it writes today. Real checkpoints of BERT's shape too."""

import json
import re
import sys

import sentence_transformers
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.sentence_transformer.losses import CosineSimilarityLoss, MultipleNegativesRankingLoss
from sentence_transformers.sentence_transformer.modules import Pooling
from transformers import BertForMaskedLM, BertForSequenceClassification, BertModel, BertTokenizer

from bert import KEY_BIAS, config, token_inputs, vocabulary
from common import Case, first_good, forward, randomise, run_all, seed_of, weights_of, write_bin, write_config
from common import write_json, write_safetensors
from real import cached
from training import write_train_step

LIBRARY = f"+ sentence-transformers {sentence_transformers.__version__} SentenceTransformer.encode"

TEXTS = [
    "The Stars burned in a CAFÉ!",
    "A cluster of galaxies bends the light of a quasar behind it.",
    "",
    "lensing",
    " ".join(["Telescope"] * 60),
]


def randomised(module, seed):
    """Weights of a Dense near those a trained one has."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in module.parameters():
            weight.copy_(torch.randn(weight.shape, generator=random) * (0.3 if weight.dim() == 1 else weight.shape[1] ** -0.5))
    return module


def network(case, name, cased, positions, write):
    """A small BERT with its tokenizer, as transformers saves them."""
    tokens = vocabulary(cased)
    cfg = config(vocab_size=len(tokens), max_position_embeddings=positions, num_hidden_layers=2)
    write_config(case.model, cfg, ["BertModel"])
    write(case.model, weights_of(randomise(BertModel(cfg), seed_of(name))))
    (case.model / "vocab.txt").write_text("\n".join(tokens) + "\n")
    write_json(case.model / "tokenizer_config.json",
               {"do_lower_case": not cased, "tokenizer_class": "BertTokenizer", "model_max_length": positions})
    return cfg


def answer(case, note, options=None):
    """The library's own answer from the folder, which must move with every module after the network."""
    model = SentenceTransformer(str(case.model), device="cpu", backend="torch", model_kwargs={"attn_implementation": "eager"})
    run = lambda model: {"sentence_embedding": torch.tensor(model.encode(TEXTS, convert_to_numpy=True))}
    expected = run(model)
    for module in list(model)[1:]:
        for key, weight in module.state_dict().items():
            old = weight.clone()
            weight.add_(0.5)
            moved = (run(model)["sentence_embedding"] - expected["sentence_embedding"]).abs().max()
            weight.copy_(old)
            assert moved > 1e-2, f"{case.name}: {key} does not move the answer"
    case.write(LIBRARY, "encode", {}, expected, {"texts": TEXTS, **(options or {})}, note=note)
    case.check_repeats(lambda folder: SentenceTransformer(str(folder), device="cpu"), run)


def today(pooling, dense, normalize, note, whole=None, include_prompt=True):
    """A folder as the library saves it today; `dense`: arguments of Dense modules without their width."""

    def make(name):
        case = Case(name, "BERT")
        cfg = network(case, name, cased=False, positions=40, write=write_safetensors)
        modules = [Transformer(str(case.model)), Pooling(cfg.hidden_size, pooling, include_prompt=include_prompt)]
        width = modules[1].pooling_output_dimension
        for i, (outputs, arguments) in enumerate(dense):
            modules.append(randomised(Dense(width, outputs, **arguments), seed_of(name) + i))
            width = outputs
        if normalize:
            modules.append(Normalize())
        model = SentenceTransformer(modules=modules, device="cpu", **(whole or {}))
        model.save_pretrained(str(case.model), create_model_card=False)
        answer(case, note)

    return make


def earlier(note):
    """A folder as LaBSE's: the library's earlier names, pickled weights, `do_lower_case` before a cased tokenizer."""

    def make(name):
        case = Case(name, "BERT")
        cfg = network(case, name, cased=True, positions=64, write=write_bin)
        write_json(case.model / "sentence_bert_config.json", {"max_seq_length": 33, "do_lower_case": True})
        kind = "sentence_transformers.models"
        parts = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Dense", "Dense"), ("3_Normalize", "Normalize")]
        write_json(case.model / "modules.json", [
            {"idx": i, "name": str(i), "path": path, "type": f"{kind}.{part}"} for i, (path, part) in enumerate(parts)])
        for path, _ in parts[1:3]:
            (case.model / path).mkdir()
        write_json(case.model / "1_Pooling" / "config.json", {
            "word_embedding_dimension": cfg.hidden_size, "pooling_mode_cls_token": True,
            "pooling_mode_mean_tokens": False, "pooling_mode_max_tokens": True, "pooling_mode_mean_sqrt_len_tokens": False})
        width = 2 * cfg.hidden_size
        write_json(case.model / "2_Dense" / "config.json", {
            "in_features": width, "out_features": 10, "bias": True,
            "activation_function": "torch.nn.modules.activation.Tanh"})
        write_bin(case.model / "2_Dense", weights_of(randomised(Dense(width, 10), seed_of(name))))
        answer(case, note)

    return make


# ---------------------------------------------------------------- real checkpoints

def tokenised(tokenizer, texts, longest):
    encoded = tokenizer(texts, padding="longest", truncation=True, max_length=longest)
    return {key: torch.tensor(encoded[key]) for key in ("input_ids", "attention_mask", "token_type_ids")}


HEAVY = "EVQLVQSGPEVKKPGTSVKVSCKASGFTFMSSAVQWVRQARGQRLEWIGWIV[MASK]GSGNTNYAQKFQERVTITRDMSTSTAYMELSSLRSEDTAVYYCAAPYCSSISCNDGFDIWGQGTMVTVS"
LIGHT = "DVVMTQTPFSLPVSLGDQASISCRSSQSLVHSNGNTYLHWYLQKPGQSPKLLIYKVSNRFSGVPDRFSGSGSGTDFTLKISRVEAEDLGVYFC[MASK]QSTHVPYTFGGGTKLEIK"


def spaced(text):
    """A sequence as AntiBERTy's own runner hands it to the tokenizer: its residues with spaces between."""
    return " ".join(re.findall(r"\[MASK\]|.", text))


def antibodies(name):
    """AntiBERTy: residues for masks. Its class is BERT with further heads, which this leaves."""
    folder = cached("antiberty")
    texts = [HEAVY, LIGHT, "QVQ"]
    inputs = tokenised(BertTokenizer(str(folder / "vocab.txt"), do_lower_case=False), [spaced(text) for text in texts], 512)
    model, info = BertForMaskedLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager",
                                                  output_loading_info=True)
    assert not info["missing_keys"] and all(n.startswith(("cls.", "bert.pooler", "bert.embeddings.position_ids"))
                                            for n in info["unexpected_keys"]), info
    run = lambda model: inputs | forward(model.eval(), inputs, ["logits"])
    case = Case(name, "BERT")
    case.write("BertTokenizer + BertForMaskedLM", "forward", {}, run(model),
               {"model_ref": "antiberty", "texts": texts}, note="real weights of AntiBERTy")
    case.check_repeats(lambda _: model, run)


# rxnfp's own way to split a reaction: what matches is a token, what does not is dropped.
SMILES = re.compile(r"(\%\([0-9]{3}\)|\[[^\]]+]|Br?|Cl?|N|O|S|P|F|I|b|c|n|o|s|p|\||\(|\)|\.|=|#|-|\+|\\|\/|:|~|@|\?|>>?|\*|\$|\%[0-9]{2}|[0-9])")

REACTIONS = [
    "Nc1cccc2cnccc12.O=C(O)c1cc([N+](=O)[O-])c(Sc2c(Cl)cncc2Cl)s1>>O=C(Nc1cccc2cnccc12)c1cc([N+](=O)[O-])c(Sc2c(Cl)cncc2Cl)s1",
    "C[C@@H](N)C(=O)O.CO>>COC(=O)[C@H](C)N",
    "CCO.CC(=O)O>>CC(=O)[MASK]CC",
]


def smiles(folder, texts):
    ids = {token: i for i, token in enumerate((folder / "vocab.txt").read_text().splitlines())}
    rows = []
    for text in texts:
        tokens = [token for part in re.split(r"(\[MASK\])", text)
                  for token in ([part] if part == "[MASK]" else SMILES.findall(part))]
        rows.append([ids["[CLS]"], *(ids.get(token, ids["[UNK]"]) for token in tokens), ids["[SEP]"]])
    time = max(map(len, rows))
    pad = lambda row, fill: row + [fill] * (time - len(row))
    return {"input_ids": torch.tensor([pad(row, 0) for row in rows]),
            "attention_mask": torch.tensor([pad([1] * len(row), 0) for row in rows]),
            "token_type_ids": torch.zeros(len(rows), time, dtype=torch.long)}


def reactions(checkpoint, model_class, fields, texts, ignored, family=None):
    """One of rxnfp's three BERTs over reactions."""

    def make(name):
        folder = cached(checkpoint)
        inputs = smiles(folder, texts)
        keys = json.loads((folder / "config.json").read_text())
        model, info = model_class.from_pretrained(folder, config=config(**keys), dtype=torch.float32,
                                                  attn_implementation="eager", output_loading_info=True)
        assert not info["missing_keys"] and all(n.startswith(ignored) for n in info["unexpected_keys"]), info
        run = lambda model: inputs | forward(model.eval(), inputs, fields)
        case = Case(name, "BERT")
        options = {"model_ref": checkpoint, "texts": texts, **({"family": family} if family else {})}
        case.write(f"rxnfp's SmilesTokenizer + {model_class.__name__}", "forward", {}, run(model), options,
                   note="real weights of rxnfp" + (", whose config names no class" if family else ""))
        case.check_repeats(lambda _: model, run)

    return make


def real_sentences(name):
    """A fine-tuned MiniLM, by the library."""
    folder = cached("sre-embedding-model")
    texts = ["pod keeps crashing", "CrashLoopBackOff", "Mean time to recover", "naïve résumé; p99 > 300 ms", " ".join(["latency"] * 300)]
    run = lambda model: {"sentence_embedding": torch.tensor(model.encode(texts, convert_to_numpy=True))}
    model = SentenceTransformer(str(folder), device="cpu", model_kwargs={"attn_implementation": "eager"})
    case = Case(name, "BERT")
    case.write(LIBRARY, "encode", {}, run(model), {"model_ref": "sre-embedding-model", "texts": texts}, atol=1e-5,
               note="real weights of sre-embedding-model")
    case.check_repeats(lambda _: model, run)


# ---------------------------------------------------------------- training

# What the library calls the columns of its examples, here before `_input_ids` and so on.
PAIRS, TRIPLES, SCORED = ("anchor", "positive"), ("anchor", "positive", "negative"), ("sentence1", "sentence2")


def columns(inputs, names):
    """The features of each column, as the library's collator gives them to a loss."""
    return [{key.removeprefix(f"{name}_"): value for key, value in inputs.items() if key.startswith(f"{name}_")}
            for name in names]


def ranking(names, scale):
    """MultipleNegativesRankingLoss: cross entropy of `scale` times the cosine of each anchor with all the positives and
    then all the negatives, the class being the positive of the same row."""
    return lambda model, inputs: MultipleNegativesRankingLoss(model, scale=scale)(columns(inputs, names), None)


def similarity(model, inputs):
    """CosineSimilarityLoss: mean squared difference of the cosine and the label, which the library makes float32."""
    difference = lambda cosine, labels: torch.nn.functional.mse_loss(cosine, labels.to(cosine.dtype))
    return CosineSimilarityLoss(model, difference)(columns(inputs, SCORED), inputs["labels"])


def trained(pooling, normalize, names, loss_fn, labels, options, note=None):
    """A step on tokenised columns of three rows, whose tensors are those of the network."""

    def attempt(name, seed):
        case = Case(name, "BERT")
        tokens = vocabulary(cased=False)
        cfg = config(vocab_size=len(tokens), max_position_embeddings=40, num_hidden_layers=2, hidden_dropout_prob=0.0,
                     attention_probs_dropout_prob=0.0)
        write_config(case.model, cfg, ["BertModel"])
        write_safetensors(case.model, weights_of(randomise(BertModel(cfg), seed)))
        (case.model / "vocab.txt").write_text("\n".join(tokens) + "\n")
        write_json(case.model / "tokenizer_config.json",
                   {"do_lower_case": True, "tokenizer_class": "BertTokenizer", "model_max_length": 40})
        modules = [Transformer(str(case.model)), Pooling(cfg.hidden_size, pooling)]
        SentenceTransformer(modules=[*modules, *([Normalize()] if normalize else [])], device="cpu").save_pretrained(
            str(case.model), create_model_card=False)
        inputs = {}
        for i, (column, lengths) in enumerate(zip(names, ((9, 5, 3), (7, 12, 4), (5, 6, 8)))):
            drawn = token_inputs(seed + 20 * i, cfg.vocab_size, cfg.type_vocab_size, lengths)
            inputs |= {f"{column}_{key}": value for key, value in drawn.items()}
        if "labels" in labels:
            inputs["labels"] = torch.tensor([0.9, 0.2, 0.55])
        reload = lambda folder: SentenceTransformer(str(folder), device="cpu",
                                                    model_kwargs={"attn_implementation": "eager"}).eval()
        write_train_step(case, LIBRARY.replace("SentenceTransformer.encode", note), reload(case.model), loss_fn, inputs,
                         labels, reload, options, unseen=(KEY_BIAS,), name_of=lambda name: name.split("model.", 1)[1])

    return lambda name: first_good(name, lambda seed: attempt(name, seed))


identity = {"activation_function": torch.nn.Identity()}
CASES = {
    "bert/sentence_earlier_dense": earlier("as LaBSE: pickled weights, cls and max side by side, a Dense; lower case before a cased tokenizer"),
    "bert/sentence_today_dense": today("cls", [(11, identity)], True, "as the library writes it today: a Dense without a function"),
    "bert/sentence_today_two_dense": today(
        ["weightedmean", "lasttoken"], [(16, {"bias": False}), (16, {"use_residual": True}), (9, {"use_residual": True})],
        False, "two poolings, three Dense of one set of names, with what came in added; the first numbers are kept",
        whole={"truncate_dim": 7}),
    "bert/sentence_today_prompt": today(
        ["mean", "max", "cls"], [], True, "a default prompt, which the poolings leave out",
        whole={"prompts": {"query": "the star is: ", "document": ""}, "default_prompt_name": "query"}, include_prompt=False),
    "bert/sentence_today_lengths": today("mean_sqrt_len_tokens", [], False, "the pooling of today's name"),
    "bert/train_step_ranking": trained(
        "mean", True, PAIRS, ranking(PAIRS, 20.0), ("positive_input_ids",),
        {"loss": "multiple_negatives_ranking", "scale": 20.0}, "MultipleNegativesRankingLoss"),
    "bert/train_step_ranking_negatives": trained(
        "cls", False, TRIPLES, ranking(TRIPLES, 8.0), ("positive_input_ids", "negative_input_ids"),
        {"loss": "multiple_negatives_ranking", "scale": 8.0}, "MultipleNegativesRankingLoss"),
    "bert/train_step_cosine": trained("mean", False, SCORED, similarity, ("labels",), {"loss": "cosine_similarity"},
                                      "CosineSimilarityLoss"),
    "bert/real_antibodies": antibodies,
    "bert/real_reactions": reactions("rxnfp-bert-ft", BertModel, ["last_hidden_state", "pooler_output"], REACTIONS[1:2], (), "bert"),
    "bert/real_reaction_classes": reactions("rxnfp-bert-ft-10k-25s", BertForSequenceClassification, ["logits"], REACTIONS[:2], ()),
    "bert/real_reaction_masks": reactions("rxnfp-bert-pretrained", BertForMaskedLM, ["logits"], REACTIONS[2:],
                                          ("cls.seq_relationship", "bert.pooler"), "bert"),
    "bert/real_sre_sentences": real_sentences,
}

if __name__ == "__main__":
    run_all(CASES, sys.argv[1:])
