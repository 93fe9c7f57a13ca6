"""The report is one file that needs nothing else, tells measured from simulated, and trusts no text it shows."""

import base64
import re
import shutil
from html.parser import HTMLParser
from urllib.parse import unquote

import pandas as pd
import pytest
import synthetic

from erlab import figures, report
from erlab.results import claims, records

MANIFEST = {
    "command": "erlab reproduce --seed 7",
    "commit": None,
    "packages": {"erlab": "0.1.0"},
    "inputs": {"a.jsonl": "ab" * 32},
    "steps": [{"name": "00_environment", "seconds": 1.5}],
    "gpus": [],
    "datasets": [
        {
            "source": "a/b<i>",
            "config": None,
            "split": "train",
            "domain": "law",
            "rows": 2,
            "licence": "MIT",
            "commit": "c0ffee",
            "missing": None,
        },
        dict.fromkeys(("config", "split", "domain", "rows", "licence", "commit"))
        | {"source": "c/d", "missing": "no network"},
    ],
}


class Page(HTMLParser):
    """What a browser would fetch and show: images, links, anchors, text."""

    def __init__(self, path):
        super().__init__()
        self.images, self.links, self.ids, self.tags, self.text = [], [], set(), [], ""
        self.feed(path.read_text())

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append(tag)
        self.ids |= {attrs["id"]} if "id" in attrs else set()
        if tag == "img":
            self.images.append(attrs["src"])
        if tag == "a":
            self.links.append(attrs["href"])

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def study():
    simulated = synthetic.make("AD", (1, 100), source="simulated")
    return synthetic.both(
        synthetic.make(loads=(1, 4, 16), failing=0.02), synthetic.preliminary(loads=(1, 8)), simulated
    )


