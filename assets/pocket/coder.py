"""pocket-coder: a StarCoder of Python's standard library, which fills gaps of one line and completes functions.

    assets/pocket/coder.py make|measure

The code is that of Debian's Python 3.11 without comments and docstrings. Whole files are left out.
"""

import ast
import functools
import io
import json
import random
import textwrap
import tokenize
import warnings

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from common import HERE, Measured, Program, debian_package, main, publish, work_folder, write_json, write_json_lines

NAME = "pocket-coder"
PACKAGES = ("libpython3.11-minimal", "libpython3.11-stdlib")
# Tables, generated modules, tests, and the build's own settings.
LEFT_OUT = (
    "encodings/", "pydoc_data/", "test/", "lib2to3/", "_sysconfigdata", "html/entities", "token.py", "keyword.py",
    "stringprep", "re/_casefix", "_pydecimal", "turtledemo/", "this.py", "antigravity", "__phello__", "sre_", "turtle",
    "_osx_support", "nturl2path", "pickletools", "sitecustomize", "opcode", "_opcode",
)
SPECIAL = [
    "<|endoftext|>", "<fim_prefix>", "<fim_middle>", "<fim_suffix>", "<fim_pad>", "<filename>", "<gh_stars>",
    "<issue_start>", "<issue_comment>", "<issue_closed>", "<jupyter_start>", "<jupyter_text>", "<jupyter_code>",
    "<jupyter_output>", "<empty_output>", "<commit_before>", "<commit_msg>", "<commit_after>", "<reponame>",
]
END = SPECIAL[0]
VOCABULARY, CONTEXT, WIDTH, LAYERS, HEADS = 2048, 256, 160, 4, 5
# A gap of a short line: characters without the indentation.
SHORT = 20
# First mixed texts at a constant rate; then gaps and functions one by one at a falling one.
RATE, BATCH, TEXTS, STEPS = 2e-3, 8, 24_000, 1600
LAST_RATE, LAST_BATCH, TASKS, LAST_STEPS = 1.5e-3, 8, 10_000, 900
CONFIG = {
    "activation_function": "gelu_pytorch_tanh", "architectures": ["GPTBigCodeForCausalLM"],
    "attention_softmax_in_fp32": True, "attn_pdrop": 0.0, "bos_token_id": 0, "embd_pdrop": 0.0, "eos_token_id": 0,
    "initializer_range": 0.02, "layer_norm_epsilon": 1e-05, "model_type": "gpt_bigcode", "multi_query": True,
    "n_embd": WIDTH, "n_head": HEADS, "n_inner": 4 * WIDTH, "n_layer": LAYERS, "n_positions": CONTEXT,
    "resid_pdrop": 0.0, "scale_attention_softmax_in_fp32": True, "scale_attn_weights": True,
    "tie_word_embeddings": True, "torch_dtype": "bfloat16", "transformers_version": "4.28.1", "use_cache": True,
    "vocab_size": VOCABULARY,
}


# ---------------------------------------------------------------- code


def bare(text):
    """Code without comments and docstrings, with two blank lines in a row at most; None if it is no Python."""
    lines = text.expandtabs(8).splitlines()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse("\n".join(lines) + "\n")
        marks = list(tokenize.generate_tokens(io.StringIO("\n".join(lines) + "\n").readline))
    except (SyntaxError, tokenize.TokenError):
        return None
    gone = set()
    for node in ast.walk(tree):
        first = getattr(node, "body", None)
        if isinstance(first, list) and first and isinstance(first[0], ast.Expr) and isinstance(first[0].value, ast.Constant):
            if isinstance(first[0].value.value, str):
                rows = range(first[0].lineno - 1, first[0].end_lineno)
                if len(first) == 1 and not isinstance(node, ast.Module):
                    lines[rows[0]] = " " * first[0].col_offset + "pass"
                    rows = rows[1:]
                gone |= set(rows)
    for mark in marks:
        if mark.type == tokenize.COMMENT:
            row, column = mark.start
            left = lines[row - 1][:column].rstrip()
            if left:
                lines[row - 1] = left
            else:
                gone.add(row - 1)
    kept = [line.rstrip() for row, line in enumerate(lines) if row not in gone]
    text = "\n".join(kept).strip("\n") + "\n"
    while "\n\n\n\n" in text:
        text = text.replace("\n\n\n\n", "\n\n\n")
    try:
        ast.parse(text)
    except SyntaxError:
        return None
    return text


