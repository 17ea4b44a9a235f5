"""pocket-genes: a GenSLM of resistance genes, which scores genes and writes new ones.

    assets/pocket/genes.py make|measure

Genes are the whole reading frames of Debian's resfinder-db. Some are left out alone, others with all genes like them.
"""

import collections
import json
import math
import struct

import numpy

from common import HERE, Measured, Program, debian_package, main, publish, work_folder, write_json

NAME = "pocket-genes"
STARTS, STOPS = ("ATG", "GTG", "TTG"), ("TAA", "TAG", "TGA")
# Genes are of one cluster that share this part of their stretches of eight bases, which genes do that are alike in three
# of four bases.
ALIKE, STRETCH = 0.1, 8
LONGEST = 1100
STEPS, LONGER, BATCH = 2200, 1200, 4
CONFIG = {
    "architectures": ["GPTNeoXForCausalLM"], "attention_probs_dropout_prob": 0.1, "bos_token_id": 0, "eos_token_id": 0,
    "hidden_act": "gelu_fast", "hidden_dropout_prob": 0.1, "hidden_size": 96, "initializer_range": 0.02,
    "intermediate_size": 384, "layer_norm_eps": 1e-05, "max_position_embeddings": LONGEST, "model_type": "gpt_neox",
    "num_attention_heads": 4, "num_hidden_layers": 4, "rotary_emb_base": 10000, "rotary_pct": 0.25,
    "tie_word_embeddings": False, "torch_dtype": "bfloat16", "transformers_version": "4.21.1", "use_cache": True,
    "vocab_size": 69,
}


# ---------------------------------------------------------------- genes


def codons_of(gene):
    """The codons of a gene."""
    return [gene[at:at + 3] for at in range(0, len(gene), 3)]


def is_frame(gene):
    """Whether a sequence is one whole reading frame: a start codon, a stop codon at its end and none before."""
    codons = codons_of(gene)
    whole = len(gene) % 3 == 0 and not set(gene) - set("ACGT") and len(codons) <= LONGEST
    return whole and codons[0] in STARTS and codons[-1] in STOPS and not set(codons[:-1]) & set(STOPS)


def read_genes():
    """The genes by their names, each sequence once, in the order of the files."""
    found = {}
    for path in sorted((debian_package("resfinder-db") / "usr/share/resfinder/db").glob("*.fsa")):
        for record in path.read_text().split(">")[1:]:
            name, *lines = record.split("\n")
            gene = "".join(lines).upper().strip()
            if path.stem != "all" and is_frame(gene):
                found.setdefault(gene, name.strip())
    return {name: gene for gene, name in found.items()}


class Index:
    """Genes by their stretches of eight bases."""

    def __init__(self, genes):
        self.names, self.genes = list(genes), list(genes.values())
        lists = collections.defaultdict(list)
        for at, gene in enumerate(self.genes):
            for stretch in stretches(gene):
                lists[stretch].append(at)
        self.lists = {stretch: numpy.array(places) for stretch, places in lists.items()}

    def shared(self, gene):
        """For each gene of the index, the share of the stretches of `gene` that it has."""
        mine = stretches(gene)
        places = [self.lists[stretch] for stretch in mine if stretch in self.lists]
        counts = numpy.bincount(numpy.concatenate(places), minlength=len(self.genes)) if places else numpy.zeros(len(self.genes))
        return counts / len(mine)

    def nearest(self, gene):
        """The name of the nearest gene and the identity with it, of the five that share most."""
        best = numpy.argsort(-self.shared(gene), kind="stable")[:5]
        return max(((identity(gene, self.genes[at]), self.names[at]) for at in best))


def stretches(gene):
    """The stretches of eight bases of a gene."""
    return {gene[at:at + STRETCH] for at in range(len(gene) - STRETCH + 1)}


def identity(one, other):
    """1 less the edit distance of two sequences over the length of the longer one (Myers 1999, bit by bit)."""
    size, last = len(one), 1 << (len(one) - 1)
    full = (1 << size) - 1
    equal = collections.defaultdict(int)
    for at, letter in enumerate(one):
        equal[letter] |= 1 << at
    above, below, distance = full, 0, size
    for letter in other:
        same = equal[letter]
        across = (((same & above) + above) ^ above) | same | below
        more, less = below | (full & ~(across | above)), above & across
        distance += bool(more & last) - bool(less & last)
        more, less = (more << 1 | 1) & full, (less << 1) & full
        above, below = less | (full & ~((same | below) | more)), more & (same | below)
    return 1 - distance / max(size, len(other))


def clusters(genes):
    """The number of the cluster of each gene: genes are joined that share enough stretches, and those joined to them."""
    index = Index(genes)
    parent = list(range(len(genes)))

    def root(at):
        while parent[at] != at:
            parent[at] = parent[parent[at]]
            at = parent[at]
        return at

    for at, gene in enumerate(index.genes):
        for other in numpy.flatnonzero(index.shared(gene) >= ALIKE):
            parent[root(int(other))] = root(at)
    return [root(at) for at in range(len(genes))]


def split(genes):
    """The genes of training, of validation, those left out alone, and those left out with their whole cluster."""
    number = dict(zip(genes, clusters(genes)))
    draw = numpy.random.default_rng(20_221_010)
    members = collections.defaultdict(list)
    for name, cluster in number.items():
        members[cluster].append(name)
    families, whole = list(members.values()), set()
    for at in draw.permutation(len(families)):
        if len(whole) + len(families[at]) <= 0.05 * len(genes) and len(families[at]) <= 40:
            whole |= set(families[at])
    others = [name for name in genes if name not in whole]
    order = [others[at] for at in draw.permutation(len(others))]
    alone, valid = set(order[:300]), set(order[300:400])
    pick = lambda chosen: {name: genes[name] for name in genes if name in chosen}
    return {
        "train": pick(set(others) - alone - valid), "valid": pick(valid), "alone": pick(alone), "cluster": pick(whole),
    }


