"""A step of a monotone rational spline, or its inverse; the identity outside of its interval.

Constants: those of a :class:`~made_flows.univariate.step_kernel.SplineForm`, in its order. The
parameters of a feature are K logits of widths, K of heights, derivatives at knots, and for linear
splines K places within bins.

The map leaves in the scratch space what the logarithm of its derivative is made of.
"""

from __future__ import annotations

import math
from typing import Any

from made_flows._llvm import LONG, Array, Numbers, emits
from made_flows.inverse.compiled.elementwise import exp, expm1, log, softplus
from made_flows.inverse.compiled.simd import adjacent_lines, keep_apart, like, line
from made_flows.inverse.compiled.translation import independent
from made_flows.univariate.step_kernel import EDGES, SplineForm

FIXED = float(EDGES["fixed"])


@emits
def form_of(w: Numbers, numbers: Array) -> SplineForm:
    """Return the constants of the spline, which follow those of every step, by their names."""
    b, places = w.builder, range(4, 4 + len(SplineForm._fields))
    return SplineForm(*(b.load(b.gep(numbers.start, [LONG(place)])) for place in places))


def step(work: Any, numbers: Any, rows: Any) -> None:
    """See :mod:`made_flows.inverse.compiled.steps`."""
    map_value(work, numbers, rows)


def score(work: Any, numbers: Any, rows: Any) -> None:
    """See :mod:`made_flows.inverse.compiled.steps`."""
    map_value(work, numbers, rows)
    add_log_slope(work, numbers, rows)


def pulls(constants: Any) -> bool:
    """Tell whether :func:`pull` knows the gradient: quadratic, of logits as they are."""
    spline = SplineForm(*constants)
    return not (spline.linear or spline.derivative_bound) and math.isinf(spline.bound)


def pull(work: Any, numbers: Any, rows: Any) -> None:
    """See :mod:`made_flows.inverse.compiled.steps`."""
    lanes, parameters, count, noise, scratch, x = rows
    spline = form_of(numbers)
    bins, fixed = int(spline.bins), spline.edges == FIXED
    # The image stands in no one's way two rows further: its own row has its gradient.
    map_value(work, numbers, (lanes, parameters, count, noise, scratch, x + 2))
    pull_to_bin(work, numbers, lanes, scratch, x)
    derivatives, knots = parameters + 2 * bins, count - 2 * bins
    pull_to_knots(work, lanes, parameters, bins, derivatives, knots, fixed, scratch)
    least, divisor = spline.min_width, spline.divisor
    pull_to_logits(work, lanes, parameters, bins, least, divisor, scratch, 1, 7, 3)
    least = spline.min_height
    pull_to_logits(work, lanes, parameters + bins, bins, least, divisor, scratch, 2, 8, 4)


