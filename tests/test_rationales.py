"""Solutions as equations alone, and rows of GSM8K-Aug and SVAMP as problems."""

import json
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain_tokens.answers import extract_strict, gold
from domain_tokens.comparison.runs import load_run
from domain_tokens.data.corpora import load_problems, load_questions
from domain_tokens.data.rationales import as_problem_row, equations_of, split_line
from domain_tokens.errors import UserError
from domain_tokens.evaluation.verification import verify_data
from domain_tokens.injection import find_facts, inject
from domain_tokens.runs.files import read_json, read_lines
from tests.conftest import ROOT, call
from tests.rows import problem_row, write_jsonl

SHARED = ROOT.parent / "shared" / "data"
JANET = (
    "Janet sells 16 - 3 - 4 = <<16-3-4=9>>9 duck eggs a day.\n"
    "She makes 9 * 2 = $<<9*2=18>>18 every day.\n#### 18"
)


def shared(name):
    path = SHARED / name
    if not path.exists():
        pytest.skip("no shared/data next to the checkout")
    return path


def problems(source, **more):
    return load_problems(str(source), split="train", limit=None, subset_seed=0, **more)


# --- equations ------------------------------------------------------------------------------------


def test_a_solution_keeps_its_annotations_and_its_answer():
    assert equations_of(JANET) == "<<16-3-4=9>> <<9*2=18>>\n#### 18"
    assert equations_of("Just 7.\n#### 7") == "#### 7"
    assert equations_of("no answer") is None


NUMBERS = st.integers(1, 99)
STEP = st.builds(lambda a, b: f"{a}*{b}={a * b}", NUMBERS, NUMBERS)
WORDS = st.text(alphabet="ab .,$\n", max_size=20)


@given(st.lists(st.tuples(WORDS, STEP)), NUMBERS)
def test_equations_are_what_stands_between_the_brackets_in_order(parts, answer):
    """An oracle that walks the text by hand; twice is once; answer and facts are read alike."""
    text = "".join(f"{words}<<{step}>>{step.partition('=')[2]}" for words, step in parts)
    text += f"\n#### {answer}"
    equations = equations_of(text)
    walked, rest = [], text.rpartition("####")[0]
    while "<<" in rest:
        inner, _, rest = rest.partition("<<")[2].partition(">>")
        walked.append(inner)
    assert equations == "\n".join(
        [" ".join(f"<<{w}>>" for w in walked)] * bool(walked) + [f"#### {answer}"]
    )
    assert equations_of(equations) == equations
    assert extract_strict(equations) == gold(equations).number == answer
    facts = {(f.a, f.b) for f in find_facts(equations)}
    single = [sorted(map(int, w.partition("=")[0].split("*"))) for w in walked]
    assert facts == {tuple(pair) for pair in single if max(pair) <= 9}


def test_a_fact_in_equations_becomes_its_token():
    text = equations_of("It is 6*9 = <<6*9=54>>54, and 3 more: <<54+3=57>>57.\n#### 57")
    assert inject(text) == "<<<MUL_6_9_54>>> <<54+3=57>>\n#### 57"


def test_both_rationales_are_of_the_same_problems_in_the_same_order(tmp_path):
    """Only the solution's text differs: subset, ids and order are drawn from the full text."""
    rows = [
        {"question": f"How many, {n}?", "answer": JANET.replace("18", str(n))} for n in range(9)
    ]
    rows += [
        {"question": "Why?", "answer": "#### 3"},
        {"question": "Why?", "answer": "So.\n#### 3"},
    ]
    source = write_jsonl(tmp_path / "rows.jsonl", rows)
    full, short = problems(source), problems(source, rationale="equations")
    assert [p.id for p in full.items] == [p.id for p in short.items]
    assert [p.question for p in full.items] == [p.question for p in short.items]
    assert [equations_of(p.answer) for p in full.items] == [p.answer for p in short.items]
    assert full.fingerprint != short.fingerprint
    assert (full.no_equations, short.no_equations) == (None, 2)
    assert short.notes() == [
        f"data.source: {source}: 2 of 11 solutions have no equation; they keep their answer alone"
    ]
    few = load_problems(source, split="train", limit=4, subset_seed=0, rationale="equations")
    assert [p.id for p in few.items] == [p.id for p in full.items[:4]]


