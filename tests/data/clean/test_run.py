"""Whole cleaning runs, and the command."""

import errno
import json
import re
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

import pallava
from pallava.cli import main
from pallava.data.clean.pipeline import Pipeline
from pallava.data.clean.run import _write_outcomes, clean
from pallava.data.clean.settings import FILTERS
from pallava.errors import PallavaError
from tests.tiny.endpoint import Act, stub_endpoint
from tests.tiny.records import (
    save_pairs,
    save_picture,
    save_pmc_oa,
    save_pubmedvision,
    save_quilt,
)

ENDPOINT = "--species endpoint --species-url http://x --species-model m"
OUTPUTS = ("kept.jsonl", "dropped.jsonl", "pairs.json", "summary.json")


@pytest.fixture(scope="module")
def trees(tmp_path_factory) -> Path:
    """Three sets with three roots; the second of Quilt is also the second of PMC-OA."""
    folder = tmp_path_factory.mktemp("trees")
    save_pubmedvision(folder / "a" / "pv")
    save_quilt(folder / "b" / "quilt")
    save_pmc_oa(folder / "b" / "oa")
    twin = folder / "b" / "oa" / "caption_T060_filtered_top4_sep_v0_subfigures" / "PMC1_1.jpg"
    twin.write_bytes((folder / "b" / "quilt" / "quilt_1m" / "1.jpg").read_bytes())
    return folder


@pytest.fixture
def sources(trees) -> list[str]:
    roots = {"pubmedvision": "a/pv", "quilt-1m": "b/quilt", "pmc-oa": "b/oa"}
    return [f"{name}={trees / root}" for name, root in roots.items()]


def read(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in OUTPUTS}


def reasons(folder: Path) -> list[tuple[str, str, str, str]]:
    rows = map(json.loads, (folder / "dropped.jsonl").read_text().splitlines())
    return [(row["source"], row["id"].lstrip("0"), row["filter"], row["reason"]) for row in rows]


def stored(folder: Path, filter_name: str) -> int:
    with closing(sqlite3.connect(folder / "scores.sqlite")) as database:
        query = "SELECT count(*) FROM scores WHERE filter_key LIKE ?"
        return database.execute(query, [f"{filter_name}%"]).fetchone()[0]


def test_three_sources(sources, trees, tmp_path):
    summary = clean(sources, tmp_path / "out")
    assert reasons(tmp_path / "out") == [
        ("pubmedvision", "5", "pathology", "not_microscopy"),
        ("pmc-oa", "1", "duplicates", "exact duplicate"),
        ("pmc-oa", "5", "words", "few_words"),
    ]
    assert {name: each["num_kept"] for name, each in summary["sources"].items()} == {
        "pubmedvision": 5,
        "quilt-1m": 5,
        "pmc-oa": 4,
    }
    assert summary["sources"]["quilt-1m"]["unread"] == {"not_histology": 1}
    assert summary["sources"]["pmc-oa"]["filters"]["words"] == {"num_in": 6, "dropped": {"few_words": 1}}
    assert summary["settings"]["roots"]["quilt-1m"] == str(trees / "b" / "quilt")
    assert summary == json.loads((tmp_path / "out" / "summary.json").read_text())
    pairs = json.loads((tmp_path / "out" / "pairs.json").read_text())
    assert len(pairs) == 14
    assert all((trees / each["image"]).is_file() for each in pairs)
    kept = [json.loads(line) for line in (tmp_path / "out" / "kept.jsonl").read_text().splitlines()]
    assert [each["path"] for each in kept] == [each["image"] for each in pairs]
    assert kept[0]["image_size"] == [96, 80]
    assert kept[0]["scores"]["words"] == 25


def test_the_python_interface(sources, tmp_path):
    assert pallava.clean is clean
    with pytest.raises(PallavaError, match="'webs'.*metadata, clip"):
        clean(sources, tmp_path / "out", pathology="webs")
    with pytest.raises(TypeError, match="min_word"):
        clean(sources, tmp_path / "out", min_word=3)
    assert not (tmp_path / "out").exists()


