"""The things that stand in a synthetic street: people, vehicles, signs, trees, drawn with a brush in metres."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from dgmn2cli.demo.streets.canvas import Brush, Color, grain, pick, shaded, varied

CLOTHES: tuple[Color, ...] = (
    (170, 40, 40),
    (40, 60, 140),
    (60, 60, 62),
    (190, 180, 160),
    (50, 110, 80),
    (200, 150, 60),
)
SKIN: tuple[Color, ...] = ((224, 180, 150), (180, 130, 100), (110, 75, 55))
PAINT: tuple[Color, ...] = ((180, 30, 35), (40, 70, 150), (210, 210, 212), (60, 62, 66), (150, 155, 160), (30, 90, 70))
GLASS: Color = (60, 78, 92)
RUBBER: Color = (30, 30, 33)
METAL: Color = (120, 124, 126)


def person(brush: Brush) -> None:
    """Someone standing or walking, 1.5 to 1.9 m."""
    rng = brush.rng
    height = 1.5 + rng.randint(0, 40) / 100
    stride = rng.randint(5, 32) / 100
    coat, legs = pick(rng, CLOTHES), pick(rng, ((45, 45, 60), (70, 60, 50), (35, 50, 90)))
    hip, shoulder = 0.48 * height, 0.83 * height
    brush.shadow(0.4, 0.12)
    for side in (-1, 1):
        foot = side * stride
        brush.polygon([(foot - 0.1, 0), (foot + 0.1, 0), (0.17, hip), (-0.17, hip)], shaded(legs, 8 * side))
    brush.polygon([(-0.24, hip - 0.06), (0.24, hip - 0.06), (0.27, shoulder), (-0.27, shoulder)], coat)
    for side in (-1, 1):
        swing = side * (0.33 + stride / 3)
        brush.polygon(
            [(side * 0.2, shoulder), (side * 0.32, shoulder - 0.05), (swing, hip), (swing - side * 0.12, hip)],
            shaded(coat, -20),
        )
    brush.disc(0, shoulder + 0.17, 0.16, pick(rng, SKIN))
    brush.polygon(
        [(-0.15, shoulder + 0.2), (0.15, shoulder + 0.2), (0.1, shoulder + 0.34), (-0.1, shoulder + 0.34)],
        pick(rng, ((40, 30, 25), (90, 60, 30), (180, 150, 90))),
    )


def _rider(brush: Brush, seat: float, reach: float) -> None:
    """Someone bent over handlebars, on a seat at a height, the hands `reach` ahead."""
    rng = brush.rng
    coat = pick(rng, CLOTHES)
    legs = pick(rng, ((45, 45, 60), (70, 60, 50)))
    brush.polygon([(-0.28, seat + 0.12), (0.02, seat + 0.08), (0.28, 0.5), (0.12, 0.42), (-0.2, seat - 0.12)], legs)
    brush.polygon([(0.12, 0.5), (0.28, 0.5), (0.16, 0.18), (0.02, 0.18)], shaded(legs, -12))
    brush.polygon([(-0.34, seat), (0.0, seat), (0.4, seat + 0.62), (0.06, seat + 0.7)], coat)
    brush.polygon(
        [(0.22, seat + 0.62), (0.38, seat + 0.56), (reach, seat + 0.22), (reach - 0.1, seat + 0.1)], shaded(coat, -20)
    )
    brush.disc(0.36, seat + 0.82, 0.17, pick(rng, SKIN))
    brush.polygon(  # a helmet
        [(0.17, seat + 0.84), (0.55, seat + 0.86), (0.48, seat + 1.02), (0.26, seat + 1.03)],
        pick(rng, ((220, 220, 225), (30, 30, 34), (210, 50, 40), (230, 200, 40))),
    )


def bicycle(brush: Brush, rider: Brush | None) -> None:
    """A bicycle seen from its side, 1.8 m long; with a rider where a brush for one is given."""
    frame = pick(brush.rng, ((200, 40, 40), (40, 120, 60), (50, 60, 70), (220, 200, 60)))
    brush.shadow(0.9, 0.1)
    for x in (-0.58, 0.58):
        brush.ring(x, 0.36, 0.37, 0.08, RUBBER)
        brush.polygon([(x - 0.03, 0.05), (x + 0.03, 0.05), (x + 0.03, 0.67), (x - 0.03, 0.67)], METAL)
        brush.polygon([(x - 0.3, 0.34), (x - 0.3, 0.39), (x + 0.3, 0.39), (x + 0.3, 0.34)], METAL)
    for bar in (
        [(-0.58, 0.33), (-0.58, 0.42), (-0.2, 0.86), (-0.14, 0.8)],
        [(-0.2, 0.86), (-0.2, 0.77), (0.42, 0.8), (0.42, 0.9)],
        [(-0.02, 0.3), (0.06, 0.3), (0.46, 0.86), (0.38, 0.9)],
        [(-0.58, 0.33), (-0.58, 0.41), (0.06, 0.38), (0.06, 0.29)],
        [(0.54, 0.34), (0.62, 0.36), (0.46, 0.98), (0.38, 0.96)],
        [(0.34, 0.95), (0.34, 1.03), (0.6, 1.05), (0.6, 0.97)],
        [(-0.34, 0.88), (-0.34, 0.96), (-0.06, 0.96), (-0.06, 0.88)],
    ):
        brush.polygon(bar, frame)
    if rider is not None:
        _rider(rider, 0.94, 0.56)


def motorcycle(brush: Brush, rider: Brush | None) -> None:
    """A motorcycle seen from its side, 2.2 m long; with a rider where a brush for one is given."""
    tank = pick(brush.rng, PAINT)
    brush.shadow(1.1, 0.13)
    for x in (-0.75, 0.75):
        brush.disc(x, 0.33, 0.34, RUBBER)
        brush.disc(x, 0.33, 0.18, METAL)
    brush.polygon([(-0.7, 0.3), (0.5, 0.25), (0.6, 0.55), (-0.6, 0.6)], (60, 60, 64))
    brush.polygon([(-1.0, 0.62), (-0.1, 0.5), (0.05, 0.78), (-0.95, 0.86)], shaded(RUBBER, 14))
    brush.polygon([(-0.1, 0.55), (0.6, 0.55), (0.55, 0.98), (0.1, 1.0)], tank)
    brush.polygon([(0.55, 0.5), (0.85, 0.35), (0.75, 1.05), (0.5, 1.1)], shaded(tank, -18))
    brush.disc(0.74, 0.9, 0.12, (245, 240, 210))
    brush.polygon([(-0.9, 0.24), (0.1, 0.24), (0.1, 0.34), (-0.9, 0.34)], (170, 172, 175))
    if rider is not None:
        _rider(rider, 0.86, 0.6)


def _wheels(brush: Brush, centers: tuple[float, ...], radius: float) -> None:
    for x in centers:
        brush.disc(x, radius, radius, RUBBER)
        brush.disc(x, radius, radius * 0.5, METAL)


def car_side(brush: Brush) -> None:
    """A car across the view, 4.2 m long."""
    paint = pick(brush.rng, PAINT)
    brush.shadow(2.2, 0.2)
    brush.polygon(
        [
            (-2.1, 0.3),
            (2.1, 0.3),
            (2.1, 0.72),
            (1.9, 0.9),
            (0.95, 0.98),
            (0.45, 1.45),
            (-1.1, 1.45),
            (-1.75, 0.95),
            (-2.1, 0.9),
        ],
        paint,
    )
    brush.polygon([(-1.5, 0.97), (-1.0, 1.36), (-0.35, 1.36), (-0.35, 0.97)], GLASS)
    brush.polygon([(-0.25, 0.97), (-0.25, 1.36), (0.4, 1.36), (0.8, 0.97)], GLASS)
    brush.box(-0.32, 0.32, -0.28, 0.95, shaded(paint, -40))
    brush.box(1.88, 0.66, 2.1, 0.82, (245, 240, 205))
    brush.box(-2.1, 0.68, -1.95, 0.84, (190, 25, 25))
    _wheels(brush, (-1.3, 1.3), 0.34)


def car_rear(brush: Brush) -> None:
    """A car that drives away (or comes), 1.8 m wide."""
    paint, coming = pick(brush.rng, PAINT), bool(brush.rng.randint(2))
    brush.shadow(1.05, 0.22)
    for side in (-1, 1):
        brush.box(min(side * 0.85, side * 0.55), 0, max(side * 0.85, side * 0.55), 0.4, RUBBER)
    brush.polygon([(-0.92, 0.22), (0.92, 0.22), (0.92, 0.85), (0.8, 0.98), (-0.8, 0.98), (-0.92, 0.85)], paint)
    brush.polygon([(-0.8, 0.96), (0.8, 0.96), (0.62, 1.48), (-0.62, 1.48)], shaded(paint, -12))
    brush.polygon([(-0.7, 1.0), (0.7, 1.0), (0.55, 1.4), (-0.55, 1.4)], GLASS)
    lamp: Color = (250, 245, 215) if coming else (195, 25, 25)
    for side in (-1, 1):
        brush.box(min(side * 0.88, side * 0.6), 0.66, max(side * 0.88, side * 0.6), 0.84, lamp)
    brush.box(-0.26, 0.42, 0.26, 0.56, (235, 235, 230))
    brush.box(-0.9, 0.22, 0.9, 0.34, shaded(paint, -45))


def truck(brush: Brush) -> None:
    """A lorry across the view, 7 m long: a plain box behind a cab."""
    rng = brush.rng
    cab, cargo = pick(rng, PAINT), pick(rng, ((215, 212, 200), (190, 196, 205), (205, 180, 140), (150, 160, 150)))
    brush.shadow(3.6, 0.3)
    brush.box(-3.5, 0.5, 3.4, 0.85, (48, 48, 52))
    brush.box(-3.5, 0.85, 1.5, 3.3, cargo)
    for rib in range(-6, 3):
        brush.box(rib / 2 - 0.04, 0.85, rib / 2 + 0.02, 3.3, shaded(cargo, -22))
    brush.box(-3.5, 0.85, 1.5, 1.0, shaded(cargo, -45))
    brush.polygon([(1.65, 0.45), (3.5, 0.45), (3.5, 1.5), (3.2, 2.5), (1.65, 2.6)], cab)
    brush.polygon([(2.3, 1.5), (3.38, 1.5), (3.14, 2.3), (2.3, 2.3)], GLASS)
    brush.box(3.2, 0.6, 3.5, 0.85, (245, 240, 205))
    _wheels(brush, (-2.6, -1.6, 2.5), 0.5)


def bus(brush: Brush) -> None:
    """A bus across the view, 9 m long: one bright colour and a band of tall windows."""
    rng = brush.rng
    paint = pick(rng, ((225, 175, 40), (200, 45, 40), (60, 130, 70), (235, 130, 40)))
    brush.shadow(4.6, 0.3)
    brush.polygon([(-4.5, 0.35), (4.5, 0.35), (4.5, 2.6), (4.2, 3.0), (-4.4, 3.0), (-4.5, 2.8)], paint)
    brush.box(-4.4, 1.3, 4.5, 2.5, shaded(GLASS, -10))
    for x in range(-4, 5):
        brush.box(x - 0.08, 1.3, x + 0.08, 2.5, paint)
    for door in (-2.5, 1.5):
        brush.box(door, 0.45, door + 0.9, 2.5, shaded(GLASS, 25))
        brush.box(door + 0.42, 0.45, door + 0.48, 2.5, shaded(paint, -60))
    brush.box(2.4, 2.62, 4.1, 2.9, (25, 25, 20))
    brush.box(2.6, 2.68, 3.9, 2.84, (240, 170, 30))
    _wheels(brush, (-3.1, 3.2), 0.48)


def train(brush: Brush) -> None:
    """A tram on its rails, 12 m long: two colours, rounded ends, a pantograph."""
    rng = brush.rng
    lower = pick(rng, ((40, 90, 160), (30, 110, 110), (120, 40, 60)))
    upper = varied(rng, (228, 226, 215))
    brush.box(-7.5, -0.02, 7.5, 0.08, (92, 88, 84))
    brush.shadow(6.0, 0.2)
    for x in (-4.5, -1.5, 1.5, 4.5):
        brush.box(x - 0.7, 0.1, x + 0.7, 0.5, RUBBER)
    ends = [(-6.0, 0.3), (6.0, 0.3), (6.1, 1.4), (5.7, 3.1), (5.4, 3.3), (-5.4, 3.3), (-5.7, 3.1), (-6.1, 1.4)]
    brush.polygon(ends, upper)
    brush.polygon([(-6.0, 0.3), (6.0, 0.3), (6.1, 1.4), (-6.1, 1.4)], lower)
    brush.box(-6.05, 1.42, 6.05, 1.58, shaded(lower, 50))
    for x in range(-5, 6):
        brush.box(x - 0.32, 1.85, x + 0.32, 2.75, GLASS)
    for x in (-2.5, 2.5):  # joints between the cars
        brush.box(x - 0.14, 0.3, x + 0.14, 3.3, (70, 70, 74))
    brush.polygon([(-0.5, 3.3), (-0.4, 3.3), (0.35, 4.0), (0.25, 4.0)], METAL)
    brush.polygon([(0.25, 4.0), (0.35, 4.0), (-0.3, 4.6), (-0.4, 4.6)], METAL)
    brush.box(-0.9, 4.58, 0.4, 4.68, METAL)


def pole(brush: Brush, height: float, half_width: float = 0.17) -> None:
    """A round post."""
    metal = pick(brush.rng, ((110, 114, 116), (88, 98, 92), (140, 138, 130)), 10)
    brush.box(-half_width, 0, half_width, height, metal)
    brush.box(-half_width, 0, -half_width / 3, height, shaded(metal, 28))
    brush.box(-half_width * 1.6, 0, half_width * 1.6, 0.3, shaded(metal, -15))


def lamp_post(brush: Brush) -> None:
    """A street lamp, 5 m, its arm over the road."""
    pole(brush, 5.2)
    brush.polygon([(0, 5.0), (0, 5.2), (1.3, 5.5), (1.3, 5.35)], (110, 114, 116))
    brush.polygon([(0.9, 5.3), (1.7, 5.45), (1.7, 5.6), (0.9, 5.55)], (215, 215, 205))


def traffic_light(brush: Brush, label: int) -> None:
    """Lights on a post; the head bears `label`, the post the brush's own."""
    pole(brush, 2.8)
    head = replace(brush, label=label)
    head.box(-0.36, 2.5, 0.36, 4.1, (34, 38, 36))
    head.box(-0.3, 2.56, 0.3, 4.04, (22, 24, 24))
    lit = int(brush.rng.randint(3))
    colors: tuple[Color, ...] = ((60, 215, 120), (245, 190, 50), (235, 55, 45))
    for i, color in enumerate(colors):
        head.disc(0, 2.82 + 0.48 * i, 0.2, color if i == lit else shaded((52, 46, 40), 6 * i))