def write_fasta(path, genes):
    """Writes genes as FASTA."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f">{name}\n{gene}\n" for name, gene in genes.items()))


# ---------------------------------------------------------------- making


def make():
    """Writes the genes, trains and publishes."""
    folder = work_folder("genes")
    parts = split(read_genes())
    for name in ("train", "valid"):
        write_fasta(folder / f"genes/{name}.fasta", parts[name])
    (folder / "config").mkdir(exist_ok=True)
    write_json(folder / "config/config.json", CONFIG)
    program = Program(folder)
    common = ["--data", "genes", "--batch", BATCH, "--schedule", "cosine", "--valid-every", 200, "--threads", 1]
    first = ["--from-config", "config/config.json", *common, "--lr", 3e-3, "--warmup", 100, "--steps", STEPS]
    program.tune("run", *first)
    # The model still learned when the rate was 0.
    trained = program.tune(
        "longer", "run/last", "--full", *common, "--lr", 2e-3, "--warmup", 50, "--steps", LONGER, "--seed", 1,
    )
    with_the_names_of_releases(publish("science", NAME, trained) / "model.safetensors")


def with_the_names_of_releases(path):
    """Gives the tensors of a checkpoint the names of the releases: those below the head begin with `gpt_neox.`."""
    data = path.read_bytes()
    length, = struct.unpack("<Q", data[:8])
    named = lambda name: name if name.startswith(("__", "embed_out.", "gpt_neox.")) else f"gpt_neox.{name}"
    header = {named(name): entry for name, entry in json.loads(data[8:8 + length]).items()}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length:])


# ---------------------------------------------------------------- measuring


def frequencies(genes):
    """The negative log-likelihood of each codon by how often it is in `genes`, and once more, without their first ones."""
    counts = collections.Counter(codon for gene in genes.values() for codon in codons_of(gene)[1:])
    every = [a + b + c for a in "ACGT" for b in "ACGT" for c in "ACGT"]
    total = sum(counts.values()) + len(every)
    return {codon: -math.log((counts[codon] + 1) / total) for codon in every}


def perplexities(program, model, genes, costs):
    """The perplexity per codon of the model and of the codons' frequencies on `genes`, without their first codons."""
    path = program.folder / "scored.fasta"
    write_fasta(path, genes)
    rows = [json.loads(line) for line in program.run("--json", "genes", "score", model, "--genes", path).splitlines()]
    codons = [codons_of(gene)[1:] for gene in genes.values()]
    total = sum(map(len, codons))
    assert len(rows) == len(genes) and sum(row["codons"] - 1 + row["cut"] for row in rows) == total
    by_model = -sum(row["log_likelihood"] for row in rows) / total
    by_frequency = sum(costs[codon] for gene in codons for codon in gene) / total
    return math.exp(by_model), math.exp(by_frequency)


def measure():
    """Measures the published model on the genes left out and on genes that it writes."""
    folder = work_folder("genes")
    program, model = Program(folder), HERE / "science" / NAME
    measured = Measured(model)
    genes = read_genes()
    parts = split(genes)
    costs, index = frequencies(parts["train"]), Index(parts["train"])
    near = {name: index.nearest(gene)[0] for name, gene in {**parts["alone"], **parts["cluster"]}.items()}
    far = {name: gene for name, gene in parts["alone"].items() if near[name] < 0.95}
    tests = [("genes left out", parts["alone"], "<= 0.5"), ("of these, less than 95 % like a gene of training", far, None)]
    tests.append(("whole clusters left out", parts["cluster"], None))
    for what, chosen, goal in tests:
        by_model, by_frequency = perplexities(program, model, chosen, costs)
        measured.add(f"{what}: genes", len(chosen), digits=6)
        measured.add(f"{what}: median identity with the nearest gene of training", numpy.median([near[name] for name in chosen]))
        measured.add(f"{what}: perplexity per codon", by_model)
        measured.add(f"{what}: perplexity per codon of the codons' frequencies", by_frequency)
        measured.add(f"{what}: perplexity over that of the frequencies", by_model / by_frequency, goal)
    written(program, model, measured, Index(genes))
    measured.write()


def written(program, model, measured, index):
    """Measures genes that the model writes after ATG: how they end, and what they are like."""
    text = program.run("--json", "genes", "generate", model, "ATG", "--copies", 100, "--seed", 1)
    rows = [json.loads(line)["sequence"] for line in text.splitlines()]
    whole = [gene for gene in rows if is_frame(gene)]
    found = [(gene, *index.nearest(gene)) for gene in whole]
    measured.add("genes written: genes", len(rows), digits=6)
    measured.add("genes written: share that ends with a stop codon", len(whole) / len(rows))
    measured.add("genes written: share that is a known gene", sum(near == 1 for _, near, _ in found) / len(rows))
    measured.add("genes written: median identity with the nearest known gene", numpy.median([near for _, near, _ in found]))
    measured.add("genes written: median codons", numpy.median([len(gene) // 3 for gene in whole]))
    lines = [f"| {len(gene) // 3} | {name} | {near:.3f} |\n" for gene, near, name in found[:12]]
    text = "| codons | nearest known gene | identity |\n| --- | --- | --- |\n" + "".join(lines)
    (program.folder / "written.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main(make, measure)
