"""Pictures: they show the numbers that were handed in, on the given axes, and can be read in a light and in a dark style."""

import dataclasses
import io
import subprocess
import sys

import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import pytest
from matplotlib import pyplot as plt
from matplotlib.colors import to_rgb

import jaxgrad as jg
from jaxgrad import plots, verify

mpl.use("Agg")

RNG = np.random.default_rng(0)
P, Q = np.array([0.5, 0.25, 0.25, 0.0]), np.array([0.125, 0.5, 0.375, 0.0])
X = np.linspace(-4, 4, 201)
NORMAL = lambda mean, deviation: np.exp(-(((X - mean) / deviation) ** 2) / 2) / deviation / np.sqrt(2 * np.pi)
STEPS = 2.0 ** np.arange(-6, 3)
EXPANSION = jg.TaylorExpansion(*(jnp.asarray(y, jnp.float32) for y in (np.ones(9), -STEPS, 0.5 * STEPS**2, 0.25 * STEPS**2, np.exp(-STEPS) + STEPS**2 / 4)))
DENSITY = jg.SpectralDensity(jnp.array([[0.0, 1.0, 4.0], [0.0, 2.0, 4.0]]), jnp.array([[0.9, 0.08, 0.02], [0.9, 0.06, 0.04]]), 50)
PAIRS = jg.Eigenpairs(jnp.array([4.0, 2.5, jnp.nan]), jnp.zeros((3, 50)), jnp.array([0.1, 0.2, jnp.nan]))
MATRIX = RNG.normal(size=(12, 12))
LABELS = np.array([1, 0, 2, 0, 1, 1, 2, 0, 0, 2, 1, 1])
ERRORS = {"ours": np.array([0.0, 0.5, 2.0]), "theirs": np.array([1.0, 1e6, np.nan])}
NORMS = {"Newton": np.array([1.0, 1e-2, 1e-8, 0.0]), "Adam": 0.9 ** np.arange(30)}

PICTURES = {
    "softmax_jacobian": lambda ax: plots.softmax_jacobian(jg.softmax_jacobian(jnp.array([2.0, 0.0, 1.0])), ax=ax),
    "matrix": lambda ax: plots.matrix(MATRIX, label="curvature (nats)", ax=ax),
    "gram_matrix": lambda ax: plots.gram_matrix(MATRIX @ MATRIX.T, labels=LABELS, ax=ax),
    "ulp_errors": lambda ax: plots.ulp_errors([0.0, 10.0, 20.0], ERRORS, bound=4, ax=ax),
    "distributions": lambda ax: plots.distributions({"p": P, "q": Q}, ax=ax),
    "distributions, densities": lambda ax: plots.distributions({"p": NORMAL(0, 1), "q": NORMAL(1, 0.5)}, at=X, ax=ax),
    "kl_contributions": lambda ax: plots.kl_contributions(P, Q, ax=ax),
    "kl_contributions, infinite": lambda ax: plots.kl_contributions(P, Q[::-1], ax=ax),
    "kl_contributions, densities": lambda ax: plots.kl_contributions(NORMAL(0, 1), NORMAL(1, 0.5), at=X, ax=ax),
    "spectral_density": lambda ax: plots.spectral_density(DENSITY, eigenpairs=PAIRS, ax=ax),
    "top_eigenvalues": lambda ax: plots.top_eigenvalues(np.arange(9), np.stack([STEPS, STEPS / 2], 1), learning_rate=0.5, ax=ax),
    "loss_along": lambda ax: plots.loss_along(STEPS, EXPANSION, ax=ax),
    "curvature_along": lambda ax: plots.curvature_along(STEPS, EXPANSION, ax=ax),
    "taylor_error": lambda ax: plots.taylor_error(STEPS, EXPANSION, ax=ax),
    "loss_landscape": lambda ax: plots.loss_landscape(X[::20], X[::40], np.add.outer(X[::20] ** 2, X[::40]), ax=ax),
    "convergence": lambda ax: plots.convergence(NORMS, ax=ax),
}


@pytest.fixture
def ax():
    """New axes, closed after the test."""
    yield plt.subplots()[1]
    plt.close("all")


def lines(ax):
    """The lines with a name, by it."""
    return {line.get_label(): line for line in ax.get_lines() if not line.get_label().startswith("_")}


