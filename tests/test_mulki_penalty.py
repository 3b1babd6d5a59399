"""MulKI's penalty against loops over images, classes and teachers, written from the equations of docs/mulki.md."""

import copy

import pytest
import torch
from torch.nn.functional import normalize

from tests.clip_toys import toy

PAST, CLASSES = {0: 0, 1: 3, 2: 5}, {0: 3, 1: 2, 2: 4}  # of the toy stream's tasks
DEFAULTS = {
    "lambda_E": 0.5,
    "lambda_A": 1.0,
    "elicit": "teacher",
    "rel": {"it": 1.0, "ti": 1.0, "vv": 0.5, "tt": 0.5, "tv": 0.5},
    "rel_text": "student",
    "rel_visual": "teacher",
    "tt_self": 0,
    "rel_equal": 0,
    "temperature": 2.0,
    "first_hold": 1.0,
    "text_bank": "current",
    "bank_weight": 1.0,
    "bank_teacher": "both",
    "teachers": "both",
    "teacher_weight": "label",
    "tau_w": 1.0,
    "w_min": 0.1,
    "kd_gate": 1.0,
    "l2": 0.0,
    "label_space": "domain",
}


def shaken(net, seed):
    """A network's weights, moved at random."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in net.named_parameters():
            if not name.endswith("logit_scale"):
                p.add_(0.3 * p.std(unbiased=False) * torch.randn(p.shape, generator=draw))


@torch.no_grad()
def image_rows(net, pixels):
    return normalize(net.encode_image(pixels).double(), dim=1)


@torch.no_grad()
def name_rows(net, names):
    return normalize(net.encode_text(net.tokenize([f"a photo of a {n}." for n in names])).double(), dim=1)


class Case:
    """A student within a task whose teachers are two networks with weights of their own, and a batch of the task."""

    def __init__(self, task=2, unlabelled=None, moved=True, **flags):
        base = {"text_bank": "current", "bank_size": 24, "proto_max_per_class": 0}
        made = toy(batch_size=9, augment=0, **base | flags)
        self.model, dataset, self.task = made.model, made.dataset, task
        for _ in range(task + 1):
            dataset.get_data_loaders()
        first = copy.deepcopy(self.model.net)
        if task:
            shaken(self.model.net, 1)
        split, self.model._current_task = dataset.train_loader.dataset, task
        if unlabelled is not None:
            split.targets[split.targets == unlabelled] = -1
        self.nets = [first, copy.deepcopy(self.model.net)] if task else [first]
        self.model.meta_begin_task(dataset)
        self.before = [p.detach().clone() for p in self.model.net.parameters()]
        if moved:
            shaken(self.model.net, 2)
        self.names, self.past, self.n = dataset.get_class_names(), PAST[task], CLASSES[task]
        self.scale = float(first.logit_scale.detach())
        inputs, labels = next(iter(dataset.train_loader))[:2]
        kept = labels >= 0
        self.inputs, self.labels = inputs[kept], labels[kept].long()
        self.pixels = self.model.clip_input(self.inputs)
        self.split_pixels = self.model.net.normalize_images(split.samples.images(split.rows))
        self.split_labels = split.targets

    def student(self):
        """Features of the batch and of the training softmax's names, as leaves."""
        n_names = 9 if self.model.args.label_space == "all" else self.n
        draw, dim = torch.Generator().manual_seed(3), self.model.net.embed_dim
        rows = (normalize(torch.randn(k, dim, generator=draw), dim=1) for k in (len(self.labels), n_names))
        return [r.requires_grad_() for r in rows]


def soft(row, T=1.0):
    return (torch.stack(list(row)) / T).softmax(0)


def kl(wanted, given, T):
    p, q = soft(wanted, T), soft(given, T)
    return T**2 * sum(a * (a / b).log() for a, b in zip(p, q, strict=True))


def cross(logits, place):
    return -soft(logits)[place].log()


def mean(values):
    values = list(values)
    return sum(values) / len(values)


def unit(v):
    return v / v.norm() if float(v.detach().norm()) else v


