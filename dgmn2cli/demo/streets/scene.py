"""One synthetic street: ground, sides, sky, what stands where, light and camera noise."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np

from dgmn2cli.data.cityscapes import LABELS
from dgmn2cli.demo.streets import objects as things
from dgmn2cli.demo.streets.canvas import FAR, NEAR, Area, Brush, Camera, Canvas, Color, grain, pick, shaded, varied

ID = {label.name: label.id for label in LABELS}
INSTANCED = frozenset({"person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle"})
# What a scene can be asked to show; the rest (road, sidewalk, building, vegetation, sky, pole, person, car) always is.
OPTIONAL = (
    "bus",
    "truck",
    "train",
    "wall",
    "fence",
    "terrain",
    "motorcycle",
    "bicycle",
    "traffic light",
    "traffic sign",
)
LARGE = ("bus", "truck", "train")
SKIES: tuple[tuple[Color, Color], ...] = (  # above, at the horizon
    ((88, 138, 200), (190, 212, 230)),
    ((160, 168, 176), (206, 208, 208)),
    ((110, 120, 160), (238, 196, 150)),
    ((120, 160, 190), (222, 226, 214)),
)


@dataclass(frozen=True)
class Scene:
    """A finished scene: image (H, W, 3) uint8, blue green red; label ids (H, W) uint8; instance ids (H, W) uint16."""

    image: np.ndarray
    ids: np.ndarray
    instances: np.ndarray


@dataclass(frozen=True)
class _Street:
    """Where things are, in metres: half the road, the outer edge of the sidewalk, the house fronts, the crossing."""

    road: float
    walk: float
    front: float
    crossing: float
    camera: Camera


@dataclass(frozen=True)
class _Thing:
    """Something upright to be drawn somewhere; `draw` gets a brush with the class `label`."""

    x: float
    z: float
    label: str
    draw: Callable[[Brush], None]


def draw_scene(rng: np.random.RandomState, size: tuple[int, int], wanted: Iterable[str]) -> Scene:
    """A street of `size` (width, height) that is to show the optional classes `wanted`.

    Something near may hide what was asked for; whoever needs a class looks whether it is there.
    """
    width, height = size
    wanted = frozenset(wanted)
    above, low = SKIES[rng.randint(len(SKIES))]
    canvas = Canvas(height, width, low)
    street = _plan(rng, size, wanted)
    _sky(canvas, rng, street.camera, above, low)
    _ground(canvas, rng, street, wanted)
    _sides(canvas, rng, street, wanted)
    placed = [*_furniture(rng, street, wanted), *_traffic(rng, street, wanted), *_people(rng, street, wanted)]
    for thing in sorted(placed, key=lambda thing: -thing.z):
        thing.draw(_brush(canvas, rng, street.camera, thing))
    if rng.randint(3) == 0:
        _hood(canvas, rng)
    return Scene(_photograph(canvas, rng), canvas.ids, canvas.instances)


def _plan(rng: np.random.RandomState, size: tuple[int, int], wanted: frozenset[str]) -> _Street:
    width, height = size
    focal = min(width * 0.72, height * 1.5) * (0.9 + rng.randint(0, 21) / 100)
    camera = Camera(
        x=width * (0.40 + rng.randint(0, 21) / 100),
        horizon=height * (0.40 + rng.randint(0, 11) / 100),
        focal=focal,
        height=1.5 + rng.randint(0, 50) / 100,
    )
    road = 2.9 + rng.randint(0, 14) / 10
    walk = road + 1.7 + rng.randint(0, 12) / 10
    front = walk + (1.5 + rng.randint(0, 20) / 10 if "terrain" in wanted else rng.randint(0, 8) / 10)
    crossing = 12.5 + rng.randint(0, 40) / 10 if wanted & set(LARGE) else 0.0
    return _Street(road, walk, front, crossing, camera)


def _brush(canvas: Canvas, rng: np.random.RandomState, camera: Camera, thing: _Thing) -> Brush:
    label = ID[thing.label]
    instance = canvas.new_instance(label) if thing.label in INSTANCED else 0
    foot, mirrored = camera.point(thing.x, thing.z), bool(rng.randint(2))
    return Brush(canvas, rng, foot, camera.scale(thing.z), label, instance, thing.z, mirrored)


def _whole(canvas: Canvas, top: float, bottom: float) -> Area:
    """Full rows of the image."""
    rows = slice(max(0, int(top)), min(canvas.height, int(bottom)))
    return Area((rows, slice(0, canvas.width)), np.ones((rows.stop - rows.start, canvas.width), bool))


def _sky(canvas: Canvas, rng: np.random.RandomState, camera: Camera, above: Color, low: Color) -> None:
    """A gradient with clouds, and far houses and woods along the horizon."""
    area = _whole(canvas, 0, camera.horizon + 2)
    rows = len(area.mask)
    part = np.linspace(0, 1, rows, dtype=np.float32)[:, None, None]
    colors = np.array(above, np.float32) * (1 - part) + np.array(low, np.float32) * part
    canvas.fill(area, np.repeat(colors, canvas.width, axis=1), ID["sky"])
    for _ in range(rng.randint(0, 14)):
        x, y = rng.randint(0, canvas.width), rng.randint(0, max(1, rows * 2 // 3))
        across, down = rng.randint(4, 12) * canvas.width / 80, rng.randint(2, 5) * canvas.height / 100
        cloud = canvas.ellipse(x, y, across, down)
        if cloud is not None:
            view = canvas.colors[cloud.window]
            view[cloud.mask] = view[cloud.mask] * np.float32(0.6) + np.float32(0.4 * (215 + rng.randint(0, 30)))
    x = 0
    while x < canvas.width:
        step = max(4, int(canvas.width * rng.randint(8, 20) / 100))
        wood = rng.randint(3) == 0
        tall = canvas.height * (rng.randint(4, 9) if wood else rng.randint(8, 22)) / 100
        block = canvas.polygon(
            [
                (x, camera.horizon + 2),
                (x, camera.horizon - tall),
                (x + step, camera.horizon - tall),
                (x + step, camera.horizon + 2),
            ]
        )
        color = pick(rng, ((86, 110, 74),) if wood else FACADES)
        if block is not None:
            tone = grain(rng, block.mask.shape, max(1, canvas.height // 90), 14)[..., None]
            name = "vegetation" if wood else "building"
            canvas.fill(block, np.array(color, np.float32) + tone, ID[name], distance=60)
        x += step


FACADES: tuple[Color, ...] = (
    (196, 178, 146),
    (160, 92, 74),
    (150, 150, 152),
    (214, 208, 196),
    (188, 160, 96),
    (112, 118, 128),
    (126, 96, 80),
)


def _ground(canvas: Canvas, rng: np.random.RandomState, street: _Street, wanted: frozenset[str]) -> None:
    """Road with markings, slabs of sidewalk, and what lies beyond it up to the house fronts."""
    area = _whole(canvas, street.camera.horizon + 1, canvas.height)
    x, z = street.camera.ground(area)
    shape = area.mask.shape
    cell = max(1, canvas.height // 256)
    crossing = (street.crossing > 0) & (z > street.crossing - 2.5) & (z < street.crossing + 2.5)
    side = np.abs(x)
    road = (side < street.road) | crossing
    walk = (side < street.walk) & ~road

    asphalt = np.array(pick(rng, ((82, 82, 86), (104, 102, 100), (66, 66, 72)), 14), np.float32)
    tone = grain(rng, shape, cell, 9) + grain(rng, shape, 6 * cell, 6)
    canvas.fill(area.where(road), asphalt + tone[..., None], ID["road"])
    dashes = (side < 0.09) & (z % 5 < 2.5) | (np.abs(side - street.road + 0.35) < 0.06)
    stripes = (
        crossing & (z > street.crossing - 2.4) & (z < street.crossing - 1.2) & (x % 1.0 < 0.5) & (side < street.road)
    )
    canvas.fill(area.where(road & (z < 45) & (dashes & ~crossing | stripes)), varied(rng, (205, 205, 200)), ID["road"])

    slab = np.array(pick(rng, ((150, 146, 140), (168, 150, 134), (132, 132, 136)), 14), np.float32)
    joint = ((side % 0.75 < 0.07) | (z % 0.75 < 0.07)) & (z < 22)
    tone = grain(rng, shape, cell, 6) + grain(rng, shape, 5 * cell, 5) - 26 * joint + 26 * (side < street.road + 0.18)
    canvas.fill(area.where(walk), slab + tone[..., None], ID["sidewalk"])

    beyond = ~road & ~walk
    if "terrain" in wanted:
        grass = np.array(pick(rng, ((108, 130, 62), (134, 124, 76), (88, 112, 58))), np.float32)
        tone = grain(rng, shape, cell, 16) + grain(rng, shape, 4 * cell, 10)
        canvas.fill(area.where(beyond), grass + tone[..., None] * np.array([1, 1, 0.7], np.float32), ID["terrain"])
    else:
        canvas.fill(area.where(beyond), slab + tone[..., None], ID["sidewalk"])
    for _ in range(rng.randint(0, 5)):  # shadows of what is out of view
        foot = street.camera.point(rng.randint(-50, 51) / 10, 5 + rng.randint(0, 150) / 10)
        spot = canvas.ellipse(*foot, canvas.width * rng.randint(6, 20) / 100, canvas.height * rng.randint(1, 5) / 100)
        if spot is not None:
            canvas.darken(spot.where(spot.grid()[1] > street.camera.horizon + 1), 0.74)


def _sides(canvas: Canvas, rng: np.random.RandomState, street: _Street, wanted: frozenset[str]) -> None:
    """House fronts, walls, fences and green on both sides, from far to near."""
    low = [name for name in ("wall", "fence") if name in wanted]
    for index, sign in enumerate((-1, 1) if rng.randint(2) else (1, -1)):
        x, end = sign * street.front, FAR
        kinds = [low[index % len(low)]] if low and (index == 0 or len(low) > 1) else []
        while end > NEAR:
            start = max(NEAR, end * (0.45 + rng.randint(0, 25) / 100))
            near = start < 12
            kind = kinds[0] if kinds and near else ("building", "building", "building", "green")[rng.randint(4)]
            gap = street.crossing and start < street.crossing < end
            for first, last in (
                [(street.crossing + 2.7, end), (start, street.crossing - 2.7)] if gap else [(start, end)]
            ):
                if first < last:
                    _side(canvas, rng, street.camera, kind, x, (first, last))
            end = start


def _side(
    canvas: Canvas, rng: np.random.RandomState, camera: Camera, kind: str, x: float, span: tuple[float, float]
) -> None:
    """One stretch of a side."""
    if kind == "building":
        _upright(canvas, camera, x, span, 6 + rng.randint(0, 60) / 10, _facade(rng), "building")
        return
    for _ in range(1 + int(rng.randint(3))):  # green behind walls and fences, or alone
        z = span[0] + (span[1] - span[0]) * rng.randint(0, 100) / 100
        behind = x * (1.15 if kind != "green" else 1.0)
        foot, scale = camera.point(behind, max(z, NEAR)), camera.scale(max(z, NEAR))
        things.tree(Brush(canvas, rng, foot, scale, ID["vegetation"], 0, z))
    if kind == "green":
        z = (span[0] + span[1]) / 2
        foot, scale = camera.point(x, z), camera.scale(z)
        things.hedge(Brush(canvas, rng, foot, scale, ID["vegetation"], 0, z), 4.5, 1.1)
    elif kind == "wall":
        _upright(canvas, camera, x, span, 2.1 + rng.randint(0, 9) / 10, _bricks(rng), "wall")
    else:
        _upright(canvas, camera, x, span, 1.9 + rng.randint(0, 8) / 10, _bars(rng), "fence")


Surface = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]  # (z, up, colours so far) -> colours


def _upright(
    canvas: Canvas, camera: Camera, x: float, span: tuple[float, float], height: float, surface: Surface, label: str
) -> None:
    """A plane along the street, painted by what its surface is at each (distance, height)."""
    near, far = span
    area = canvas.polygon(
        [camera.point(x, near), camera.point(x, far), camera.point(x, far, height), camera.point(x, near, height)]
    )
    if area is None:
        return
    z, up = camera.side(area, x)
    canvas.fill(area, surface(z, up, canvas.colors[area.window]), ID[label], distance=(near + far) / 4)


def _facade(rng: np.random.RandomState) -> Surface:
    """Plaster or brick with rows of windows."""
    color, glass = pick(rng, FACADES), pick(rng, ((64, 76, 88), (40, 46, 54), (110, 126, 138)))
    wide, tall, sill = 1.9 + rng.randint(0, 14) / 10, 2.6 + rng.randint(0, 8) / 10, 0.7 + rng.randint(0, 5) / 10
    lined = bool(rng.randint(2))

    def paint(z: np.ndarray, up: np.ndarray, behind: np.ndarray) -> np.ndarray:
        across, along = z % wide / wide, (up - 0.4) % tall
        window = (across > 0.28) & (across < 0.75) & (along > sill) & (along < tall - 0.5) & (up > 0.4)
        frame = (across > 0.23) & (across < 0.8) & (along > sill - 0.14) & (along < tall - 0.38) & (up > 0.4) & ~window
        tone = grain(rng, z.shape, 2, 6) - 14 * ((up % 0.42 < 0.07) & lined) - 30 * (up < 0.5) + 26 * frame
        colors = np.array(color, np.float32) + tone[..., None]
        colors[window] = np.array(glass, np.float32) + (up[window] * 2)[:, None]
        return colors

    return paint


def _bricks(rng: np.random.RandomState) -> Surface:
    """Courses of large stones, with a coping."""
    color = pick(rng, ((150, 118, 98), (138, 136, 132), (168, 158, 138)))

    def paint(z: np.ndarray, up: np.ndarray, behind: np.ndarray) -> np.ndarray:
        course = np.floor(up / 0.3)
        joint = (up % 0.3 < 0.06) | ((z + 0.35 * (course % 2)) % 0.7 < 0.08)
        stone = (course * 7 + np.floor((z + 0.35 * (course % 2)) / 0.7) * 13) % 5 * 7 - 14
        tone = np.where(joint, -38, stone) + grain(rng, z.shape, 2, 6)
        return np.array(color, np.float32) + tone[..., None]

    return paint


def _bars(rng: np.random.RandomState) -> Surface:
    """Pickets and two rails; between them is what lies behind."""
    color = pick(rng, ((96, 72, 52), (64, 68, 66), (176, 174, 166)))
    pitch = 0.32 + rng.randint(0, 14) / 100

    def paint(z: np.ndarray, up: np.ndarray, behind: np.ndarray) -> np.ndarray:
        rail = ((up > 0.3) & (up < 0.46)) | ((up > 1.15) & (up < 1.31))
        bar = z % pitch < pitch * 0.6
        tone = grain(rng, z.shape, 2, 7)[..., None] - 12 * rail[..., None]
        return np.where((bar | rail)[..., None], np.array(color, np.float32) + tone, behind * np.float32(0.85))

    return paint


def _distances(rng: np.random.RandomState, count: int, near: float, far: float) -> list[float]:
    """Distances, spread so that near ones are as likely as their size in the image asks."""
    return [near * far / (near + (far - near) * rng.randint(0, 101) / 100) for _ in range(count)]


def _furniture(rng: np.random.RandomState, street: _Street, wanted: frozenset[str]) -> list[_Thing]:
    """What stands at the kerb and behind it: lamps, lights, signs, trees, bins."""
    kerb, found = street.road + 0.45, []

    def light(brush: Brush) -> None:
        things.traffic_light(brush, ID["traffic light"])

    def sign(brush: Brush) -> None:
        things.traffic_sign(brush, ID["traffic sign"])

    def side() -> int:
        return 1 if rng.randint(2) else -1

    found += [_Thing(side() * kerb, z, "pole", things.lamp_post) for z in _distances(rng, 2, 6, 16)]
    if "traffic light" in wanted:
        found += [_Thing(side() * kerb, z, "pole", light) for z in _distances(rng, 2, 5.5, 14)]
    if "traffic sign" in wanted:
        found += [_Thing(side() * kerb, z, "pole", sign) for z in _distances(rng, 3, 5, 16)]
    for z in _distances(rng, 1 + rng.randint(2), 8, 35):
        found.append(_Thing(side() * (street.walk + 0.3), z, "vegetation", things.tree))
    for z in _distances(rng, rng.randint(2), 6, 15):
        found.append(_Thing(side() * (street.walk - 0.3), z, "static", _bin))
    return found


def _bin(brush: Brush) -> None:
    color = pick(brush.rng, ((60, 90, 60), (70, 70, 74), (120, 90, 50)))
    brush.polygon([(-0.3, 0), (0.3, 0), (0.36, 1.0), (-0.36, 1.0)], color)
    brush.box(-0.4, 1.0, 0.4, 1.12, shaded(color, -20))


def _traffic(rng: np.random.RandomState, street: _Street, wanted: frozenset[str]) -> list[_Thing]:
    """Cars in both lanes, parked or crossing; one large vehicle on the crossing; two-wheelers."""
    found = []
    for z in _distances(rng, 1 + rng.randint(3), 6, 30):
        lane = (1 if rng.randint(2) else -1) * street.road * (0.45 + rng.randint(0, 25) / 100)
        found.append(_Thing(lane, z, "car", things.car_rear))
    large = [name for name in LARGE if name in wanted]
    drawers = {"bus": things.bus, "truck": things.truck, "train": things.train}
    for i, name in enumerate(large):
        x = (rng.randint(-40, 41) / 10) + (i - (len(large) - 1) / 2) * 9
        found.append(_Thing(x, street.crossing + 1.6 - 1.2 * (i % 2), name, drawers[name]))
    if rng.randint(2):
        z = street.crossing - 1.5 if street.crossing else 9 + rng.randint(0, 60) / 10
        found.append(_Thing(rng.randint(-45, 46) / 10, z, "car", things.car_side))
    for name, draw in (("motorcycle", things.motorcycle), ("bicycle", things.bicycle)):
        if name in wanted:
            for z in _distances(rng, 1 + rng.randint(2), 4.5, 9.5):
                ridden = bool(rng.randint(4))
                x = rng.randint(-100, 101) / 100 * z * 0.55
                found.append(_Thing(x, z, name, _with_rider(draw, ridden)))
    return found


def _with_rider(draw: Callable[[Brush, Brush | None], None], ridden: bool) -> Callable[[Brush], None]:
    """The two-wheeler's drawing with or without a rider, who is an instance of the class rider."""

    def both(brush: Brush) -> None:
        label = ID["rider"]
        rider = replace(brush, label=label, instance=brush.canvas.new_instance(label)) if ridden else None
        draw(brush, rider)

    return both


