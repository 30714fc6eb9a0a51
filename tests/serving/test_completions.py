"""/v1/completions: the texts of `Generator`, in OpenAI's form."""

from __future__ import annotations

import codecs
import math

import pytest
from tokenizers import Tokenizer, processors

from jittor_lora.formats.byte_level import END_OF_TEXT
from jittor_lora.inference.generator import Decoding
from jittor_lora.inference.sampling import Sampling
from serving import served

PATH = "/v1/completions"
PROMPT = "The town has"


def expected(server, model, prompts, decoding, count=1):
    """`count` continuations of each prompt, by the generator alone."""
    one = server.service.models[model]

    def compute():
        groups = one.generator.groups([(None, prompt) for prompt in prompts])
        repeated = [(prefix, [p for p in last for _ in range(count)]) for prefix, last in groups]
        return one.generator.continue_groups(repeated, decoding, adapters=[one.adapter] * len(groups))

    return server.computed(compute)


def texts(answer):
    assert [choice["index"] for choice in answer["choices"]] == list(range(len(answer["choices"])))
    return [choice["text"] for choice in answer["choices"]]


@pytest.mark.parametrize("model", [served.BASE, "one", "two"])
def test_greedy(server, model):
    answer = server.answer(PATH, model=model, prompt=PROMPT, temperature=0, max_tokens=20)
    assert texts(answer) == expected(server, model, [PROMPT], Decoding(20))
    assert answer["object"] == "text_completion" and answer["model"] == model and answer["id"].startswith("cmpl-")
    tokens = len(server.service.models[model].generator.tokenizer.begin(PROMPT))
    usage = answer["usage"]
    assert (usage["prompt_tokens"], usage["total_tokens"]) == (tokens, tokens + usage["completion_tokens"])
    assert 1 <= usage["completion_tokens"] <= 20


def test_models_differ(server):
    found = {texts(server.answer(PATH, model=model, prompt=PROMPT, temperature=0))[0]
             for model in (served.BASE, "one", "two", "three")}
    assert len(found) == 4


def test_sixteen_tokens_by_default(server):
    assert texts(server.answer(PATH, model="one", prompt=PROMPT, temperature=0)) == expected(
        server, "one", [PROMPT], Decoding(16))


def test_sampling(server):
    fields = {"temperature": 0.7, "top_p": 0.9, "top_k": 20, "min_p": 0.01, "repetition_penalty": 1.2,
              "no_repeat_ngram_size": 3, "min_tokens": 4, "seed": 5}
    sampling = Sampling(0.7, 20, 0.9, 1.2, 0.01, 3, 4, 5)
    answer = server.answer(PATH, model="two", prompt=[PROMPT, "Its river"], n=3, max_tokens=12, **fields)
    assert texts(answer) == expected(server, "two", [PROMPT, "Its river"], Decoding(12, sampling), 3)
    assert len(set(texts(answer))) > 3


def test_a_seed_repeats_and_none_does_not(server):
    ask = {"model": "one", "prompt": PROMPT, "temperature": 1.5, "max_tokens": 12}
    assert texts(server.answer(PATH, **ask, seed=-3)) == texts(server.answer(PATH, **ask, seed=-3))
    assert len({texts(server.answer(PATH, **ask))[0] for _ in range(4)}) > 1


def test_prompts_as_ids(server):
    generator = server.service.models["one"].generator
    ids = [generator.tokenizer.begin(text) for text in (PROMPT, "Its river")]
    by_text = texts(server.answer(PATH, model="one", prompt=[PROMPT, "Its river"], temperature=0))
    assert texts(server.answer(PATH, model="one", prompt=ids, temperature=0)) == by_text
    assert texts(server.answer(PATH, model="one", prompt=ids[0], temperature=0)) == by_text[:1]


def test_stop_texts(server):
    whole = expected(server, "two", [PROMPT], Decoding(30))[0]
    stop = whole[4:6]
    answer = server.answer(PATH, model="two", prompt=PROMPT, temperature=0, max_tokens=30, stop=stop)
    assert texts(answer) == [whole[: whole.index(stop)]] and answer["choices"][0]["finish_reason"] == "stop"
    assert texts(server.answer(PATH, model="two", prompt=PROMPT, temperature=0, max_tokens=30,
                               stop=["not in it", stop])) == [whole[: whole.index(stop)]]


