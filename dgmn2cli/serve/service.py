"""The network's one thread, and the way of a request to it: a place, the body, the check, the wait, the answer."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

from dgmn2cli.data.images import check_image, decode_image
from dgmn2cli.errors import ConfigError, ResourceError
from dgmn2cli.files import to_plain
from dgmn2cli.inference.explain import Explanation, require_explicable
from dgmn2cli.inference.plan import DECODE_BYTES, Settings, resolve_settings
from dgmn2cli.inference.segmenter import Segmenter
from dgmn2cli.runtime import is_out_of_memory
from dgmn2cli.serve.metrics import Metrics
from dgmn2cli.serve.request import ServeRequest
from dgmn2cli.zoo import short_name

KINDS = {"ids": "ids", "overlay": "overlay", "json": "stats"}  # what `save=` names, and what `infer` calls it
FAR_EDGES = 60  # edges of the second hop that are sent of each block
Goes = Callable[[], None]  # raises where the work is to stop
Work = Callable[[bytes, Goes], bytes]


class Service:
    """A network for many clients: one request is computed at a time, some wait, the others are refused at once.

    Raises:
        ConfigError: impossible settings.
    """

    def __init__(self, segmenter: Segmenter, settings: Settings, request: ServeRequest) -> None:
        self.segmenter, self.settings, self.request = segmenter, settings, request
        self.protocol = resolve_settings(settings, segmenter.inference, segmenter.device)
        self.places, self.taken = request.queue + 1, 0
        self.metrics = Metrics(self.places, lambda: self.taken)
        self.ending = False
        self._seconds = 1.0  # that the last answer took
        self._reading: set[asyncio.Timeout] = set()
        self._thread = ThreadPoolExecutor(1, "dgmn2-network")

    def end(self) -> None:
        """No more bodies are waited for, and what is computed stops after the present window; within the loop."""
        self.ending = True
        for limit in self._reading:
            with suppress(RuntimeError):  # it is over already
                limit.reschedule(0)

    def close(self) -> None:
        """Waits for the network's thread."""
        self._thread.shutdown()

    def describe(self) -> dict[str, Any]:
        """The model, its classes and the limits, as JSON types."""
        info, classes = self.segmenter.info, self.segmenter.classes
        try:
            require_explicable(self.segmenter.network)
            explains = True
        except ConfigError:
            explains = False
        names = ("sha256", "licence", "device_name", "precision", "form", "runtime", "backend")
        return {
            "model": short_name(info.model),
            **{name: getattr(info, name) for name in names},
            "protocol": to_plain(self.protocol),
            "classes": [
                {"name": name, "color": classes.palette[index].tolist()} for index, name in enumerate(classes.names)
            ],
            "explains": explains,
            "max_bytes": self.request.max_bytes,
            "max_pixels": self.settings.max_pixels,
        }

    # --- on the network's thread --------------------------------------------------------------------------------------

    def segment(self, kind: str, data: bytes, go_on: Goes) -> bytes:
        """The file of one of `KINDS` of an image."""
        segmenter, done = self.segmenter, 0
        image = decode_image(data, self.settings.max_pixels)
        plan = segmenter.plan(image.shape[:2], self.settings)

        def advance(windows: int) -> None:
            nonlocal done
            done += windows
            self.metrics.windows.inc(windows)
            if done < plan.windows:
                go_on()

        return segmenter.predict_planned(image, plan, self.settings, advance).encode(KINDS[kind])

    def explain(self, x: float, y: float, data: bytes, go_on: Goes) -> bytes:
        """The nodes that a pixel's class was made from, as JSON."""
        image = decode_image(data, self.settings.max_pixels)[:, :, ::-1]
        made = self.segmenter.explain(image, x, y, self.settings)
        self.metrics.windows.inc()
        return json.dumps(_brief(made), separators=(",", ":")).encode() + b"\n"

    # --- within the event loop ----------------------------------------------------------------------------------------

    async def answer(self, request: Request, work: Work) -> bytes:
        """What `work` makes of a request's body, in its turn.

        Raises:
            HTTPException: all places are taken, the time is up, the server ends, or the body is not as it should be.
            ClientDisconnect: nobody waits for the answer any more; at the next window the network goes on to others.
            Dgmn2Error: of the work.
        """
        if self.taken >= self.places:
            raise self._busy(f"all {self.places} places for requests are taken")
        deadline = asyncio.get_running_loop().time() + self.request.timeout
        self.taken += 1
        try:
            return await self._compute(request, partial(work, await self._read(request, deadline)), deadline)
        finally:
            self.taken -= 1

    async def _read(self, request: Request, deadline: float) -> bytes:
        """The body, which claims to be an image of a size that is allowed."""
        most, parts, size = self.request.max_bytes, [], 0
        too_large = HTTPException(413, f"the body has more than {most:,} bytes, the server's --max-bytes")
        if int(request.headers.get("content-length", 0)) > most:
            raise too_large
        limit = asyncio.timeout_at(0 if self.ending else deadline)
        try:
            async with limit:
                self._reading.add(limit)
                async for part in request.stream():
                    size += len(part)
                    if size > most:
                        raise too_large
                    parts.append(part)
                if not size:
                    raise HTTPException(400, "the body is empty; it should be an image file")
                data = b"".join(parts)
                header = await asyncio.to_thread(check_image, data, self.settings.max_pixels)
        except TimeoutError:
            if self.ending:
                raise self._busy("the server is ending") from None
            raise HTTPException(408, f"the body did not arrive within {self.request.timeout:g} s") from None
        finally:
            self._reading.discard(limit)
        if self.segmenter.device.type == "cpu":
            needed = DECODE_BYTES * header.width * header.height
            self.segmenter.require_room(self.settings, needed, "decoding the image")
        return data

    async def _compute(self, request: Request, work: Callable[[Goes], bytes], deadline: float) -> bytes:
        wanted = True

        def go_on() -> None:
            if self.ending:
                raise self._busy("the server is ending")
            if not wanted:
                raise ClientDisconnect

        answer = asyncio.get_running_loop().run_in_executor(self._thread, self._timed, work, go_on)
        gone = asyncio.ensure_future(request.receive())  # there is nothing more to receive but the connection's end
        try:
            async with asyncio.timeout_at(deadline):
                await asyncio.wait((answer, gone), return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                raise ClientDisconnect
            return answer.result()
        except TimeoutError:
            raise self._busy(f"there is no answer after {self.request.timeout:g} s, the server's --timeout") from None
        finally:
            wanted = False
            answer.cancel()
            gone.cancel()

    def _timed(self, work: Callable[[Goes], bytes], go_on: Goes) -> bytes:
        """Does the work, on the network's thread."""
        go_on()
        began = time.perf_counter()
        try:
            return work(go_on)
        except (RuntimeError, MemoryError) as error:
            if is_out_of_memory(error):
                raise ResourceError("out of memory") from error
            raise
        finally:
            self._seconds = time.perf_counter() - began
            self.metrics.busy.inc(self._seconds)

    def _busy(self, why: str) -> HTTPException:
        return HTTPException(503, why, {"Retry-After": str(max(math.ceil(self._seconds), 1))})


def _brief(made: Explanation) -> dict[str, Any]:
    """An explanation without logits, its numbers rounded, and of the second hop the heaviest edges only."""

    def node(x: float, y: float, weight: float) -> list[float]:
        return [round(x, 2), round(y, 2), round(weight, 4)]

    blocks = [
        {
            "stage": block.stage,
            "block": block.block,
            "map": block.map,
            "x": round(block.x, 2),
            "y": round(block.y, 2),
            "heads": [[node(*found) for found in head.nodes] for head in block.heads],
            "hops": [
                [round(start[0], 2), round(start[1], 2), *node(*found)]
                for start, found in block.second_hop()[:FAR_EDGES]
            ],
        }
        for block in made.blocks
    ]
    return {
        "model": short_name(made.model),
        "x": made.x,
        "y": made.y,
        "predicted": made.predicted,
        "confidence": made.confidence,
        "window": to_plain(made.window),
        "blocks": blocks,
    }
