"""Several ranks compute what one computes: small networks in every form that methods use, and whole methods."""

import copy
import os
from argparse import Namespace
from unittest import mock

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn.functional import cross_entropy
from torch.nn.utils.parametrize import register_parametrization

import main
from datasets.utils.loaders import Loader
from tests import contract
from tests import ranks as pair
from tests.toy_clip import toy_clip
from utils import cli, ranks
from utils.cli import ranks as told
from utils.cli import registry
from utils.engine import launch
from utils.errors import RanksLost, UserError
from utils.features import FeatureStore
from utils.generative import GENERATORS
from utils.ranks.group import Group
from utils.ranks.join import member

X = torch.randn(9, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = torch.arange(9) % 3


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.full((6, 1), 1.5))

    def forward(self, weight):
        return weight * self.factor


class Net(nn.Module):
    """A bottleneck with a norm, a layer that no loss reaches, and room for a prompt from outside."""

    def __init__(self, norm: nn.Module):
        super().__init__()
        self.first, self.norm, self.idle = nn.Linear(4, 6), norm, nn.Linear(3, 3)
        self.classifier = nn.Linear(6, 3)

    def forward(self, x, returnt="out"):
        features = self.norm(self.first(x)).relu()
        return features if returnt == "features" else self.classifier(features)


def plain(net, opt):
    cross_entropy(net(X), Y).backward()


def three_forwards(net, opt):
    loss = cross_entropy(net(X), Y) + net(X[:5]).square().mean() + net(X[4:7]).square().mean()
    loss.backward()


def two_backwards(net, opt):
    cross_entropy(net(X), Y).backward()
    net(X[:4]).square().mean().backward()


def over_the_batch(net, opt):
    rows = net(X, "features")
    (rows @ rows.T).logsumexp(0).sum().backward()


def classifier_outside(net, opt):
    cross_entropy(net.classifier(net(X, "features")), Y).backward()


def penalty(net, opt):
    (cross_entropy(net(X), Y) + sum(p.square().sum() for p in net.parameters())).backward()


def clipped(net, opt):
    cross_entropy(net(X), Y).backward()
    nn.utils.clip_grad_norm_(net.parameters(), 0.1)


def by_autograd_grad(net, opt):
    parameters = [p for p in net.parameters() if p.requires_grad]
    found = torch.autograd.grad(cross_entropy(net(X), Y), parameters, allow_unused=True)
    for p, g in zip(parameters, found, strict=True):
        p.grad = g


def through_a_gradient(net, opt):
    """A penalty on the gradient itself."""
    first = torch.autograd.grad(cross_entropy(net(X), Y), net.classifier.weight, create_graph=True)[0]
    (first.square().sum() + net(X).square().mean()).backward()


def to_the_input(net, opt):
    x = X.clone().requires_grad_()
    (g,) = torch.autograd.grad(cross_entropy(net(x), Y), x)
    cross_entropy(net((x + g.sign()).detach()), Y).backward()


def functional(net, opt):
    moved = {name: 1.1 * p for name, p in net.named_parameters()}
    cross_entropy(functional_call(net, moved, (X,)), Y).backward()


def teacher(net, opt):
    old = copy.deepcopy(net).requires_grad_(False).eval()
    (cross_entropy(net(X), Y) + (net(X) - old(X)).square().mean()).backward()


def new_head(net, opt):
    torch.manual_seed(3)
    net.classifier = nn.Linear(6, 3)
    opt.add_param_group({"params": net.classifier.parameters()})
    cross_entropy(net(X), Y).backward()


def adapter_later(net, opt):
    register_parametrization(net.first, "weight", Scaled())
    cross_entropy(net(X), Y).backward()


def prompt_outside(net, opt):
    prompt = nn.Parameter(torch.zeros(4))
    net.prompt = prompt  # so that it is compared
    opt.add_param_group({"params": [prompt]})
    cross_entropy(net(X + prompt), Y).backward()


def per_sample(net, opt):
    weights = {name: p.detach() for name, p in net.named_parameters()}

    def loss(values, x, y):
        return cross_entropy(functional_call(net, values, (x[None],)), y[None])

    each = vmap(grad(loss), (None, 0, 0))(weights, X, Y)
    for name, p in net.named_parameters():
        p.grad = each[name].square().sum(0)


