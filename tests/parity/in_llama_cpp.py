"""llama.cpp on GGUF files, as a program of its own: it may run under another interpreter, and its failed assertions end
the process.

Usage: python in_llama_cpp.py REQUESTS ANSWERS, where REQUESTS is a JSON file with a list of
{"model": path, "adapter": path or null, "tokens": [ids], "greedy": count, "texts": [text]} and ANSWERS a new .npz file
with
"logits-<i>" (T, V), "greedy-<i>" (count,), "ids-<i>" and "special-<i>": the ids of all texts, each list followed by -1,
with special tokens in them read as text and as tokens.
"""

from __future__ import annotations

import ctypes
import json
import sys

import llama_cpp
import numpy as np

F32 = 0  # ggml's number of the type of keys and values


@llama_cpp.llama_log_callback
def _log(level, text, _):
    if level >= 3:  # warnings and errors
        sys.stderr.write(text.decode(errors="replace"))


class Model:
    def __init__(self, path: str, adapter: str | None):
        self.model = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp.llama_model_default_params())
        assert self.model, f"{path} cannot be loaded"
        self.vocab = llama_cpp.llama_model_get_vocab(self.model)
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx = settings.n_batch = settings.n_ubatch = 256
        settings.type_k = settings.type_v = F32
        settings.flash_attn_type = 0
        settings.n_threads = settings.n_threads_batch = 1
        self.context = llama_cpp.llama_init_from_model(self.model, settings)
        assert self.context, f"{path}: no context"
        if adapter is not None:
            self.adapter = llama_cpp.llama_adapter_lora_init(self.model, adapter.encode())
            assert self.adapter, f"{adapter} cannot be loaded"
            pointers = (llama_cpp.llama_adapter_lora_p_ctypes * 1)(self.adapter)
            scales = (ctypes.c_float * 1)(1.0)
            assert llama_cpp.llama_set_adapters_lora(self.context, pointers, 1, scales) == 0

    def logits(self, tokens, start=0):
        """(T, V) of a text whose first `start` tokens are known."""
        batch = llama_cpp.llama_batch_init(len(tokens), 0, 1)
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i] = int(token), start + i
            batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = 1, 0, 1
        assert llama_cpp.llama_decode(self.context, batch) == 0
        columns = llama_cpp.llama_vocab_n_tokens(self.vocab)
        found = np.ctypeslib.as_array(llama_cpp.llama_get_logits(self.context), (len(tokens) * columns,)).copy()
        llama_cpp.llama_batch_free(batch)
        return found.reshape(len(tokens), columns)

    def greedy(self, start, last, count):
        found = []
        for _ in range(count):
            found.append(int(last.argmax()))
            last = self.logits(found[-1:], start + len(found) - 1)[0]
        return found

    def ids(self, text, special):
        data = text.encode()
        room = (llama_cpp.llama_token * (len(data) + 8))()
        count = llama_cpp.llama_tokenize(self.vocab, data, len(data), room, len(room), True, special)
        assert count >= 0
        return [*room[:count], -1]


def main(requests: str, answers: str) -> None:
    llama_cpp.llama_backend_init()
    llama_cpp.llama_log_set(_log, None)
    found = {}
    with open(requests, encoding="utf-8") as stream:
        wanted = json.load(stream)
    for i, request in enumerate(wanted):
        model = Model(request["model"], request.get("adapter"))
        if request.get("tokens"):
            found[f"logits-{i}"] = model.logits(request["tokens"])
            found[f"greedy-{i}"] = np.array(model.greedy(len(request["tokens"]), found[f"logits-{i}"][-1],
                                                         request.get("greedy", 0)), np.int64)
        for name, special in (("ids", False), ("special", True)):
            found[f"{name}-{i}"] = np.array([id_ for text in request.get("texts", ())
                                             for id_ in model.ids(text, special)], np.int64)
        llama_cpp.llama_free(model.context)
        llama_cpp.llama_model_free(model.model)
    np.savez(answers, **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
