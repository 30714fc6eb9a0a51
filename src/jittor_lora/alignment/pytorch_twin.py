"""The PyTorch side of an alignment: the same training with transformers and PEFT, written as anyone would write it.

    python pytorch_twin.py

It needs torch, transformers and peft, and reads align.json and inputs/ beside this file, nothing else. What it computed
is in pytorch/ afterwards. To try something, change a copy and give it to `jittor-lora align` with --twin.
"""

import csv
import json
import math
import os
import platform
import resource
import shutil
import sys
import time
from functools import partial
from pathlib import Path

import peft
import torch
import transformers
from peft.optimizers import create_loraplus_optimizer
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch.nn.functional import cross_entropy

HERE = Path(__file__).resolve().parent
INPUTS, STAGE, OUTPUT = HERE / "inputs", HERE / "pytorch.unfinished", HERE / "pytorch"
SETTINGS = json.loads((HERE / "align.json").read_text(encoding="utf-8"))
IGNORED = -100  # the label of tokens that are not learnt
DROPOUTS = ("attn_pdrop", "resid_pdrop", "embd_pdrop", "attention_dropout")


def lines(name):
    with open(INPUTS / name, encoding="utf-8") as stream:
        return [json.loads(line) for line in stream]


def load_model():
    """The base in float32 without dropout of its own, and the adapter in it."""
    config = transformers.AutoConfig.from_pretrained(HERE / SETTINGS["base"])
    for name in DROPOUTS:
        if hasattr(config, name):
            setattr(config, name, 0.0)
    base = transformers.AutoModelForCausalLM.from_pretrained(
        HERE / SETTINGS["base"], config=config, dtype=torch.float32,
        attn_implementation=SETTINGS["attention"])
    write("base.json", {name: {"shape": list(p.shape), "sum": p.double().sum().item(), "norm": p.double().norm().item()}
                        for name, p in base.named_parameters()})
    modules = [name for name, module in base.named_modules()
               if list(module.parameters(recurse=False)) and name != "lm_head"]
    model = peft.PeftModel.from_pretrained(base, INPUTS / "adapter", is_trainable=True)
    return model, modules


def padded(examples):
    """Token ids, attention mask, labels, and weights of the labels: (examples, longest), padded on the right."""
    longest = max(len(example["tokens"]) for example in examples)
    tokens = torch.full((len(examples), longest), SETTINGS["pad_id"])
    mask = torch.zeros_like(tokens)
    labels = torch.full_like(tokens, IGNORED)
    weights = torch.ones(tokens.shape)
    for row, example in enumerate(examples):
        ids, weight = torch.tensor(example["tokens"]), torch.tensor(example["weights"])
        tokens[row, : len(ids)] = ids
        mask[row, : len(ids)] = 1
        labels[row, : len(ids)] = torch.where(weight > 0, ids, IGNORED)
        weights[row, : len(ids)] = weight
    return tokens, mask, labels, weights


def compute_gradients(model, examples):
    """The mean loss per label, whose gradients are left in the parameters; numbers of labels and tokens."""
    size = SETTINGS["examples_at_a_time"]
    parts = [padded(examples[start : start + size]) for start in range(0, len(examples), size)]
    total = sum(weights[labels != IGNORED].sum() for _, _, labels, weights in parts)
    mean = 0.0
    for tokens, mask, labels, weights in parts:
        logits = model(input_ids=tokens, attention_mask=mask).logits[:, :-1]  # each predicts the next token
        losses = cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED, reduction="none",
                               label_smoothing=SETTINGS["label_smoothing"])
        loss = (losses * weights[:, 1:].flatten()).sum() / total
        loss.backward()
        mean += loss.item()
    return (mean, sum(int((labels != IGNORED).sum()) for _, _, labels, _ in parts),
            sum(tokens.numel() for tokens, *_ in parts))


def make_optimizer(model):
    choices = {"lr": SETTINGS["learning_rate"], "betas": SETTINGS["betas"], "eps": SETTINGS["epsilon"],
               "weight_decay": SETTINGS["weight_decay"]}
    if SETTINGS["loraplus_lr_ratio"]:
        return create_loraplus_optimizer(model, torch.optim.AdamW, loraplus_lr_ratio=SETTINGS["loraplus_lr_ratio"],
                                         loraplus_lr_embedding=SETTINGS["loraplus_lr_embedding"],
                                         loraplus_weight_decay=SETTINGS["weight_decay"], **choices)
    return torch.optim.AdamW(trained(model).values(), **choices)


def clip(model):
    """The norm of all gradients before they are clipped."""
    return torch.nn.utils.clip_grad_norm_(trained(model).values(), SETTINGS["max_grad_norm"] or math.inf).item()


def trained(model):
    """Trained parameters by the names of the checkpoint: transformer.h.0.attn.c_attn.lora_A."""
    found = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            name = name.replace("base_model.model.", "", 1).replace(".modules_to_save.default", "")
            name = name.replace(".base_layer.", ".").replace(".lora_B.default.bias", ".lora_B_bias")
            found[name.replace(".default.weight", "").replace(".default", "")] = parameter
    return found