def single_rows(net, opt):
    for x, y in zip(X.split(1), Y.split(1), strict=True):
        cross_entropy(net(x), y).backward()


FORMS = [plain, three_forwards, two_backwards, over_the_batch, classifier_outside, penalty, clipped, by_autograd_grad]
FORMS += [through_a_gradient, to_the_input, functional, teacher, new_head, adapter_later, prompt_outside]
WITH_NORM = [plain, three_forwards, over_the_batch, clipped, by_autograd_grad, teacher]
ALONE = [per_sample, single_rows]


def trained(form, norm) -> dict:
    """Three steps of a form."""
    torch.manual_seed(1)
    net = Net(norm()).train()
    ranks.deal_calls(net)
    opt = torch.optim.SGD(net.parameters(), lr=0.3, momentum=0.5)
    for _ in range(3):
        opt.zero_grad()
        form(net, opt)
        opt.step()
    return {name: value.detach().clone() for name, value in net.state_dict().items()}


def cases():
    yield from ((form, nn.Identity) for form in FORMS + ALONE)
    yield from ((form, lambda: nn.BatchNorm1d(6)) for form in WITH_NORM)
    yield plain, lambda: nn.BatchNorm1d(6, affine=False, momentum=None)


def on_both(group: Group) -> list:
    """(form, its distance to a run of one, what was sent) on this rank, and its weights."""
    found = []
    with pair.doubles():
        for form, norm in cases():
            one = trained(form, norm)
            with member(Group(group.rank, group.size)):
                two, sent = trained(form, norm), ranks.sent()
            found.append((form.__name__, pair.distance(one, two), sent["gradients"], two))
    return found


def refusals(group: Group) -> list[str]:
    """What networks do that cannot be dealt."""

    class Dropped(Net):
        def forward(self, x):
            return super().forward(nn.functional.dropout(x, 0.5))

    class Summed(Net):
        def forward(self, x):
            return super().forward(x).sum()

    class Forking(Net):
        def forward(self, x):
            features = self.first(x)
            return self.classifier(features) if x[0, 0] > X[0, 0] - 1e-9 else features[:, :3]

    told = []
    with pair.doubles(), member(group):
        for kind in (Dropped, Summed, Forking):
            net = kind(nn.Identity())
            ranks.deal_calls(net)
            try:
                (X[:, :1].mean() * net(torch.where(torch.arange(9)[:, None] < 4, X[:1], X[:1] - 1))).sum().backward()
            except UserError as error:
                told.append(str(error))
        try:
            ranks.compare({"same": 1, "own": ranks.rank()}, "make them equal")
        except UserError as error:
            told.append(str(error))
        assert ranks.agree(3 * ranks.rank()) == 3 and ranks.from_first(lambda: "first") == "first"
        assert ranks.union(np.array([4, 2 + ranks.rank()])).tolist() == [2, 3, 4]
    return told


class Images:
    """Samples whose image of row i is i everywhere; notes which rows were read."""

    fingerprint = "images"

    def __init__(self):
        self.read = []

    def __len__(self):
        return 20

    def images(self, rows):
        self.read += rows.tolist()
        return rows[:, None, None, None].expand(-1, 3, 2, 2).to(torch.uint8)


class Encoder:
    key, dim, deterministic, batch_size = "encoder", 2, True, 3

    def __call__(self, images):
        return torch.stack([images[:, 0, 0, 0].float(), torch.ones(len(images))], dim=1)


def features_of(group: Group, mode: str, root) -> tuple:
    """Features by two ranks, the rows that this one read, and what a second look reads."""
    samples, wanted = Images(), torch.tensor([7, 3, 11, 3, 0, 19, 5])
    with member(group):
        store = FeatureStore(root, mode, progress=False)
        found = store.rows(samples, wanted, Encoder())
        read = list(samples.read)
        again = FeatureStore(root, mode, progress=False).rows(samples, wanted, Encoder()) if mode == "disk" else found
    return found, read, len(samples.read) - len(read), again


