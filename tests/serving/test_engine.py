"""The engine: texts as if each were alone, whatever joins and leaves."""

from __future__ import annotations

import random
import threading
import time
from concurrent.futures import Future

import numpy as np
import pytest

import small_run
from jittor_lora import ops
from jittor_lora.errors import UserError
from jittor_lora.inference.extraction import Extractor
from jittor_lora.inference.generator import Decoding, Generator
from jittor_lora.inference.sampling import Sampling
from jittor_lora.lora.config import LoraConfig
from jittor_lora.serving.compute.engine import Engine, EngineLimits
from jittor_lora.serving.compute.jobs import (
    Busy,
    Done,
    End,
    Extraction,
    Failed,
    Generation,
    Piece,
    PromptTokens,
    Spans,
    Stopping,
)
from jittor_lora.session import load
from needs import needs_kernels

ADAPTERS = (None, "one", "two", "three")
CONTEXTS = [f"Town {n} has {7 * n + 3} houses. Its river is the R{n}, which is {'very ' * (3 * n)}long."
            for n in range(4)]
QUESTIONS = ["How many houses?", "Which river?", "How long is the river of this town?", "?"]


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    made = load(str(small_run.make_base(tmp_path_factory.mktemp("engine") / "base")))
    draw = np.random.RandomState(0)
    for name in filter(None, ADAPTERS):
        adapter = made.add_adapter(LoraConfig(r=2, target_modules=("c_attn", "c_fc")), name)
        adapter.load({key: draw.standard_normal(array.shape).astype(np.float32) * 0.3
                      for key, array in adapter.parameters().items()})
    return made


@pytest.fixture
def generator(session):
    return Generator(session.model, session.tokenizer)


class Client:
    """Collects the events of a job."""

    def __init__(self):
        self.events, self.ended = [], threading.Event()

    def __call__(self, events):
        assert not self.ended.is_set(), "nothing comes after the end"
        self.events += events
        if isinstance(events[-1], (Done, Failed)):
            self.ended.set()

    def of(self, kind):
        return [event for event in self.events if isinstance(event, kind)]

    def texts(self):
        found = {event.index: "" for event in self.of(End)}
        for piece in self.of(Piece):
            found[piece.index] += piece.text
        return [found[index] for index in sorted(found)]

    def wait(self):
        assert self.ended.wait(60), "the job does not end"
        return self


def serve(session, work, **limits):
    """`work(engine)` in another thread, while this one computes; returns its result."""
    engine, outcome = Engine(session.model, EngineLimits(**limits)), Future()

    def act():
        try:
            outcome.set_result(work(engine))
        except BaseException as error:
            outcome.set_exception(error)
        finally:
            engine.stop(0 if outcome.exception() else 60)

    thread = threading.Thread(target=act)
    thread.start()
    engine.run()
    thread.join()
    return outcome.result()


def requests(generator, count, seed):
    """Random jobs, each with what `Generator` alone gives."""
    draw, made = random.Random(seed), []
    for _ in range(count):
        sampling = draw.choice([Sampling(), Sampling(temperature=1.2, top_p=0.9, seed=draw.randrange(99)),
                                Sampling(temperature=0.9, top_k=7, repetition_penalty=1.3, seed=3),
                                Sampling(min_new_tokens=3)])
        decoding = Decoding(draw.choice([1, 5, 20, 40]), sampling, draw.choice([None, "a", ("e", "th")]))
        texts = draw.choice([[(None, draw.choice(CONTEXTS)[: draw.randrange(1, 60)])],
                             [(draw.choice(CONTEXTS), question) for question in draw.sample(QUESTIONS, 1)],
                             [(CONTEXTS[3], question) for question in QUESTIONS],
                             [(None, "Town"), (None, CONTEXTS[2])]])
        made.append(Generation(generator, draw.choice(ADAPTERS), generator.groups(texts), decoding,
                               draw.choice([1, 1, 3]), draw.random() < 0.5, draw.choice([None, None, 2])))
    return made


