"""Several ranks compute what one computes: small networks in every form that methods use, and whole methods."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn.functional import cross_entropy
from torch.nn.utils.parametrize import register_parametrization

from tests import contract
from tests import ranks as pair
from utils import ranks
from utils.cli import registry
from utils.errors import UserError
from utils.features import FeatureStore
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


HANDFUL = ["er-ace", "derpp", "gem", "coop"]  # batch-coupled mask; BatchNorm and replay; autograd.grad; text tower
ILL_POSED = {
    "bofa": "its directions are cut out of a null space, of which every basis is right",
    "slda": "its shared covariance is singular here, and the pseudo-inverse amplifies rounding",
}


def flags_of(name: str) -> dict:
    """Two tasks of one pass with SGD, as far as the method has the flags: ten steps."""
    flags = {"stop_after": 1, "n_epochs": 1, "optimizer": "sgd"}
    idle = set(contract.model_class(name).IDLE_FLAGS)
    if contract.settings_of(name)[0] == "general-continual":
        idle.add("stop_after")
    return {flag: value for flag, value in flags.items() if flag not in idle}


def law(names: list[str]):
    """Work of a rank: each method on one rank and on all."""

    def work(group: Group) -> dict:
        found = {}
        for name in names:
            one = pair.run_of(name, None, **flags_of(name)) if group.rank == 0 else None
            try:
                two = pair.run_of(name, group, **flags_of(name))
            except (UserError, RuntimeError) as error:
                two = {"error": str(error)}
            found[name] = one, two
        return found

    return work


def everything(group: Group, folder):
    return {
        "forms": on_both(group),
        "refusals": refusals(Group(group.rank, group.size)),
        "disk": features_of(Group(group.rank, group.size), "disk", folder),
        "ram": features_of(Group(group.rank, group.size), "ram", None),
        "law": law(HANDFUL)(group),
    }


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """All work of two ranks, in one pair of processes."""
    folder = tmp_path_factory.mktemp("features")
    contract.feature_folder()
    with contract.toys():
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


def check_law(name: str, answers: list) -> None:
    (one, two), (_, other) = answers[0][name], answers[1][name]
    reason = contract.model_class(name).ONE_RANK
    if reason:
        assert "error" in two or not two["sent"]["steps"], f"{name} runs on two ranks: {reason}?"
        return
    assert "error" not in two, two
    assert pair.distance(two["state"], other["state"]) == 0
    assert pair.distance(one["state"], two["state"]) < (1e-2 if name in ILL_POSED else 1e-9)


@pytest.mark.parametrize("name", HANDFUL)
def test_a_method_ends_on_two_ranks_as_on_one(answers, name):
    check_law(name, [answer["law"] for answer in answers])


@pytest.fixture(scope="module")
def all_methods():
    contract.feature_folder()
    names = [entry.name for entry in registry.index("model").values()]
    with contract.toys():
        return pair.on_ranks(2, law(names))


@pytest.mark.slow
@pytest.mark.parametrize("name", [entry.name for entry in registry.index("model").values()])
def test_every_method_ends_on_two_ranks_as_on_one(all_methods, name):
    check_law(name, all_methods)