def data(ax):
    """What these lines are drawn of."""
    return {name: np.asarray(line.get_xydata()).T for name, line in lines(ax).items()}


def heat(ax):
    """The numbers of a heat map."""
    return np.asarray(ax.get_images()[0].get_array())


def bar_heights(ax):
    """The heights of the bars, one group after the other."""
    return np.array([[bar.get_height() for bar in group] for group in ax.containers])


def contrast(colour, background):
    """The ratio of two luminances as the Web Content Accessibility Guidelines define it, from 1 to 21."""
    linear = lambda c: np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
    bright, dark = sorted((linear(np.array(to_rgb(c))) @ [0.2126, 0.7152, 0.0722] for c in (colour, background)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("style", ["default", "dark_background"])
@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_is_drawn_on_the_given_axes_and_can_be_read_in_either_style(name, style):
    with plt.style.context(style):
        figure, (ax, beside) = plt.subplots(1, 2, layout="constrained")
        assert PICTURES[name](ax) is ax
        assert ax.get_xlabel()
        assert ax.get_ylabel()
        figure.savefig(io.BytesIO(), format="png")  # a glyph that the font lacks would be a warning
        assert not beside.has_data()
        background = mpl.rcParams["axes.facecolor"]
        has_image = ax.get_images() or name == "loss_landscape"
        colours = [] if has_image else [line.get_color() for line in ax.get_lines()] + [bar.get_facecolor()[:3] for bar in ax.patches]
        colours += [text.get_color() for text in (ax.xaxis.label, ax.yaxis.label, *(ax.get_legend().get_texts() if ax.get_legend() else ()))]
        assert min(contrast(colour, background) for colour in colours) > 3
        plt.close(figure)


WITHOUT_LINES = {"softmax_jacobian", "matrix", "gram_matrix", "loss_landscape", "spectral_density"}


@pytest.mark.parametrize("name", [name for name in PICTURES if name not in WITHOUT_LINES])
def test_no_two_lines_differ_in_colour_alone(name, ax):
    PICTURES[name](ax)
    looks = [(line.get_marker(), line.get_linestyle()) for line in lines(ax).values()] + [(group[0].get_hatch(),) for group in ax.containers if ax.patches]
    assert len(set(looks)) == len(looks) > 1


def test_every_public_picture_is_tested():
    public = {name for name, value in vars(plots).items() if callable(value) and not name.startswith("_")}
    assert public == {name.split(",")[0] for name in PICTURES}


def test_without_axes_there_are_new_ones():
    before = plt.get_fignums()
    ax = plots.softmax_jacobian(jg.softmax_jacobian(jnp.zeros(2)))
    assert ax.figure.number not in before
    plt.close(ax.figure)


def test_import_without_matplotlib_says_how_to_install_it():
    code = "import sys; sys.modules['matplotlib'] = None; from jaxgrad import plots"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "jaxgrad.plots: matplotlib not found; install it with: pip install 'jaxgrad[plots]'" in run.stderr


def test_softmax_jacobian_is_the_dense_matrix_with_its_numbers(ax):
    z = np.array([2.0, 0.0, 1.0], np.float32)
    plots.softmax_jacobian(jg.softmax_jacobian(z), ax=ax)
    p = np.exp(z) / np.exp(z).sum()
    np.testing.assert_allclose(heat(ax), np.diag(p) - np.outer(p, p), atol=1e-6)
    assert [float(text.get_text()) for text in ax.texts] == pytest.approx((np.diag(p) - np.outer(p, p)).ravel(), rel=0.05)


def test_matrix_takes_operators_and_arrays_and_a_common_limit(ax):
    curvature = jg.hessian(lambda w: (w**4).sum(), jnp.array([1.0, 2.0]))
    plots.matrix(curvature, limit=100.0, label="nats", ax=ax)
    np.testing.assert_allclose(heat(ax), [[12, 0], [0, 48]])
    assert ax.get_images()[0].get_clim() == (-100, 100)
    bar = ax.get_images()[0].colorbar
    assert bar.ax.get_ylabel() == "nats"
    ax.figure.set_size_inches(3, 6)
    ax.figure.canvas.draw()
    assert (bar.ax.bbox.y0, bar.ax.bbox.height) == pytest.approx((ax.bbox.y0, ax.bbox.height))
    bar.remove()
    assert not ax.child_axes


def test_gram_matrix_is_sorted_by_class_and_scaled_to_cosines(ax):
    vectors = RNG.normal(size=(12, 5))
    plots.gram_matrix(vectors @ vectors.T, labels=LABELS, ax=ax)
    units = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True))[np.argsort(LABELS, kind="stable")]
    np.testing.assert_allclose(heat(ax), units @ units.T, rtol=1e-12)
    assert [text.get_text() for text in ax.get_xticklabels()] == ["0", "1", "2"]
    assert sorted({line.get_xdata()[0] for line in ax.get_lines()} - {0}) == [3.5, 8.5]