def alone(session, job):
    """The texts of a job by themselves."""
    repeated = [(prefix, [p for p in prompts for _ in range(job.count)]) for prefix, prompts in job.groups]
    return job.generator.continue_groups(repeated, job.decoding, job.trim, adapters=[job.adapter] * len(repeated))


def check_all(session, generator, count, seed, **limits):
    jobs = requests(generator, count, seed)
    expected = [alone(session, job) for job in jobs]

    def work(engine):
        draw, order = random.Random(seed), list(enumerate(jobs))
        draw.shuffle(order)
        clients = {}
        for number, job in order:
            clients[number] = Client()
            ticket = engine.submit(job, clients[number])
            if draw.random() < 0.15:  # hangs up at some time
                threading.Timer(draw.random() * 0.2, ticket.cancel).start()
                del clients[number]
            time.sleep(draw.choice([0, 0, 0.002, 0.02]))
        for client in clients.values():
            client.wait()
        end = time.monotonic() + 60
        while engine.statistics().running and time.monotonic() < end:  # jobs whose clients have not hung up yet
            time.sleep(0.01)
        return clients, engine.statistics()

    clients, statistics = serve(session, work, **limits)
    for number, client in clients.items():
        assert not client.of(Failed)
        assert client.texts() == expected[number]
        done, = client.of(Done)
        job = jobs[number]
        assert done.prompt_tokens == sum(len(prefix) + len(p) for prefix, prompts in job.groups for p in prompts)
        assert 0 <= done.cached_tokens < done.prompt_tokens
    return clients, statistics


@needs_kernels
@pytest.mark.parametrize("limits", [
    {"count": 200}, {"batch_size": 3, "read_tokens": 5}, {"cache_bytes": 0}, {"running_bytes": 1 << 21},
    {"cache_bytes": 1 << 18, "read_tokens": 16},
])
def test_texts_are_those_of_separate_runs(session, generator, limits):
    _, statistics = check_all(session, generator, **{"count": 60, "seed": 1, "waiting": 1000, **limits})
    assert statistics.cached_tokens > 0
    assert statistics.cache_bytes <= statistics.cache_limit
    assert statistics.running == statistics.waiting == 0


def test_texts_on_any_device(session, generator):
    with ops.portable_operations():
        check_all(session, generator, 12, 2, waiting=1000)


def test_ends_and_pieces(session, generator):
    def work(engine):
        job = Generation(generator, None, generator.groups([(None, "Town 1 has")]), Decoding(12), likeliest=3)
        client = Client()
        engine.submit(job, client)
        return client.wait()

    client = serve(session, work)
    end, = client.of(End)
    assert end == End(0, "length", 12)
    tokens = [token for piece in client.of(Piece) for token in piece.tokens]
    assert len(tokens) == 12 and all(token.likeliest[0] == (token.id, token.log_probability) for token in tokens)
    assert all(len(token.likeliest) == 3 for token in tokens)
    assert session.tokenizer.decode([token.id for token in tokens]) == client.texts()[0]


def log_probabilities(session, tokens, adapter):
    """(N, V): of the next token after each."""
    from jittor_lora.data.layout import Layout
    from jittor_lora.system.runtime import jt
    names = () if adapter is None else (adapter,)
    with session.adapters.only(*names), jt.no_grad():
        hidden = session.model.hidden(np.asarray(tokens, np.int32), np.arange(len(tokens), dtype=np.int32),
                                      Layout.plain(len(tokens)))
        logits = session.model.logits(hidden).numpy().astype(np.float64)
    return logits - np.logaddexp.reduce(logits, 1, keepdims=True)


