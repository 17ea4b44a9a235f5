"""Rewrites the table of cases in `tests/parity/README.md` from the case folders."""

import json

from common import CASES

MARK = "<!-- cases -->"


def main():
    rows = ["| case | call | reference | files | about |", "| --- | --- | --- | --- | --- |"]
    for path in sorted(CASES.glob("*/*/case.json")):
        case = json.loads(path.read_text())
        reference = case["reference"].removeprefix("transformers ").partition(" ")[2]
        model = path.parent / "model"
        files = sorted(file.name.removesuffix(".seeded") for file in model.iterdir() if not file.name.startswith("config")) if (
            model.is_dir()) else [f"real `{case['options']['model_ref']}`"]
        shown = files[0] if len(files) == 1 else f"{len(files)} files, {weights(files)}"
        rows.append(f"| {path.parent.relative_to(CASES)} | {case['call']} | {reference} | {shown} | {case.get('note', '')} |")
    readme = CASES / "README.md"
    before, _, rest = readme.read_text().partition(MARK)
    after = rest.partition(MARK)[2]
    readme.write_text(f"{before}{MARK}\n" + "\n".join(rows) + f"\n{MARK}{after}")


def weights(files):
    """The files that hold the tensors, or the kind of shards."""
    found = [file for file in files if file.endswith((".safetensors", ".bin", ".gguf", ".th", ".pth.tar"))]
    if any("-of-" in file for file in found):
        return f"{len(found)} shards {found[0].rpartition('.')[2]}"
    return " and ".join(found) or "no weights beside them"


if __name__ == "__main__":
    main()
