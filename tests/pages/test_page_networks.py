"""What the report says of networks of all kinds in a real browser, against those that are really constructed."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jasgnas
import models
from models.darts import SUPER_NETWORK, Genotype, operation_key
from tests.networks import arrays, build, randomize
from tests.pages.opened import details, names, number, require_one_screen, row_of, rows_of, settle, shown
from tests.pages.scanned import ScannedDecoder
from tests.small_models import SMALL


def registered(name):
    """A registered network as it is registered, with random parameters, and what it is called with."""
    graphdef, abstract = nnx.split(models.create_abstract(name))
    return nnx.merge(graphdef, randomize(abstract)), models.example_input(name)


def small(name):
    """A small version of it."""
    _, options, shape = next(row for row in SMALL if row[0] == name)
    graphdef, abstract = nnx.split(models.create_abstract(name, **options))
    return nnx.merge(graphdef, randomize(abstract)), jax.ShapeDtypeStruct(shape, models.example_input(name).dtype)


def scanned(name):
    del name
    return build(ScannedDecoder), jax.ShapeDtypeStruct((2, 5), jnp.int32)


def bars(page):
    """The sizes that the overview shows of both networks, by measure and network."""
    found = dict(text.rsplit(": ", 1) for text in rows_of(page, "#overview .panels"))
    return {name: int(text.replace(",", "")) for name, text in found.items() if name.startswith(("para", "multi"))}


def expected_bars(full, sub):
    return {
        f"{measure}, {network}": size
        for network, sizes in (("Full network", full), ("Sub-network", sub))
        for measure, size in zip(("parameters", "multiply-adds"), sizes, strict=True)
    }


def layers(page):
    """The sizes of all layers that the overview shows, before and after."""
    found = page.locator("#overview .layer").evaluate_all(
        "found => found.map((g) => [+g.dataset.size, +g.dataset.left])"
    )
    return np.sum(found, axis=0).tolist()


@pytest.mark.parametrize(
    ("make", "name", "options"),
    [
        (registered, "resnet18", {"channels": True}),
        (registered, "vit_s16", {}),
        (small, "darts_8", {}),
        (small, "decoder_small", {}),
        (scanned, "scanned_decoder", {}),
        pytest.param(registered, "darts_14", {}, marks=pytest.mark.slow),
    ],
    ids=("resnet18", "vit_s16", "darts_8", "decoder_small", "scanned_decoder", "darts_14"),
)
def test_every_network_has_the_sizes_of_its_subnetwork(open_page, files, make, name, options):
    model, x = make(name)
    space = jasgnas.search_space(model, x, **options)
    removed = space.largest_removal[::2]
    subnet = jasgnas.construct_subnet(space, space.zero(model, removed))
    full, sub = ((jasgnas.count_params(each), jasgnas.count_macs(each, x)) for each in (model, subnet))
    jasgnas.report(space, path=files / f"{name}.html", redundant=removed)
    page = open_page(f"{name}.html", tab="overview")
    assert bars(page) == expected_bars(full, sub)
    assert layers(page) == [full[0], sub[0]]

    # Closed, the boxes of the graph hold as much as all that is in them.
    page.click("#tab-graph")
    if page.get_by_role("button", name="Fold modules").is_visible():
        page.click("#modules")
        settle(page)
    require_one_screen(page)
    page.locator("#network").get_by_text("Sub-network").click()
    settle(page)
    require_one_screen(page)
    assert page.locator("#viewport .module").count() > 0
    assert held(details(page)) == sub

    # Open, every array is there in the shape that it has.
    page.click("#modules")
    settle(page)
    assert page.locator("#viewport .module").count() == 0
    said = details(page)
    assert held(said) == sub
    shapes = {path: shape for _, _, parts in said for path, shape in parts.items()}
    entries: dict[str, int] = {}
    for path, shape in shapes.items():
        leaf, _ = row_of(path)
        entries[leaf] = entries.get(leaf, 0) + math.prod(map(int, shape.split("×")))
    constructed = arrays(subnet)
    assert entries == {path: array.size for path, array in constructed.items()}
    whole = {path: shape for path, shape in shapes.items() if path in constructed}
    assert whole == {path: "×".join(map(str, constructed[path].shape)) for path in whole}


@pytest.mark.parametrize("is_scanned", [False, True], ids=["blocks", "scanned"])
def test_all_of_32_layers_are_seen_at_once(open_page, files, is_scanned):
    model = build(ScannedDecoder, depth=32) if is_scanned else models.create_abstract("decoder_small", depth=32)
    space = jasgnas.search_space(model, jax.ShapeDtypeStruct((2, 5), jnp.int32))
    jasgnas.report(space, path=files / "layers.html")
    page = open_page("layers.html")
    blocks = "layers" if is_scanned else "blocks"
    assert [name for name in names(page) if name.startswith("module")] == [f"module {blocks}/{i}" for i in range(32)]
    require_one_screen(page)


def held(said):
    """Parameters and multiply-adds of all boxes."""
    return tuple(sum(number(facts[each]) for _, facts, _ in said) for each in ("Parameters", "Multiply-adds"))


@pytest.fixture(scope="module")
def genotype():
    """Every second convolution of the super-network, at random, and all that is none."""
    rng = np.random.default_rng(0)

    def part(nodes):
        return tuple(tuple(pair for pair in node if "conv" not in pair[0] or rng.random() < 0.5) for node in nodes)

    return Genotype(*map(part, SUPER_NETWORK))


def test_darts_14_is_folded_into_cells_of_the_sizes_of_its_genotype(open_page, files, genotype):
    """The sub-network of 2,809 segments is constructed by its own class, which knows nothing of what was removed."""
    x = models.example_input("darts_14")
    model, subnet = models.create_abstract("darts_14"), models.create_abstract("darts_14", genotype=genotype)
    space = jasgnas.search_space(model, x)
    left = {
        f"cells/{index}/operations/{operation_key(place, operation, source)}"
        for index, cell in enumerate(subnet.cells)
        for place, node in enumerate(cell.nodes)
        for operation, source in node
    }
    owners = {group.index: group.paths[0].split("/")[:4] for group in space.groups}
    removed = [i for i, owner in owners.items() if "operations" in owner and "/".join(owner) not in left]
    jasgnas.report(space, path=files / "genotype.html", redundant=removed)
    full, params, macs = jasgnas.count_params(model), jasgnas.count_params(subnet), jasgnas.count_macs(subnet, x)

    page = open_page("genotype.html", tab="overview")
    sizes = bars(page)
    assert sizes["parameters, Full network"] == full
    assert (sizes["parameters, Sub-network"], sizes["multiply-adds, Sub-network"]) == (params, macs)
    assert layers(page) == [full, params]

    page.click("#tab-graph")
    page.click("#zoom-fit")
    cells = {f"module cells/{i}": (model.cells[i], subnet.cells[i]) for i in range(14)}
    said = {name: facts for name, facts, _ in details(page)}
    for name, sides in cells.items():
        before, after = map(jasgnas.count_params, sides)
        assert (number(said[name]["Parameters"]), number(said[name]["Left of it"])) == (before, after)
        amount = page.locator(f'#viewport .node[data-name="{name}"] .amount').text_content()
        assert amount == f"{shown(before)} → {shown(after)}"
    require_one_screen(page)

    page.locator("#network").get_by_text("Sub-network").click()
    settle(page)
    said = details(page)
    assert held(said) == (params, macs)
    found = {name: number(facts["Parameters"]) for name, facts, _ in said}
    assert {name: found[name] for name in cells} == {
        name: jasgnas.count_params(after) for name, (_, after) in cells.items()
    }