def map_value(work: Any, numbers: Any, rows: Any) -> None:
    """Map a value; what its derivative is made of is left in the scratch space."""
    lanes, parameters, count, noise, scratch, x = rows
    keep_apart()
    spline, inverse = form_of(numbers), numbers[0] != 0.0
    bins, linear, fixed = int(spline.bins), spline.linear != 0.0, spline.edges == FIXED
    derivatives = parameters + 2 * bins
    knots = count - 2 * bins - (bins if linear else 0)  # rows of derivatives
    fractions(work, numbers, lanes, parameters, bins, scratch, spline.min_width)
    fractions(work, numbers, lanes, parameters + bins, bins, scratch, spline.min_height)

    u, value = line(work, noise, lanes), line(work, x, lanes)
    place, left, bottom, width, height, start, end, inner, from_x = bin_lines(work, scratch, lanes)
    from_y = line(work, scratch + 9, lanes)
    zero, one = like(u[0], 0.0), like(u[0], 1.0)
    origin, size = like(u[0], spline.left), like(u[0], spline.width)
    for j in independent(lanes):
        place[j] = (u[j] - origin) / size
        from_x[j] = zero
        from_y[j] = zero
    # Find the bins without a branch: every bin that begins at or below the value takes its lane
    # over, so that the last one to do so is the right one. Raw derivatives are picked with it, and
    # made positive for two knots, not for all.
    for k in range(bins):
        w, h = line(work, parameters + k, lanes), line(work, parameters + bins + k, lanes)
        at = line(work, derivatives + edge_row(k, bins, knots, fixed), lanes)
        following = line(work, derivatives + edge_row(k + 1, bins, knots, fixed), lanes)
        middle = line(work, derivatives + knots + k if linear else parameters, lanes)
        fixed_at = like(u[0], 1.0 if k == 0 and fixed else 0.0)
        fixed_end = like(u[0], 1.0 if k == bins - 1 and fixed else 0.0)
        first = k == 0
        known = from_y if inverse else from_x
        for j in independent(lanes):
            take = first or place[j] >= known[j]
            left[j] = from_x[j] if take else left[j]
            bottom[j] = from_y[j] if take else bottom[j]
            width[j] = w[j] if take else width[j]
            height[j] = h[j] if take else height[j]
            start[j] = at[j] if take else start[j]
            end[j] = following[j] if take else end[j]
            inner[j] = middle[j] if take else inner[j]
        # Rows that the search is done with tell whether a knot is an outer one.
        outer_start, outer_end = line(work, scratch + 10, lanes), line(work, scratch + 11, lanes)
        for j in independent(lanes):
            take = first or place[j] >= known[j]
            outer_start[j] = fixed_at if take else outer_start[j]
            outer_end[j] = fixed_end if take else outer_end[j]
        for j in independent(lanes):
            from_x[j] += w[j]
            from_y[j] += h[j]
    positive(work, numbers, lanes, scratch + 5, scratch + 10)
    positive(work, numbers, lanes, scratch + 6, scratch + 11)
    if linear:
        rational_linear(work, numbers, lanes, scratch, inverse)
    else:
        rational_quadratic(work, lanes, scratch, inverse)
    # Where xi is now: the value's place in its bin on the other axis.
    xi = line(work, scratch + 8, lanes)
    for j in independent(lanes):
        inside = place[j] >= zero and place[j] <= one
        other = left[j] + width[j] * xi[j] if inverse else bottom[j] + height[j] * xi[j]
        value[j] = origin + size * other if inside else u[j]


def bin_lines(work: Any, scratch: int, lanes: int) -> Any:
    """Return where values and their bins stand in the scratch space.

    The value's place in the interval; the bin's left, bottom, width, height, derivatives at its
    ends and inner point; the value's place in the bin on the other axis.
    """
    return adjacent_lines(work, scratch, lanes, 9)


def edge_row(knot: int, bins: int, knots: int, fixed: bool) -> int:
    """Return the row of a knot's raw derivative; any row, where it is a constant."""
    return max(0, min(knot - 1, knots - 1)) if fixed else knot % knots


def fractions(
    work: Any, numbers: Any, lanes: int, first: int, bins: int, scratch: int, smallest: float
) -> None:
    """Replace logits of widths or heights by fractions of the interval, none below the smallest."""
    keep_apart()
    highest, total = line(work, scratch, lanes), line(work, scratch + 1, lanes)
    one = like(highest[0], 1.0)
    spline = form_of(numbers)
    rate, bound = like(one, 1.0 / spline.divisor), like(one, spline.bound)
    least, rest = like(one, smallest), like(one, 1.0 - smallest * bins)
    bounded = spline.bound < math.inf
    for j in independent(lanes):
        highest[j] = like(one, -math.inf)
        total[j] = like(one, 0.0)
    for k in range(bins):
        a = line(work, first + k, lanes)
        if bounded:
            for j in independent(lanes):
                a[j] /= one + abs(a[j] * rate) / bound
        for j in independent(lanes):
            a[j] *= rate
            highest[j] = max(highest[j], a[j])
    for k in range(bins):
        a = line(work, first + k, lanes)
        for j in independent(lanes):
            a[j] = exp(a[j] - highest[j])
            total[j] += a[j]
    for j in independent(lanes):
        total[j] = rest / total[j]
    for k in range(bins):
        a = line(work, first + k, lanes)
        for j in independent(lanes):
            a[j] = least + a[j] * total[j]