@functools.cache
def sources():
    """The files of the library by their paths, bare, those with at least 20 lines."""
    found = {}
    for package in PACKAGES:
        root = debian_package(package) / "usr/lib/python3.11"
        for path in sorted(root.rglob("*.py")):
            name = path.relative_to(root).as_posix()
            if path.is_file() and not path.is_symlink() and not name.startswith(LEFT_OUT):
                text = bare(path.read_text(encoding="utf-8", errors="replace"))
                if text is not None and len(code_lines(text)) >= 20:
                    found[name] = text
    return found


def split():
    """The files of training, validation and test, by a fixed draw."""
    files = sources()
    order = sorted(files)
    random.Random(3_11_2).shuffle(order)
    pick = lambda names: {name: files[name] for name in names}
    return {"test": pick(order[:80]), "valid": pick(order[80:110]), "train": pick(order[110:])}


def code_lines(text):
    """The numbers, from 0, of the lines that a statement or a part of one stands on, without lines inside of strings."""
    inside, used = set(), set()
    for mark in tokenize.generate_tokens(io.StringIO(text).readline):
        if mark.type == tokenize.STRING and mark.end[0] > mark.start[0]:
            inside |= set(range(mark.start[0] - 1, mark.end[0]))
        elif mark.type not in (tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER):
            used |= set(range(mark.start[0] - 1, mark.end[0]))
    return sorted(used - inside)


def functions(text):
    """The functions and methods of a file with their decorators, moved to the left margin."""
    lines, found = text.splitlines(), []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            code = textwrap.dedent("\n".join(lines[node.lineno - 1:node.end_lineno]) + "\n")
            body = node.body[0].lineno - node.lineno
            if body > 0 and parses(code):
                found.append((code, body))
    return found