def test_a_solution_without_an_answer_has_no_equations_to_train_on(tmp_path):
    rows = [problem_row(n) for n in range(5)] + [{"question": "Why?", "answer": "Because."}]
    loaded = problems(write_jsonl(tmp_path / "r.jsonl", rows), rationale="equations")
    assert loaded.irregular == {"no_final_answer": [6]}
    assert len(problems(tmp_path / "r.jsonl").items) == 6


@pytest.mark.shared_data
@pytest.mark.parametrize(("split", "bare"), [("train", 95), ("test", 18)])
def test_every_solution_of_gsm8k_keeps_its_answer(split, bare):
    full = problems(shared(f"gsm8k/{split}.jsonl"))
    short = problems(shared(f"gsm8k/{split}.jsonl"), rationale="equations")
    assert short.no_equations == bare
    for one, other in zip(full.items, short.items, strict=True):
        assert gold(one.answer) == gold(other.answer)
        assert {f.token for f in find_facts(other.answer)} <= {
            f.token for f in find_facts(one.answer)
        }
    lengths = [len(p.answer.rpartition("\n")[0]) for p in short.items]
    assert 40 < sum(lengths) / len(lengths) < 46  # 248 in full


# --- GSM8K-Aug ------------------------------------------------------------------------------------


def test_a_line_of_gsm8k_aug_is_a_problem():
    line = "Two robes?  How many|bolts?||<<2/2=1>> <<2+1=3>> #### 3"
    assert split_line(line) == {
        "question": "Two robes?  How many|bolts?",
        "answer": "<<2/2=1>> <<2+1=3>>\n#### 3",
    }
    assert split_line("Why?|| #### 26")["answer"] == "#### 26"


BAD_LINES = [
    ("", "blank line"),
    ("Why? <<1+1=2>> #### 2", "no ||"),
    ("Why?||<<1+1=2>>||#### 2", "more than one ||"),
    ("Why?||<<1+1=2>> 2", "no ####"),
    ("Why?||<<1+1=2>> #### 2 #### 3", "more than one ####"),
    (" ||<<1+1=2>> #### 2", "no question"),
    ("Why?||<<1+1=2>> ####", "no answer"),
    ("Why?||<<1+1=2>> so <<2+1=3>> #### 3", "text outside << >>"),
    ("Why?||<<1+1=2> #### 2", "text outside << >>"),
]


@pytest.mark.parametrize(("line", "why"), BAD_LINES)
def test_a_malformed_line_says_what_is_wrong(line, why):
    assert split_line(line) == {"malformed": why}


def test_every_malformed_line_is_named_with_its_number(tmp_path):
    file = tmp_path / "train.txt"
    good = [f"How many, {n}?||<<{n}+1={n + 1}>> #### {n + 1}" for n in range(20)]
    lines = []
    for line, _ in BAD_LINES:
        lines += [good.pop(), line, good.pop()]
    file.write_text("\ufeff" + "\r\n".join(lines) + "\n\n\n", encoding="utf-8")
    loaded = problems(tmp_path)
    assert loaded.irregular == {"malformed_line": list(range(2, 28, 3))}
    assert len(loaded.items) == 18
    assert loaded.notes()[0].endswith("9 malformed_line (rows 2, 5, 8, 11, 14, …)")
    file.write_text("one\ntwo\n")
    with pytest.raises(
        UserError, match=r"row 1: no \|\|; wanted `question\|\|<<a\+b=c>> … #### n`"
    ):
        problems(file)
    file.write_bytes(b"Why?||#### 2\n\xff||#### 3\n")
    with pytest.raises(UserError, match="line 2: not UTF-8"):
        problems(file)