def shares(o, X, U, V, y, s):
    """Shares of the teachers for one image, X[m] its features, U[m] and V[m] their class rows; and the gate."""
    M = len(X)
    p = [soft([s * X[m] @ u for u in U[m]]) for m in range(M)]
    gate = max(float(p[m][y]) for m in range(M)) ** o["kd_gate"]
    if M == 1:
        return [1.0], gate
    score = {
        "label": lambda m: p[m][y].log(),
        "entropy": lambda m: sum(q * q.log() for q in p[m]),
        "proto": lambda m: X[m] @ (U[m][y] + V[m][y]),
        "const": lambda m: torch.zeros(()),
    }
    if o["teacher_weight"] == "snd":
        second = 1 / (1 + torch.exp(-6.0 * ((X[0] - X[1]).norm() - 0.2)))
        w = [1 - second, second]
    else:
        w = soft([torch.as_tensor(score[o["teacher_weight"]](m)).double() / o["tau_w"] for m in range(M)])
    return [o["w_min"] + (1 - M * o["w_min"]) * w[m] for m in range(M)], gate


def slow_penalty(case, x, names, **flags):
    o, s, n = DEFAULTS | flags, case.scale, case.n
    at = case.past if o["label_space"] == "all" else 0
    u, y = names.double()[at : at + n], [int(c) - case.past for c in case.labels]
    x = x.double()
    nets = case.nets
    if case.task:
        nets = {"both": nets, "pretrained": nets[:1], "previous": nets[1:]}[o["teachers"]]
    M, task_names = len(nets), case.names[case.past : case.past + n]
    X, U = [image_rows(net, case.pixels) for net in nets], [name_rows(net, task_names) for net in nets]
    rows = [image_rows(net, case.split_pixels) for net in nets]
    of = [[i for i, c in enumerate(case.split_labels.tolist()) if c - case.past == k] for k in range(n)]
    known = [k for k in range(n) if of[k]]
    V = [[unit(mean(rows[m][i] for i in of[k])) if of[k] else 0 * U[m][k] for k in range(n)] for m in range(M)]
    alone, gated = [[0.0] * M for _ in range(n)], [[0.0] * M for _ in range(n)]
    for k in known:
        found = [shares(o, [rows[m][i] for m in range(M)], U, V, k, s) for i in of[k]]
        alone[k] = [mean(w[m] for w, _ in found) for m in range(M)]
        gated[k] = [mean(w[m] * g for w, g in found) for m in range(M)]
    texts = {k: unit(sum(alone[k][m] * U[m][k] for m in range(M))) for k in known}
    visuals = {k: unit(sum(alone[k][m] * V[m][k] for m in range(M))) for k in known}
    moved = moving(V[-1], x, y, n)
    total = o["l2"] * squared_distance_of(case) if o["l2"] else 0.0
    if o["elicit"] != "off":
        total = total + o["lambda_E"] * elicit(o, s, x, u, y, known, texts, visuals, moved)
    hold = o["lambda_A"] * (o["first_hold"] if case.task == 0 else 1.0)
    if o.get("distill_data") == "reference":
        return total + hold * reference(o, s, case, nets)
    columns = [moved] * M if o["rel_visual"] == "student" else V
    batch = [shares(o, [X[m][i] for m in range(M)], U, V, y[i], s) for i in range(len(x))]
    image_w = [[batch[i][0][m] * batch[i][1] for m in range(M)] for i in range(len(x))]
    total = total + hold * relate(o, s, x, u, X, U, V, columns, image_w, gated, known)
    if o["text_bank"] == "seen" and case.past:
        total = total + hold * o["bank_weight"] * bank(o, s, case, nets, x, X)
    return total


def squared_distance_of(case):
    return sum(
        float((p - q).detach().double().square().sum())
        for p, q in zip(case.model.net.parameters(), case.before, strict=True)
    )


def moving(start, x, y, n):
    """A tenth of the batch's class mean, nine of the last teacher's prototype."""
    found = []
    for k in range(n):
        own = [x[i] for i in range(len(x)) if y[i] == k]
        found.append(unit(0.9 * start[k] + 0.1 * mean(own)) if own else start[k])
    return found