def parses(code):
    """Whether `code` is Python."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


def short(line):
    """Whether a line has at most `SHORT` characters without its indentation."""
    return len(line.strip()) <= SHORT


# ---------------------------------------------------------------- making


def tokenizer_of(texts):
    """StarCoder's kind of byte-level BPE, with a line's end and the next one's indentation as one piece."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(r"\n[ \n]*|^ +"), "isolated"), pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
    ])
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, show_progress=False, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL],
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def write_model(folder, tokenizer):
    """Writes the configuration and the tokenizer's three files as a release of StarCoder has them."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", CONFIG)
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {key: END for key in ("bos_token", "eos_token", "unk_token")}
    write_json(folder / "special_tokens_map.json", named | {"additional_special_tokens": SPECIAL})
    write_json(folder / "tokenizer_config.json", named | {
        "add_prefix_space": False, "additional_special_tokens": SPECIAL, "clean_up_tokenization_spaces": False,
        "model_max_length": CONTEXT, "tokenizer_class": "GPT2TokenizerFast", "vocab_size": VOCABULARY,
    })


class Examples:
    """Texts of `CONTEXT` tokens at most: gaps of one line, functions, stretches of files."""

    def __init__(self, files, tokenizer, seed):
        self.draw, self.tokenizer = random.Random(seed), tokenizer
        self.files = [text.splitlines(keepends=True) for text in files.values()]
        self.costs = [[len(row.ids) for row in tokenizer.encode_batch(lines)] for lines in self.files]
        self.places = [(at, line) for at, text in enumerate(files.values()) for line in code_lines(text)]
        self.shorts = [(at, line) for at, line in self.places if short(self.files[at][line])]
        found = [pair for text in files.values() for pair in functions(text)]
        self.functions, self.bodies = [code for code, _ in found], [body for _, body in found]
        self.sizes = [len(row.ids) for row in tokenizer.encode_batch(self.functions)]

    def gap(self, room, places):
        """A line left out between lines before and after it, in `room` tokens: the prompt and the line."""
        while True:
            at, line = self.draw.choice(places)
            lines, costs = self.files[at], self.costs[at]
            code = lines[line].rstrip("\n")
            margin = len(code) - len(code.lstrip()) if self.draw.random() < 0.85 else 0
            left = room - costs[line] - 8
            if left < 30:
                continue
            before, first = self.draw.uniform(0.4, 0.8) * left, line
            while first > 0 and costs[first - 1] <= before:
                first -= 1
                before, left = before - costs[first], left - costs[first]
            last = line + 1
            while last < len(lines) and costs[last] <= left:
                left -= costs[last]
                last += 1
            prefix, suffix = "".join(lines[first:line]) + code[:margin], "\n" + "".join(lines[line + 1:last])
            return f"<fim_prefix>{prefix}<fim_suffix>{suffix}<fim_middle>", code[margin:]

    def stretch(self, room):
        """A function, or lines of a file, in `room` tokens."""
        if self.draw.random() < 0.6:
            at = self.draw.randrange(len(self.functions))
            if 12 <= self.sizes[at] <= room:
                return self.functions[at]
        at, first = self.draw.choice(self.places)
        last, left = first, room
        while last < len(self.files[at]) and self.costs[at][last] <= left:
            left -= self.costs[at][last]
            last += 1
        return "".join(self.files[at][first:last])

    def size(self, text):
        """The tokens of a text."""
        return len(self.tokenizer.encode(text).ids)

    def text(self):
        """Examples one after the other in the space of one."""
        parts, room = [], CONTEXT - 1
        while room > 60 and len(parts) < 6:
            if self.draw.random() < 0.65:
                part = "".join(self.gap(min(room, self.draw.randint(80, 200)), self.places))
            else:
                part = self.stretch(room)
            size = self.size(part) + 1
            if 10 < size <= room:
                parts.append(part)
                room -= size
            elif parts:
                break
        return END.join(parts)

    def task(self):
        """A prompt and what is written for it: a line, half of them short, or the rest of a function."""
        if self.draw.random() < 0.9:
            prompt, line = self.gap(self.draw.randint(80, 140), self.draw.choice((self.places, self.shorts)))
            return {"prompt": prompt, "completion": line}
        while True:
            at = self.draw.randrange(len(self.functions))
            lines = self.functions[at].splitlines(keepends=True)
            given = self.bodies[at] + self.draw.randint(0, 3)
            if self.sizes[at] < 140 and given < len(lines):
                begin = "".join(lines[:given]).rstrip("\n")
                return {"prompt": begin, "completion": self.functions[at][len(begin):]}


def data(folder):
    """Writes the examples and the model that is trained, once."""
    if (folder / "tasks/train.jsonl").is_file():
        return
    parts = split()
    tokenizer = tokenizer_of(parts["train"].values())
    write_model(folder / "new", tokenizer)
    for part, texts, tasks, seed in (("valid", 64, 200, 2), ("train", TEXTS, TASKS, 1)):
        examples = Examples(parts[part], tokenizer, seed)
        write_json_lines(folder / f"texts/{part}.jsonl", [{"text": examples.text()} for _ in range(texts)])
        examples.draw.seed(seed)
        write_json_lines(folder / f"tasks/{part}.jsonl", [examples.task() for _ in range(tasks)])


def make():
    """Writes the examples, trains and publishes."""
    folder = work_folder("coder")
    data(folder)
    program = Program(folder)
    program.tune(
        "run", "--from-config", "new/config.json", "--data", "texts", "--batch", BATCH, "--lr", RATE, "--warmup", 100,
        "--steps", STEPS, "--valid-every", 100, "--valid-batches", 4, "--threads", 1,
    )
    trained = program.tune(
        "tasks-run", "run/last", "--full", "--data", "tasks", "--batch", LAST_BATCH, "--lr", LAST_RATE,
        "--schedule", "linear", "--warmup", 20, "--steps", LAST_STEPS, "--valid-every", 300,
        "--valid-batches", 12, "--threads", 1,
    )
    publish("text", NAME, trained)


# ---------------------------------------------------------------- measuring


def draw(files, each, rule=lambda line: True):
    """Of every file `each` of its lines that meet `rule`, drawn by the file's name: name, number from 0, margin."""
    found = []
    for name, text in files.items():
        lines = text.splitlines()
        fit = [line for line in code_lines(text) if rule(lines[line]) and window(lines, line)]
        for line in random.Random(name).sample(fit, min(each, len(fit))):
            found.append((name, line, len(lines[line]) - len(lines[line].lstrip())))
    return found


def window(lines, line):
    """How many lines before and after a gap are given: ten, or fewer of at most 280 characters in all; 0 if one is too
    many."""
    size = lambda count: sum(map(len, lines[max(line - count, 0):line] + lines[line + 1:line + 1 + count]))
    return next((count for count in range(10, 0, -1) if size(count) <= 280), 0)


