#!/usr/bin/env bash
# Fuzzes all file parsers with libFuzzer; the initial corpus is the files of the tests and of fuzz/seeds.
#
#   scripts/fuzz.sh [SECONDS [READER...]]     seconds per parser (default: 60); 0 only builds and writes the corpus
#
# Needs cargo-fuzz (`cargo install cargo-fuzz`) and a C++ compiler. Runs on the stable toolchain, with coverage but without
# a sanitizer, since the parsers are safe Rust. Failing inputs are kept under fuzz/artifacts.
set -euo pipefail
cd "$(dirname "$0")/.."

seconds=${1:-60}
shift || true
corpus=fuzz/corpus
readers=("$@")
if [ ${#readers[@]} = 0 ]; then
    mapfile -t readers < <(sed -nE 's/^    \("([a-z0-9_]+)", "[^"]+", [a-z_:]+\),$/\1/p' fuzz/fuzz_targets/readers.rs)
fi

# seed READER NAME...: adds the test files of these names to the corpus, at most 200 and none above 256 kB.
seed() {
    local reader=$1 name
    shift
    mkdir -p "$corpus/$reader"
    for name in "$@"; do
        # Files of one folder are similar: a fixed pseudo-random choice of 200.
        mapfile -t -n 200 files < <(
            find tests shared/tests models toolkits -name target -prune -o -type f -name "$name" -size -256k -print | sort |
                shuf --random-source=<(yes)
        )
        for file in "${files[@]}"; do
            cp "$file" "$corpus/$reader/$(sha256sum "$file" | cut -c1-16)"
        done
    done
}

seed tokenizer_json tokenizer.json
seed tokenizer_config tokenizer_config.json
seed spiece '*.model'
seed vocab_txt vocab.txt
seed vocab_json vocab.json
seed merges merges.txt
seed config config.json
seed processor preprocessor_config.json processor_config.json
seed sentences modules.json sentence_bert_config.json
seed safetensors '*.safetensors'
seed index '*.index.json'
seed pickle '*.bin' '*.pt' '*.pkl'
seed checkpoint_th '*.th' '*.ckpt'
seed gguf '*.gguf'
seed msgpack '*.msgpack'
for kind in wav flac mp3 ogg m4a png webp gif bmp csv parquet xyz cif; do
    seed "$kind" "*.$kind"
done
seed jpeg '*.jpg' '*.jpeg'
seed tiff '*.tif' '*.tiff'
seed poscar 'POSCAR*' '*.vasp'
seed ogg '*.opus'
seed aiff '*.aif[fc]'
seed rows_jsonl '*.jsonl'
seed rows_csv '*.csv'
seed rows_xyz '*.xyz'
seed lerobot_info info.json
seed lerobot_episodes episodes.jsonl
seed lerobot_tasks tasks.jsonl
seed fasta '*.fasta' '*.fa' '*.fasta.gz'
mkdir -p "$corpus/chat_template"
python3 - "$corpus/chat_template" <<'PYTHON'
import hashlib, json, pathlib, sys
into = pathlib.Path(sys.argv[1])
tests = pathlib.Path("shared/tests/tokenizers")
sources = [case[0] for case in json.loads((tests / "expressions.json").read_text())]
sources += [case["template"] for case in json.loads((tests / "templates.json").read_text())]
for source in sources:
    (into / hashlib.sha256(source.encode()).hexdigest()[:16]).write_text(source)
PYTHON

# Corpus entries that the tests have only inline, or not at all.
for folder in fuzz/seeds/*/; do
    mkdir -p "$corpus/$(basename "$folder")"
    cp "$folder"* "$corpus/$(basename "$folder")/"
done

# `RUSTC_BOOTSTRAP` makes the stable compiler accept the flags that cargo-fuzz always passes.
export RUSTC_BOOTSTRAP=1
(cd fuzz && cargo fuzz build --sanitizer none readers)
for reader in config_keys folder adapter; do
    mkdir -p "$corpus/$reader"
    (cd fuzz && FAUNA_SEEDS=$PWD/corpus/$reader FAUNA_READER=$reader cargo fuzz run --sanitizer none readers -- -runs=0 \
        2> /dev/null)
done
if [ "$seconds" = 0 ]; then exit; fi
failed=()
for reader in "${readers[@]}"; do
    echo "== $reader"
    mkdir -p "$corpus/$reader" "fuzz/artifacts/$reader"
    (cd fuzz && FAUNA_READER=$reader cargo fuzz run --sanitizer none readers "corpus/$reader" -- \
        -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 -max_len=262144 -print_final_stats=1 \
        -artifact_prefix="artifacts/$reader/" 2>&1 | grep -aE '^(stat::|SUMMARY|==|thread|#[0-9]+.DONE)|panicked|Test unit' ) || true
    if [ -n "$(ls -A "fuzz/artifacts/$reader")" ]; then
        failed+=("$reader")
    fi
done
if [ ${#failed[@]} != 0 ]; then
    echo "fuzz: these parsers failed, see fuzz/artifacts: ${failed[*]}" >&2
    exit 1
fi
echo "fuzz: ${#readers[@]} parsers, $seconds seconds each, no failures"