def _people(rng: np.random.RandomState, street: _Street, wanted: frozenset[str]) -> list[_Thing]:
    found = []
    for z in _distances(rng, 3 + rng.randint(4), 4.5, 13):
        if rng.randint(4):
            x = (1 if rng.randint(2) else -1) * (street.road + (street.walk - street.road) * rng.randint(30, 100) / 100)
        else:
            x = rng.randint(-100, 101) / 100 * street.road
        found.append(_Thing(x, z, "person", things.person))
    return found


def _hood(canvas: Canvas, rng: np.random.RandomState) -> None:
    """The bonnet of the car that carries the camera."""
    area = canvas.ellipse(canvas.width / 2, canvas.height * 1.08, canvas.width * 0.62, canvas.height * 0.16)
    if area is not None:
        rows = np.linspace(40, -10, len(area.mask), dtype=np.float32)[:, None, None]
        colors = np.array(pick(rng, ((40, 42, 48), (120, 122, 126), (90, 30, 32))), np.float32) + rows
        canvas.fill(area, np.repeat(colors, area.mask.shape[1], axis=1), ID["ego vehicle"])


def _photograph(canvas: Canvas, rng: np.random.RandomState) -> np.ndarray:
    """What the camera makes of the scene: exposure, colour cast, vignette, soft lens, sensor noise."""
    exposure = 0.78 + rng.randint(0, 38) / 100
    cast = np.array([0.93 + rng.randint(0, 15) / 100 for _ in range(3)], np.float32)
    columns = (np.arange(canvas.width, dtype=np.float32) + 0.5) / canvas.width * 2 - 1
    rows = (np.arange(canvas.height, dtype=np.float32) + 0.5) / canvas.height * 2 - 1
    vignette = 1 - np.float32(0.12) * (columns[None] ** 2 + rows[:, None] ** 2)
    light = canvas.colors * (cast * np.float32(exposure)) * vignette[..., None]
    sharp = np.clip(light, 0, 255).astype(np.uint8)
    padded = np.pad(sharp.astype(np.uint16), ((1, 1), (1, 1), (0, 0)), mode="edge")
    soft = padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]
    soft = (soft[:-2] + 2 * soft[1:-1] + soft[2:] + 8) // 16
    shape = (canvas.height, canvas.width, 3)
    noise = rng.randint(-5, 6, shape, np.int16) + rng.randint(-5, 6, shape, np.int16)
    image = np.clip(soft.astype(np.int16) + noise, 0, 255).astype(np.uint8)
    return np.ascontiguousarray(image[..., ::-1])