def test_gram_matrix_of_gradients_without_scaling(ax):
    features, head = jnp.asarray(RNG.normal(size=(6, 3)), jnp.float32), jnp.zeros((2, 3), jnp.float32)
    gradients = jg.per_example_gradients(features, head, jnp.zeros(6, jnp.int32))
    plots.gram_matrix(gradients, cosines=False, ax=ax)
    rows = np.asarray(gradients.to_dense(), np.float64).reshape(6, -1)
    np.testing.assert_allclose(heat(ax), rows @ rows.T, rtol=1e-5, atol=1e-6)


def test_ulp_errors_are_at_their_confidence_and_no_digit_is_at_the_upper_edge(ax):
    plots.ulp_errors([0.0, 10.0, 20.0], ERRORS, bound=4, ax=ax)
    drawn = data(ax)
    np.testing.assert_array_equal(drawn["ours"], [[0, 10, 20], [0, 0.5, 2]])
    np.testing.assert_array_equal(drawn["theirs"], [[0, 10], [1, 1e6]])
    np.testing.assert_array_equal(drawn["bound: 4 ULP"][1], 4)
    edge = [line for line in ax.get_lines() if line.get_label().startswith("_") and len(line.get_xdata())]
    assert [list(line.get_xydata()[0]) for line in edge] == [[20, 1]]
    assert edge[0].get_color() == lines(ax)["theirs"].get_color()


@pytest.mark.parametrize("where", [slice(0, 20), slice(20, 40)], ids=["left", "right"])
def test_ulp_errors_keeps_its_legend_off_the_points(where, ax):
    confidence, errors = (x.ravel() for x in np.meshgrid(np.arange(40)[where], np.geomspace(1, 1e6, 30)))
    plots.ulp_errors([0, *confidence, 40], {name: [0, *errors, 0] for name in "abcd"}, ax=ax)
    ax.figure.canvas.draw()
    points = ax.transData.transform(data(ax)["a"].T)
    assert not ax.get_legend().get_window_extent().count_contains(points)


def test_ulp_errors_of_thousands_of_points_are_an_image_in_vector_formats(ax):
    for count, expected in ((1000, False), (1001, True)):
        plots.ulp_errors(np.arange(count), {f"{count}": np.ones(count)}, ax=ax)
        assert lines(ax)[f"{count}"].get_rasterized() == expected


def test_ulp_errors_counts_units_of_the_dtype_that_was_computed_in():
    computed = jnp.array([1.0, 2.0, jnp.nan], jnp.float32)
    np.testing.assert_array_equal(verify.ulp_errors(computed, np.array([1 + 2.0**-23, 2.0, 1.0])), [1, 0, np.inf])
    np.testing.assert_array_equal(verify.ulp_errors(computed[:1].astype(jnp.bfloat16), np.array([1 + 2.0**-6])), [2])


def test_distributions_are_bars_over_classes(ax):
    plots.distributions({"p": P, "q": Q}, ax=ax)
    np.testing.assert_array_equal(bar_heights(ax), [P, Q])
    centres = np.array([[bar.get_x() + bar.get_width() / 2 for bar in group] for group in ax.containers])
    np.testing.assert_allclose(centres.mean(0), np.arange(4), atol=1e-12)


def test_distributions_are_lines_over_points(ax):
    plots.distributions({"p": NORMAL(0, 1), "q": NORMAL(1, 0.5)}, at=X, ax=ax)
    for name, density in (("p", NORMAL(0, 1)), ("q", NORMAL(1, 0.5))):
        np.testing.assert_array_equal(data(ax)[name], [X, density])