@pytest.mark.parametrize(
    "row",
    [
        {"question": "Why?", "cot": "<<1+1=2>> <<2+1=3>>", "answer": "3"},
        {"question": "Why?", "steps": ["<<1+1=2>>", "<<2+1=3>>"], "answer": " 3"},
        {"question": "Why?", "answer": "<<1+1=2>> <<2+1=3>>\n#### 3"},
    ],
)
def test_a_row_of_the_hub_is_the_line_of_the_file(tmp_path, row):
    (tmp_path / "aug.txt").write_text("Why?||<<1+1=2>> <<2+1=3>> #### 3\n")
    (from_line,) = problems(tmp_path / "aug.txt").items
    (from_row,) = problems(write_jsonl(tmp_path / "aug.jsonl", [row])).items
    assert from_row == from_line


def test_a_bare_answer_next_to_no_steps_stays_as_it_was():
    row = {"question": "Why?", "answer": "3", "cot": None}
    assert as_problem_row(row) is row
    row = {"question": "Why?", "answer": "It is 3.\n#### 3", "cot": "<<1+2=3>>"}
    assert as_problem_row(row) is row


@pytest.mark.shared_data
@pytest.mark.parametrize(("name", "count"), [("test", 1319), ("valid", 500)])
def test_the_published_files_are_whole_and_follow_gsm8k(name, count):
    loaded = problems(shared(f"gsm8k_aug/{name}.txt"))
    assert (len(loaded.items), loaded.total_rows, loaded.dropped) == (count, count, {})
    again = problems(shared(f"gsm8k_aug/{name}.txt"), rationale="equations")
    assert again.items == loaded.items  # equations already
    if name == "test":
        theirs = {p.question.strip(): gold(p.answer).number for p in loaded.items}
        ours = {
            p.question.strip(): gold(p.answer).number
            for p in problems(shared("gsm8k/test.jsonl")).items
        }
        assert theirs == ours
        questions = load_questions(str(shared("gsm8k_aug/test.txt")), split="test", key="k")
        assert len(questions) == count


# --- SVAMP ----------------------------------------------------------------------------------------


def svamp(equation, answer, **more):
    return {
        "ID": "chal-1",
        "Body": "There are 8 rows of 4",
        "Question": "How many?",
        "Equation": equation,
        "Answer": answer,
        "Type": "Multiplication",
        **more,
    }


@pytest.mark.parametrize(
    ("equation", "answer", "expected"),
    [
        ("( 8.0 * 4.0 )", 32.0, "<<8*4=32>>\n#### 32"),
        ("( 8.0 * 4.0 )", "32.0", "<<8*4=32>>\n#### 32"),
        ("( ( 3.0 + 2.0 ) * 4.0 )", 20, "<<3+2=5>> <<5*4=20>>\n#### 20"),
        ("( 4.0 * ( 3.0 / 2.0 ) )", 6.0, "<<3/2=1.5>> <<4*1.5=6>>\n#### 6"),
        ("( 2.0 - 5.0 )", -3.0, "<<2-5=-3>>\n#### -3"),
        ("( 60.0 * ( 55.0 / 15.0 ) )", 220.0, "#### 220"),  # 55/15 has no last digit
        ("( ( 4.0 - 2.0 ) + 3.0 )", 1.0, "#### 1"),  # the data contradict themselves (chal-680)
        ("8.0", 8.0, "#### 8"),
        ("( 8.0 / 0.0 )", 8.0, "#### 8"),
        ("( 8.0 * x )", 8.0, "#### 8"),
        ("( 8.0 * 4.0", 32.0, "#### 32"),
        ("( 8.0 4.0 )", 32.0, "#### 32"),
        (None, 1e3, "#### 1000"),
    ],
)
def test_a_row_of_svamp_is_a_problem(equation, answer, expected):
    row = as_problem_row(svamp(equation, answer))
    question = "There are 8 rows of 4 How many?"
    assert row == {"question": question, "answer": expected, "id": "chal-1"}