def test_again_with_another_threshold(sources, tmp_path, monkeypatch):
    clean(sources, tmp_path)
    monkeypatch.setattr("pallava.data.clean.images._check_image", None)  # fails where it is called
    summary = clean(sources, tmp_path, min_words=26)
    assert summary["num_pairs"] == 0
    assert json.loads((tmp_path / "pairs.json").read_text()) == []


def test_an_image_that_changes_between_judging_and_deciding(tmp_path, monkeypatch):
    tree = save_pairs(tmp_path / "tree", 4)
    judge = Pipeline.judge

    def judge_and_change(pipeline):
        judge(pipeline)
        save_picture(tree / "0.png", 77, (50, 40))

    monkeypatch.setattr(Pipeline, "judge", judge_and_change)
    with pytest.raises(PallavaError, match=r"'image'.*0\.png.*run `pallava data clean` again"):
        clean([f"pairs={tree}"], tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["scores.sqlite"]


def test_links_in_the_folder_are_followed(tmp_path):
    tree = save_pairs(tmp_path / "tree", 3)
    (tree / "1.png").rename(tmp_path / "elsewhere.png")
    (tree / "1.png").symlink_to(tmp_path / "elsewhere.png")
    (tree / "2.png").unlink()
    (tree / "2.png").symlink_to(tmp_path / "nowhere.png")
    for image_folder in (None, str(tmp_path)):
        clean([f"pairs={tree}"], tmp_path / "out", image_folder=image_folder)
        assert reasons(tmp_path / "out") == [("pairs", "2", "image", "missing")]


def test_a_picture_that_came_later_is_judged(tmp_path):
    tree = save_pairs(tmp_path / "tree", 3)
    (tree / "1.png").rename(tree / "away.png")
    assert clean([f"pairs={tree}"], tmp_path / "out")["num_kept"] == 2
    (tree / "away.png").rename(tree / "1.png")
    assert clean([f"pairs={tree}"], tmp_path / "out")["num_kept"] == 3


def test_two_sources_of_a_name_and_a_file(tmp_path):
    first, second = save_pairs(tmp_path / "x", 2), save_pairs(tmp_path / "y", 2, first_seed=9)
    summary = clean([f"pairs={first}", f"pairs={second}/pairs.json"], tmp_path / "out")
    assert {name: each["num_kept"] for name, each in summary["sources"].items()} == {"pairs": 2, "pairs-2": 2}
    pairs = json.loads((tmp_path / "out" / "pairs.json").read_text())
    assert [each["image"] for each in pairs] == ["x/0.png", "x/1.png", "y/0.png", "y/1.png"]


def test_the_published_list(sources, tmp_path):
    (tmp_path / "list.json").write_text(json.dumps(["pmc_2_0.jpg", "5.jpg", None, "3.jpg", "none.jpg", "PMC1_5"]))
    summary = clean(sources, tmp_path / "out", published_index=tmp_path / "list.json")
    kept = [json.loads(line)["image"] for line in (tmp_path / "out" / "kept.jsonl").read_text().splitlines()]
    assert [Path(image).name for image in kept] == ["pmc_2_0.jpg", "3.jpg", "PMC1_5.jpg"]
    assert summary["published_index"]["num_unmatched"] == 2
    assert summary["published_index"]["num_without_name"] == 1
    report = (tmp_path / "out" / "published_index.txt").read_text().splitlines()
    assert report == ["no match\t5.jpg", "no match\tnone.jpg", "no name\trecord 3 (line 1, column 26): null"]


def test_outputs_appear_complete_or_not_at_all(sources, tmp_path):
    clean(sources, tmp_path)
    before = read(tmp_path)

    def broken():
        raise RuntimeError
        yield

    with pytest.raises(RuntimeError):
        _write_outcomes(tmp_path, broken(), {}, [], {})
    assert read(tmp_path) == before
    assert not any(tmp_path.glob(".*unfinished"))


def test_a_full_disk_leaves_the_outputs_of_another_run(trees, tmp_path, monkeypatch):
    """Questions have no pairs.json: the one of the captions before goes with their summary, not earlier."""
    folder = tmp_path / "out"
    clean([f"pubmedvision={trees / 'a' / 'pv'}"], folder)
    before = read(folder)
    (tmp_path / "q.csv").write_text("image,q,a\n1.png,Is it there?,yes\n")
    questions = {"columns": {"image": "image", "question": "q", "answer": "a"}, "filters": ("species",)}

    def fsync(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", fsync)
        with pytest.raises(PallavaError, match="No space left"):
            clean([f"csv={tmp_path / 'q.csv'}"], folder, **questions)
    assert read(folder) == before
    clean([f"csv={tmp_path / 'q.csv'}"], folder, **questions)
    assert not (folder / "pairs.json").exists()


def test_what_a_killed_run_left_is_removed(trees, tmp_path):
    (tmp_path / ".kept.jsonl.01234567.unfinished").touch()
    (tmp_path / ".another.01234567.unfinished").touch()
    clean([f"pubmedvision={trees / 'a' / 'pv'}"], tmp_path)
    assert [path.name for path in tmp_path.glob(".*.unfinished")] == [".another.01234567.unfinished"]


def test_both_judges_behind_an_endpoint_that_misbehaves(tmp_path):
    """It is slow, fails, limits the rate and talks nonsense: nothing is lost, and no answer asked for again."""
    failures = {1: Act("busy", status=500), 2: Act("too fast", status=429, headers={"Retry-After": "0"})}

    def script(text, num_before):
        number = int(text.split()[-1]) if "case number" in text else None
        if number in failures and not num_before:
            return failures[number]
        replies = {None: "yes", 4: "It is a matter of taste.", 5: "non-human"}
        return Act(replies.get(number, "human"), delay=0.3 if number == 3 else 0)

    tree = save_pairs(tmp_path / "tree", 6)
    with stub_endpoint(script) as server:
        judges = {"pathology": "endpoint", "pathology_url": server.url, "pathology_model": "judge"}
        judges |= {"species": "endpoint", "species_url": server.url, "species_model": "judge"}
        summary = clean([f"pairs={tree}"], tmp_path / "out", **judges)
        assert summary["sources"]["pairs"]["filters"]["species"]["dropped"] == {"unreadable_reply": 1, "non_human": 1}
        assert summary["num_kept"] == 4
        num_requests = len(server.requests)
        assert sum(server.answered.values()) == 12
        clean([f"pairs={tree}"], tmp_path / "out", max_background=0.97, **judges)
        assert len(server.requests) == num_requests


def test_what_a_model_refuses_that_refuses_everything_is_not_stored(tmp_path):
    """Such as a model without eyes that is asked about pictures; once there is a better one, all is asked."""
    tree, acts = save_pairs(tmp_path / "tree", 6), [Act("this model reads no images", status=400)]
    with stub_endpoint(lambda text, before: acts[-1]) as server:
        judges = {"pathology": "endpoint", "pathology_url": server.url, "pathology_model": "judge"}
        with pytest.raises(PallavaError, match="refuses every request.*reads no images"):
            clean([f"pairs={tree}"], tmp_path / "out", **judges)
        assert stored(tmp_path / "out", "pathology") == 0
        acts.append(Act("yes"))
        assert clean([f"pairs={tree}"], tmp_path / "out", **judges)["num_kept"] == 6
        assert stored(tmp_path / "out", "pathology") == 6


@pytest.mark.usefixtures("quick_retries")
def test_rows_that_are_never_answered_can_be_dropped(tmp_path, capsys):
    """They are as many in a row as end a run where the server has died, and nothing is stored of them."""
    is_down = True

    def script(text, num_before):
        is_poison = "case number" in text and int(text.split()[-1]) >= 4
        return Act("out of memory", status=500) if is_poison and is_down else Act("human")

    tree, out = save_pairs(tmp_path / "tree", 24), tmp_path / "out"
    with stub_endpoint(script) as server:
        judge = ["--species", "endpoint", "--species-url", server.url, "--species-model", "judge"]
        words = ["data", "clean", str(out), "--source", f"pairs={tree}", *judge, "--workers", "1"]
        assert main(words) == 2
        assert "20 of 24 requests" in (error := capsys.readouterr().err)
        assert "--drop-unanswered" in error
        for _ in range(2):
            assert main([*words, "--drop-unanswered"]) == 0
            assert reasons(out) == [("pairs", str(number), "species", "unanswered") for number in range(4, 24)]
            assert stored(out, "species") == 4
        is_down = False
        assert main([*words, "--drop-unanswered"]) == 0
        assert reasons(out) == []
        assert sum(server.answered[text] for text in server.answered if "case number" in text) == 24


# The command


def test_the_help_says_what_each_filter_looks_at(capsys):
    with pytest.raises(SystemExit):
        main(["data", "clean", "--help"])
    table = capsys.readouterr().out.partition("looks at")[2]
    found = dict(re.findall(r"^  ([a-z-]+) +([a-z]+(?:, [a-z]+)*)  +[a-z]", table, re.M))
    assert {name: frozenset(kinds.split(", ")) for name, kinds in found.items()} == {
        name: row.kinds for name, row in FILTERS.items()
    }


@pytest.mark.parametrize(
    ("policy", "num_kept", "unread"), [("first", 5, {}), ("each", 6, {}), ("single-only", 4, {"several_images": 1})]
)
def test_the_policy_for_rows_with_several_images_is_recorded(tmp_path, policy, num_kept, unread):
    tree = save_pubmedvision(tmp_path / "pv")
    save_picture(tree / "images" / "pmc_0_1.jpg", 500)
    rows = json.loads((tree / "PubMedVision_Alignment_VQA.json").read_text())
    rows[0]["image"].append("images/pmc_0_1.jpg")
    (tree / "PubMedVision_Alignment_VQA.json").write_text(json.dumps(rows))
    words = ["--source", f"pubmedvision={tree}", "--workers", "1", "--image-policy", policy]
    assert main(["data", "clean", str(tmp_path / "out"), *words]) == 0
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["settings"]["image_policy"] == policy
    assert summary["sources"]["pubmedvision"]["unread"] == unread
    assert summary["num_kept"] == num_kept


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--source quilt-1m", "NAME=ROOT"),
        ("--source quilts={t}/b/quilt", "'quilts'"),
        ("--source quilt-1m={t}/none", "none"),
        ("--source quilt-1m={t}/b/oa", "quilt_1M_lookup"),
        ("--source bach={t}", "set of classes"),
        ("--source quilt-1m={t}/b/quilt --filters words,word", "'word'"),
        ("--source quilt-1m={t}/b/quilt --filters duplicates", "add 'image'"),
        ("--source quilt-1m={t}/b/quilt --filters published-index", "go together"),
        ("--source quilt-1m={t}/b/quilt --published-index {t}/none", "cannot read the list"),
        ("--source quilt-1m={t}/b/quilt --pathology clip", "--model-name"),
        ("--source quilt-1m={t}/b/quilt --pathology clip --model-name ViT-B-16", "needs weights"),
        ("--source quilt-1m={t}/b/quilt --pathology endpoint", "--pathology-url"),
        ("--source quilt-1m={t}/b/quilt --pathology endpoint --pathology-url http://x", "--pathology-model"),
        ("--source quilt-1m={t}/b/quilt --species endpoint --species-url http://x", "--species-model"),
        ("--source quilt-1m={t}/b/quilt --filters words --species rules", "add species"),
        (f"--source quilt-1m={{t}}/b/quilt {ENDPOINT} --concurrency 0", "concurrency"),
        ("--source quilt-1m={t}/b/quilt --min-words -1", "-1"),
        ("--source quilt-1m={t}/b/quilt --max-background 7", "7"),
        ("--source quilt-1m={t}/b/quilt --workers 0", "workers"),
        ("--source quilt-1m={t}/b/quilt --image-folder {t}/a", "image folder"),
        ("--source quilt-1m={t}/b/quilt --split pmc-oa=train", "pmc-oa=train"),
    ],
)
def test_a_users_mistakes(trees, tmp_path, capsys, words, message):
    out = tmp_path / "out"
    assert main(["data", "clean", str(out), *words.format(t=trees).split()]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert not out.exists(), "something was written before the mistake was found"


def test_a_foreign_folder_is_left_alone(trees, tmp_path, capsys):
    (tmp_path / "pairs.json").write_text("mine")
    words = ["data", "clean", str(tmp_path), "--source", f"quilt-1m={trees}/b/quilt"]
    assert main(words) == 2
    assert (tmp_path / "pairs.json").read_text() == "mine"
    assert main(["data", "clean", str(tmp_path / "pairs.json"), *words[3:]]) == 2
    assert "is a file" in capsys.readouterr().err


def test_a_folder_that_cannot_be_made(trees, capsys):
    words = ["--source", f"quilt-1m={trees}/b/quilt"]
    assert main(["data", "clean", str(trees / "b" / "quilt" / "quilt_1M_lookup.csv" / "out"), *words]) == 2
    assert "Not a directory" in capsys.readouterr().err


def test_ctrl_c_says_how_to_go_on(trees, tmp_path, capsys, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("pallava.data.clean.pipeline.Pipeline.judge", interrupted)
    assert main(["data", "clean", str(tmp_path / "out"), "--source", f"quilt-1m={trees}/b/quilt"]) == 130
    assert "the same command resumes" in capsys.readouterr().err


def test_the_funnel_is_printed(trees, tmp_path, capsys):
    words = ["--source", f"quilt-1m={trees}/b/quilt", "--source", f"pmc-oa={trees}/b/oa", "--workers", "1"]
    assert main(["data", "clean", str(tmp_path / "my out"), *words]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert " ".join(lines[0].split()) == "source read unread words pathology species image duplicates kept share"
    assert " ".join(lines[2].split()) == "pmc-oa 6 0 1 0 0 0 1 4 66.7 %"
    assert sum("not_histology: quilt_1M_lookup.csv, line " in line for line in lines) == 1
    pairs, train = f"'{tmp_path}/my out/pairs.json'", f"'{tmp_path}/my out/train.jsonl'"
    command = f"python tools/dataformat.py --input {pairs} --image-folder {trees}/b --output {train}"
    assert lines[-1] == f"next: {command}"


def test_a_table_with_questions_needs_no_class(tmp_path):
    save_picture(tmp_path / "images" / "a.png", 1)
    save_picture(tmp_path / "images" / "b.png", 2)
    (tmp_path / "mine.csv").write_text("file,asked,said\na.png,Is it so?,yes\nb.png,Which organ is it?,rat liver\n")
    words = ["data", "clean", str(tmp_path / "out"), "--source", f"csv={tmp_path / 'mine.csv'}", "--workers", "1"]
    words += ["--columns", "image=file,question=asked,answer=said", "--image-folder", str(tmp_path / "images")]
    assert main(words) == 0
    kept = [json.loads(line) for line in (tmp_path / "out" / "kept.jsonl").read_text().splitlines()]
    assert [(each["path"], each["answer"]) for each in kept] == [("a.png", "yes"), ("b.png", "rat liver")]
    assert not (tmp_path / "out" / "pairs.json").exists()


def test_no_source_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PallavaError, match="at least one NAME=ROOT"):
        clean([], tmp_path / "out")
    assert not (tmp_path / "out").exists()