def generators_of(group: Group) -> dict[str, bool]:
    """Whether generators of classes dealt to ranks are those of one fit, bit for bit (at a width of 6 they differ by
    rounding: a product is summed in another order where classes are padded to another length)."""
    draws = torch.Generator().manual_seed(5)
    by_class = {c: torch.randn(40 + 5 * c, 64, generator=draws) + c for c in range(5)}
    options = {"vae": {"hidden_dim": 32, "latent_dim": 4, "n_iters": 3}, "mog": {"n_components": 2, "n_iters": 5}}
    equal = {}
    for kind, chosen in options.items():
        one, two = (GENERATORS[kind](**chosen) for _ in range(2))
        one.fit(by_class, torch.Generator().manual_seed(0))
        with member(Group(group.rank, group.size)):
            two.fit(by_class, torch.Generator().manual_seed(0))
        equal[kind] = one.row_class == two.row_class and all(torch.equal(v, two.rows[k]) for k, v in one.rows.items())
    return equal


HANDFUL = ["er-ace", "derpp", "gem", "coop"]  # batch-coupled mask; BatchNorm and replay; autograd.grad; text tower


def everything(group: Group, folder):
    return {
        "forms": on_both(group),
        "refusals": refusals(Group(group.rank, group.size)),
        "disk": features_of(Group(group.rank, group.size), "disk", folder),
        "ram": features_of(Group(group.rank, group.size), "ram", None),
        "generators": generators_of(group),
        "law": pair.law(HANDFUL)(group),
    }


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """All work of two ranks, in one pair of processes."""
    folder = tmp_path_factory.mktemp("features")
    contract.feature_folder()
    with contract.toys(), mock.patch.object(contract, "usual_clip", toy_clip):
        toy_clip()
        return pair.on_ranks(2, lambda group: everything(group, folder))


def test_every_form_of_a_step_gives_the_weights_of_one_rank(answers):
    for (name, far, sent, weights), (_, also_far, _, others) in zip(
        answers[0]["forms"], answers[1]["forms"], strict=True
    ):
        assert max(far, also_far) < 1e-12, name
        assert pair.distance(weights, others) == 0, name
        assert (sent > 0) == (name not in {form.__name__ for form in ALONE}), name


def test_what_cannot_be_dealt_is_refused_on_every_rank(answers):
    dropout, not_rows, forks, facts = answers[0]["refusals"]
    assert answers[1]["refusals"][:3] == [dropout, not_rows.replace("4 samples", "5 samples"), forks]
    assert "draws random numbers" in dropout and "cannot be gathered" in not_rows
    assert "does not reach the same parameters" in forks
    assert facts == "ranks disagree with rank 0 about own (rank 1): make them equal"


@pytest.mark.parametrize("mode", ["disk", "ram"])
def test_each_rank_encodes_its_share_of_missing_features(answers, mode):
    for found, _, later, again in (answers[0][mode], answers[1][mode]):
        assert found[:, 0].tolist() == [7, 3, 11, 3, 0, 19, 5] == again[:, 0].tolist() and later == 0
    shares = [answers[r][mode][1] for r in range(2)]
    assert shares == [[0, 3, 5], [7, 11, 19]]


def test_generators_of_dealt_classes_are_those_of_one_fit(answers):
    assert [answer["generators"] for answer in answers] == [{"vae": True, "mog": True}] * 2


def check_law(name: str, verdict: pair.Verdict) -> None:
    reason = contract.model_class(name).ONE_RANK
    if reason:
        assert reason in verdict.error
        return
    assert not verdict.error and verdict.apart == 0
    assert verdict.far < (1e-2 if name in pair.ILL_POSED else 1e-9)


@pytest.mark.parametrize("name", HANDFUL)
def test_a_method_ends_on_two_ranks_as_on_one(answers, name):
    check_law(name, answers[0]["law"][name])


@pytest.fixture(scope="module")
def all_methods():
    return pair.under_the_law([entry.name for entry in registry.index("model").values()])


@pytest.mark.slow
@pytest.mark.parametrize("name", [entry.name for entry in registry.index("model").values()])
def test_every_method_ends_on_two_ranks_as_on_one(all_methods, name):
    check_law(name, all_methods[name])