def examine_first_step(model, modules, batch):
    """Without dropout: what enters and leaves each module, loss and logits for one example; the gradients of the first
    batch; and one update at the peak learning rate, which is undone."""
    model.eval()
    arrays, example = {}, lines("first_example.jsonl")[0]
    first, end = example["recorded"]

    def keep(name, module, inputs, output):
        for kind, value in (("input", inputs[0]), ("output", output)):
            rows = value[0].float().reshape(value.shape[1], -1)
            arrays[f"{kind}.{name}"] = rows[first:end].clone()

    hooks = [model.get_base_model().get_submodule(name).register_forward_hook(partial(keep, name)) for name in modules]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([example["tokens"]])).logits
    for hook in hooks:
        hook.remove()
    arrays["logits"] = logits[0, example["rows"]]
    arrays["loss"] = torch.tensor([compute_gradients(model, [example])[0]])
    model.zero_grad()

    compute_gradients(model, batch)
    arrays.update((f"gradient.{name}", p.grad.clone()) for name, p in trained(model).items())
    before = {name: p.detach().clone() for name, p in trained(model).items()}
    clip(model)
    make_optimizer(model).step()
    with torch.no_grad():
        for name, parameter in trained(model).items():
            arrays[f"updated.{name}"] = parameter.detach().clone()
            parameter.copy_(before[name])
    model.zero_grad()
    save_file({name: array.contiguous() for name, array in arrays.items()}, STAGE / "first_step.safetensors")


def train(model, steps):
    model.train()
    optimizer = make_optimizer(model)
    scheduler = transformers.get_scheduler(SETTINGS["schedule"], optimizer, SETTINGS["warmup_steps"], len(steps))
    rows = []
    for step, examples in enumerate(steps, 1):
        started = time.perf_counter()
        loss, labels, tokens = compute_gradients(model, examples)
        norm, rate = clip(model), scheduler.get_last_lr()[0]
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        rows.append((step, loss, norm, rate, labels, tokens, time.perf_counter() - started))
        say(f"step {step}/{len(steps)}: loss {loss:.6f}, gradient norm {norm:.6f}, learning rate {rate:.4g}, "
            f"{rows[-1][-1]:.2f} s")
    with open(STAGE / "steps.csv", "w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([("step", "loss", "grad_norm", "learning_rate", "labels", "tokens", "seconds"),
                                      *rows])
    return sum(row[-1] for row in rows)


@torch.no_grad()
def answer(model, tokenizer, prompt):
    """The likeliest token, again and again, until the text or the line ends."""
    ids, cache, new = torch.tensor([prompt]), None, []
    while len(new) < SETTINGS["max_new_tokens"]:
        out = model(input_ids=ids, past_key_values=cache, use_cache=True)
        token = int(out.logits[0, -1].argmax())
        if token in SETTINGS["end_ids"]:
            break
        new.append(token)
        ids, cache = torch.tensor([[token]]), out.past_key_values
    text = tokenizer.decode(new)
    return (text.lstrip().split("\n")[0] if SETTINGS["first_line"] else text).strip()


def say(text):
    print(text, flush=True)
    with open(STAGE / "train.log", "a", encoding="utf-8") as stream:
        stream.write(text + "\n")


def write(name, value):
    (STAGE / name).write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def facts(seconds):
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "framework": "PyTorch",
        "versions": {"python": platform.python_version(), "torch": torch.__version__,
                     "transformers": transformers.__version__, "peft": peft.__version__},
        "machine": {"processor": platform.processor() or platform.machine(), "cores": str(os.cpu_count()),
                    "memory": f"{memory / 2**30:.1f} GiB", "platform": platform.platform()},
        "settings": {"threads": torch.get_num_threads(), "precision": "float32", "device": "cpu",
                     "attention": SETTINGS["attention"], "examples at a time": SETTINGS["examples_at_a_time"]},
        "training_seconds": seconds,
        "peak_bytes": peak,
    }


def main():
    shutil.rmtree(STAGE, ignore_errors=True)
    STAGE.mkdir()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(SETTINGS["threads"])
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(SETTINGS["seed"])  # of the dropout masks
    model, modules = load_model()
    model.save_pretrained(STAGE / "initial_adapter")
    steps = lines("steps.jsonl")
    examine_first_step(model, modules, steps[0])
    seconds = train(model, steps)
    write("facts.json", facts(seconds))
    model.save_pretrained(STAGE / "adapter")

    model.eval()
    with torch.no_grad():
        logits = {str(number): model(input_ids=torch.tensor([text["tokens"]])).logits[0, text["rows"]].clone()
                  for number, text in enumerate(lines("held_out.jsonl"))}
    save_file(logits, STAGE / "held_out.safetensors")
    tokenizer = Tokenizer.from_file(str(INPUTS / "tokenizer.json"))
    write("answers.json", {question["id"]: answer(model, tokenizer, question["prompt"])
                           for question in lines("questions.jsonl")})
    shutil.rmtree(OUTPUT, ignore_errors=True)
    os.replace(STAGE, OUTPUT)


if __name__ == "__main__":
    main()