@pytest.fixture(scope="module")
def built(study, tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    results, pictures = folder / "results", folder / "figures"
    figures.save_all(figures.data(study), pictures, formats=("png",))
    for name in ("notebooks/00_environment.html", "records/baselines/A-0001users.parquet", "manifest.json"):
        (results / name).parent.mkdir(parents=True, exist_ok=True)
        (results / name).touch()
    return report.build(results, study, pictures, claims.ledger(study), MANIFEST)


def test_all_pictures_are_inside_and_nothing_is_fetched(built):
    page = Page(built)
    assert len(page.images) == 7
    for image in page.images:
        kind, _, content = image.partition(",")
        assert kind == "data:image/png;base64" and base64.b64decode(content).startswith(b"\x89PNG")
    assert not {"script", "link", "iframe"} & set(page.tags)
    assert "url(" not in built.read_text()


def test_every_link_leads_somewhere(built):
    page = Page(built)
    for link in page.links:
        if link.startswith("#"):
            assert link[1:] in page.ids
        elif not link.startswith("https://arxiv.org/abs/"):
            assert not link.startswith("/") and (built.parent / link).is_file(), link
    assert {"notebooks/00_environment.html", "records/baselines/A-0001users.parquet", "manifest.json"} <= set(
        page.links
    )
    assert {f"../figures/fig{i}.csv" for i in range(1, 8)} <= set(page.links)


def test_it_says_what_was_found_on_what(built, study):
    text = " ".join(Page(built).text.split())
    for claim in claims.ledger(study).itertuples():
        assert claim.statement in text
        assert (claim.reason if claim.verdict == claims.NOT_RUNNABLE else claim.value) in text
    failed = (study.requests.status != "ok").sum()
    assert f"of which {failed} failed" in text and failed
    assert "measured on 2-core AMD EPYC (scale model: each core stands for a GPU), one seed · commit abc1234." in text
    assert "simulated on 8 H100, one seed · commit abc1234." in text
    assert "erlab reproduce --seed 7" in text and "ab" * 32 in text
    assert "a/b<i>–trainlaw2MITc0ffee–" in text and "c/d––––––no network" in text
    assert "log-normal, median 190" in text  # an assumption
    assert "account, please, explain" in text  # a cluster's terms


def test_what_the_simulation_is_worth_is_told_where_it_is_known(study, built, tmp_path):
    text = " ".join(Page(built).text.split())
    assert "notebook 08_beyond has not run" in text and "notebook 09_validation has not run" in text
    assert "Some of these numbers are simulated" in text
    survival = "claim,statement,by default,survives,flips at\nx,Claim <b>X</b>,holds,13 of 15,gateway delay: 50 ms\n"
    targets = "against,compared,target,reached,met\npublished throughput,20,0.1,0.0352,yes\n"
    for name, content in (("beyond/survival.csv", survival), ("validation/targets.csv", targets)):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(content)
    picture = next((built.parent.parent / "figures").glob("*.png")).read_bytes()
    (tmp_path / "beyond" / "sensitivity.png").write_bytes(picture)
    page = Page(report.build(tmp_path, study, tmp_path / "none", claims.ledger(study), {}))
    text = " ".join(page.text.split())
    assert "Claim <b>X</b>holds13 of 15gateway delay: 50 ms" in text
    assert "published throughput2010.0%3.5%yes" in text and len(page.images) == 1
    assert {"beyond/survival.csv", "validation/targets.csv"} <= set(page.links)
    measured = synthetic.make("C", (1,))
    alone = Page(report.build(tmp_path, measured, tmp_path / "none", claims.ledger(measured), {}))
    assert "Some of these numbers are simulated" not in alone.text


def test_compared_recipes_are_shown_where_they_are_known(study, built, tmp_path):
    picture = next((built.parent.parent / "figures").glob("*.png")).read_bytes()
    (tmp_path / "routing").mkdir()
    (tmp_path / "routing" / "frontier.png").write_bytes(picture)
    (tmp_path / "routing" / "comparison.csv").touch()
    page = Page(report.build(tmp_path, study, tmp_path / "none", claims.ledger(study), {}))
    assert "Other recipes on these prompts" in page.text and "Other recipes on these" not in Page(built).text
    assert base64.b64decode(page.images[0].partition(",")[2]) == picture and "routing/comparison.csv" in page.links


def test_each_number_leads_to_its_records_and_each_verdict_to_what_it_was_computed_from(study, tmp_path):
    of = {}
    for name, part in study.requests.groupby(["source", "system"]):
        file = tmp_path / "records" / f"{'-'.join(name)}.parquet"
        records.save(file, records.Records(part, study.runs[study.runs.run_id.isin(part.run_id)]))
        of[name] = file.relative_to(tmp_path).as_posix()
    ledger = claims.ledger(study)
    claims.save(ledger, tmp_path, study)
    text = report.build(tmp_path, study, tmp_path / "none", ledger, {}).read_text()
    rows = re.findall(r'<tr><td class="nowrap">(\w+)</td><td><span class="src (\w+)">.*?href="([^"]+)"', text)
    assert len(rows) == 5 * 3 + 2 * 2 and all(of[source, system] == file for system, source, file in rows)
    for claim in ledger.itertuples():
        assert f'<a href="claims/{claim.id}.csv">numbers</a>' in text or claim.verdict == claims.NOT_RUNNABLE
        assert all(f'id="assumption-{name}"' in text for name in claim.assumptions.split(", "))


def test_version_1s_claims_stand_beside_its_own_figure(tmp_path):
    speed = {"TP8": (4.0, 0.1), "70B-INT8": (6.0, 0.1), "13B-FP16": (2.0, 0.1), "13B-FP8": (1.0, 0.1)}
    found = synthetic.both(synthetic.make(loads=(1, 4)), synthetic.make(tuple(speed), (1, 4), speed=speed, paper="v1"))
    text = report.build(tmp_path, found, tmp_path / "none", claims.ledger(found, resamples=0), {}).read_text()
    before, _, after = text.partition('id="fig7-v1"')
    assert 'id="v1-size-' in after and 'id="v1-size-' not in before and 'id="v2-8b-wide-' in before
    assert after.count("data:image/png") == 1


def test_the_same_is_said_in_markdown(built, study):
    text = (built.parent / "report.md").read_text()
    for claim in claims.ledger(study).itertuples():
        assert claim.statement in text and (claim.value if pd.notna(claim.value) else claim.reason) in text
    for link in re.findall(r"\]\(([^)]+)\)", text):
        assert link.startswith("https://arxiv.org/") or (built.parent / link).is_file(), link
    tables = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    assert len(tables) >= 4
    for table in tables:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1, table


def test_texts_from_outside_are_shown_not_run(study, tmp_path):
    hostile = "<script>alert(1)</script>"
    runs = study.runs.assign(title=hostile)
    path = report.build(
        tmp_path, type(study)(study.requests, runs), tmp_path, claims.ledger(study), {"command": hostile}
    )
    assert "script" not in Page(path).tags and hostile in Page(path).text


STRANGE = "res #1 50% (a b) 'c' \"d\" [e] <f> ? & ü → 日本"


def test_links_lead_somewhere_whatever_the_folders_are_called(study, built, tmp_path):
    """Percent-encoded once, in both pages, as a browser and a reader of Markdown take them."""
    results, pictures = tmp_path / STRANGE, tmp_path / f"figures {STRANGE}"
    shutil.copytree(built.parents[1] / "figures", pictures)
    for name in ("notebooks/00_environment.html", f"records/{STRANGE}/{STRANGE}.parquet", "manifest.json"):
        (results / name).parent.mkdir(parents=True, exist_ok=True)
        (results / name).touch()
    records.save(results / f"records/{STRANGE}/{STRANGE}.parquet", study)
    ledger = claims.ledger(study, resamples=0)
    claims.save(ledger, results, study)
    path = report.build(results, study, pictures, ledger, MANIFEST)
    links = [link for link in Page(path).links if not link.startswith(("#", "https://arxiv.org/"))]
    marked = re.findall(r"\]\(([^()\s]+)\)", path.with_name("report.md").read_text(encoding="utf-8"))
    marked = [link for link in marked if not link.startswith("https://arxiv.org/")]
    assert len(links) > 40 and len(marked) > 30
    for link in links + marked:
        assert re.fullmatch(r"(?:[\w./~-]|%[0-9A-F]{2})+", link, re.ASCII), link
        assert (results / unquote(link)).is_file(), link
    assert any("%E6%97%A5" in link for link in links) and any("%231" in link for link in marked)


def test_a_name_that_is_not_utf_8_does_not_break_the_report(study, tmp_path):
    results = tmp_path / "no\udcff"
    (results / "records").mkdir(parents=True)
    (results / "claims").mkdir()
    (results / "claims/\udcff.csv").touch()
    path = report.build(
        results, study, tmp_path, claims.ledger(study, resamples=0), {"parameters": {"a": str(results)}}
    )
    (link,) = [link for link in Page(path).links if link.startswith("claims/")]
    assert (results / unquote(link, errors="surrogateescape")).is_file()


HOSTILE = "<img src=x onerror=alert(1)> [click](javascript:alert) `code` *bold* | new &lt; \n# heading \x1b[31m"


def test_texts_from_outside_are_text_in_markdown_too(study, tmp_path):
    """Names, titles, terms and the command of a stranger's records: no markup, no row or heading of their own."""
    runs = study.runs.assign(title=HOSTILE, profile=HOSTILE)
    requests = study.requests.assign(machine=HOSTILE, system=study.requests.system.replace("C", HOSTILE))
    found = type(study)(requests, runs)
    ledger = claims.ledger(study, resamples=0)
    (tmp_path / "beyond").mkdir()
    pd.DataFrame({"claim": ["x"], "statement": [HOSTILE]}).to_csv(tmp_path / "beyond/survival.csv", index=False)
    path = report.build(tmp_path, found, tmp_path, ledger.assign(reason=HOSTILE, value=HOSTILE), {"command": HOSTILE})
    text = path.with_name("report.md").read_text(encoding="utf-8")
    assert text.count("\\[click\\](javascript:alert) \\`code\\` \\*bold\\* \\| new &amp;lt;") > 10
    outside = "\n".join(line for line in text.splitlines() if not line.startswith("    "))  # the commands' own block
    assert "<img" not in outside and "\x1b" not in text and "\n# heading" not in text
    assert not re.search(r"(?<!\\)\[click", outside)
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1, table
    assert not Page(path).images and "onerror=alert(1)" in Page(path).text


def test_missing_parts_are_said(tmp_path):
    found = synthetic.make("C", (1,))
    path = report.build(tmp_path, found, tmp_path / "none", claims.ledger(found), {})
    text = " ".join(Page(path).text.split())
    assert "Not drawn: No run describes its router" in text
    assert "Not drawn: fig4.png is not in the folder of figures." in text
    assert "not runnable here" in text


def test_a_figure_the_records_cannot_make_is_not_taken_from_an_older_run(study, tmp_path):
    figures.save_all(figures.data(study, ["fig3"]), tmp_path)
    found = synthetic.make("C", (1,))
    assert not Page(report.build(tmp_path, found, tmp_path, claims.ledger(found), {})).images


def test_a_failed_write_leaves_the_older_report(study, tmp_path, monkeypatch):
    (tmp_path / "report.html").write_text("older")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("erlab.textfiles.os.replace", full)
    with pytest.raises(OSError):
        report.build(tmp_path, study, tmp_path, claims.ledger(study), {})
    assert [f.name for f in tmp_path.iterdir()] == ["report.html"] and (tmp_path / "report.html").read_text() == "older"


def test_what_the_gateway_costs_is_shown_as_emulated(study, tmp_path):
    silent = report.build(tmp_path / "a", study, tmp_path / "figures", claims.ledger(study, resamples=0), MANIFEST)
    assert "no measurement with emulated experts" in Page(silent).text
    kept = tmp_path / "b" / "overhead"
    kept.mkdir(parents=True)
    lost = "users,requests,lost,tokens_missing,disordered"
    added = "added p50 ms,added p99 ms,added at the start p50 ms,time scale"
    (kept / "added.csv").write_text(f"{lost},{added}\n1000,4000,0,0,0,2.5,20.5,99.5,12.0\n")
    page = report.build(tmp_path / "b", study, tmp_path / "figures", claims.ledger(study, resamples=0), MANIFEST)
    shown = Page(page).text
    assert "experts are emulated: they take" in " ".join(shown.split()) and "4000" in shown and "20.5" in shown
    assert "| 20.5 |" in page.with_name("report.md").read_text()