def traffic_sign(brush: Brush, label: int) -> None:
    """A sign on a post: prohibition disc, warning triangle, blue direction or yellow diamond."""
    pole(brush, 2.3, 0.14)
    plate, kind = replace(brush, label=label), int(brush.rng.randint(4))
    if kind == 0:
        plate.disc(0, 2.75, 0.62, (205, 35, 40))
        plate.disc(0, 2.75, 0.44, (240, 240, 236))
        plate.box(-0.26, 2.67, 0.26, 2.85, (30, 30, 30))
    elif kind == 1:
        plate.polygon([(-0.75, 2.2), (0.75, 2.2), (0, 3.45)], (205, 35, 40))
        plate.polygon([(-0.48, 2.35), (0.48, 2.35), (0, 3.14)], (240, 240, 236))
        plate.box(-0.07, 2.45, 0.07, 2.85, (30, 30, 30))
    elif kind == 2:
        plate.box(-0.65, 2.2, 0.65, 3.4, (35, 80, 165))
        arrow = [(-0.14, 2.35), (0.14, 2.35), (0.14, 2.85), (0.38, 2.85), (0, 3.28), (-0.38, 2.85), (-0.14, 2.85)]
        plate.polygon(arrow, (240, 240, 240))
    else:
        plate.polygon([(0, 2.05), (0.72, 2.77), (0, 3.49), (-0.72, 2.77)], (240, 240, 235))
        plate.polygon([(0, 2.22), (0.55, 2.77), (0, 3.32), (-0.55, 2.77)], (240, 195, 45))