def test_kl_contributions_sum_to_both_divergences(ax):
    plots.kl_contributions(P, Q, ax=ax)
    p, q = P[:3], Q[:3]
    np.testing.assert_allclose(bar_heights(ax), [[*(p * np.log(p / q)), 0], [*(q * np.log(q / p)), 0]], rtol=1e-12)
    named = [text.get_text() for text in ax.get_legend().get_texts()]
    assert named == [f"KL(p‖q) = {(p * np.log(p / q)).sum():.3g} nats", f"KL(q‖p) = {(q * np.log(q / p)).sum():.3g} nats"]


def test_kl_contributions_mark_what_is_infinite(ax):
    plots.kl_contributions([1.0, 0.0], [0.5, 0.5], ax=ax)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["KL(p‖q) = 0.693 nats", "KL(q‖p) = inf nats"]
    np.testing.assert_allclose(bar_heights(ax), [[np.log(2), 0], [0.5 * np.log(0.5), 0]])
    marks = [line for line in ax.get_lines() if line.get_marker() == r"$\infty$" and len(line.get_xdata())]
    assert [round(line.get_xdata()[0]) for line in marks] == [1]


def test_kl_contributions_of_densities_integrate_to_the_closed_form(ax):
    x = np.linspace(-12, 12, 4001)
    normal = lambda mean: np.exp(-((x - mean) ** 2) / 2) / np.sqrt(2 * np.pi)
    plots.kl_contributions(normal(0), normal(1), at=x, ax=ax)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["KL(p‖q) = 0.5 nats", "KL(q‖p) = 0.5 nats"]
    np.testing.assert_allclose(data(ax)["KL(p‖q) = 0.5 nats"][1], normal(0) * (0.5 - x), atol=1e-12)


def test_spectral_density_is_the_blurred_measure_and_marks_the_eigenvalues_that_were_found(ax):
    plots.spectral_density(DENSITY, eigenpairs=PAIRS, width=0.1, ax=ax)
    at, mean = data(ax)["density ± standard error"]
    bump = lambda t: np.exp(-(((at - t) / 0.1) ** 2) / 2) / (0.1 * np.sqrt(2 * np.pi))
    samples = [0.9 * bump(0) + 0.08 * bump(1) + 0.02 * bump(4), 0.9 * bump(0) + 0.06 * bump(2) + 0.04 * bump(4)]
    np.testing.assert_allclose(mean, np.mean(samples, 0), rtol=1e-4, atol=1e-6)
    assert (at.min(), at.max()) == pytest.approx((-0.4, 4.4))
    marks, _, (error_bars,) = ax.containers[0].lines
    np.testing.assert_allclose(marks.get_xydata(), [[4, 1 / (50 * 0.1 * np.sqrt(2 * np.pi))], [2.5, 1 / (50 * 0.1 * np.sqrt(2 * np.pi))]])
    np.testing.assert_allclose([segment[:, 0] for segment in error_bars.get_segments()], [[3.9, 4.1], [2.3, 2.7]], rtol=1e-6)
    (band,) = (c for c in ax.collections if c is not error_bars)
    top = band.get_paths()[0].vertices[:, 1].max()
    assert top == pytest.approx((np.mean(samples, 0) + np.std(samples, 0, ddof=1) / np.sqrt(2)).max(), rel=1e-4)


def test_top_eigenvalues_with_a_constant_rate_and_with_a_schedule(ax):
    values = np.stack([STEPS, STEPS / 2], 1)
    plots.top_eigenvalues(np.arange(9), values, learning_rate=0.5, ax=ax)
    drawn = data(ax)
    np.testing.assert_array_equal(drawn["λ₁"], [np.arange(9), STEPS])
    np.testing.assert_array_equal(drawn["λ₂"], [np.arange(9), STEPS / 2])
    np.testing.assert_array_equal(drawn["2/η = 4"][1], np.full(9, 4.0))
    ax.clear()
    plots.top_eigenvalues(np.arange(9), STEPS, learning_rate=STEPS, ax=ax)
    np.testing.assert_array_equal(data(ax)["2/η"][1], 2 / STEPS)


@pytest.mark.parametrize(("rate", "name", "has_limit_in_sight"), [(0.3, "2/η = 6.67", True), (0.2, "2/η = 10, above the axis", False)])
def test_top_eigenvalues_are_not_squeezed_by_a_limit_far_above(rate, name, has_limit_in_sight, ax):
    plots.top_eigenvalues(np.arange(9), STEPS, learning_rate=rate, ax=ax)
    assert ax.get_ylim()[1] > STEPS.max()
    assert (ax.get_ylim()[1] > data(ax)[name][1].max()) == has_limit_in_sight