def positive(work: Any, numbers: Any, lanes: int, row: int, outer: int) -> None:
    """Replace raw derivatives by positive ones; at outer knots by a constant."""
    keep_apart()
    a, fixed = line(work, row, lanes), line(work, outer, lanes)
    zero, one = like(a[0], 0.0), like(a[0], 1.0)
    spline = form_of(numbers)
    least, bound = like(one, spline.min_derivative), like(one, spline.derivative_bound)
    offset, edge = like(one, spline.derivative_offset), like(one, spline.edge)
    if spline.derivative_bound > 0.0:
        for j in independent(lanes):
            a[j] = exp(a[j] / (one + abs(a[j]) / bound))
    else:
        for j in independent(lanes):
            a[j] = least + softplus(a[j] + offset)
    for j in independent(lanes):
        a[j] = edge if fixed[j] > zero else a[j]


def rational_quadratic(work: Any, lanes: int, scratch: int, inverse: bool) -> None:
    """Map a value's place in its bin on one axis to that on the other."""
    keep_apart()
    place, left, bottom, width, height, start, end, _, out = bin_lines(work, scratch, lanes)
    zero, one, two = like(place[0], 0.0), like(place[0], 1.0), like(place[0], 2.0)
    if not inverse:
        for j in independent(lanes):  # Durkan et al. 2019, equation 4
            xi = min(max((place[j] - left[j]) / width[j], zero), one)
            slope = height[j] / width[j]
            across = xi * (one - xi)
            below = slope * (one - two * across) + (start[j] + end[j]) * across
            out[j] = (slope * xi * xi + start[j] * across) / below
        return
    for j in independent(lanes):
        # The root of Durkan et al. 2019, equations 6-8, with a discriminant that is a sum of
        # squares and without a difference of nearly equal numbers.
        theta = min(max((place[j] - bottom[j]) / height[j], zero), one)
        slope = height[j] / width[j]
        difference = start[j] * (one - theta) - end[j] * theta
        b = difference + two * slope * theta
        across = theta * (one - theta)
        root = math.sqrt(difference * difference + two * two * slope * slope * across)
        size = abs(b)
        xi = (
            two * slope * theta / (size + root)
            if b >= zero
            else (size + root) / (two * (slope + size))
        )
        out[j] = min(max(xi, zero), one)


def rational_linear(work: Any, numbers: Any, lanes: int, scratch: int, inverse: bool) -> None:
    """Return the same for a bin that is divided in two (Dolatabadi et al. 2020, section 3)."""
    keep_apart()
    place, left, bottom, width, height, start, end, raw, out = bin_lines(work, scratch, lanes)
    zero, one = like(place[0], 0.0), like(place[0], 1.0)
    nearest = form_of(numbers).min_place
    least, rest = like(one, nearest), like(one, 1.0 - 2.0 * nearest)
    for j in independent(lanes):
        inner = least + rest / (one + exp(-raw[j]))
        # Weights of the bin's last end and of its inner point, whose height is middle.
        slope = height[j] / width[j]
        last = math.sqrt(start[j] / end[j])
        weight = (inner * start[j] + (one - inner) * last * end[j]) / slope
        middle = inner * last / ((one - inner) + inner * last)
        raw[j] = inner
        if inverse:
            theta = min(max((place[j] - bottom[j]) / height[j], zero), one)
            lower = theta <= middle
            above = inner * theta if lower else weight * (theta - middle)
            below = weight * (middle - theta) if lower else last * (one - theta)
            out[j] = above / (theta + below) if lower else (above + inner * below) / (above + below)
        else:
            xi = min(max((place[j] - left[j]) / width[j], zero), one)
            lower = xi <= inner
            above = weight * middle * xi if lower else last * (xi - inner)
            below = (inner - xi) if lower else weight * (one - xi)
            out[j] = (
                above / (below + weight * xi)
                if lower
                else (middle * below + above) / (below + above)
            )