@pytest.mark.parametrize("answer", ["many", None, True, [3], float("nan")])
def test_a_row_of_svamp_without_a_number_is_irregular(tmp_path, answer):
    rows = [svamp("( 1.0 + 1.0 )", 2.0, ID=f"{n}", Body=f"{n}") for n in range(3)]
    (tmp_path / "s.json").write_text(json.dumps([*rows, svamp("( 1.0 + 1.0 )", answer)]))
    assert problems(tmp_path / "s.json").irregular == {"no_answer": [4]}
    (tmp_path / "s.json").write_text(json.dumps([*rows, svamp(None, 2.0, Body=None)]))
    assert problems(tmp_path / "s.json").irregular == {"no_question": [4]}


@given(st.data())
def test_steps_of_an_equation_have_its_value(data):
    """An oracle by Python's own arithmetic: the last result is the value, each step is right."""

    def tree(depth):
        if depth == 0 or data.draw(st.booleans()):
            return f"{data.draw(st.integers(0, 99))}.0"
        sign = data.draw(st.sampled_from("+-*"))
        return f"( {tree(depth - 1)} {sign} {tree(depth - 1)} )"

    equation = f"( {tree(2)} * {tree(2)} )"
    value = int(eval(equation))
    row = as_problem_row(svamp(equation, float(value)))
    steps = row["answer"].split("\n")[0].split(" ")
    assert len(steps) == sum(equation.count(sign) for sign in "+-*")
    for step in steps:
        left, right = step[2:-2].rsplit("=", 1)
        assert eval(left) == int(right)
    assert gold(row["answer"]).number == Decimal(value)


@pytest.mark.shared_data
def test_all_of_svamp_is_read():
    loaded = problems(shared("svamp/SVAMP.json"))
    assert (len(loaded.items), loaded.dropped) == (1000, {})
    rows = {row["ID"]: row for row in json.loads(Path(shared("svamp/SVAMP.json")).read_text())}
    without = 0
    for problem in loaded.items:
        row = rows[problem.id]
        assert problem.question == f"{row['Body']} {row['Question']}"
        assert float(gold(problem.answer).number) == row["Answer"]
        without += "<<" not in problem.answer
    assert without == 3
    assert sum(bool(find_facts(problem.answer)) for problem in loaded.items) == 13


# --- through the stages ---------------------------------------------------------------------------


def fine_tune(demo, folder, source, *more):
    """Train the GSM8K stage of the small demo on a file; return its results."""
    words = ["--model-path", demo / "sft_tulu_mul_tokens", "--output-dir", demo / folder]
    words += ["--condition", "mul_tokens", "--inject-mul-tokens", "--set", f"data.source={source}"]
    words += ["--config", "sft/configs/demo/gsm8k.yaml", "--set", "training.max_val_samples=0"]
    words += ["--set", "training.warmup_ratio=0", "--set", "data.validation_source=null"]
    assert call("sft/sft_gsm8k.py", *words, *more) == 0
    results = read_json(demo / folder / "sft_results.json")
    assert read_json(demo / folder / "run_card.json")["config"] == results["config"]
    return results