def test_loss_along_has_the_loss_and_its_models(ax):
    plots.loss_along(STEPS, EXPANSION, ax=ax)
    models = {"L(u + tδ)": np.exp(-STEPS) + STEPS**2 / 4, "first order": 1 - STEPS}
    models |= {"second order, G alone": 1 - STEPS + STEPS**2 / 2, "second order, G + T": 1 - STEPS + 3 * STEPS**2 / 4}
    drawn = data(ax)
    assert set(drawn) == set(models)
    for name, values in models.items():
        np.testing.assert_allclose(drawn[name], [STEPS, values], rtol=1e-6)


def test_curvature_along_is_twice_the_terms_of_second_order(ax):
    plots.curvature_along(STEPS, EXPANSION, ax=ax)
    drawn = data(ax)
    for name, factor in (("δᵀHδ", 1.5), ("δᵀGδ", 1.0), ("δᵀTδ", 0.5)):
        np.testing.assert_allclose(drawn[name], [STEPS, factor * STEPS**2], rtol=1e-6)


def test_taylor_error_is_beside_its_slopes(ax):
    sizes = np.logspace(-4, -1, 13)
    terms = (np.ones(13), -sizes, sizes**2 / 2, np.zeros(13), np.exp(-sizes))
    with jax.enable_x64(True):
        plots.taylor_error(sizes, jg.TaylorExpansion(*(jnp.asarray(x) for x in terms)), ax=ax)
    drawn = data(ax)
    for order, name in enumerate(("zeroth order", "first order", "second order"), 1):
        np.testing.assert_allclose(drawn[name][1], sizes**order / [1, 2, 6][order - 1], rtol=0.1, atol=1e-15)
    slopes = [np.diff(np.log(line.get_ydata())) / np.diff(np.log(sizes)) for line in ax.get_lines()[:3]]
    np.testing.assert_allclose(slopes, np.repeat([[1], [2], [3]], 12, axis=1))
    for order, name in ((0, "zeroth order"), (1, "first order"), (2, "second order")):  # each goes through its errors
        np.testing.assert_allclose(ax.get_lines()[order].get_ydata()[-4:], drawn[name][1][-4:], rtol=0.15)
    assert ax.get_xscale() == ax.get_yscale() == "log"


def test_loss_landscape_has_the_first_direction_to_the_right(ax):
    first, second = np.array([-1.0, 0.0, 1.0, 2.0]), np.array([-2.0, 0.0, 2.0])
    losses = np.add.outer(first**2, second)
    losses[0, 0] = np.nan
    plots.loss_landscape(first, second, losses, ax=ax)
    mesh = ax.collections[0]
    np.testing.assert_array_equal(np.asarray(mesh.get_array()).reshape(3, 4), losses.T)
    np.testing.assert_allclose(mesh.get_coordinates()[0, :, 0], [-1.5, -0.5, 0.5, 1.5, 2.5])
    assert mesh.colorbar.ax.get_ylabel() == "loss (nats)"


def test_convergence_against_iterations_or_what_they_cost(ax):
    plots.convergence(NORMS, ax=ax)
    np.testing.assert_array_equal(data(ax)["Newton"], [np.arange(4), NORMS["Newton"]])
    np.testing.assert_array_equal(data(ax)["Adam"], [np.arange(30), NORMS["Adam"]])
    ax.clear()
    plots.convergence(NORMS, costs={"Adam": np.arange(30) * 2, "Newton": [0, 5, 11, 20]}, unit="gradients", ax=ax)
    np.testing.assert_array_equal(data(ax)["Newton"][0], [0, 5, 11, 20])
    assert ax.get_xlabel() == "gradients"
    assert ax.get_xscale() == "linear"


def test_convergence_of_a_few_steps_beside_many_has_room_for_both(ax):
    plots.convergence({"Newton": NORMS["Newton"], "Adam": 0.97 ** np.arange(300)}, ax=ax)
    end, last, whole = ax.transAxes.inverted().transform(ax.transData.transform([(3, 1), (299, 1), (0, 1)]))[:, 0]
    assert 0.1 < end - whole < last == pytest.approx(1, abs=0.05)
    assert ax.get_xlim()[0] == 0