def add_log_slope(work: Any, numbers: Any, rows: Any) -> None:
    """Add the logarithm of the derivative, from what :func:`map_value` leaves."""
    keep_apart()
    lanes, _, _, _, scratch, out = rows
    inverse, linear = numbers[0] != 0.0, form_of(numbers).linear != 0.0
    place, left, bottom, width, height, start, end, inner, image = bin_lines(work, scratch, lanes)
    density = line(work, out + 1, lanes)
    zero, one, two = like(place[0], 0.0), like(place[0], 1.0), like(place[0], 2.0)
    for j in independent(lanes):
        known = (place[j] - bottom[j]) / height[j] if inverse else (place[j] - left[j]) / width[j]
        known = min(max(known, zero), one)
        xi, theta = (image[j], known) if inverse else (known, image[j])
        slope, rest = height[j] / width[j], one - xi
        if linear:  # Dolatabadi et al. 2020, section 3
            last = math.sqrt(start[j] / end[j])
            weight = (inner[j] * start[j] + (one - inner[j]) * last * end[j]) / slope
            middle = inner[j] * last / ((one - inner[j]) + inner[j] * last)
            lower = theta <= middle
            above = inner[j] * middle if lower else last * (one - inner[j]) * (one - middle)
            above *= weight * slope
            below = inner[j] - xi + weight * xi if lower else weight * rest + last * (xi - inner[j])
        else:  # Durkan et al. 2019, equation 5
            across = xi * rest
            above = end[j] * xi * xi + two * slope * across + start[j] * rest * rest
            below = one - two * across + (start[j] + end[j]) * across / slope
        inside = place[j] >= zero and place[j] <= one
        log_slope = log(above / (below * below)) if inside else zero
        density[j] += -log_slope if inverse else log_slope


def pull_to_bin(work: Any, numbers: Any, lanes: int, scratch: int, x: int) -> None:
    """Take gradients back to the value, in row ``x``, and to its bin, from the map's scratch space.

    What the bin's width, height and derivatives were become their gradients, the inner point and
    the place on the other axis those of its left and bottom.
    """
    keep_apart()
    inverse, spline = numbers[0] != 0.0, form_of(numbers)
    place, left, bottom, width, height, start, end, inner, image = bin_lines(work, scratch, lanes)
    outer_start, outer_end = line(work, scratch + 10, lanes), line(work, scratch + 11, lanes)
    gradient, density = line(work, x, lanes), line(work, x + 1, lanes)
    zero, one, two = like(place[0], 0.0), like(place[0], 1.0), like(place[0], 2.0)
    size, least = like(place[0], spline.width), like(place[0], spline.min_derivative)
    for j in independent(lanes):
        known = (place[j] - bottom[j]) / height[j] if inverse else (place[j] - left[j]) / width[j]
        known = min(max(known, zero), one)
        xi, theta = (image[j], known) if inverse else (known, image[j])
        # Durkan et al. 2019, equations 4 and 5, differentiated with what they call s, xi, delta.
        slope, rest = height[j] / width[j], one - xi
        across, turn = xi * rest, one - two * xi
        bend = one - two * across
        below = slope * bend + (start[j] + end[j]) * across
        above = end[j] * xi * xi + two * slope * across + start[j] * rest * rest
        steep = width[j] * (slope / below) * (slope / below) * above
        log_by_xi = (end[j] * xi + slope * turn - start[j] * rest) / above
        log_by_xi = two * (log_by_xi - (start[j] + end[j] - two * slope) * turn / below)
        of_image = gradient[j] * size
        of_log = -density[j] if inverse else density[j]
        # By the place in the bin, which the inverse solves the equation for.
        along = (of_image * width[j] if inverse else of_image * steep) + of_log * log_by_xi
        of_y = -along / steep if inverse else of_image
        scaled, folded = of_y * height[j] / below, two * across / below
        of_slope = scaled * (xi * xi - theta * bend)
        of_slope += of_log * two * (one / slope - bend / below + across / above)
        of_start = scaled * across * (one - theta) + of_log * (rest * rest / above - folded)
        of_end = of_log * (xi * xi / above - folded) - scaled * across * theta
        of_left = of_image if inverse else -along / width[j]
        of_width = of_left * xi - of_slope * slope / width[j]
        of_height = of_y * theta + of_slope / width[j]
        # The derivative of softplus, from what it gave.
        by_start = zero if outer_start[j] > zero else -expm1(least - start[j])
        by_end = zero if outer_end[j] > zero else -expm1(least - end[j])
        inside = place[j] >= zero and place[j] <= one
        back = -of_y if inverse else along / width[j]
        gradient[j] = back / size if inside else gradient[j]
        width[j] = of_width if inside else zero
        height[j] = of_height if inside else zero
        start[j] = of_start * by_start if inside else zero
        end[j] = of_end * by_end if inside else zero
        inner[j] = of_left if inside else zero
        image[j] = of_y if inside else zero


