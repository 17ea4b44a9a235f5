"""A tiny SentencePiece BPE of Llama 2's kind, and the same as tokenizer.json and as GGUF metadata."""

import io

import sentencepiece
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

CORPUS = """
Gravitational lensing by a cluster of galaxies bends the light of a distant quasar behind it.
We present spectroscopic observations of a young star with a disk of gas and dust around it.
The redshift of the galaxy was measured from the hydrogen and oxygen lines in its spectrum.
Let x be a real number such that x squared is less than two; then x is less than two.
Theorem: every bounded sequence of real numbers has a convergent subsequence. Proof: by bisection.
Problem: find the sum of the first one hundred positive integers. Solution: the sum is 5050.
def add(a, b): return a + b
The mass of the black hole is 4 million times the mass of the sun, and its spin is near 0.9.
""".strip().splitlines()

TEXTS = [
    "The light of a galaxy bends.",
    " two  spaces, a\ttab and\na new line",
    "Théorème: λ = 0.5 µm 東京 🚀",
    "x",
    "def add(a, b):\n    return a + b  # 5050",
]

SIZE = 360


def train():
    """Byte fallback, a dummy prefix space, and <unk>, <s>, </s> as 0, 1, 2, as Llama 2 has them."""
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS), model_writer=out, vocab_size=SIZE, model_type="bpe", byte_fallback=True,
        character_coverage=1.0, add_dummy_prefix=True, normalization_rule_name="identity",
        remove_extra_whitespaces=False, split_digits=True, allow_whitespace_only_pieces=True, num_threads=1,
        minloglevel=2)
    return sentencepiece.SentencePieceProcessor(model_proto=out.getvalue())


def sentencepiece_ids(processor, text):
    return [processor.bos_id(), *processor.encode(text)]


def pieces(processor):
    """Every piece with its score and GGUF token type (1 normal, 2 unknown, 3 control, 6 byte)."""
    rows = []
    for i in range(processor.vocab_size()):
        kind = (2 if processor.is_unknown(i) else 3 if processor.is_control(i) else
                6 if processor.is_byte(i) else 1)
        rows.append((processor.id_to_piece(i), processor.get_score(i), kind))
    return rows


def merges(processor):
    """Every way to make a piece of two others, in the order SentencePiece would merge them."""
    rank = {piece: i for i, (piece, _, kind) in enumerate(pieces(processor)) if kind == 1}
    pairs = []
    for piece, i in rank.items():
        splits = [(piece[:at], piece[at:]) for at in range(1, len(piece))]
        pairs += [(i, rank[a], rank[b], (a, b)) for a, b in splits if a in rank and b in rank]
    return [pair for *_, pair in sorted(pairs)]


def write_tokenizer_json(processor, path):
    """The file as Llama 2's release has it: the prefix space made by the normaliser, no pre-tokeniser."""
    vocab = {piece: i for i, (piece, _, _) in enumerate(pieces(processor))}
    tokenizer = Tokenizer(models.BPE(vocab, merges(processor), unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in ("<unk>", "<s>", "</s>")])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", 1)])
    tokenizer.save(str(path))