def test_numbers_of_16_bits_are_drawn(ax):
    plots.distributions({"p": jnp.asarray(P, jnp.bfloat16)}, ax=ax)
    np.testing.assert_array_equal(bar_heights(ax), [P])


REFUSED = {
    "ax": (lambda: plots.matrix(MATRIX, ax=np.array([1])), TypeError, "ax: expected one matplotlib Axes, got ndarray"),
    "traced": (lambda: jax.jit(lambda p: plots.distributions({"p": p}))(P), TypeError, r"probs\['p'\]: expected concrete numbers, got traced ones"),
    "words": (lambda: plots.distributions({"p": ["a"]}), TypeError, r"probs\['p'\]: expected real numbers"),
    "none": (lambda: plots.distributions({}), ValueError, "probs: expected at least one distribution"),
    "not square": (lambda: plots.matrix(MATRIX[1:]), ValueError, "matrix: expected a square matrix"),
    "batch": (lambda: plots.softmax_jacobian(jg.softmax_jacobian(jnp.zeros((2, 3)))), ValueError, r"jacobian: expected a shape \(n, n\).*got \(2, 3, 3\)"),
    "limit": (lambda: plots.matrix(MATRIX, limit=0), ValueError, "limit: expected a positive number, got 0"),
    "labels": (lambda: plots.gram_matrix(MATRIX @ MATRIX.T, labels=LABELS[1:]), ValueError, "labels: expected 12, one for each example, got 11"),
    "no norms": (lambda: plots.gram_matrix(-np.eye(2)), ValueError, "gradients: expected squared norms on the diagonal, got -1"),
    "rows": (lambda: plots.ulp_errors([1.0], ERRORS), ValueError, r"errors\['ours'\]: expected 1, one for each row, got 3"),
    "classes": (lambda: plots.kl_contributions(P, Q[1:]), ValueError, "q: expected 4, as many as in p, got 3"),
    "order": (lambda: plots.distributions({"p": P}, at=[0, 2, 1, 3]), ValueError, "at: expected ascending points"),
    "density": (lambda: plots.spectral_density(PAIRS), TypeError, "density: expected a SpectralDensity, got Eigenpairs"),
    "eigenpairs": (lambda: plots.spectral_density(DENSITY, eigenpairs=DENSITY), TypeError, "eigenpairs: expected Eigenpairs, got SpectralDensity"),
    "width": (lambda: plots.spectral_density(DENSITY, width=-1.0), ValueError, "width: expected a positive number"),
    "steps": (lambda: plots.top_eigenvalues([0, 1], STEPS), ValueError, "eigenvalues: expected 2, one row for each step, got 9"),
    "rate": (lambda: plots.top_eigenvalues(np.arange(9), STEPS, learning_rate=0), ValueError, "learning_rate: expected positive numbers, got 0"),
    "rates": (lambda: plots.top_eigenvalues(np.arange(9), STEPS, learning_rate=[1.0]), ValueError, "learning_rate: expected 9, one for each step, got 1"),
    "expansion": (lambda: plots.loss_along(STEPS, STEPS), TypeError, "expansions: expected a TaylorExpansion, got ndarray"),
    "expansions": (lambda: plots.loss_along(STEPS[1:], EXPANSION), ValueError, "expansions.value: expected 8, one for each of the offsets, got 9"),
    "one": (lambda: plots.loss_along(STEPS, dataclasses.replace(EXPANSION, value=1.0)), ValueError, r"expansions.value: expected a shape \(S,\)"),
    "sizes": (lambda: plots.taylor_error(STEPS - 1, EXPANSION), ValueError, "step_sizes: expected positive numbers"),
    "grid": (lambda: plots.loss_landscape(X[:3], X[:2], np.zeros((2, 3))), ValueError, r"losses: expected shape \(3, 2\).*transpose"),
    "costs": (lambda: plots.convergence(NORMS, costs={"Adam": [1]}), ValueError, "costs: expected the names"),
    "cost": (lambda: plots.convergence({"a": [1.0]}, costs={"a": [1, 2]}), ValueError, r"costs\['a'\]: expected 1, one for each norm, got 2"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_drawn_is_refused_and_leaves_no_figure(name):
    draw, error, message = REFUSED[name]
    before = plt.get_fignums()
    with pytest.raises(error, match=message):
        draw()
    assert plt.get_fignums() == before