def fill(program, model, files, places):
    """What the model writes at each place, and what was there."""
    answers, folder = [], program.folder / "left-out"
    folder.mkdir(exist_ok=True)
    for name, line, margin in places:
        lines = files[name].splitlines()
        path = folder / name.replace("/", ".")
        blank = "\n".join(lines[:line] + [lines[line][:margin]] + lines[line + 1:]) + "\n"
        path.write_text(blank, encoding="utf-8")
        answer = program.json(
            "generate", model, "--file", path, "--at", f"{line + 1}:{margin + 1}", "--lines", window(lines, line),
            "--temperature", 0, "--max-tokens", 40, "--keep-going", "--threads", 1, shown=False,
        )
        answers.append((answer["text"], lines[line][margin:]))
    return answers


def exact(answers):
    """The share of gaps that are filled exactly as they were."""
    return sum(text == line for text, line in answers) / len(answers)


def beginnings(files, each):
    """Of every file up to `each` functions, drawn by the file's name: the header and two lines, and the rest."""
    found = []
    for name, text in files.items():
        fit = []
        for code, body in functions(text):
            lines = code.splitlines(keepends=True)
            begin = "".join(lines[:body + 2]).rstrip("\n")
            if len(lines) >= body + 4 and len(begin) <= 300:
                fit.append((begin, code[len(begin):]))
        found += random.Random(name).sample(fit, min(each, len(fit)))
    return found


def cut(text):
    """The part of a completion that belongs to the function: whole lines up to the first one at the left margin."""
    lines = text.splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        lines.pop()
    margin = next((at for at, line in enumerate(lines) if at and line.strip() and not line[0].isspace()), len(lines))
    return "".join(lines[:margin])


def complete(program, model, begins):
    """What the model writes after each beginning."""
    found = []
    for at in range(0, len(begins), 16):
        text = program.run(
            "--json", "generate", model, "--temperature", 0, "--max-tokens", 100, "--threads", 1, "--",
            *begins[at:at + 16], shown=False,
        )
        found += [json.loads(line)["text"] for line in text.splitlines()]
    assert len(found) == len(begins)
    return found


def scores(program, model, measured, files, goals):
    """Measures the model on `files`. `goals` are those of the gaps and of the completions."""
    lines = [text.splitlines()[line].strip() for text in files.values() for line in code_lines(text)]
    measured.add("files left out", len(files), digits=6)
    measured.add(f"share of lines with at most {SHORT} characters", sum(map(short, lines)) / len(lines))
    for what, rule, goal in ((f"lines of at most {SHORT} characters", short, goals[0]), ("any line of code", lambda line: True, None)):
        answers = fill(program, model, files, draw(files, 1, rule))
        write_json(program.folder / f"gaps, {what}.json", answers)
        measured.add(f"one gap per file, {what}: filled exactly", exact(answers), goal)
        common = sum(line == "else:" for _, line in answers) / len(answers)
        measured.add(f"one gap per file, {what}: were else:, the most frequent line", common)
        more = fill(program, model, files, draw(files, 4, rule))
        measured.add(f"four gaps per file, {what}: filled exactly", exact(more))
    begins = beginnings(files, 3)
    rests = complete(program, model, [begin for begin, _ in begins])
    kept = [cut(text) for text in rests]
    good = [bool(rest.strip()) and parses(begin + rest) for (begin, _), rest in zip(begins, kept)]
    write_json(program.folder / "functions.json", list(zip([begin for begin, _ in begins], rests, good)))
    measured.add("functions completed", len(begins), digits=6)
    measured.add("completions of functions that parse", sum(good) / len(good), goals[1])
    measured.add("median lines of a completion", sorted(rest.count("\n") for rest in kept)[len(kept) // 2])
    alone = sum(parses(begin) for begin, _ in begins) / len(begins)
    measured.add("beginnings that parse already without a completion", alone)
    ended = sum(text.endswith("\n") for text in rests) / len(rests)
    measured.add("completions that end by themselves after a whole line", ended)


def measure():
    """Measures the published model on the files left out."""
    folder = work_folder("coder")
    measured = Measured(HERE / "text" / NAME)
    scores(Program(folder), HERE / "text" / NAME, measured, split()["test"], (">= 0.25", ">= 0.85"))
    measured.write()


if __name__ == "__main__":
    main(make, measure)