def test_a_stage_trains_on_the_rationale_that_its_card_names(demo, capsys):
    """The same problems in the same order, in fewer tokens; kept data are not mixed up."""
    source = demo / "data" / "train.jsonl"
    short = ["--set", "data.rationale=equations"]
    full = fine_tune(demo, "full", source)
    capsys.readouterr()
    equations = fine_tune(demo, "equations", source, *short)
    out = capsys.readouterr().out
    assert "prepared data:" not in out
    assert "solutions have no equation; they keep their answer alone" in out
    assert equations["order_digest"] == full["order_digest"]
    assert equations["supervised_tokens"] < full["supervised_tokens"]
    assert equations["injected_tokens"] > 0
    rows = [json.loads(line) for line in source.read_text().splitlines()]
    bare = sum("<<" not in row["answer"] for row in rows)
    assert bare > 0
    counts = [r["solutions_without_equations"] for r in (full, equations)]
    assert counts == [None, bare]
    cards = [read_json(demo / name / "run_card.json") for name in ("full", "equations")]
    assert cards[0]["data"]["train"] != cards[1]["data"]["train"]
    assert [c["config"]["data"]["rationale"] for c in cards] == ["full", "equations"]
    again = fine_tune(demo, "again", source, *short)
    assert "prepared data:" in capsys.readouterr().out
    assert again["solutions_without_equations"] == bare


def test_a_text_file_of_gsm8k_aug_trains_a_stage(demo):
    """Decontaminated against the questions that are named, and its malformed lines named."""
    asked = json.loads((demo / "data" / "test.jsonl").read_text().splitlines()[0])["question"]
    lines = [f"How many are {n} boxes of 7?||<<{n}*7={n * 7}>> #### {n * 7}" for n in range(1, 33)]
    lines += ["no separator", f"{asked}||<<1+1=2>> #### 2"]
    (demo / "aug.txt").write_text("\n".join(lines) + "\n")
    against = ["--set", f"data.decontaminate_against={demo / 'data' / 'test.jsonl'}"]
    results = fine_tune(demo, "aug", demo / "aug.txt", *against)
    assert results["dropped"] == {"malformed_line": 1, "repeats_test_question": 1}
    assert results["irregular_rows"] == {"malformed_line": [33]}
    assert (results["total_train_samples"], results["injected_examples"]) == (32, 9)


def test_a_chat_stage_has_no_equations(demo, capsys):
    words = ["--model-path", demo / "hf_baseline", "--output-dir", demo / "chat", "--condition"]
    words += ["baseline", "--config", "sft/configs/demo/tulu.yaml"]
    words += ["--set", f"data.source={demo / 'data' / 'chat.jsonl'}"]
    words += ["--set", f"data.decontaminate_against={demo / 'data' / 'test.jsonl'}"]
    assert call("sft/sft_tulu.py", *words, "--set", "data.rationale=equations") == 2
    assert "data.rationale=equations is of the GSM8K stage" in capsys.readouterr().err
    assert not (demo / "chat").exists()


def test_svamp_goes_through_the_ordinary_evaluation(demo):
    """With its own config; the folder is verified against the file like any other."""
    rows = [
        svamp("( 8.0 * 4.0 )", 32.0),
        svamp("( 8.0 - 3.0 )", 5.0, ID="chal-2", Body="Of 8, 3 go"),
    ]
    (demo / "SVAMP.json").write_text(json.dumps(rows))
    model, folder = demo / "sft_gsm8k_mul_tokens", demo / "svamp"
    words = ["--model-path", model, "--output-dir", folder, "--condition", "mul_tokens"]
    words += ["--config", "eval/configs/svamp.yaml", "--set", f"data.source={demo / 'SVAMP.json'}"]
    words += ["--max-new-tokens", 6, "--set", "evaluation.num_rationales=2"]
    assert call("eval/run_gsm8k.py", *words) == 0
    items = {item["id"]: item for item in read_lines(folder / "gsm8k_items.jsonl")}
    assert {i: item["gold"] for i, item in items.items()} == {"chal-1": "32", "chal-2": "5"}
    assert {i: item["applicable"] for i, item in items.items()} == {"chal-1": True, "chal-2": False}
    assert items["chal-2"]["prompt"] == "Of 8, 3 go How many?"
    run = load_run(folder, condition="mul_tokens")
    assert verify_data(run.evaluations["gsm8k"].results, model) == "2 questions and golds"