# the command line under torchrun

RUN = ["--model", "sgd", "--dataset", "seq-mnist", "--lr", "0.1", "--device", "cpu"]
TORCHRUN = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}


@pytest.fixture
def torchrun(monkeypatch):
    """Variables of torchrun, as the given rank has them."""

    def started(rank: int) -> None:
        for name, value in {**TORCHRUN, "RANK": str(rank)}.items():
            monkeypatch.setenv(name, value)

    monkeypatch.setattr(told, "PATIENCE_S", 0.0)
    monkeypatch.setattr(told, "_first", [])
    return started


def test_copies_of_a_run_are_refused_in_one_line(torchrun, capsys):
    torchrun(0)
    assert main.main(RUN) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: torchrun started 2 processes") and "--distributed ddp" in line


def test_a_later_rank_names_itself_and_waits_for_the_first(torchrun, capsys, monkeypatch):
    waited = []
    monkeypatch.setattr(told.time, "sleep", waited.append)
    torchrun(1)
    assert main.main(RUN) == 2
    assert capsys.readouterr().err.startswith("error: rank 1: torchrun started 2") and waited == [0.0]
    told.first_is(2**22 + 1)  # no such process: rank 0 is gone
    assert main.main(RUN) == 2 and waited == [0.0]
    told.first_is(os.getpid())
    assert main.main(RUN) == 2 and waited == [0.0, 0.0]


def test_ranks_that_nobody_started_are_refused(monkeypatch, capsys):
    for name in TORCHRUN:
        monkeypatch.delenv(name, raising=False)
    assert main.main([*RUN, "--distributed", "ddp"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "needs torchrun" in line and "WORLD_SIZE" in line


def test_compiling_is_refused_and_so_is_another_gpu(torchrun, capsys):
    torchrun(0)
    assert main.main([*RUN, "--distributed", "ddp", "-O", "3"]) == 2
    assert main.main([*RUN[:-1], "cuda:1", "--distributed", "ddp"]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert "torch.compile" in first and "each rank has its own GPU" in second


def test_a_lost_rank_is_one_line_and_exit_code_1(monkeypatch, capsys):
    def lose(parsed):
        raise RanksLost("another rank has ended")

    monkeypatch.setattr(main, "run", lose)
    assert main.main(RUN) == 1
    assert capsys.readouterr().err.splitlines() == [
        "error: another rank has ended; --resume auto continues from the last checkpoint"
    ]


def test_a_method_for_one_rank_is_refused_with_its_reason(monkeypatch):
    monkeypatch.setattr(ranks, "size", lambda: 2)
    args = cli.parse(
        ["--model", "mer", "--dataset", "seq-mnist", "--lr", "0.1", "--buffer_size", "9"]
        + ["--beta", "1", "--gamma", "1"]
    ).args
    with pytest.raises(UserError, match="mer takes one sample in each step.*one process"):
        launch.check(args, registry.load("model", "mer"), registry.load("dataset", "seq-mnist"))


def test_files_are_read_in_parts_and_gathered(monkeypatch):
    """Of a batch that is read item by item this rank reads its rows; `gathered` is asked for all of them."""
    monkeypatch.setattr(ranks, "size", lambda: 2)
    monkeypatch.setattr(ranks, "share", lambda rows: rows[: len(rows) // 2])
    asked = []
    monkeypatch.setattr(ranks, "gathered", lambda items, n: asked.append((len(items[1]), n)) or items)

    class Items(list):
        def reader(self, key):
            return None

        def items(self, key):
            return self

    loader = Loader(Items((torch.zeros(2), torch.tensor(i)) for i in range(9)), 4, ("k",), shuffle=False)
    batches = [labels.tolist() for _, labels in loader.epoch(0)]
    assert batches == [[0, 1], [4, 5], [8]] and asked == [(2, 4), (2, 4)]


def test_later_ranks_write_no_record(monkeypatch, tmp_path):
    monkeypatch.setattr(ranks, "rank", lambda: 1)
    args = Namespace(disable_log=False, results_path=tmp_path)
    assert launch.open_record(args, {}, None, {}, None) is None and not list(tmp_path.iterdir())