def test_the_most_tokens_end_a_text(server):
    answer = server.answer(PATH, model=served.BASE, prompt=PROMPT, temperature=0, max_tokens=3)
    assert answer["choices"][0]["finish_reason"] == "length" and answer["usage"]["completion_tokens"] == 3


def test_streams_are_the_whole_in_pieces(server):
    ask = {"model": "one", "prompt": [PROMPT, "Its river"], "n": 2, "temperature": 0.8, "seed": 1, "max_tokens": 20}
    answer = server.answer(PATH, **ask)
    chunks = server.chunks(PATH, **ask, stream_options={"include_usage": True})
    *chunks, last = chunks
    assert last["choices"] == [] and last["usage"] == {**answer["usage"], "prompt_tokens_details": {
        "cached_tokens": last["usage"]["prompt_tokens_details"]["cached_tokens"]}}
    assert len({chunk["id"] for chunk in chunks}) == 1 and all(chunk["usage"] is None for chunk in chunks)
    for choice in answer["choices"]:
        own = [chunk["choices"][0] for chunk in chunks if chunk["choices"][0]["index"] == choice["index"]]
        assert "".join(one["text"] for one in own) == choice["text"]
        assert [one["finish_reason"] for one in own] == [None] * (len(own) - 1) + [choice["finish_reason"]]
    assert len(chunks) > 8


def test_no_usage_in_a_stream_unless_asked(server):
    assert not any("usage" in chunk for chunk in server.chunks(PATH, model="one", prompt=PROMPT))


def test_log_probabilities(server):
    answer = server.answer(PATH, model="one", prompt=PROMPT, temperature=0, max_tokens=10, logprobs=3, min_tokens=10)
    logprobs, text = answer["choices"][0]["logprobs"], answer["choices"][0]["text"]
    assert {len(values) for values in logprobs.values()} == {len(logprobs["tokens"])} and logprobs["tokens"]
    assert spelled(logprobs["tokens"]).startswith(text.rstrip("\ufffd")) and logprobs["text_offset"][0] == 0
    for token, own, top in zip(*(logprobs[key] for key in ("tokens", "token_logprobs", "top_logprobs"))):
        assert 3 <= len(top) <= 4 and top[token] == own <= 0
        assert sum(map(math.exp, top.values())) < 1.001
    none = server.answer(PATH, model="one", prompt=PROMPT, temperature=0, max_tokens=3, logprobs=0)
    assert all(len(top) == 1 for top in none["choices"][0]["logprobs"]["top_logprobs"])


def test_log_probabilities_do_not_depend_on_sampling(server):
    ask = {"model": "one", "prompt": PROMPT, "max_tokens": 1, "logprobs": 5}
    hot = server.answer(PATH, **ask, temperature=2, seed=3)["choices"][0]["logprobs"]["top_logprobs"][0]
    greedy = server.answer(PATH, **ask, temperature=0)["choices"][0]["logprobs"]["top_logprobs"][0]
    assert {key: value for key, value in hot.items() if key in greedy} == greedy


@pytest.mark.parametrize("as_ids", [False, True])
def test_echo(server, as_ids):
    """As lm-eval asks for the log-probabilities of a prompt."""
    ids = server.service.models["two"].generator.tokenizer.begin("The café 北 opens")
    prompt = ids if as_ids else "The café 北 opens"
    answer = server.answer(PATH, model="two", prompt=[prompt], temperature=0, max_tokens=0, logprobs=1, echo=True)
    choice, logprobs = answer["choices"][0], answer["choices"][0]["logprobs"]
    assert choice["text"] == "The café 北 opens" and answer["usage"]["completion_tokens"] == 0
    assert len(logprobs["tokens"]) == len(ids) and logprobs["token_logprobs"][0] is logprobs["top_logprobs"][0] is None
    assert spelled(logprobs["tokens"]) == choice["text"]
    for token, start in zip(logprobs["tokens"], logprobs["text_offset"]):
        assert token.startswith("bytes:") or choice["text"].startswith(token, start)
    longer = server.answer(PATH, model="two", prompt=prompt, temperature=0, max_tokens=5, logprobs=1, echo=True)
    alone = server.answer(PATH, model="two", prompt=prompt, temperature=0, max_tokens=5, logprobs=1)
    whole, rest = longer["choices"][0], alone["choices"][0]
    assert whole["text"] == choice["text"] + rest["text"]
    assert whole["logprobs"]["token_logprobs"] == logprobs["token_logprobs"] + rest["logprobs"]["token_logprobs"]
    assert whole["logprobs"]["text_offset"][len(ids):] == [
        at + len(choice["text"]) for at in rest["logprobs"]["text_offset"]]