def pull_to_knots(
    work: Any, lanes: int, widths: int, bins: int, derivatives: int, knots: int, fixed: bool,
    scratch: int,
) -> None:  # fmt: skip
    """Replace raw derivatives by their gradients, which those of the bin's ends are."""
    keep_apart()
    from_x, left = line(work, scratch, lanes), line(work, scratch + 1, lanes)
    start, end = line(work, scratch + 5, lanes), line(work, scratch + 6, lanes)
    zero = like(left[0], 0.0)
    for k in range(knots):
        own = line(work, derivatives + k, lanes)
        for j in independent(lanes):
            own[j] = zero
    for j in independent(lanes):
        from_x[j] = zero
    for k in range(bins):
        w = line(work, widths + k, lanes)
        at = line(work, derivatives + edge_row(k, bins, knots, fixed), lanes)
        for j in independent(lanes):
            at[j] += start[j] if from_x[j] == left[j] else zero
        at = line(work, derivatives + edge_row(k + 1, bins, knots, fixed), lanes)
        for j in independent(lanes):
            at[j] += end[j] if from_x[j] == left[j] else zero
            from_x[j] += w[j]


def pull_to_logits(
    work: Any, lanes: int, first: int, bins: int, smallest: float, divisor: float, scratch: int,
    begin: int, before: int, own: int,
) -> None:  # fmt: skip
    """Replace fractions of the interval by the gradients of their logits.

    ``begin`` is the row of the scratch space that says where the value's bin begins; ``before`` has
    the gradient of that, which is that of every fraction before, and ``own`` that of the bin's.
    """
    keep_apart()
    sums, total = line(work, scratch, lanes), line(work, scratch + 10, lanes)
    at, of_begin, of_own = (
        line(work, scratch + begin, lanes),
        line(work, scratch + before, lanes),
        line(work, scratch + own, lanes),
    )
    zero, scale = like(at[0], 0.0), like(at[0], divisor)
    least, rest = like(at[0], smallest), like(at[0], 1.0 - smallest * bins)
    for j in independent(lanes):
        sums[j] = zero
        total[j] = zero
    for k in range(bins):
        a = line(work, first + k, lanes)
        for j in independent(lanes):
            of = of_fraction(sums[j], at[j], of_begin[j], of_own[j])
            total[j] += (a[j] - least) * of
            sums[j] += a[j]
    for j in independent(lanes):
        total[j] = total[j] / rest
        sums[j] = zero
    for k in range(bins):
        a = line(work, first + k, lanes)
        for j in independent(lanes):
            of = of_fraction(sums[j], at[j], of_begin[j], of_own[j])
            sums[j] += a[j]
            a[j] = (a[j] - least) * (of - total[j]) / scale


def of_fraction(begin: Any, at: Any, of_begin: Any, of_own: Any) -> Any:
    """Return the gradient of a fraction that begins somewhere, for a bin that begins at ``at``."""
    before = of_begin if begin < at else like(at, 0.0)
    return of_own if begin == at else before
