from __future__ import annotations

import json

import pytest

import small_run
from jittor_lora.cli.main import main
from jittor_lora.lora.config import LoraConfig
from jittor_lora.session import load
from jittor_lora.training.log import RunLog


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A base, the run folder of an adapter, and data."""
    folder = tmp_path_factory.mktemp("compare")
    session = load(str(small_run.make_base(folder / "base")))
    session.add_adapter(LoraConfig(r=2, alpha=4, target_modules=("c_attn",)), "made")
    with RunLog(folder / "run", 3, quiet=True) as log:
        for step in (1, 2, 3):
            log.step(step, loss=3 / step, learning_rate=1e-3, grad_norm=1.0, tokens=10, questions=2, seconds=0.1)
        log.config({"learning_rate": 0.001})
    session.save_adapter(folder / "run" / "adapter", "made")
    small_run.make_squad(folder / "dev.json", 4)
    small_run.make_squad(folder / "train.json", 2)
    return folder


def compare(made, output, *arguments):
    code = main(["compare", *map(str, arguments), "--data", str(made / "dev.json"), "--output", str(output)])
    assert code == 0
    return json.loads((output / "comparison.json").read_text()), (output / "report.html").read_text()


def test_answers_are_made_in_every_precision_and_mode(made, tmp_path, capsys):
    comparison, report = compare(made, tmp_path / "out", "--adapters", made / "run", "--base", made / "base",
                                 "--precisions", "fp32,bf16", "--modes", "greedy,extractive", "--train-data",
                                 made / "train.json", "--max-new-tokens", 8, "--limit", 6)
    names = [f"{name} {precision} {mode}" for precision in ("fp32", "bf16") for name in ("base", "run")
             for mode in ("greedy", "extractive")]
    assert [one["name"] for one in comparison["systems"]] == names
    assert all((tmp_path / "out" / "systems" / name / "predictions.json").is_file() for name in names)
    settings = comparison["settings"]["run bf16 extractive"]
    assert (settings["rank"], settings["precision"], settings["answers"]) == (2, "bf16", "extractive")
    assert settings["training: learning_rate"] == "0.001"
    assert settings["questions"] == "6 drawn with seed 42"
    assert settings["label smoothing taken out"] == 0 and ">label smoothing taken out<" in report
    assert "label smoothing taken out" not in comparison["settings"]["run bf16 greedy"]
    assert 0 < len(comparison["duplicates"]["questions"]) <= 4
    assert (tmp_path / "out" / "plots" / "loss-1.svg").is_file()
    assert "Loss curves of the run of run fp32 greedy" in report
    out = capsys.readouterr().out
    assert "against base fp32 greedy" in out and "question word" in out
    spans = json.loads((tmp_path / "out" / "systems" / names[1] / "predictions.json").read_text())
    data = (made / "dev.json").read_text()
    assert all(span in data for span in spans.values())


def test_answers_of_before_and_the_one_compared_with(made, tmp_path):
    right = {f"{number}-river": f"R{number}" for number in range(4)}
    (tmp_path / "right.json").write_text(json.dumps(right))
    (tmp_path / "wrong.json").write_text(json.dumps(dict.fromkeys(right, "no")))
    comparison, _ = compare(made, tmp_path / "out", tmp_path / "wrong.json", f"best={tmp_path / 'right.json'}",
                            "--against", "best")
    best, wrong = comparison["systems"]
    assert (best["name"], best["metrics"]["exact_match"], best["f1"]) == ("best", 100, None)
    assert (wrong["name"], wrong["lost"], wrong["f1"]["mean"], wrong["metrics"]["missing"]) == ("wrong", 4, -100, 0)


def test_the_report_says_how_answers_of_before_were_chosen(made, tmp_path):
    for name, smoothing in (("own", 0.0), ("freed", 0.1)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "predictions.json").write_text(json.dumps({f"{i}-river": f"R{i}" for i in range(4)}))
        (tmp_path / name / "metrics.json").write_text(json.dumps({
            "candidates": 20, "span_temperature": 2.0, "label_smoothing": smoothing, "no_answer_threshold": None}))
    comparison, report = compare(made, tmp_path / "out", tmp_path / "own", tmp_path / "freed")
    settings = {name: {key: value for key, value in own.items() if key != "predictions"}
                for name, own in comparison["settings"].items()}
    assert settings == {name: {"candidates": 20, "span temperature": 2.0, "label smoothing taken out": smoothing}
                        for name, smoothing in (("own", 0.0), ("freed", 0.1))}
    assert ">label smoothing taken out<" in report


def test_a_name_given_several_times_is_one_system_with_several_seeds(made, tmp_path, capsys):
    files = {}
    for number, right in enumerate((4, 3, 1, 2, 1)):
        files[number] = tmp_path / f"{number}.json"
        files[number].write_text(json.dumps({f"{i}-river": f"R{i}" if i < right else "x" for i in range(4)}))
    comparison, report = compare(made, tmp_path / "out", *(f"full={files[i]}" for i in (0, 1)), files[2],
                                 *(f"lora={files[i]}" for i in (3, 4)), "--against", "lora")
    assert [one["name"] for one in comparison["systems"]] == ["lora 1", "lora 2", "full 1", "full 2", "2"]
    lora, full = comparison["runs"]
    assert (lora["name"], lora["systems"], lora["f1"]["mean"]) == ("lora", ["lora 1", "lora 2"], 37.5)
    assert (full["f1"]["mean"], full["f1_gain"]["mean"], lora["f1_gain"]) == (87.5, 50, None)
    assert (full["f1_difference"]["mean"], lora["f1_difference"], full["unit"]) == (50, None, "paragraph")
    out = capsys.readouterr().out
    assert "gain: against lora, with 95 % intervals for new seeds on the same questions, and for new paragraphs" in out
    assert "Means over runs" in report and "Gains of the means, in points above lora" in report

    comparison, _ = compare(made, tmp_path / "made", "--adapters", f"a={made / 'run'}", f"a={made / 'run'}", "--modes",
                            "greedy,extractive", "--max-new-tokens", 4, "--base", made / "base", "--limit", 4)
    assert [one["name"] for one in comparison["runs"]] == ["a greedy", "a extractive"]
    assert comparison["runs"][1]["systems"] == ["a 1 extractive", "a 2 extractive"]
    assert comparison["runs"][0]["f1"]["deviation"] == 0
    # Names that were not given, such as those of equal folders, are a mistake as before.
    for folder in ("one", "two"):
        (tmp_path / folder / "scores").mkdir(parents=True)
        (tmp_path / folder / "scores" / "predictions.json").write_text(files[0].read_text())
    assert main(["compare", str(tmp_path / "one" / "scores"), str(tmp_path / "two" / "scores"), "--data",
                 str(made / "dev.json"), "--output", str(tmp_path / "none")]) == 2
    assert "several systems are named scores" in capsys.readouterr().err


def test_questions_that_no_system_answered_are_left_out_which_is_reported_first(made, tmp_path, capsys):
    for name, numbers in (("two", (0, 1)), ("three", (0, 1, 2))):
        answers = {f"{number}-river": f"R{number}" for number in numbers}
        (tmp_path / f"{name}.json").write_text(json.dumps(answers))
    files = tmp_path / "two.json", tmp_path / "three.json"
    comparison, report = compare(made, tmp_path / "out", *files)
    out = capsys.readouterr().out
    said = "No system answered 5 of the 8 questions; they are left out. With --official they count as 0"
    assert out.startswith(said) and said in report
    assert (comparison["questions"], comparison["left_out"]) == (3, 5)
    two, three = (one["metrics"] for one in comparison["systems"])
    assert (three["exact_match"], three["missing"], two["missing"]) == (100, 0, 1)
    assert two["exact_match"] == pytest.approx(200 / 3)  # what another system answered is no excuse
    assert "two: 1 of 3 questions without a prediction count as 0" in out
    assert sum(group["count"] for group in comparison["breakdowns"]["two"]["question word"]) == 3

    comparison, report = compare(made, tmp_path / "official", *files, "--official")
    assert "left out" not in capsys.readouterr().out + report
    assert (comparison["questions"], comparison["left_out"]) == (8, 0)
    assert [one["metrics"]["exact_match"] for one in comparison["systems"]] == [25, 37.5]


def test_the_data_tell_what_is_resampled(tmp_path, capsys):
    """A prediction file holds ids alone; whether they are of one article or of many is in the data."""
    folder = small_run.make_files(tmp_path, 1, 12)  # an article for each paragraph
    answers = {f"{number}-river": f"R{number}" for number in range(1, 13)}
    (tmp_path / "one.json").write_text(json.dumps(answers))
    comparison, report = compare(folder, tmp_path / "out", tmp_path / "one.json")
    metrics = comparison["systems"][0]["metrics"]
    assert (metrics["unit"], metrics["units"]) == ("article", 12)
    assert "12 questions of 12 articles, scores in percent; 95 % intervals are for new articles" in (
        capsys.readouterr().out)
    assert "12 questions of 12 articles, in percent; 95 % intervals are for new articles." in report


def test_texts_with_references_have_their_scores(tmp_path):
    lines = '{"prompt": "p", "completion": "a b c d e"}\n{"prompt": "q", "completion": "f g"}'
    (tmp_path / "dev.jsonl").write_text(lines)
    (tmp_path / "one.json").write_text('{"1": "a b c d e", "2": "f g"}')
    code = main(["compare", str(tmp_path / "one.json"), "--data", str(tmp_path / "dev.jsonl"), "--output",
                 str(tmp_path / "out")])
    assert code == 0
    scores = json.loads((tmp_path / "out" / "comparison.json").read_text())["text_scores"]["one"]
    assert scores["ROUGE-L (E2E)"]["value"] == 100 and "CIDEr" in scores
    assert scores["ROUGE-L (E2E)"]["interval"] is None  # of two prompts
    assert "Text scores" in (tmp_path / "out" / "report.html").read_text()


def test_text_scores_of_several_seeds_have_means_and_deviations(tmp_path, capsys):
    lines = [json.dumps({"prompt": f"p{i}", "completion": "a b c d"}) for i in range(4)]
    (tmp_path / "dev.jsonl").write_text("\n".join(lines))
    texts = ["a b c d", "a b x d", "a b c d"]
    for number, text in enumerate(texts):
        (tmp_path / f"{number}.json").write_text(json.dumps({str(i): text for i in range(1, 5)}))
    assert main(["compare", f"low={tmp_path / '0.json'}", f"low={tmp_path / '1.json'}", f"high={tmp_path / '0.json'}",
                 f"high={tmp_path / '2.json'}", str(tmp_path / "1.json"), "--data", str(tmp_path / "dev.jsonl"),
                 "--output", str(tmp_path / "out")]) == 0
    comparison = json.loads((tmp_path / "out" / "comparison.json").read_text())
    first, second = (comparison["text_scores"][f"low {number}"]["ROUGE-L (E2E)"]["value"] for number in (1, 2))
    low, high = (comparison["text_scores_runs"][name]["all"]["ROUGE-L (E2E)"] for name in ("low", "high"))
    assert first == 100 and low["mean"] == pytest.approx((first + second) / 2)
    assert low["deviation"] == pytest.approx((first - second) / 2 ** 0.5) and low["count"] == 2
    assert (high["mean"], high["deviation"]) == (100, 0)
    said = "95 % intervals by Student's t over the runs are for new seeds on the same prompts"
    assert "means over runs ± standard deviation of a run; " + said in capsys.readouterr().out
    assert "new seeds on the same prompts." in (tmp_path / "out" / "report.html").read_text()


def test_texts_of_webnlg_are_scored_by_group(tmp_path, capsys):
    def entry(number, category, text):
        triple = {"subject": f"S{number}", "property": "p", "object": "o"}
        return {str(number): {"category": category, "modifiedtripleset": [triple],
                              "lexicalisations": [{"comment": "good", "lex": text}]}}
    entries = [entry(1, "Airport", "a b c d"), entry(2, "Politician", "e f g h")]
    (tmp_path / "dev.json").write_text(json.dumps({"entries": entries}))
    (tmp_path / "one.json").write_text('{"1": "A b c d", "2": "e f g x"}')
    assert main(["compare", str(tmp_path / "one.json"), "--data", str(tmp_path / "dev.json"), "--output",
                 str(tmp_path / "out")]) == 0
    comparison = json.loads((tmp_path / "out" / "comparison.json").read_text())
    found = {"all": comparison["text_scores"]["one"], **comparison["text_scores_by_group"]["one"]}
    assert {group: scores["TER (WebNLG)"]["value"] for group, scores in found.items()} == {
        "all": 12.5, "seen": 0, "unseen": 25}
    assert "CIDEr" not in found["all"]
    shown, report = capsys.readouterr().out, (tmp_path / "out" / "report.html").read_text()
    assert "TER (WebNLG), unseen" in shown and '<th colspan="3" scope="rowgroup">unseen</th>' in report


@pytest.mark.parametrize("arguments, message", [
    ([], "nothing to compare"),
    (["nowhere.json"], "expected a prediction file"),
    (["{dev}"], "1 of 2 predictions cannot be used"),
    (["{one}", "{one}"], "several systems are named one"),
    (["a={one}", "a={one}", "a 1={one}"], "several systems are named a 1"),
    (["{one}", "--against", "other"], "no such system; the systems are one"),
    (["--adapters", "nowhere"], "--adapters nowhere: expected an adapter folder"),
    (["{one}", "--modes", "greedy,beam"], "expected some of greedy, extractive"),
    (["{one}", "--precisions", "fp32,fp16"], "expected some of fp32, tf32, bf16"),
    (["{one}", "--max-tokens", "16", "--max-new-tokens", "16"], "leaves no room for a prompt"),
])
def test_mistakes_are_told(arguments, message, made, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "one.json").write_text('{"0-river": "x"}')
    arguments = [text.format(dev=made / "dev.json", one=tmp_path / "one.json") for text in arguments]
    assert main(["compare", *arguments, "--data", str(made / "dev.json"), "--output", "out"]) == 2
    assert message in capsys.readouterr().err