def tree(brush: Brush) -> None:
    """A tree, 4 to 7 m: a trunk and a crown of leafy clumps; green, olive or autumnal."""
    rng = brush.rng
    height = 4 + rng.randint(0, 30) / 10
    leaves = pick(rng, ((62, 104, 46), (84, 116, 58), (48, 84, 50), (120, 116, 50), (150, 104, 48)))
    brush.polygon([(-0.2, 0), (0.2, 0), (0.13, height * 0.6), (-0.13, height * 0.6)], varied(rng, (84, 66, 50)))
    for _ in range(16):
        x, y = rng.randint(-130, 131) / 100, height * (0.42 + rng.randint(0, 50) / 100)
        leaf_clump(brush, x, y, 0.55 + rng.randint(0, 45) / 100, varied(rng, leaves, 22))


def hedge(brush: Brush, length: float, height: float) -> None:
    """A row of bushes."""
    leaves = pick(brush.rng, ((58, 96, 44), (74, 104, 52), (50, 80, 46)))
    steps = int(length / 0.45) + 1
    for i in range(steps):
        x = -length / 2 + i * 0.45
        for y in (height * 0.3, height * 0.7):
            leaf_clump(brush, x, y + brush.rng.randint(-12, 13) / 100, height * 0.42, varied(brush.rng, leaves, 22))


def leaf_clump(brush: Brush, x: float, y: float, radius: float, color: Color) -> None:
    """A ragged, speckled ball of leaves, lit from above."""
    px, py = brush.foot[0] + x * brush.scale, brush.foot[1] - y * brush.scale
    area = brush.canvas.ellipse(px, py, radius * brush.scale, radius * brush.scale)
    if area is None:
        return
    cell = max(1, int(brush.scale / 9))
    speckle = grain(brush.rng, area.mask.shape, cell, 26) + grain(brush.rng, area.mask.shape, 2 * cell, 16)
    columns, rows = area.grid()
    edge = ((columns - px) ** 2 + (rows - py) ** 2) / (radius * brush.scale) ** 2
    ragged = area.where(edge + speckle / 110 < 0.95)
    light = (py - rows) / (radius * brush.scale) * 20
    colors = np.array(color, np.float32) + (speckle + light)[..., None]
    brush.canvas.fill(ragged, colors, brush.label, brush.instance, brush.distance)
