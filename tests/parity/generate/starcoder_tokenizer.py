"""A small byte-level BPE of StarCoder's kind, the code it is trained on, and the same as files and as GGUF metadata."""

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from common import write_json

SPECIAL = [
    "<|endoftext|>", "<fim_prefix>", "<fim_middle>", "<fim_suffix>", "<fim_pad>", "<filename>", "<gh_stars>",
    "<issue_start>", "<issue_comment>", "<issue_closed>", "<jupyter_start>", "<jupyter_text>", "<jupyter_code>",
    "<jupyter_output>", "<empty_output>", "<commit_before>", "<commit_msg>", "<commit_after>", "<reponame>",
]
END = 0

SNIPPETS = [
    'def area(width, height):\n    """The area of a rectangle."""\n    return width * height\n',
    "def mean(values):\n    total = 0.0\n    for value in values:\n        total += value\n"
    "    return total / len(values)\n",
    "def greet(name):\n    message = f\"Hello, {name}!\"\n    print(message)\n",
    "def factorial(n):\n    if n < 2:\n        return 1\n    return n * factorial(n - 1)\n",
    "def reverse(words):\n    return \" \".join(reversed(words.split()))\n",
    "def is_even(number):\n    return number % 2 == 0\n",
    "class Counter:\n    def __init__(self):\n        self.count = 0\n\n    def add(self, step=1):\n"
    "        self.count += step\n",
    "fn largest(values: &[i32]) -> Option<i32> {\n    values.iter().copied().max()\n}\n",
    "fn square(x: f64) -> f64 {\n    x * x\n}\n",
    "fn main() {\n    let sum: u32 = (1..=100).sum();\n    println!(\"{sum}\");\n}\n",
]


def psm(prefix, suffix):
    """The prompt of a gap, as StarCoder was trained on it."""
    return f"<fim_prefix>{prefix}<fim_suffix>{suffix}<fim_middle>"


def train(size=352):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size, show_progress=False, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    tokenizer.train_from_iterator(SNIPPETS, trainer)
    assert [tokenizer.token_to_id(token) for token in SPECIAL] == list(range(len(SPECIAL)))
    return tokenizer


def write(tokenizer, folder, **config):
    """The three files of a release."""
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {key: SPECIAL[END] for key in ("bos_token", "eos_token", "unk_token")}
    write_json(folder / "special_tokens_map.json", named | {"additional_special_tokens": SPECIAL})
    write_json(folder / "tokenizer_config.json", named | {
        "add_prefix_space": False, "additional_special_tokens": SPECIAL, "clean_up_tokenization_spaces": False,
        "model_max_length": 8192, "tokenizer_class": "GPT2TokenizerFast", "vocab_size": tokenizer.get_vocab_size(),
        **config})


def merges(tokenizer):
    import json

    pairs = json.loads(tokenizer.to_str())["model"]["merges"]
    return [pair if isinstance(pair, str) else " ".join(pair) for pair in pairs]


def metadata(tokenizer):
    """What a converter writes of it into a GGUF."""
    tokens = [tokenizer.id_to_token(i) for i in range(tokenizer.get_vocab_size())]
    return [
        lambda w: w.add_tokenizer_model("gpt2"),
        lambda w: w.add_tokenizer_pre("starcoder"),
        lambda w: w.add_token_list(tokens),
        lambda w: w.add_token_types([3 if token in SPECIAL else 1 for token in tokens]),
        lambda w: w.add_token_merges(merges(tokenizer)),
        lambda w: w.add_bos_token_id(END),
        lambda w: w.add_eos_token_id(END),
        lambda w: w.add_unk_token_id(END),
    ]