@pytest.mark.parametrize("portable", [False, True])
@pytest.mark.parametrize("most", [0, 4])
@pytest.mark.parametrize("text", ["Town 1 has ten houses. " * 8, "?"])
def test_an_echo_with_the_log_probabilities_of_the_prompt(session, generator, most, text, portable):
    def work(engine):
        groups, clients = generator.groups([(None, text)]), [Client(), Client()]
        for client in clients:  # the second one could use the cache, but needs the logits
            engine.submit(Generation(generator, "one", groups, Decoding(most), 2, likeliest=2, echo=True), client)
            client.wait()
        return clients

    if portable:
        with ops.portable_operations():
            clients = serve(session, work)
    else:
        clients = serve(session, work)
    tokens = generator.tokenizer.begin(text)
    expected = log_probabilities(session, tokens, "one")
    for client in clients:
        prompts = client.of(PromptTokens)
        assert [prompt.index for prompt in prompts] == [0, 1]
        for prompt in prompts:
            assert [token.id for token in prompt.tokens] == tokens
            assert prompt.tokens[0].log_probability is None
            for at, token in enumerate(prompt.tokens[1:]):
                assert token.log_probability == pytest.approx(expected[at, token.id], abs=1e-3)
                assert token.likeliest[0][1] == pytest.approx(expected[at].max(), abs=1e-3)
        assert [end.tokens for end in client.of(End)] == [most, most]
        assert client.texts()[0] == alone(session, Generation(generator, "one", generator.groups([(None, text)]),
                                                              Decoding(most)))[0]


def test_spans_are_those_of_the_extractor(session, generator):
    extractor = Extractor(session.model, session.tokenizer)
    groups = [(*generator.groups([(context, question) for question in QUESTIONS])[0], context)
              for context in CONTEXTS[:3]]

    def work(engine):
        clients = [Client() for _ in ADAPTERS]
        for name, client in zip(ADAPTERS, clients):
            engine.submit(Extraction.of(extractor, name, groups, 4, max_words=3), client)
            engine.submit(Generation(generator, name, [group[:2] for group in groups], Decoding(8)), Client())
        return [client.wait() for client in clients]

    clients = serve(session, work, read_tokens=9)
    for name, client in zip(ADAPTERS, clients):
        with session.adapters.only(*filter(None, [name])):
            expected = extractor.extract_several(groups, 4, max_words=3)
        found = sorted(client.of(Spans))
        assert [list(one.spans) for one in found] == expected
        assert client.of(Done)[0].cached_tokens > 0


def test_a_question_about_a_context_that_was_read(session, generator):
    """The context is read once, by requests one after the other and at the same time."""
    def work(engine):
        def ask(question):
            client = Client()
            groups = generator.groups([(CONTEXTS[3], question)])
            engine.submit(Generation(generator, "two", groups, Decoding(3)), client)
            return client

        first = ask(QUESTIONS[0]).wait()
        later = ask(QUESTIONS[1]).wait()
        both = [ask(question) for question in QUESTIONS]
        return [client.of(Done)[0] for client in (first, later, *(client.wait() for client in both))]

    found = serve(session, work)
    assert found[0].cached_tokens == 0
    prefix = len(generator.groups([(CONTEXTS[3], QUESTIONS[1])])[0][0])
    assert all(done.cached_tokens == prefix for done in found[1:])


def test_equal_requests_at_the_same_time_read_their_prompt_once(session, generator):
    def work(engine):
        clients = [Client() for _ in range(5)]
        for client in clients:
            engine.submit(Generation(generator, None, generator.groups([(None, CONTEXTS[3] * 2)]), Decoding(3)), client)
        return [client.wait().of(Done)[0].cached_tokens for client in clients]

    prefix = len(generator.groups([(None, CONTEXTS[3] * 2)])[0][0])
    assert sorted(serve(session, work, cache_bytes=0, read_tokens=8)) == [0, *[prefix] * 4]