def test_echo_adds_up_to_the_probability_of_a_continuation(server):
    """That of a prompt's tokens is that of the same tokens where they are generated."""
    generator = server.service.models["one"].generator
    ids = generator.tokenizer.begin(PROMPT)
    made = server.answer(PATH, model="one", prompt=ids, temperature=0, max_tokens=1, logprobs=1)["choices"][0]
    more = server.computed(lambda: generator.continue_groups([(ids[:-1], [ids[-1:]])], Decoding(1), adapters=["one"]))
    assert more == [made["text"]]
    top = made["logprobs"]["top_logprobs"][0]
    number = next(i for i in range(300) if server.service.models["one"].texts.text(i) == max(top, key=top.get))
    echoed = server.answer(PATH, model="one", prompt=[*ids, number], max_tokens=0, logprobs=1, echo=True)
    assert echoed["choices"][0]["logprobs"]["token_logprobs"][-1] == pytest.approx(max(top.values()), abs=1e-5)


def test_echo_in_a_stream(server):
    chunks = server.chunks(PATH, model="one", prompt=[PROMPT], n=2, temperature=0, max_tokens=3, echo=True)
    for index in range(2):
        own = [chunk["choices"][0]["text"] for chunk in chunks if chunk["choices"][0]["index"] == index]
        assert own[0] == PROMPT and len(own) > 1


def test_many_at_once(server):
    """Each gets its own text, whoever else asks."""
    asks = [{"model": model, "prompt": prompt, "temperature": temperature, "seed": seed, "max_tokens": 12}
            for model in (served.BASE, "one", "two", "three") for prompt in (PROMPT, "Its river is", "x")
            for temperature, seed in ((0, 0), (0.9, 1))]
    found = server.together([lambda ask=ask: texts(server.answer(PATH, **ask)) for ask in asks])
    for ask, text in zip(asks, found):
        sampling = Sampling(ask["temperature"], seed=ask["seed"])
        assert text == expected(server, ask["model"], [ask["prompt"]], Decoding(12, sampling))


@pytest.mark.parametrize("fields, param, message", [
    ({"prompt": []}, "prompt", "expected a text, token ids, or a list"),
    ({"prompt": ["a", [1]]}, "prompt", "expected a text, token ids, or a list"),
    ({"prompt": [1, True]}, "prompt", "expected a text, token ids, or a list"),
    ({"prompt": ""}, "prompt", "expected at least one token"),
    ({"prompt": [1, 300]}, "prompt", "expected token ids from 0 to 299; found 300"),
    ({"prompt": [1, 10**90]}, "prompt", "expected token ids from 0 to 299; found 1000"),
    ({"prompt": "x" * 300}, "prompt", "expected at most 256 tokens; found 300"),
    ({"n": 0}, "n", "greater than or equal to 1; found 0"),
    ({"n": 10**50}, "n", "less than or equal to"),
    ({"n": 129}, "n", "expected at most 128 texts; found 129"),
    ({"n": 2, "best_of": 3}, "best_of", "expected 2, as n; found 3"),
    ({"max_tokens": -1}, "max_tokens", "greater than or equal to 0; found -1"),
    ({"max_tokens": 5000}, "max_tokens", "expected at most 4,096; found 5,000"),
    ({"temperature": "hot"}, "temperature", 'expected a valid number; found "hot"'),
    ({"temperature": -1}, "temperature", "greater than or equal to 0"),
    ({"top_p": 0}, "top_p", "greater than 0"),
    ({"logprobs": 21}, "logprobs", "less than or equal to 20"),
    ({"stop": ["a"] * 17}, "stop", "up to 16 of them"),
    ({"stop": ""}, "stop", "of 1 to 1,000 characters"),
    ({"presence_penalty": 0.5}, "presence_penalty", "expected 0 or nothing, as it is not supported; found 0.5"),
    ({"logit_bias": {"5": 1}}, "logit_bias", "not supported"),
    ({"suffix": "end"}, "suffix", "not supported"),
    ({"no_such_field": 1}, "no_such_field", "unknown field"),
    ({"model": ""}, "model", "at least 1 character"),
    ({"model": None}, "model", "expected this field"),
    ({"model": 7}, "model", "expected a valid string"),
    ({"stream": "yes"}, "stream", "expected a valid boolean"),
    ({"stream_options": {"usage": True}}, "stream_options.usage", "unknown field"),
])
def test_refused(server, fields, param, message):
    error = server.error(PATH, 400, **{"model": "one", "prompt": PROMPT, **fields})
    assert error["param"] == param and error["type"] == "invalid_request_error"
    assert message in error["message"] and param.split(".")[0] in error["message"]