def elicit(o, s, x, u, y, known, texts, visuals, moved):
    if o["elicit"] == "teacher":
        by_text = mean(cross([s * u[k] @ visuals[c] for c in known], known.index(k)) for k in known)
        by_image = mean(cross([s * x[i] @ texts[c] for c in known], known.index(y[i])) for i in range(len(x)))
        return (by_text + by_image) / 2
    here = sorted(set(y))
    if o["elicit"] == "student":
        one = mean(cross([s * u[k] @ moved[c] for c in here], here.index(k)) for k in here)
        other = mean(cross([s * u[c] @ moved[k] for c in here], here.index(k)) for k in here)
        return (one + other) / 2
    means = {k: unit(mean(x[i] for i in range(len(x)) if y[i] == k)) for k in here}
    return mean(
        kl([s * visuals[k] @ texts[c] for c in known], [s * means[k] @ u[c] for c in known], o["temperature"])
        for k in here
    )


def relate(o, s, x, u, X, U, V, columns, image_w, gated, known):
    M, B, n, T = len(X), len(x), len(u), o["temperature"]
    own = U if o["rel_text"] == "teacher" else [u] * M
    right = [u] * M if o["tt_self"] else U
    rest = {k: [c for c in range(n) if c != k] for k in range(n)}
    terms = {
        "it": mean(
            sum(
                image_w[i][m] * kl([s * X[m][i] @ t for t in U[m]], [s * x[i] @ t for t in own[m]], T) for m in range(M)
            )
            for i in range(B)
        ),
        "ti": mean(
            sum(gated[k][m] * kl([s * U[m][k] @ t for t in X[m]], [s * own[m][k] @ t for t in x], T) for m in range(M))
            for k in range(n)
        ),
        "vv": mean(
            sum(
                image_w[i][m] * kl([s * X[m][i] @ V[m][c] for c in known], [s * x[i] @ columns[m][c] for c in known], T)
                for m in range(M)
            )
            for i in range(B)
        ),
        "tt": mean(
            sum(
                gated[k][m] * kl([s * U[m][k] @ U[m][c] for c in rest[k]], [s * u[k] @ right[m][c] for c in rest[k]], T)
                for m in range(M)
            )
            for k in range(n)
        ),
        "tv": mean(
            sum(
                gated[k][m] * kl([s * U[m][k] @ V[m][c] for c in known], [s * u[k] @ columns[m][c] for c in known], T)
                for m in range(M)
            )
            for k in known
        ),
    }
    if o["rel_equal"]:
        terms = {k: t * min(float(terms["it"].detach()) / max(float(t.detach()), 1e-6), 100) for k, t in terms.items()}
    return sum(weight * terms[kind] for kind, weight in o["rel"].items())


def bank(o, s, case, nets, x, X):
    """All names of past tasks, and none of later ones; each teacher's share is the same."""
    names, T = case.names[: case.past], o["temperature"]
    b, B = name_rows(case.model.net, names), [name_rows(net, names) for net in nets]
    if o["bank_teacher"] == "previous":
        B, X = B[-1:], X[-1:]
    to_images = mean(
        kl([s * X[m][i] @ t for t in B[m]], [s * x[i] @ t for t in b], T) for m in range(len(B)) for i in range(len(x))
    )
    among = mean(
        kl(
            [s * B[m][k] @ B[m][c] for c in range(len(b)) if c != k],
            [s * b[k] @ B[m][c] for c in range(len(b)) if c != k],
            T,
        )
        for m in range(len(B))
        for k in range(len(b))
    )
    return to_images + among / 2


@torch.no_grad()
def reference(o, s, case, nets):
    """`it` and `ti` on images and texts of no task, as few as a step takes; no gate, and equal shares for text rows."""
    pixels, tokens, T = case.model.net.normalize_images(case.model.pictures), case.model.sentences, o["temperature"]
    found = [(image_rows(n, pixels), normalize(n.encode_text(tokens).double(), dim=1)) for n in [*nets, case.model.net]]
    (x, u), (X, U), M = found.pop(), zip(*found, strict=True), len(nets)
    w = [shares(o | {"kd_gate": 0}, [X[m][i] for m in range(M)], U, U, 0, s)[0] for i in range(len(x))]
    terms = {
        "it": mean(
            sum(w[i][m] * kl([s * X[m][i] @ t for t in U[m]], [s * x[i] @ t for t in u], T) for m in range(M))
            for i in range(len(x))
        ),
        "ti": mean(
            sum(kl([s * U[m][k] @ t for t in X[m]], [s * u[k] @ t for t in x], T) / M for m in range(M))
            for k in range(len(u))
        ),
    }
    return sum(weight * terms[kind] for kind, weight in o["rel"].items())