def test_errors_of_one_request(session, generator):
    def work(engine):
        found = []
        for adapter, groups in ((None, [([1] * 300, [[2]])]), (None, [([], [[]])]), ("missing", [([], [[2]])]),
                                (None, [([1], [[9999]])])):
            client = Client()
            engine.submit(Generation(generator, adapter, groups, Decoding(3)), client)
            found.append(client.wait().of(Failed)[0])
        engine.submit(Generation(generator, None, [([1], [[2]])], Decoding(3)), client := Client())
        assert client.wait().texts()
        return found

    found = serve(session, work)
    assert {failed.fault for failed in found} == {"request"}
    assert "301 tokens; the model takes at most 256" in found[0].message
    assert "missing" in found[2].message


def test_limits(session, generator):
    job = Generation(generator, None, generator.groups([(None, "Town")]), Decoding(200, Sampling(temperature=1.0)))

    def busy(engine):
        future = engine.call(lambda: time.sleep(0.5))  # nothing begins meanwhile
        clients = [Client() for _ in range(3)]
        for client in clients:
            engine.submit(job, client)
        with pytest.raises(Busy) as caught:
            engine.submit(job, Client())
        assert caught.value.seconds >= 1
        future.result()
        return [client.wait() for client in clients]

    assert all(client.of(Done) for client in serve(session, busy, waiting=3))

    def late(engine):
        client = Client()
        engine.submit(job, client)
        engine.call(lambda: time.sleep(0.3))
        return client.wait()

    assert serve(session, late, seconds=0.1).of(Failed)[0].fault == "timeout"
    large = serve(session, lambda engine: (engine.submit(job, client := Client()), client.wait())[1], running_bytes=999)
    assert "The request needs" in large.of(Failed)[0].message


def test_stopping(session, generator):
    job = Generation(generator, None, generator.groups([(None, "Town")]), Decoding(20, Sampling(temperature=1.0)))
    long = Generation(generator, None, generator.groups([(None, "Town")]), Decoding(200, Sampling(temperature=1.0)), 64)
    engine, clients = Engine(session.model, EngineLimits(batch_size=4)), [Client(), Client()]
    for client, one in zip(clients, (job, long)):
        engine.submit(one, client)
    engine.stop(0.3)
    with pytest.raises(Stopping):
        engine.submit(job, Client())
    engine.run()
    assert clients[0].of(Done)
    assert clients[1].of(Failed)[0].fault == "stopping"
    assert engine.statistics().running == 0


def test_an_adapter_is_retired_once_its_jobs_are_done(session, generator):
    def work(engine):
        client = Client()
        engine.submit(Generation(generator, "one", generator.groups([(None, "Town")]), Decoding(50)), client)
        future = engine.retire("one", lambda: bool(client.of(Done)))
        other = Client()
        engine.submit(Generation(generator, None, generator.groups([(None, "Town")]), Decoding(5)), other)
        other.wait()
        return future.result(60)

    assert serve(session, work) is True


def test_a_bug_ends_the_request_and_not_the_engine(session, generator, capfd):
    class Broken:
        def __getattr__(self, name):
            if name == "decode":
                raise RuntimeError("a bug")
            return getattr(session.tokenizer, name)

    def work(engine):
        first, second = Client(), Client()
        engine.submit(Generation(Generator(session.model, Broken()), None, [([1], [[2]])], Decoding(3)), first)
        first.wait()
        engine.submit(Generation(generator, None, [([1], [[2]])], Decoding(3)), second)
        return first, second.wait()

    first, second = serve(session, work)
    assert first.of(Failed)[0].fault == "server" and second.of(Done)
    assert "a bug" in capfd.readouterr().err


def test_readers_are_made_beforehand(session, generator):
    engine = Engine(session.model)
    engine.prepare(ADAPTERS)
    with pytest.raises(UserError, match="missing"):
        engine.prepare(["missing"])
    engine.submit(Generation(generator, "one", [([1], [[2]])], Decoding(3)), client := Client())
    engine.stop(60)
    engine.run()
    assert client.of(Done)