def test_neutral_fields_change_nothing(server):
    ask = {"model": "one", "prompt": PROMPT, "temperature": 0}
    assert texts(server.answer(PATH, **ask)) == texts(server.answer(
        PATH, **ask, user="me", metadata={"a": "b"}, store=False, presence_penalty=0, frequency_penalty=0.0,
        logit_bias={}, suffix=None, logprobs=None, stop=None, best_of=1, top_k=-1, n=None, seed=None))


def test_an_unknown_model_is_told_those_served(server):
    error = server.error(PATH, 404, model="gpt-4", prompt=PROMPT)
    assert error["code"] == "model_not_found" and error["param"] == "model"
    assert error["message"] == 'model: expected one of tiny, one, two, three; found "gpt-4".'


def test_all_wrong_fields_are_named_at_once(server):
    message = server.error(PATH, 400, model="one", n=0, top_p=3, foo=1)["message"]
    assert all(f"{name}: " in message for name in ("prompt", "n", "top_p", "foo"))


def spelled(tokens):
    """The text of tokens as the response spells them."""
    parts = [codecs.escape_decode(token[len("bytes:"):])[0] if token.startswith("bytes:") else token.encode()
             for token in tokens]
    return b"".join(parts).decode("utf-8", "replace")


def test_no_tokens_wanted(server):
    answer = server.answer(PATH, model="one", prompt=[PROMPT, "a"], max_tokens=0)
    assert texts(answer) == ["", ""] and [choice["finish_reason"] for choice in answer["choices"]] == ["length"] * 2
    assert server.answer(PATH, model="one", prompt=PROMPT, max_tokens=0, echo=True)["choices"][0]["text"] == PROMPT


def test_a_prompt_as_long_as_the_model_takes(server):
    answer = server.answer(PATH, model="one", prompt=[[1] * 256], max_tokens=9, logprobs=1, echo=True)
    assert answer["usage"] == {"prompt_tokens": 256, "completion_tokens": 1, "total_tokens": 257,
                               "prompt_tokens_details": {"cached_tokens": 0}}
    assert answer["choices"][0]["finish_reason"] == "length"


def test_many_prompts_in_a_large_body(server):
    ids = [[number % 299, *[5] * 200] for number in range(100)]
    answer = server.answer(PATH, model="one", prompt=ids, max_tokens=1, temperature=0)
    assert len(answer["choices"]) == 100 and answer["usage"]["prompt_tokens"] == 100 * 201


def test_the_tokens_before_each_text_are_not_echoed(tmp_path):
    """Those that the tokenizer puts there; they have places of their own in the log-probabilities."""
    files = served.make_files(tmp_path, adapters=0, config=served.LLAMA)
    tokenizer = Tokenizer.from_file(str(files / "base/tokenizer.json"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{END_OF_TEXT} $A", special_tokens=[(END_OF_TEXT, 299)])
    tokenizer.save(str(files / "base/tokenizer.json"))
    with served.running(files, adapters=()) as server:
        ask = {"model": served.BASE, "max_tokens": 0, "echo": True, "logprobs": 0}
        choice = server.answer(PATH, **ask, prompt="The town")["choices"][0]
        assert choice["text"] == "The town"
        assert choice["logprobs"]["tokens"][0] == END_OF_TEXT and choice["logprobs"]["text_offset"][:2] == [0, 0]
        assert spelled(choice["logprobs"]["tokens"][1:]) == "The town"
        ids = server.service.models[served.BASE].generator.tokenizer.begin("The town")
        by_ids = server.answer(PATH, **ask, prompt=ids)["choices"][0]
        assert by_ids["text"] == f"{END_OF_TEXT}The town"
        assert by_ids["logprobs"]["token_logprobs"] == choice["logprobs"]["token_logprobs"]
        assert by_ids["logprobs"]["text_offset"][1] == len(END_OF_TEXT)