CASES = {
    "first_task": {"task": 0},
    "first_task_held_less": {"task": 0, "first_hold": 0.25, "text_bank": "seen"},
    "as_it_is": {},
    "rule_const": {"teacher_weight": "const"},
    "rule_entropy": {"teacher_weight": "entropy", "tau_w": 0.3},
    "rule_proto": {"teacher_weight": "proto", "tau_w": 0.1},
    "rule_snd": {"teacher_weight": "snd"},
    "soft_shares_with_a_floor": {"tau_w": 0.2, "w_min": 0.3},
    "no_gate": {"kd_gate": 0},
    "gate_squared": {"kd_gate": 2},
    "two_relations": {"rel": {"it": 2.0, "tv": 0.25}},
    "elicit_student": {"elicit": "student"},
    "elicit_soft": {"elicit": "soft"},
    "elicit_off": {"elicit": "off"},
    "other_strengths": {"lambda_E": 2.0, "lambda_A": 0.25, "temperature": 1.0},
    "teachers_texts": {"rel_text": "teacher", "tt_self": 1},
    "students_prototypes": {"rel_visual": "student"},
    "equal_relations": {"rel_equal": 1},
    "previous_alone": {"teachers": "previous"},
    "pretrained_alone": {"teachers": "pretrained"},
    "names_of_past_tasks": {"text_bank": "seen", "bank_weight": 0.7},
    "names_taught_by_the_previous_model": {"text_bank": "seen", "bank_teacher": "previous"},
    "all_names_in_the_softmax": {"label_space": "all"},
    "reference_data": {
        "distill_data": "reference",
        "reference": "synthetic",
        "n_reference": 6,
        "teacher_weight": "entropy",
        "rel": {"it": 2.0, "ti": 1.5},
    },
    "way_from_the_start": {"l2": 0.1},
    "a_class_without_images": {"unlabelled": 6},
    "a_class_without_images_soft": {"unlabelled": 6, "elicit": "soft"},
}


@pytest.mark.parametrize("name", CASES)
def test_the_penalty_against_loops(name):
    flags = dict(CASES[name])
    place = {k: flags.pop(k) for k in ("task", "unlabelled") if k in flags}
    given = {k: ",".join(f"{r}={w}" for r, w in v.items()) if k == "rel" else v for k, v in flags.items()}
    case = Case(**place, **given)
    x, names = case.student()
    got = case.model.penalty(case.pixels, x, names, case.labels)
    gradients = torch.autograd.grad(got, [x, names])
    wanted = slow_penalty(case, x, names, **flags)
    assert float(got.detach()) == pytest.approx(float(wanted.detach()), rel=2e-4)
    for a, b in zip(gradients, torch.autograd.grad(wanted, [x, names], allow_unused=True), strict=True):
        torch.testing.assert_close(a, torch.zeros_like(a) if b is None else b, atol=2e-3, rtol=2e-3)


def test_every_case_has_a_penalty_of_its_own():
    """A flag that both the loops and the code ignore would also agree."""
    case = Case()
    x, names = case.student()
    seen = {}
    for name, flags in CASES.items():
        if not {"task", "unlabelled", "label_space", "l2", "text_bank", "distill_data"} & set(flags):
            seen[name] = round(float(slow_penalty(case, x, names, **flags).detach()), 4)
    assert len(set(seen.values())) == len(seen), seen


def test_a_step_adds_the_penalty_to_the_cross_entropy():
    """-log softmax of s x u_y over the task's names, a fifth of the target spread over all of them."""
    case = Case()
    x, u = image_rows(case.model.net, case.pixels), name_rows(case.model.net, case.names[5:9])
    ce = 0.0
    for row, c in zip(x, case.labels, strict=True):
        p = soft([case.scale * row @ t for t in u]).log()
        ce -= float(0.8 * p[int(c) - 5] + 0.2 * mean(p)) / len(x)
    added = float(slow_penalty(case, x, u))
    assert ce > 0.1 and added > 0.1
    assert float(case.model.step(case.inputs, case.labels)) == pytest.approx(ce + added, rel=1e-4)
